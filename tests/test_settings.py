"""Settings: one class, the environment's only reader, and errors that name the variable."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen import ConfigurationError, ImageClient, Settings, SettingsArguments
from resilient_imagen._settings_source import field_variables, unknown_variable_warning
from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry.events import OperatorWarning
from resilient_imagen.testing import FakeProvider, RecordingSink

VARIABLES = list(chain.from_iterable(field_variables(Settings).values()))


def test_the_defaults_are_the_documented_ones() -> None:
    """An empty environment gives the documented defaults."""
    settings = Settings()

    assert list(settings.routes) == ["google:gemini-3-pro-image", "openai:gpt-image-2.5-flare"]
    assert (settings.max_concurrent, settings.ipm, settings.burst) == (4, 10, 1)
    assert (settings.max_retries, settings.retry_base_delay) == (2, 5)
    assert (settings.per_call_timeout, settings.openai_timeout) == (60, 180)
    assert (settings.breaker_fail_max, settings.breaker_reset_timeout) == (3, 60)
    assert [settings.google_api_key, settings.openai_api_key, settings.deadline] == [None] * 3


def test_a_keyword_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyword argument overrides the environment variable."""
    monkeypatch.setenv("IMAGE_GEN_IPM", "7")
    monkeypatch.setenv("IMAGE_GEN_FORCE_OPEN", "openai")

    assert Settings().ipm == 7
    chosen = Settings(ipm=3, force_open=())
    assert (chosen.ipm, chosen.force_open) == (3, ())


@pytest.mark.parametrize("name", ["GOOGLE_GENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"])
def test_googles_key_has_three_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """White space around a key is removed, and no output shows the key."""
    monkeypatch.setenv(name, "  AIza-secret\n")
    settings = Settings()

    assert settings.google_api_key is not None
    assert settings.google_api_key.get_secret_value() == "AIza-secret"
    assert "AIza-secret" not in repr(settings)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """``VARIABLE=`` in an env file gives the default, and the next name of a key counts."""
    monkeypatch.setenv("IMAGE_GEN_IPM", "")
    monkeypatch.setenv("GOOGLE_GENAI_API_KEY", "")
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    settings = Settings()

    assert settings.ipm == 10
    assert settings.google_api_key is not None


@pytest.mark.parametrize("value", ["", " ", "off", "none"])
def test_an_empty_variable_switches_hedged_probes_off(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """An empty value means no delay, because the setting has a default."""
    monkeypatch.setenv("IMAGE_GEN_HEDGE_PROBE_AFTER", value)

    assert Settings().hedge_probe_after is None
    assert Settings(hedge_probe_after=5).hedge_probe_after == 5


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("IMAGE_GEN_IPM", "many", "must be a number, not 'many'"),
        ("IMAGE_GEN_IPM", "-1", "must be greater than 0, not '-1'"),
        ("IMAGE_GEN_IPM", "2000000", "must be at most 1000000, not '2000000'"),
        ("IMAGE_GEN_PER_CALL_TIMEOUT", "nan", "must be"),
        ("IMAGE_GEN_MAX_CONCURRENT", "0", "must be at least 1, not '0'"),
        ("IMAGE_GEN_MAX_CONCURRENT", "1.5", "must be a whole number, not '1.5'"),
        ("IMAGE_GEN_FIT", "zoom", "must be crop, pad, none or exact, not 'zoom'"),
        ("IMAGE_GEN_PROMPT_HINTS", "quality,style", "must be quality, orientation, both of them"),
        ("IMAGE_GEN_ROUTES", "google", "provider:model"),
        ("IMAGE_GEN_ROUTES", "google:a,google:a", "twice"),
        ("IMAGE_GEN_FALLBACK_ON", "overloaded,tired", ", rate_limited, "),
        ("IMAGE_GEN_FALLBACK_ON", "overloaded,tired", ", not 'tired'"),
        ("IMAGE_GEN_STRICT_REFERENCES", "perhaps", "must be true or false, not 'perhaps'"),
        ("IMAGE_GEN_BREAKER_RESET_MAX", "5", "IMAGE_GEN_BREAKER_RESET_TIMEOUT"),
        ("IMAGE_GEN_DEADLINE", "0", "must be greater than 0, not '0'"),
        (
            "IMAGE_GEN_HEDGE_AFTER",
            "p50",
            "must be seconds greater than 0 and at most 86400, or p95, not 'p50'",
        ),
        ("IMAGE_GEN_BREAKER_RESET_FACTOR", "inf", "must be a finite number, not 'inf'"),
        ("IMAGE_GEN_SHADOW", "reset_factor=inf", "reset_factor: must be a finite number"),
        ("IMAGE_GEN_SHADOW", "fail_max=x", "fail_max: must be a whole number, not 'x'"),
        ("IMAGE_GEN_SHADOW", "fail_mux=1", "must be NAME=VALUE, comma-separated; names: "),
    ],
)
def test_the_error_about_an_invalid_value_names_the_variable_and_allowed_values(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str
) -> None:
    """The error has variable, value and allowed values."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigurationError) as caught:
        Settings()

    assert variable in str(caught.value)
    assert allowed in str(caught.value)


@pytest.mark.parametrize(
    "secret",
    ["AIza" + "x" * 12, "sk-1234567", "https://me:pw@host", "a fox in the snow, at dawn"],
)
def test_a_secret_in_the_wrong_variable_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    """Long values, and those like a key or an address with a password, are omitted."""
    monkeypatch.setenv("IMAGE_GEN_IPM", secret)

    with pytest.raises(ConfigurationError) as caught:
        Settings(google_api_key=3, gogle_api_key=secret)  # type: ignore[arg-type,call-arg]

    assert str(caught.value) == (
        "GOOGLE_GENAI_API_KEY: must be a string; IMAGE_GEN_IPM: must be a number; "
        "gogle_api_key: no such setting; did you mean google_api_key?"
    )


_ANYTHING = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    *(st.lists(st.integers()), st.dictionaries(st.text(), st.integers()), st.just(object())),
)


@given(field=st.sampled_from(list(Settings.model_fields)), value=_ANYTHING)
def test_errors_contain_no_message_of_pydantic(field: str, value: object) -> None:
    """Every value of a keyword is accepted, or rejected in the library's own message."""
    given_values: dict[str, Any] = {field: value}
    refusal = ""
    try:
        Settings(**given_values)
    except ConfigurationError as error:
        refusal = str(error)

    assert re.match(r"[A-Z0-9_<>]+:? [a-z]|$", refusal)
    assert not re.search(r"Input|Value error|validation error|is not allowed", refusal)


