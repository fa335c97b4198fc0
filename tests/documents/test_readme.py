"""README keeps its word: its code and commands run, its tables and names are those of the code."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cli_kit import python
from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider
from paths import ROOT
from readme_kit import TEXT, blocks, executed
from readme_tables import TABLES, in_readme
from trace_backends import collector

import resilient_imagen
from resilient_imagen import (
    CircuitOpenError,
    ImageClient,
    ImageGenerationError,
    Settings,
    reset_default_client,
)
from resilient_imagen.emulator import BackgroundEmulator, faults
from resilient_imagen.telemetry import names
from resilient_imagen.telemetry.metrics import MetricSink
from resilient_imagen.testing import TINY_PNG, FakeProvider, run_virtual
from resilient_imagen.tuning import load
from resilient_imagen.tuning.import_logs import read_rows
from resilient_imagen.tuning.recording import gather

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_code(name: str) -> None:
    """Whoever changes a setting or a policy is told to write the table anew."""
    assert in_readme(name) == TABLES[name](), "run python tests/support/readme_tables.py"


def test_the_first_block_holds_two_commands() -> None:
    """One line to the demo, one to the tests; both make their own environment."""
    first = re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)[0]
    demo, tests = first.splitlines()
    for line in (demo, tests):
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install -q -e '.[")
    assert demo.endswith(" && .venv/bin/resilient-imagen demo")
    assert tests.endswith(" && .venv/bin/pytest --cov")


def test_names_in_readme_exist() -> None:
    """Every error is listed, every variable is one of Settings, every link leads somewhere."""
    errors = {name for name in resilient_imagen.__all__ if name.endswith("Error")}
    assert set(re.findall(r"\b[A-Z][A-Za-z]+Error\b", TEXT)) - {"ValueError", "TimeoutError"} >= (
        errors - {"ImageGenerationError"}
    )
    variables = set(re.findall(r"`(IMAGE_GEN_[A-Z_]+)", TEXT))
    known = set(re.findall(r"`(IMAGE_GEN_[A-Z_]+)", TABLES["settings"]()))
    assert variables <= known
    titles = re.findall(r"^##+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert target.removeprefix("#") in anchors if target[0] == "#" else (ROOT / target).exists()


def test_traces_are_searched_by_names_that_exist() -> None:
    """Every span attribute that README names is one of telemetry's."""
    known = {value for value in vars(names).values() if isinstance(value, str)}
    named = set(re.findall(r"imagegen\.[a-z_]+(?:\.[a-z_]+)*", TEXT)) - {"imagegen.generate"}
    assert len(named) > 10
    assert named <= known
    (section,) = re.findall(
        r"### What a trace looks like$(.*?)(?=^## )", TEXT, re.DOTALL | re.MULTILINE
    )
    for line in re.findall(r"^(?:imagegen|[├└]).*$", section, re.MULTILINE):
        for name in re.findall(r"([a-z_.]+)=", line):
            assert name in known or f"imagegen.{name}" in known, name


def test_every_metric_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name and kind, as a meter is asked for them."""
    made: dict[str, str] = {}

    class Meter(NoOpMeter):
        """Notes what it is asked for."""

    for kind in ("histogram", "counter", "observable_gauge"):

        def note(_: NoOpMeter, name: str, *rest: Any, kind: str = kind, **more: Any) -> None:
            del rest, more
            made[name] = kind.removeprefix("observable_")

        monkeypatch.setattr(Meter, f"create_{kind}", note)
    MetricSink(UnsetMeterProvider(Meter("test")))
    (section,) = re.findall(r"^### Metrics$(.*?)(?=^## )", TEXT, re.DOTALL | re.MULTILINE)
    assert dict(re.findall(r"^\| `([a-z_.]+)` \| (\w+)", section, re.MULTILINE)) == made


class UnsetMeterProvider(NoOpMeterProvider):
    """Hands out this one meter."""

    def __init__(self, meter: NoOpMeter) -> None:
        self._meter = meter

    def get_meter(self, *_: Any, **__: Any) -> NoOpMeter:
        """Whoever asks."""
        return self._meter


def test_the_pictures_caption_explains_its_columns() -> None:
    """The caption says which design each column shows."""
    (caption,) = re.findall(r"\(\.github/outage\.svg\)\n\n(.+)\n", TEXT)
    assert re.findall(r"\((\w+)\)", caption) == ["left", "middle", "right"]


def test_the_example(
    imagen_emulator: BackgroundEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eight lines of the first screen save a picture."""
    monkeypatch.chdir(tmp_path)
    executed(re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)[0])
    assert (tmp_path / "lighthouse.jpg").stat().st_size > 1000
    assert [seen.aspect_ratio for seen in imagen_emulator.google.requests] == ["9:16"]


