"""``generate --from``: every image is saved at once, and a second run requests only the rest."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from batch_kit import COMMAND, QUICK, asked, batch, journal, prepare, scene, scenes, write
from cli_kit import cli, run, started
from images_samples import encoded
from PIL import Image

from resilient_imagen import ImageClient, ImageResult, NoImageError, Settings
from resilient_imagen.cli.batch_summary import summarize
from resilient_imagen.emulator import BackgroundEmulator, faults
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.result import Usage
from resilient_imagen.testing import TINY_PNG, FakeProvider, RecordingSink, run_virtual

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]
OTHER_PNG = encoded(Image.new("RGB", (90, 160), "red"), "PNG")


@pytest.fixture(autouse=True)
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    prepare(tmp_path, monkeypatch, imagen_emulator)


def test_every_row_becomes_an_image(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """Each row's image has its ratio, size, references and id, and a line in the journal."""
    Path("refs").mkdir()
    Path("refs/fox.png").write_bytes(TINY_PNG)
    write(
        [
            {"prompt": "scene 0", "id": "first", "aspect_ratio": "16:9", "resolution": "4K"},
            {"prompt": "scene 1", "id": 2, "references": ["refs/fox.png"]},
            "",
            {"prompt": "Scene: 2!"},
        ]
    )
    ended = batch(capsys, "--aspect", "1:1", "--resolution", "1K")
    assert ended.code == 0, ended.err
    first, second, third = sorted(imagen_emulator.google.requests, key=scene)
    assert (first.aspect_ratio, first.resolution) == ("16:9", "4K")
    assert (second.aspect_ratio, second.resolution) == ("1:1", "1K")
    assert [len(seen.references) for seen in (first, second, third)] == [0, 1, 0]
    names = {file for entry in journal() for file in entry["files"]}
    assert {name.rpartition("-")[0] for name in names} == {"", "scene-2"}
    assert names > {"first.jpg", "2.jpg"}
    for name in names:
        assert sniff_mime((Path("out") / name).read_bytes()) == "image/jpeg"
    summary = json.loads(ended.out)
    assert (summary["rows"], summary["made"], summary["kept"], summary["left"]) == (3, 3, 0, 0)
    assert summary["providers"]["google"]["images"] == 3
    assert summary["cost_usd"] == pytest.approx(0.134 * 2 + 0.24)