def test_an_unknown_keyword_is_an_error() -> None:
    """A misspelled keyword raises an error."""
    with pytest.raises(ConfigurationError, match="ipmm: no such setting; did you mean ipm"):
        Settings(ipmm=3)  # type: ignore[call-arg]


MADE_OF_MORE = {
    "google_api_key": str, "openai_api_key": str, "redis_url": str, "control_secret": str,
    "routes": str, "force_open": str, "fallback_on": str, "prompt_hints": str, "shadow": str,
    "providers": str,
    "models": str,
}  # fmt: skip
"""Fields whose keyword also takes text: a secret, or a comma list."""


def test_the_typed_keywords_are_those_of_the_fields() -> None:
    """Each field has a keyword of its type, or of a wider one listed here."""
    keywords = get_type_hints(SettingsArguments)
    assert list(keywords) == list(Settings.model_fields), "add new settings in the same order"
    fields = get_type_hints(Settings)
    for name, keyword in keywords.items():
        if name in MADE_OF_MORE:
            assert MADE_OF_MORE[name] in get_args(keyword), name
            assert (type(None) in get_args(keyword)) == (type(None) in get_args(fields[name]))
        else:
            assert keyword == fields[name], name


def test_each_setting_has_a_meaning() -> None:
    """The docstring below each field reaches the field, from which tables are generated."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_wrong_types_are_still_refused_at_run_time() -> None:
    """The error names the variable."""
    with pytest.raises(ConfigurationError, match="IMAGE_GEN_IPM: must be a number, not 'x'"):
        Settings(ipm="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="IMAGE_GEN_IPM: no such setting; did you mean"):
        Settings(IMAGE_GEN_IPM=3)  # type: ignore[call-arg]


def test_a_client_refuses_a_dict_of_settings() -> None:
    """The error names the type, for callers that use no type checker."""
    with pytest.raises(TypeError, match="settings must be Settings, not dict"):
        ImageClient({"ipm": 3})  # type: ignore[arg-type]


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """White space around commas is ignored."""
    monkeypatch.setenv("IMAGE_GEN_FALLBACK_ON", "overloaded, timeout")
    monkeypatch.setenv("IMAGE_GEN_FORCE_OPEN", " google ,openai")

    assert Settings().fallback_on == frozenset({Reason.OVERLOADED, Reason.TIMEOUT})
    assert Settings().force_open == ("google", "openai")


@pytest.mark.parametrize(
    ("value", "hints"),
    [
        ("", ("quality", "orientation")),
        ("none", ()),
        ("Off", ()),
        ("orientation", ("orientation",)),
        (" Quality , orientation,quality", ("quality", "orientation")),
    ],
)
def test_prompt_hints_are_both_one_or_none(
    monkeypatch: pytest.MonkeyPatch, value: str, hints: tuple[str, ...]
) -> None:
    """IMAGE_GEN_PROMPT_HINTS names what is added to Google's prompt; both are the default."""
    monkeypatch.setenv("IMAGE_GEN_PROMPT_HINTS", value)
    assert Settings().prompt_hints == hints


