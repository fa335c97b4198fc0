"""Declared providers: their names, kinds, accounts and limits, and routes that use them."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from providers_kit import GOOD, RawServer, Received, http, raw_server

from resilient_imagen import (
    ConfigurationError,
    ImageClient,
    ImageResult,
    InvalidRequestError,
    Settings,
)
from resilient_imagen._provider_settings import ProviderArguments
from resilient_imagen.models import ModelName, deployment_of
from resilient_imagen.telemetry.events import AttemptStarted, OperatorWarning
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual

PRO = "gemini-3-pro-image"


def serve(
    answer: Any, monkeypatch: pytest.MonkeyPatch, events: RecordingSink, **variables: str
) -> tuple[ImageResult, RawServer]:
    """Generate one image with these variables, in which SERVER is a server's address."""

    async def main() -> tuple[ImageResult, RawServer]:
        async with raw_server(answer) as server:
            for name, value in variables.items():
                monkeypatch.setenv(name, value.replace("SERVER", server.url))
            async with ImageClient(sinks=[events]) as client:
                return await client.generate("a lighthouse"), server

    return asyncio.run(main())


def test_a_declared_account_serves_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its own key, address and limits, and telemetry names the API that it uses."""
    events = RecordingSink()
    result, server = serve(
        GOOD["google"], monkeypatch, events,
        IMAGE_GEN_PROVIDER_GOOGLE_B="google",
        GOOGLE_B_API_KEY="second-key",
        GOOGLE_B_BASE_URL="SERVER",
        IMAGE_GEN_GOOGLE_B_TIMEOUT="33",
        IMAGE_GEN_GOOGLE_B_MAX_CONCURRENT="2",
        IMAGE_GEN_ROUTES=f"google_b:{PRO}",
    )  # fmt: skip
    assert (result.provider, result.model) == ("google_b", PRO)
    assert server.requests[0].headers["x-goog-api-key"] == "second-key"
    (sent,) = events.of(AttemptStarted)
    assert (sent.telemetry_name, sent.time_limit_s) == ("gcp.gemini", 33)
    assert not events.of(OperatorWarning)


def test_a_deployment_is_sent_under_its_name_and_treated_as_its_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The endpoint gets the deployment's name.

    Size, quality, price and telemetry are the model's.
    """
    events = RecordingSink()
    result, server = serve(
        GOOD["openai"], monkeypatch, events,
        IMAGE_GEN_PROVIDER_PROXY="OpenAI",
        PROXY_API_KEY="k",
        PROXY_BASE_URL="SERVER/v1",
        IMAGE_GEN_ROUTES="proxy:my-images=gpt-image-1.5",
    )  # fmt: skip
    body = server.requests[0].json
    assert (body["model"], body["size"]) == ("my-images", "1024x1536")
    assert result.model == "gpt-image-1.5"
    assert events.of(AttemptStarted)[0].model == "gpt-image-1.5"


def test_a_billing_error_opens_the_routes_of_that_account_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All models of the account are skipped, and another account of the same vendor serves."""
    poor = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}

    def answer(request: Received) -> bytes:
        rich = request.headers["authorization"] == "Bearer rich"
        return GOOD["openai"] if rich else http(429, poor)

    events = RecordingSink()
    result, server = serve(
        answer, monkeypatch, events,
        OPENAI_API_KEY="poor",
        OPENAI_BASE_URL="SERVER/v1",
        IMAGE_GEN_PROVIDER_OPENAI_B="openai",
        OPENAI_B_API_KEY="rich",
        OPENAI_B_BASE_URL="SERVER/v1",
        IMAGE_GEN_ROUTES="openai:gpt-image-2,openai:gpt-image-1.5,openai_b:gpt-image-2",
    )  # fmt: skip
    assert (result.provider, result.fallback_reason) == ("openai_b", "quota_exhausted")
    assert len(server.requests) == 2


def test_a_declared_provider_without_a_key_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning names the variable to set."""
    monkeypatch.setenv("IMAGE_GEN_PROVIDER_XAI", "openai")
    monkeypatch.setenv("IMAGE_GEN_ROUTES", "mine:m,xai:grok-2-image")
    events = RecordingSink()
    client = ImageClient(providers=[FakeProvider("mine")], sinks=[events])
    assert [event.message for event in events.of(OperatorWarning)] == [
        "XAI_API_KEY is not set: routes to xai are off"
    ]
    assert client.snapshot()["routes"][1]["off"] == "XAI_API_KEY is not set"


