"""The drop-in functions as an application uses them: real SDKs, real sockets and the emulator."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from images_samples import as_dict, encoded, png
from PIL import Image

import resilient_imagen as ri
from resilient_imagen.emulator import BackgroundEmulator, faults
from resilient_imagen.images.inspect import pixel_size

T = TypeVar("T")


def run(scene: Callable[[], Awaitable[T]]) -> T:
    """Run ``scene`` and close the default client in the same loop."""

    async def main() -> T:
        try:
            return await scene()
        finally:
            await ri.reset_default_client()

    return asyncio.run(main())


def test_the_result_has_the_keys_of_the_replaced_functions(vendors: BackgroundEmulator) -> None:
    """It has ``image_base64`` and ``mime_type`` as before, and further keys about the call."""

    async def scene() -> None:
        result = await ri.generate_image("a red dragon")
        assert base64.b64decode(result["image_base64"], validate=True)[:2] == b"\xff\xd8"
        assert result["mime_type"] == "image/jpeg"
        assert result["provider"] == "google"
        assert result["model"] == "gemini-3-pro-image"
        assert (result["attempts"], result["fallback_reason"]) == (1, None)
        assert result["dropped_references"] == []
        assert set(result["usage"]) == {
            "provider", "model", "input_tokens", "output_tokens", "total_tokens", "cost_usd",
        }  # fmt: skip
        assert result["usage"]["cost_usd"] == pytest.approx(0.134)
        assert result["latency_s"] > 0
        json.dumps(result)

    run(scene)


def test_each_vendor_gets_prompt_and_size_in_its_own_form(
    vendors: BackgroundEmulator,
) -> None:
    """Google gets orientation and ratio, OpenAI the unchanged prompt and a size, with and
    without references.
    """

    async def scene() -> None:
        await ri.generate_image("a red dragon", "16:9")
        await ri.generate_image_with_references("the same", [as_dict(png())], "9:16", "2K")
        plain, guided = vendors.google.requests
        assert "Generate a high quality image: a red dragon" in plain.prompt
        assert "landscape" in plain.prompt
        assert (plain.aspect_ratio, plain.resolution) == ("16:9", "1K")
        assert "portrait" in guided.prompt
        assert (guided.aspect_ratio, guided.resolution) == ("9:16", "2K")
        vendors.google.set(faults.status(503))
        await ri.generate_image("a red dragon", "16:9")
        await ri.generate_image_with_references("the same", [as_dict(png())], "9:16", "2K")
        plain, guided = vendors.openai.requests
        assert (plain.prompt, guided.prompt) == ("a red dragon", "the same")
        assert (plain.operation, guided.operation) == ("generate", "edit")
        assert (plain.resolution, guided.resolution) == ("1280x720", "1584x2816")

    run(scene)


def test_references_arrive_byte_for_byte_with_their_true_type(vendors: BackgroundEmulator) -> None:
    """The type is detected; unreadable references are listed, and the others are sent."""
    jpeg = encoded(Image.new("RGB", (80, 60)), "JPEG")
    references: list[ri.ImageInput] = [
        as_dict(jpeg, "image/png"),
        {"image_base64": None, "mime_type": "image/png"},
        png(),
        "data:image/png;base64," + base64.b64encode(png(10, 20)).decode(),
        as_dict(b"not a picture"),
    ]

    async def scene() -> None:
        result = await ri.generate_image_with_references("all of them", references)
        seen = vendors.google.requests[-1].references
        assert [one.mime_type for one in seen] == ["image/jpeg", "image/png", "image/png"]
        assert [one.size for one in seen] == [len(jpeg), len(png()), len(png(10, 20))]
        assert [one["index"] for one in result["dropped_references"]] == [1, 4]

    run(scene)


def test_references_beyond_a_vendors_limit_are_listed(
    vendors: BackgroundEmulator,
) -> None:
    """Google gets the first fourteen references in the caller's order, and OpenAI sixteen."""
    references = [as_dict(png(8 + n, 8)) for n in range(17)]

    async def scene() -> None:
        result = await ri.generate_image_with_references("many", references)
        assert len(vendors.google.requests[-1].references) == 14
        assert [one["index"] for one in result["dropped_references"]] == [14, 15, 16]
        vendors.google.set(faults.status(503))
        result = await ri.generate_image_with_references("many", references)
        assert len(vendors.openai.requests[-1].references) == 16
        assert [one["index"] for one in result["dropped_references"]] == [16]

    run(scene)