def test_variables_without_the_prefix_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables such as DEADLINE and REDIS_URL without the prefix are ignored."""
    for name in Settings.model_fields.keys() - {each.lower() for each in VARIABLES}:
        monkeypatch.setenv(name.upper(), "nonsense")
        monkeypatch.setenv(name, "nonsense")
    assert Settings().model_fields_set == set()


def test_a_blank_key_does_not_hide_the_next_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of white space only is ignored."""
    monkeypatch.setenv("GOOGLE_GENAI_API_KEY", "  ")
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    key = Settings().google_api_key
    assert key is not None
    assert key.get_secret_value() == "k"


@pytest.mark.parametrize("value", [" true ", "TRUE", "on"])
def test_white_space_and_case_are_ignored(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Values are independent of case and white space."""
    monkeypatch.setenv("IMAGE_GEN_STRICT_REFERENCES", value)
    monkeypatch.setenv("IMAGE_GEN_FIT", " Crop ")
    monkeypatch.setenv("IMAGE_GEN_BREAKER_MODE", "SHADOW")
    settings = Settings()
    assert (settings.strict_references, settings.fit) == (True, "crop")
    assert settings.breaker_mode == "shadow"


@pytest.mark.parametrize("value", [",", " , ", "  "])
def test_an_empty_list_of_reasons_is_the_default(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """A list without a reason does not disable the fallback."""
    monkeypatch.setenv("IMAGE_GEN_FALLBACK_ON", value)
    assert Settings().falls_back_on(Reason.OVERLOADED)


@pytest.mark.parametrize("variable", ["GOOGLE_GEMINI_BASE_URL", "OPENAI_BASE_URL"])
@pytest.mark.parametrize(
    "value", ["foo", "ftp://host", "http://[::1", "http://x:99999", "http://x:abc", "https://"]
)
def test_an_invalid_address_is_rejected_at_startup(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """The error names the variable before anything is sent."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"{variable}: must be an address such as"):
        Settings()


def test_an_address_must_not_contain_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses are logged; the error does not repeat the address."""
    monkeypatch.setenv("OPENAI_BASE_URL", "https://me:hunter2@relay.example/v1")
    with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL: must not contain") as caught:
        Settings()
    assert "hunter2" not in str(caught.value)


def test_a_key_that_no_header_can_hold_is_rejected_at_startup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the variable that was set, without the key."""
    monkeypatch.setenv("GEMINI_API_KEY", "AIza two words")
    with pytest.raises(ConfigurationError, match="GEMINI_API_KEY: contains characters") as caught:
        Settings()
    assert "AIza" not in str(caught.value)


def warnings() -> list[str]:
    """Return the warnings of a new client."""
    sink = RecordingSink()
    ImageClient(Settings(routes="mine:m"), providers=[FakeProvider("mine")], sinks=[sink])
    return [event.message for event in sink.events if isinstance(event, OperatorWarning)]


def test_an_unknown_variable_is_warned_of_once_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning is an event and a log line, and does not show the value."""
    monkeypatch.setenv("IMAGE_GEN_IMP", "hunter2")
    warning = "IMAGE_GEN_IMP is not a setting and is ignored; did you mean IMAGE_GEN_IPM?"

    assert warnings() == [warning]
    (record,) = [record for record in caplog.records if "IMAGE_GEN_IMP" in record.getMessage()]
    assert (record.name, record.levelname) == ("imagegen", "WARNING")
    assert record.__dict__["warning"] == warning
    assert "hunter2" not in caplog.text


def test_known_blank_and_foreign_variables_are_not_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case does not matter, a blank variable is not set, and other prefixes are other programs'."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("image_gen_ipm", "7")
    monkeypatch.setenv("IMAGE_GEN_IMP", " ")
    monkeypatch.setenv("IMAGE_GENERATOR", "7")
    monkeypatch.setenv("JAEGER_URL", "http://127.0.0.1")

    assert warnings() == []


def test_an_unknown_variable_without_a_similar_name_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The warning has no suggestion, and is short for a name of any length and content."""
    monkeypatch.setenv("IMAGE_GEN_\x1b[31m" + "Z" * 1000, "7")

    (warning,) = warnings()
    assert warning.endswith("is not a setting and is ignored; no setting has a similar name")
    assert warning.isprintable()
    assert len(warning) < 150


@given(st.sampled_from([name for name in VARIABLES if len(name) > 14]), st.data())
def test_a_misspelled_variable_gets_a_suggestion(name: str, data: st.DataObject) -> None:
    """Swapped, missing, added and wrong letters lead to the right name."""
    at = data.draw(st.integers(11, len(name) - 2))
    letter = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ_"))
    slip = data.draw(
        st.sampled_from(
            [
                name[:at] + name[at + 1] + name[at] + name[at + 2 :],
                name[:at] + name[at + 1 :],
                name[:at] + letter + name[at:],
                name[:at] + letter + name[at + 1 :],
            ]
        )
    )
    assert slip in VARIABLES or unknown_variable_warning(slip, Settings).endswith(
        f"did you mean {name}?"
    )