def test_three_lines_replace_the_applications_module() -> None:
    """They give the functions that its call sites use, with the same signature."""
    module, _ = blocks("In your application", "python")
    assert len(module.splitlines()) == 3
    names = executed(module)
    assert all(inspect.iscoroutinefunction(names[name]) for name in names["__all__"])
    plain = inspect.signature(names["generate_image"])
    assert list(plain.parameters)[:3] == ["prompt", "aspect_ratio", "model"]
    guided = inspect.signature(names["generate_image_with_references"])
    assert list(guided.parameters)[:5] == [
        "prompt", "reference_images", "aspect_ratio", "resolution", "model",
    ]  # fmt: skip


def test_the_applications_variables_are_settings() -> None:
    """The block with variables can be pasted into an environment file as it is."""
    (variables,) = blocks("In your application", "bash")
    table = TABLES["settings"]()
    names = [line.partition("=")[0] for line in variables.splitlines()]
    assert len(names) == 6
    assert all(f"`{name}`" in table for name in names)


def test_options_go_around_call_sites(
    imagen_emulator: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block's job makes its scenes, and is told when each begins."""
    monkeypatch.setenv("IMAGE_GEN_IPM", "6000")
    _, code = blocks("In your application", "python")
    begun: list[int] = []

    async def main() -> list[dict[str, Any]]:
        try:
            images: list[dict[str, Any]] = await executed(code)["job"](
                ["one", "two"], lambda: begun.append(len(imagen_emulator.google.requests))
            )
            return images
        finally:
            await reset_default_client()

    images = asyncio.run(main())
    assert [image["provider"] for image in images] == ["google", "google"]
    assert begun == [0, 1]


FASTAPI_USER = """
import asyncio, json, sys, httpx2, app as application

async def left():
    leaving = asyncio.create_task(application.make_scene("three", application.Scene(prompt="x")))
    while application.jobs.get("three") != "generating":
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])

async def main():
    async with application.app.router.lifespan_context(application.app):
        transport = httpx2.ASGITransport(app=application.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
            made = await client.post("/scenes/one", json={"prompt": "a lighthouse"})
            empty = await client.post("/scenes/two", json={"prompt": ""})
            other = await client.post("/scenes/four", json={"promt": "a lighthouse"})
            health = await client.get("/health/images")
            await left()
    image = made.json()
    print(json.dumps({
        "made": [made.status_code, image["by"], image["usd"], len(image["image"]) > 1000],
        "empty": [empty.status_code, empty.json()["detail"]],
        "other": other.status_code,
        "health": [route["breaker"]["state"] for route in health.json()["routes"]],
        "jobs": application.jobs,
    }))

asyncio.run(main())
"""


@pytest.mark.usefixtures("imagen_emulator")
def test_the_fastapi_page(tmp_path: Path) -> None:
    """It serves a scene, refuses bad ones, knows who left, shows its health and sends its trace."""
    pytest.importorskip("fastapi")
    (code,) = blocks("With FastAPI", "python")
    (tmp_path / "app.py").write_text(code)
    with collector() as traces:
        there = {"OTEL_EXPORTER_OTLP_ENDPOINT": traces.otlp}
        done = python("-c", FASTAPI_USER, cwd=tmp_path, env=there)
    assert done.returncode == 0, done.stderr
    import json

    seen = json.loads(done.stdout)
    assert seen["made"] == [200, "google", 0.134, True]
    assert seen["empty"] == [422, "prompt must be a str that is not empty"]
    assert seen["other"] == 422
    assert seen["health"] == ["closed", "closed"]
    assert seen["jobs"] == {"one": "done", "two": "refused", "three": "failed"}
    outcomes = [
        span.tags["imagegen.attempt.outcome"]
        for service, span in traces.received
        if service == "storyboards" and span.name == "generate_content gemini-3-pro-image"
    ]
    assert outcomes == ["success", "cancelled"]
    assert "async def health" in code  # a plain one runs in a thread, with a client of its own


def test_the_fastapi_page_shows_warnings(tmp_path: Path) -> None:
    """A missing fallback key and an opened circuit are seen on standard error."""
    pytest.importorskip("fastapi")
    (code,) = blocks("With FastAPI", "python")
    (tmp_path / "app.py").write_text(code)
    with BackgroundEmulator() as emulator, collector() as traces:
        emulator.google.set(faults.status(401))
        there = {
            "GOOGLE_GENAI_API_KEY": "emulated",
            "GOOGLE_GEMINI_BASE_URL": emulator.google_url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": traces.otlp,
        }
        done = python("-c", FASTAPI_VISITOR, cwd=tmp_path, env=there)
    assert done.stdout == "503\n", done.stderr
    for warning in (
        "OPENAI_API_KEY is not set: routes to openai are off",
        "google unauthenticated (401): circuit open for ",
    ):
        assert f'summary="{warning}' in done.stderr
    assert "a lighthouse" not in done.stderr


FASTAPI_VISITOR = """
import asyncio, httpx2, app as application

async def main():
    async with application.app.router.lifespan_context(application.app):
        transport = httpx2.ASGITransport(app=application.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
            print((await client.post("/scenes/one", json={"prompt": "a lighthouse"})).status_code)

asyncio.run(main())
"""


def test_the_logging_page(tmp_path: Path) -> None:
    """Both blocks write a sentence for a call that goes well, each in its own way."""
    plain, as_json = blocks("Log lines", "python")
    sentence = "image from mine after 1.0 s and 1 request"
    done = python("-c", plain + LOGGED_CALL, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    assert f'summary="{sentence}"' in (tmp_path / "images.log").read_text()
    done = python("-c", as_json + LOGGED_CALL, cwd=tmp_path)
    assert f'"summary": "{sentence}"' in done.stdout, done.stderr


LOGGED_CALL = """
from resilient_imagen import ImageClient, Settings
from resilient_imagen.testing import FakeProvider, run_virtual

async def main():
    async with ImageClient(Settings(routes="mine:m"), providers=[FakeProvider("mine")]) as client:
        await client.generate("a lighthouse")

run_virtual(main())
"""


def test_the_custom_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws in the asked ratio, and its failures have reasons that lead on."""
    (code,) = blocks("A provider of your own", "python")
    provider = code[: code.index("def make_client")]
    assert len(provider.splitlines()) <= 40
    names = executed(code)
    asked: list[dict[str, Any]] = []
    statuses = iter([200, 200, 503, 500])

    def answer(request: httpx2.Request) -> httpx2.Response:
        import base64
        import json

        asked.append(json.loads(request.content))
        picture = base64.b64encode(TINY_PNG).decode()
        return httpx2.Response(next(statuses), json={"images": [picture]})

    async def main() -> list[str]:
        local = names["StableDiffusion"](transport=httpx2.MockTransport(answer))
        settings = Settings(routes="local:sdxl", ipm=6000, max_retries=0)
        async with ImageClient(settings, providers=[local]) as client:
            outcomes = [(await client.generate("a")).provider]
            outcomes.append((await client.generate("a", aspect_ratio="16:9")).provider)
            for _ in range(2):
                with pytest.raises(ImageGenerationError) as caught:
                    await client.generate("a")
                outcomes.append(caught.value.reason)
            return outcomes

    assert asyncio.run(main()) == ["local", "local", "overloaded", "server_error"]
    sizes = [(body["width"], body["height"]) for body in asked]
    assert sizes[:2] == [(576, 1024), (1024, 576)]

    monkeypatch.setenv("GOOGLE_GENAI_API_KEY", "made-up")
    monkeypatch.setenv("OPENAI_API_KEY", "made-up")

    async def chain() -> list[str]:
        async with names["make_client"]() as client:
            return [route["provider"] for route in client.snapshot()["routes"]]

    assert asyncio.run(chain()) == ["google", "openai", "local"]


def test_the_breaker_for_anything_else() -> None:
    """Five failures in a row, and the sixth call is not made."""
    (code,) = blocks("A breaker for anything else", "python")
    thumbnail = executed(code)["thumbnail"]
    made = []

    async def fetch(url: str) -> None:
        made.append(url)
        raise OSError(url)

    async def scene() -> None:
        for _ in range(5):
            with pytest.raises(OSError, match="a"):
                await thumbnail("a", fetch)
        with pytest.raises(CircuitOpenError) as caught:
            await thumbnail("a", fetch)
        assert caught.value.retry_after == pytest.approx(31.5, abs=1.5)

    run_virtual(scene())
    assert len(made) == 5


def test_the_fixture_for_applications(tmp_path: Path) -> None:
    """The two blocks about tests are a conftest and a test that passes."""
    conftest, test = blocks("In your tests", "python")
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_application.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), cwd=tmp_path)
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.timeout(400)  # five processes and a demo, on a machine that may be busy
def test_the_tuning_example() -> None:
    """A team's own test of what an outage may cost."""
    _, code = blocks("Tuning", "python")
    executed(code)["test_an_outage_of_ten_minutes_costs_few_requests"]()


def test_the_log_that_tuning_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lines in an application, and its log file is a recording."""
    monkeypatch.chdir(tmp_path)
    written, _ = blocks("Tuning", "python")
    logger = logging.getLogger("imagegen")
    level, handlers = logger.level, list(logger.handlers)

    async def main() -> None:
        async with ImageClient(
            Settings(routes="mine:m"), providers=[FakeProvider("mine")]
        ) as client:
            await client.generate("a lighthouse")

    executed(written)
    try:
        run_virtual(main())
    finally:
        logger.setLevel(level)
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
    recording = load("app.log")
    assert list(recording.routes) == ["mine:m"]
    assert recording.has_images


def test_the_recordings_own_format() -> None:
    """The four lines are two calls: one that fell back, one that the breaker turned away."""
    (lines,) = blocks("Tuning", "json")
    recording = gather(read_rows(lines.splitlines(), Counter()))
    assert len(recording.asked) == 2
    google, openai = recording.routes.values()
    assert (len(google), len(google.rejected), len(openai)) == (1, 1, 1)