def test_limits_fall_back_to_those_of_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second OpenAI account has OpenAI's limits unless it sets its own."""
    monkeypatch.setenv("IMAGE_GEN_OPENAI_IPM", "3")
    monkeypatch.setenv("IMAGE_GEN_GOOGLE_IPM", "7")
    monkeypatch.setenv("IMAGE_GEN_PROVIDER_OPENAI_B", "openai")
    settings = Settings()
    assert (settings.ipm_for("openai_b"), settings.timeout_for("openai_b")) == (3, 180)
    assert (settings.ipm_for("google"), settings.ipm_for("mine")) == (7, 10)
    assert settings.max_concurrent_for("openai_b") == 4
    assert settings.warnings == ()


def test_a_keyword_replaces_the_providers_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A keyword takes precedence, as for every other setting."""
    monkeypatch.setenv("IMAGE_GEN_PROVIDER_A", "google")
    settings = Settings(providers={"b": {"kind": "openai", "api_key": "hidden", "ipm": 5}})
    assert set(settings.providers) == {"b"}
    assert settings.ipm_for("b") == 5
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"IMAGE_GEN_PROVIDER_A": "gogle"}, "IMAGE_GEN_PROVIDER_A: must be google"),
        ({"IMAGE_GEN_PROVIDER_1A": "google"}, "begins with a letter, unlike '1a'"),
        ({"IMAGE_GEN_PROVIDER_A-B": "google"}, "begins with a letter, unlike 'a-b'"),
        ({"IMAGE_GEN_PROVIDER_": "google"}, "begins with a letter, unlike ''"),
        ({"IMAGE_GEN_PROVIDER_GOOGLE": "openai"}, "google is built in"),
        ({"IMAGE_GEN_PROVIDER_GEMINI": "google"}, "GEMINI_API_KEY has another meaning"),
        ({"IMAGE_GEN_PROVIDER_PER_CALL": "google"}, "IMAGE_GEN_PER_CALL_TIMEOUT has another"),
        ({"IMAGE_GEN_PROVIDER_PROVIDER_A": "google"}, "IMAGE_GEN_PROVIDER_A_IPM has another"),
        ({"IMAGE_GEN_PROVIDER_IMAGE_GEN": "google"}, "IMAGE_GEN_API_KEY has another"),
        ({"IMAGE_GEN_PROVIDER_A": "google", "A_BASE_URL": "a.b"}, "A_BASE_URL must be an address"),
        ({"IMAGE_GEN_PROVIDER_A": "google", "A_API_KEY": "a b"}, "A_API_KEY contains characters"),
        ({"IMAGE_GEN_PROVIDER_A": "google", "IMAGE_GEN_A_IPM": "0"}, "IMAGE_GEN_A_IPM: must be gr"),
        ({"IMAGE_GEN_GOOGLE_MAX_CONCURRENT": "x"}, "IMAGE_GEN_GOOGLE_MAX_CONCURRENT: must be a"),
        ({"IMAGE_GEN_ROUTES": "a:=m"}, "provider:deployment=model"),
        ({"IMAGE_GEN_ROUTES": "a:d=m=n"}, "provider:deployment=model"),
        ({"IMAGE_GEN_ROUTES": "a:d=m,a:e=m"}, "the same provider:model twice"),
    ],
)
def test_a_wrong_declaration_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    """The error is raised at startup."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("providers", "message"),
    [
        ({"openai": {"ipm": 3}}, "set openai_ipm in place of ipm for openai"),
        ({"google": {"api_key": "k"}}, "set google_api_key in place of api_key for google"),
        ({"a": {"kind": "google", "model": "m"}}, "IMAGE_GEN_PROVIDER_A: no such setting"),
        ({"a": {"api_key": "k"}}, "IMAGE_GEN_PROVIDER_A: must be google"),
    ],
)
def test_a_wrong_keyword_names_its_replacement(providers: Any, message: str) -> None:
    """Each value has one place, and the error names it."""
    with pytest.raises(ConfigurationError) as caught:
        Settings(providers=providers)
    assert message in str(caught.value)