def test_several_images_of_a_row_are_kept_together(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """A second run requests nothing; a row that lacks one of its images is made again."""
    write([{"prompt": "scene 1", "id": "a"}, {"prompt": "scene 2", "id": "b"}])
    flags = ("--n", "3", "--format", "png")
    assert batch(capsys, *flags).code == 0
    names = {f"{row}{number}.png" for row in "ab" for number in ("", "-2", "-3")}
    assert {path.name for path in Path("out").glob("*.png")} == names
    assert asked(imagen_emulator) == {"scene 1": 3, "scene 2": 3}

    assert json.loads(batch(capsys, *flags).out)["kept"] == 2
    assert sum(asked(imagen_emulator).values()) == 6

    Path("out/a-2.png").unlink()
    assert json.loads(batch(capsys, *flags).out)["made"] == 1
    assert asked(imagen_emulator) == {"scene 1": 6, "scene 2": 3}
    assert Path("out/a-2.png").is_file()

    assert json.loads(batch(capsys, *flags, "--seed", "3").out)["made"] == 2


def test_the_summary_counts_missing_images(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row with fewer images than requested is done; the summary counts the missing ones."""
    usual = ImageClient.generate

    async def one_fewer(*arguments: Any, **options: Any) -> ImageResult:
        result = await usual(*arguments, **options)
        return replace(result, more_images=result.more_images[1:])

    monkeypatch.setattr(ImageClient, "generate", one_fewer)
    write(scenes(2))
    summary = json.loads(batch(capsys, "--n", "3").out)
    assert (summary["made"], summary["missing_images"]) == (2, 2)
    assert summary["providers"]["google"]["images"] == 4

    ended = cli(capsys, *COMMAND, "--n", "3", "--seed", "1")
    assert "missing images: 2 (see results.jsonl)" in ended.out


@pytest.mark.parametrize("ids", [("a", "a-3"), ("a-3", "a")])
def test_no_image_takes_the_name_of_another_rows(
    ids: tuple[str, str], capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """The second row is refused before anything is sent; with fewer images it is allowed."""
    write([{"prompt": "x", "id": each} for each in ids])
    ended = batch(capsys, "--n", "3")
    assert ended.code == 2
    assert "line 2: the image a" in ended.err
    assert "is also of line 1" in ended.err
    assert batch(capsys, "--n", "2").code == 0
    assert len(imagen_emulator.google.requests) == 4


def test_a_second_run_requests_nothing(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """Finished rows are kept, also when they are moved within the file."""
    rows = [{"prompt": "scene 1"}, {"prompt": "scene 1"}, {"prompt": "scene 2"}]
    write(rows)
    assert batch(capsys).code == 0
    assert asked(imagen_emulator) == {"scene 1": 2, "scene 2": 1}
    write([{"prompt": "scene 3"}, *reversed(rows)])
    assert json.loads(batch(capsys).out)["kept"] == 3
    assert asked(imagen_emulator) == {"scene 1": 2, "scene 2": 1, "scene 3": 1}


def test_what_changed_is_made_again(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """A row whose request changed, and one whose image was deleted, are made again."""
    write(scenes(3))
    batch(capsys)
    Path("out/s0.jpg").unlink()
    write([*scenes(2), {"prompt": "scene 2", "id": "s2", "aspect_ratio": "1:1"}])
    summary = json.loads(batch(capsys).out)
    assert (summary["made"], summary["kept"]) == (2, 1)
    assert asked(imagen_emulator) == {"scene 0": 2, "scene 1": 1, "scene 2": 2}


def test_a_references_content_is_part_of_the_request(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """A row is made again if a reference's content changes, not if the file is renamed."""
    Path("fox.png").write_bytes(TINY_PNG)
    write([{"prompt": "scene 0", "id": "s0", "references": ["fox.png"]}])
    batch(capsys)
    Path("fox.png").rename("vixen.png")
    write([{"prompt": "scene 0", "id": "s0", "references": ["vixen.png"]}])
    assert json.loads(batch(capsys).out)["kept"] == 1
    Path("vixen.png").write_bytes(OTHER_PNG)
    assert json.loads(batch(capsys).out)["made"] == 1
    sizes = [seen.references[0].size for seen in imagen_emulator.google.requests]
    assert sizes == [len(TINY_PNG), len(OTHER_PNG)]


def test_a_reference_may_be_a_data_url(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """Its bytes are sent unchanged; one that is not an image fails its row and is never shown."""
    good, bad = (base64.b64encode(data).decode() for data in (TINY_PNG, b"no picture" * 2000))
    rows = [
        {"prompt": f"scene {number}", "references": [f"data:image/png;base64,{content}"]}
        for number, content in enumerate((good, bad))
    ]
    write(rows)
    ended = batch(capsys)
    (seen,) = imagen_emulator.google.requests
    assert [each.size for each in seen.references] == [len(TINY_PNG)]
    (failed,) = json.loads(ended.out)["failed"]
    assert failed["error"] == "a data: URL is not an image of a known type"
    assert bad[:16] not in ended.out + ended.err + Path("out/results.jsonl").read_text()


def test_failures_are_tried_again_but_refusals_are_not(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """The next run repeats a failed row, but not one that was blocked, which may cost again."""
    write(scenes(2))
    imagen_emulator.google.fail(faults.blocked(), times=1)
    imagen_emulator.google.set(faults.status(400))
    ended = batch(capsys)
    assert ended.code == 1
    summary = json.loads(ended.out)
    reasons = {each["id"]: each["reason"] for each in summary["failed"]}
    assert sorted(reasons.values()) == ["content_blocked", "invalid_request"]
    assert {each["line"] for each in summary["failed"]} == {1, 2}
    imagen_emulator.heal()
    write(["", "", *scenes(2)])
    summary = json.loads(batch(capsys).out)
    assert (summary["made"], summary["left"]) == (1, 0)
    (refused,) = summary["failed"]
    assert refused["reason"] == "content_blocked"
    assert refused["line"] == 3 + int(refused["id"].removeprefix("s"))
    blocked = next(row["prompt"] for row in scenes(2) if reasons[row["id"]] == "content_blocked")
    assert asked(imagen_emulator)[blocked] == 1


def test_a_hopeless_case_stops_the_rest(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """A run stops when every key is refused; after a correction the next run makes all rows."""
    imagen_emulator.google.set(faults.status(401))
    imagen_emulator.openai.set(faults.status(401))
    write(scenes(30))
    ended = batch(capsys)
    assert ended.code == 1
    summary = json.loads(ended.out)
    assert summary["left"] >= 14
    assert "401" in summary["stopped"]
    assert summary["stopped"].endswith("; check GOOGLE_GENAI_API_KEY and OPENAI_API_KEY")
    assert 'openai says "Incorrect API key provided."' in journal()[0]["error"]
    imagen_emulator.heal()
    assert batch(capsys).code == 0
    assert {path.stem for path in Path("out").glob("*.jpg")} == {row["id"] for row in scenes(30)}


def test_an_outage_is_served_by_the_fallback(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """All rows are served, and the summary has the provider and the reason."""
    imagen_emulator.google.set(faults.overload())
    write(scenes(8))
    ended = cli(capsys, *COMMAND)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].split() == ["provider", "images", "median", "s", "longest", "s", "cost"]
    assert [line.split()[:3] for line in lines[1:3]] == [["google", "0", "-"], ["openai", "8", ANY]]
    assert any("by fallback: overloaded" in line for line in lines)
    assert lines[-1] == "out: 8 made, 0 made before, 0 failed, 0 left"
    assert len(ended.err.splitlines()) == 8


def test_images_of_earlier_runs_are_counted_apart(capsys: Capsys) -> None:
    """Images, seconds and costs are those of this run; images of earlier runs are counted."""
    write(scenes(2))
    batch(capsys)
    write(scenes(3))
    table, closing = cli(capsys, *COMMAND).out.splitlines()[1:]
    assert table.split()[:2] == ["google", "1"]
    assert closing == "out: 1 made, 2 made before, 0 failed, 0 left"


def test_a_row_may_have_its_own_options(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """Options of a row replace those of the command line."""
    own = {"output_format": "webp", "n": 2, "seed": 7}
    write([{"prompt": "scene 1", "id": "a", **own}, {"prompt": "scene 2", "id": "b"}])
    assert batch(capsys, "--format", "png").code == 0
    images = {path.name: sniff_mime(path.read_bytes()) for path in Path("out").glob("*.*p*g*")}
    assert images == {"b.png": "image/png"}
    assert {path.name for path in Path("out").glob("*.webp")} == {"a.webp", "a-2.webp"}
    write([{"prompt": "scene 1", "id": "a", **own, "seed": 8}, {"prompt": "scene 2", "id": "b"}])
    assert json.loads(batch(capsys, "--format", "png").out)["made"] == 1


def test_requests_without_an_image_are_counted(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    """The cost of a provider includes requests that brought no image."""
    monkeypatch.setenv("IMAGE_GEN_ROUTES", "openai:gpt-image-2.5-flare,google:gemini-3-pro-image")
    imagen_emulator.openai.set(faults.bad_base64())
    write(scenes(1))
    ended = cli(capsys, *COMMAND)
    assert ended.code == 0
    google, openai = [line.split() for line in ended.out.splitlines()[1:3]]
    assert google[:2] == ["google", "1"]
    assert openai[:4] == ["openai", "0", "-", "-"]
    assert float(openai[4].removeprefix("$")) > 0


def test_requests_that_may_be_billed_are_listed(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """A request whose connection broke may have made an image, so the summary has its price."""
    imagen_emulator.google.fail(faults.reset(), times=1)
    write(scenes(1))
    lines = cli(capsys, *COMMAND).out.splitlines()
    assert lines[-2] == "1 requests without an image may be billed as well: $0.1340"


def test_only_deliveries_have_times() -> None:
    """A response without an image counts in the cost, not in the seconds per image."""
    usage = Usage(
        provider="google",
        model="m",
        input_tokens=1,
        output_tokens=1,
        total_tokens=2,
        cost_usd=0.5,
    )
    google = FakeProvider("google", latency=7.0)
    google.crash(NoImageError(provider="google", usage=usage), times=1)

    async def run() -> dict[str, Any]:
        events = RecordingSink()
        settings = Settings(google_api_key="made-up", openai_api_key=None, ipm=6000)
        async with ImageClient(settings, providers=[google], sinks=[events]) as client:
            await client.generate("a fox")
            return summarize([], [], events.attempts, client.snapshot())

    summary = run_virtual(run())
    google_totals = summary["providers"]["google"]
    assert (google_totals["median_s"], google_totals["max_s"]) == (7.0, 7.0)
    assert google_totals["cost_usd"] == pytest.approx(summary["cost_usd"])
    assert summary["cost_usd"] > 0.5


def test_failures_are_listed_for_people(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """Failures are listed with line and cause, but at most 20 of them."""
    imagen_emulator.google.set(faults.blocked())
    write(scenes(25))
    ended = cli(capsys, *COMMAND)
    assert ended.code == 1
    listed = [line for line in ended.out.splitlines() if line.startswith("no image for s")]
    assert len(listed) == 20
    assert listed[0].endswith("google gemini-3-pro-image: blocked by safety filters")
    assert "and 5 more: see results.jsonl" in ended.out


def test_a_killed_run_is_continued(tmp_path: Path, imagen_emulator: BackgroundEmulator) -> None:
    """After a SIGKILL, only requests that were in flight are sent again."""
    write(scenes(12))
    imagen_emulator.google.set_latency(0.3)
    with started(*COMMAND, cwd=tmp_path, env=QUICK) as process:
        imagen_emulator.wait_until(lambda: len(imagen_emulator.google.requests) >= 7, timeout=60)
        process.kill()
        process.communicate(timeout=60)
    finished = {entry["id"] for entry in journal()}
    assert len(finished) >= 3
    again = run(*COMMAND, cwd=tmp_path, env=QUICK)
    assert again.returncode == 0, again.stderr
    assert {path.stem for path in Path("out").glob("*.jpg")} == {row["id"] for row in scenes(12)}
    often = {name for name, times in asked(imagen_emulator).items() if times > 1}
    assert len(often) <= 4
    assert not often & {f"scene {name[1:]}" for name in finished}


def test_a_terminal_gets_a_bar(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    """The bar counts every row, and each failure is printed once above it."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich assume a terminal
    imagen_emulator.google.fail(faults.blocked())
    write(scenes(3))
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", batch(capsys).err)
    assert "3/3" in printed
    assert len(re.findall(r"s\d: google gemini-3-pro-image: blocked", printed)) == 1