def test_references_beyond_the_byte_limit_are_shrunk_and_listed(
    vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of a request is met by scaling, and does not fail the call."""
    monkeypatch.setenv("IMAGE_GEN_MAX_REFERENCE_MB", "0.5")
    large = encoded(Image.effect_noise((900, 900), 90).convert("RGB"), "PNG")

    async def scene() -> None:
        result = await ri.generate_image_with_references("x", [large, png()])
        seen = vendors.google.requests[-1].references
        assert sum(one.size for one in seen) <= 500_000
        assert seen[1].size == len(png())
        assert "reference 0 made smaller" in result["adjustments"][0]

    run(scene)


def test_without_a_readable_reference_the_image_is_generated_from_the_prompt(
    vendors: BackgroundEmulator,
) -> None:
    """The result lists the unreadable references."""

    async def scene() -> None:
        result = await ri.generate_image_with_references("alone", [as_dict(b"nothing")])
        assert vendors.google.requests[-1].references == ()
        assert len(result["dropped_references"]) == 1

    run(scene)


def test_strict_references_raise_before_anything_is_paid_for(
    vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With IMAGE_GEN_STRICT_REFERENCES an unreadable reference is an error."""
    monkeypatch.setenv("IMAGE_GEN_STRICT_REFERENCES", "true")

    async def scene() -> None:
        with pytest.raises(ri.InvalidRequestError, match=r"reference_images\[1\]"):
            await ri.generate_image_with_references("x", [as_dict(png()), as_dict(b"nothing")])
        assert vendors.google.requests == ()

    run(scene)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"prompt": ""}, "prompt must be"),
        ({"prompt": "  \n"}, "prompt must be"),
        ({"prompt": "x", "aspect_ratio": "7:5"}, "aspect_ratio '7:5' is not allowed; use one of"),
        ({"prompt": "x", "model": "gpt-image-2"}, "belongs to openai"),
        ({"prompt": "x", "model": ""}, "model must be"),
        (
            {"prompt": "x", "deadline": 0},
            "deadline must be a number of seconds above zero, or None, not 0",
        ),
        ({"prompt": "x", "deadline": float("nan")}, "deadline must be .*, not nan"),
        ({"prompt": "x", "deadline": "5"}, "deadline must be .*, not '5'"),
        ({"prompt": "x", "aspect_ratio": 1.5}, "aspect_ratio 1.5 is not allowed; use one of"),
        ({"prompt": "x", "aspect_ratio": "7" * 30}, "aspect_ratio str is not allowed; use one of"),
        ({"prompt": "x", "deadline": -(10**5000)}, "deadline must be .*, not int"),
        ({"prompt": "x", "on_start": 3}, "on_start must be"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_bad_arguments_are_refused_before_anything_is_sent(
    vendors: BackgroundEmulator, arguments: dict[str, Any], text: str
) -> None:
    """A ValueError states the problem and the allowed values, and no request is sent."""

    async def scene() -> None:
        with pytest.raises(ValueError, match=text) as caught:
            await ri.generate_image(**arguments)
        assert isinstance(caught.value, ri.InvalidRequestError)
        assert caught.value.attempts == ()
        assert vendors.google.requests == vendors.openai.requests == ()

    run(scene)


def test_an_unknown_resolution_is_refused(vendors: BackgroundEmulator) -> None:
    """The error lists the allowed resolutions."""

    async def scene() -> None:
        with pytest.raises(ValueError, match="resolution '8K' is not allowed; use one of 1K, 2K"):
            await ri.generate_image_with_references("x", [], resolution="8K")  # type: ignore[arg-type]

    run(scene)


def test_an_image_of_a_wrong_ratio_is_cropped(vendors: BackgroundEmulator) -> None:
    """The image is cropped to the requested ratio, and the result lists this."""
    vendors.google.set(faults.answer("wrong_aspect"))

    async def scene() -> None:
        result = await ri.generate_image("portrait, please", "9:16")
        size = pixel_size(base64.b64decode(result["image_base64"]))
        assert size is not None
        assert size[0] / size[1] == pytest.approx(9 / 16, rel=0.02)
        assert result["adjustments"]

    run(scene)


def test_sixteen_concurrent_calls_while_google_hangs(
    vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI serves all calls, no connection to Google stays open, and Google is used after its
    recovery.
    """
    monkeypatch.setenv("IMAGE_GEN_PER_CALL_TIMEOUT", "0.5")
    monkeypatch.setenv("IMAGE_GEN_BREAKER_RESET_TIMEOUT", "0.2")
    vendors.google.set(faults.hang())

    async def scene() -> None:
        results = await asyncio.gather(*(ri.generate_image(f"scene {n}") for n in range(16)))
        assert {result["provider"] for result in results} == {"openai"}
        await asyncio.to_thread(vendors.wait_until, lambda: vendors.google.open_connections == 0)
        vendors.google.heal()
        async with asyncio.timeout(20):
            while (await ri.generate_image("again"))["provider"] != "google":
                pass  # the breaker lets a probe through within a quarter of a second

    run(scene)


def test_a_cancelled_call_closes_its_connection(vendors: BackgroundEmulator) -> None:
    """The connection to Google is closed at once, and no task is left."""
    vendors.google.set(faults.hang())

    async def scene() -> None:
        task = asyncio.create_task(ri.generate_image("never mind"))
        await vendors_until(vendors, lambda: vendors.google.in_flight == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await vendors_until(vendors, lambda: vendors.google.open_connections == 0)
        queue = ri.default_client().snapshot()["routes"][0]["queue"]
        assert (queue["in_flight"], queue["waiting"]) == (0, 0)

    run(scene)


async def vendors_until(vendors: BackgroundEmulator, condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(vendors.wait_until, condition)


def test_edit_image_changes_an_image_on_both_vendors(vendors: BackgroundEmulator) -> None:
    """The image is the first reference, and the feedback is the prompt."""

    async def scene() -> None:
        first = await ri.generate_image("a fox")
        second = await ri.edit_image(first, "more snow")
        assert second["provider"] == "google"
        assert len(vendors.google.requests[-1].references) == 1
        vendors.google.set(faults.status(503))
        third = await ri.edit_image(first["image_base64"], "less snow")
        assert third["provider"] == "openai"
        assert vendors.openai.requests[-1].prompt == "less snow"

    run(scene)


def test_an_edit_without_a_readable_image_is_an_error(vendors: BackgroundEmulator) -> None:
    """A ValueError is raised, and no request is sent."""

    async def scene() -> None:
        with pytest.raises(ri.InvalidRequestError):
            await ri.edit_image(b"not a picture", "more snow")
        assert vendors.google.requests == ()

    run(scene)


def test_call_options_reach_call_sites_that_cannot_be_changed(vendors: BackgroundEmulator) -> None:
    """Deadline and callback come from the block; an argument of the call takes precedence."""
    vendors.google.set(faults.hang())
    vendors.openai.set(faults.hang())
    started: list[str] = []

    async def scene() -> None:
        await ri.default_client().warm_up()
        with ri.call_options(deadline=0.4, on_start=lambda: started.append("outer")):
            with pytest.raises(TimeoutError):
                await ri.generate_image("x")
            inner = ri.call_options(on_start=lambda: started.append("inner"))
            with inner, pytest.raises(ri.DeadlineExceededError):
                await asyncio.create_task(ri.generate_image("x"))
            with pytest.raises(TimeoutError):
                await ri.generate_image("x", on_start=lambda: started.append("argument"))
        assert started == ["outer", "inner", "argument"]

    run(scene)


def test_without_an_openai_key_the_primary_is_the_only_route(
    vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The primary serves, and its own error reaches the caller when it fails."""
    monkeypatch.delenv("OPENAI_API_KEY")

    async def scene() -> None:
        assert (await ri.generate_image("x"))["provider"] == "google"
        vendors.google.set(faults.status(503))
        with pytest.raises(ri.ProviderOverloadedError, match="503 UNAVAILABLE"):
            await ri.generate_image("x")

    run(scene)


def test_the_error_about_missing_keys_names_the_variables() -> None:
    """The first call raises an error that names the variables to set."""

    async def scene() -> None:
        with pytest.raises(ri.ConfigurationError, match="GOOGLE_GENAI_API_KEY or OPENAI_API_KEY"):
            await ri.generate_image("x")

    run(scene)


def test_an_invalid_variable_is_named() -> None:
    """The error has the variable, its value and the allowed values."""

    async def scene() -> None:
        with pytest.raises(ri.ConfigurationError, match="IMAGE_GEN_FIT: must be crop, pad"):
            await ri.generate_image("x")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGE_GEN_FIT", "zoom")
        run(scene)


def test_successive_loops_share_one_state_and_another_thread_has_its_own(
    vendors: BackgroundEmulator,
) -> None:
    """A breaker that opened in one run of asyncio.run is open in the next, and closed in
    another thread.
    """
    vendors.google.set(faults.status(503))

    async def ask() -> str | None:
        reason = (await ri.generate_image("x"))["fallback_reason"]
        return None if reason is None else str(reason)

    elsewhere: list[str | None] = []
    try:
        assert asyncio.run(ask()) == "overloaded"
        assert asyncio.run(ask()) == "circuit_open"
        thread = threading.Thread(target=lambda: elsewhere.append(run(ask)))
        thread.start()
        thread.join(20)
        assert elsewhere == ["overloaded"]
    finally:
        asyncio.run(ri.reset_default_client())


def test_reset_drops_all_state_and_reads_the_environment_again(
    vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breakers are closed, and a changed variable applies from the next use on."""
    vendors.google.set(faults.status(503))

    async def scene() -> None:
        await ri.generate_image("x")
        monkeypatch.setenv("IMAGE_GEN_BREAKER_FAIL_MAX", "7")
        await ri.reset_default_client()
        assert ri.default_client().settings.breaker_fail_max == 7
        assert (await ri.generate_image("x"))["fallback_reason"] == "overloaded"

    run(scene)


def test_a_closed_client_raises_an_error(vendors: BackgroundEmulator) -> None:
    """A call after `aclose` raises an error, and opens no connection."""

    async def scene() -> None:
        async with ri.ImageClient() as client:
            await client.generate("x")
        await client.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await client.generate("x")

    run(scene)


def test_the_snapshot_is_json(vendors: BackgroundEmulator) -> None:
    """A health endpoint can return the snapshot unchanged."""

    async def scene() -> None:
        async with ri.ImageClient() as client:
            await client.warm_up()
            await client.generate("x")
            snapshot = json.loads(json.dumps(client.snapshot()))
        assert [route["route"] for route in snapshot["routes"]] == [
            "google:gemini-3-pro-image",
            "openai:gpt-image-2.5-flare",
        ]
        assert snapshot["images"] == 1
        assert snapshot["cost_usd"] == pytest.approx(0.134)

    run(scene)


def test_a_result_can_be_saved_and_is_frozen(
    vendors: BackgroundEmulator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """``save`` writes the delivered bytes, and fields cannot be assigned."""
    path = tmp_path_factory.mktemp("out") / "a.jpg"

    async def scene() -> None:
        async with ri.ImageClient() as client:
            result = await client.generate("x")
        assert result.save(path).read_bytes() == result.image_bytes
        with pytest.raises(AttributeError):
            result.provider = "me"  # type: ignore[misc]
        assert "image_bytes" not in repr(result)

    run(scene)


def test_a_retired_model_is_mapped_to_its_successor(vendors: BackgroundEmulator) -> None:
    """Callers that pass a retired name are served by its successor."""

    async def scene() -> None:
        result = await ri.generate_image("x", model="gemini-3-pro-image-preview")
        assert result["model"] == "gemini-3-pro-image"

    run(scene)


def test_the_first_call_does_not_need_the_default_executor(vendors: BackgroundEmulator) -> None:
    """An image is delivered although all threads of the application's executor hang."""

    async def scene() -> None:
        busy = threading.Event()
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(1)
        loop.set_default_executor(pool)
        hanging = loop.run_in_executor(None, busy.wait, 20)
        try:
            assert (await ri.generate_image("x", deadline=15))["provider"] == "google"
            assert not hanging.done()
        finally:
            busy.set()
            await hanging

    run(scene)


def test_a_call_may_name_its_routes_by_argument_or_block(
    vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two accounts of a step are used over real sockets; the argument takes precedence."""
    monkeypatch.setenv("IMAGE_GEN_PROVIDER_GOOGLE_B", "google")
    monkeypatch.setenv("GOOGLE_B_API_KEY", "AIzaSyFAKEFAKEFAKEFAKEFAKEFAKEFAKEFAKF")
    monkeypatch.setenv("GOOGLE_B_BASE_URL", vendors.google_url)
    monkeypatch.setenv("IMAGE_GEN_MAX_CONCURRENT", "1")

    async def scene() -> None:
        with ri.call_options(routes="google+google_b:gemini-3-pro-image"):
            both = await asyncio.gather(*(ri.generate_image("a red dragon") for _ in range(2)))
            assert sorted(each["provider"] for each in both) == ["google", "google_b"]
            result = await ri.generate_image("x", routes=["openai:gpt-image-2.5-flare"])
            assert (result["provider"], result["fallback_reason"]) == ("openai", None)

    run(scene)