def test_an_undeclared_name_in_a_route_is_an_error() -> None:
    """The error lists the known names, and how to declare another one."""
    with pytest.raises(ConfigurationError, match=r"names b; known.*a, azure.*IMAGE_GEN_PROVIDER_"):
        ImageClient(Settings(routes="b:m", providers={"a": {"kind": "google"}}))


def test_a_name_in_upper_case_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are written in upper case only in variables, and the error states this."""
    message = r"names Google \(a name is in lower case here: google\); known providers: azure, goo"
    with pytest.raises(ConfigurationError, match=f"IMAGE_GEN_ROUTES {message}"):
        ImageClient(Settings(routes=f"Google:{PRO}"))

    async def main() -> None:
        async with ImageClient(Settings(google_api_key="k", openai_api_key="k")) as client:
            with pytest.raises(InvalidRequestError) as caught:
                await client.generate("a lighthouse", routes=f"Google:{PRO}")
            assert "a name is in lower case here: google" in str(caught.value)

    run_virtual(main())


def test_a_variable_that_the_kind_does_not_have_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The warning names the kind that has the variable, and does not show the value."""
    monkeypatch.setenv("IMAGE_GEN_PROVIDER_GOOGLE_B", "Google")
    monkeypatch.setenv("GOOGLE_B_PROJECT", "planted-project")
    monkeypatch.setenv("GOOGLE_B_LOCATION", " ")
    monkeypatch.setenv("GOOGLE_B_API_KEY", "k")
    (warning,) = Settings().warnings
    assert warning == (
        "GOOGLE_B_PROJECT is ignored: IMAGE_GEN_PROVIDER_GOOGLE_B is of kind google, and only kind "
        "vertex has project"
    )
    assert Settings(providers={}).warnings == ()
    events = RecordingSink()
    routes = f"google_b:{PRO}"
    ImageClient(Settings(routes=routes), sinks=[events])
    assert [event.message for event in events.of(OperatorWarning)] == [warning]


_NAMES = st.from_regex("[a-z][a-z0-9_]{0,12}", fullmatch=True)


@pytest.mark.no_cover
@given(_NAMES, _NAMES)
def test_variables_of_two_providers_never_collide(one: str, other: str) -> None:
    """A value that is set for one declared provider is not read for another one."""
    assume(one != other)
    fields: ProviderArguments = {"kind": "google", "api_key": "k", "ipm": 5}
    try:
        settings = Settings(providers={one: fields, other: {"kind": "google"}})
    except ConfigurationError:  # a variable of one of them has another meaning
        reject()
    with pytest.MonkeyPatch.context() as patch:
        for name in (one, other):
            patch.setenv(f"IMAGE_GEN_PROVIDER_{name.upper()}", "google")
        patch.setenv(f"{one.upper()}_API_KEY", "k")
        patch.setenv(f"IMAGE_GEN_{one.upper()}_IPM", "5")
        assert Settings() == settings


def test_a_name_keeps_its_deployment_in_copies() -> None:
    """A copied name keeps the deployment, and compares as the model."""
    name = ModelName("gpt-image-2", "mine")
    for each in (name, copy.deepcopy(name), pickle.loads(pickle.dumps(name))):
        assert (each, deployment_of(each)) == ("gpt-image-2", "mine")
    assert deployment_of("gpt-image-2") == deployment_of(ModelName("gpt-image-2")) == "gpt-image-2"
