"""``generate --from``: every image is saved at once, and a second run requests only the rest."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from batch_kit import COMMAND, QUICK, asked, batch, journal, prepare, scene, scenes, write
from cli_kit import cli, python, run, started
from images_samples import encoded
from PIL import Image

from resilient_imagen import ImageClient, ImageResult
from resilient_imagen.emulator import BackgroundEmulator, faults
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.testing import TINY_PNG

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
    assert summary["images"] == {"google": 3}
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


def test_missing_images_are_reported(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row with fewer images than requested is done; its line has the images that were saved."""
    usual = ImageClient.generate

    async def one_fewer(*arguments: Any, **options: Any) -> ImageResult:
        result = await usual(*arguments, **options)
        return replace(result, more_images=result.more_images[1:])

    monkeypatch.setattr(ImageClient, "generate", one_fewer)
    write(scenes(2))
    ended = batch(capsys, "--n", "3")
    assert ended.err.count("-2.jpg: google, ") == 2
    summary = json.loads(ended.out)
    assert (summary["made"], summary["images"]) == (2, {"google": 4})


@pytest.mark.parametrize("ids", [("a", "a-3"), ("a-3", "a")])
def test_no_image_takes_the_name_of_another_rows(
    ids: tuple[str, str], capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """The second row is refused before anything is sent; with fewer images it is allowed."""
    write([{"prompt": "x", "id": each} for each in ids])
    ended = batch(capsys, "--n", "3")
    assert ended.code == 2
    assert "line 2: image name used in line 1; set another id" in ended.err
    assert batch(capsys, "--n", "2").code == 0
    assert len(imagen_emulator.google.requests) == 4


def test_a_second_run_requests_nothing(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """Finished rows are kept, also when they are moved within the file."""
    rows = [{"prompt": "scene 1"}, {"prompt": "scene 2"}]
    write(rows)
    assert batch(capsys).code == 0
    write([{"prompt": "scene 3"}, *reversed(rows)])
    assert json.loads(batch(capsys).out)["kept"] == 2
    assert asked(imagen_emulator) == {"scene 1": 1, "scene 2": 1, "scene 3": 1}


def test_equal_rows_need_ids(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """A repeated row without an id is refused before anything is sent."""
    write([{"prompt": "scene 1"}, {"prompt": "scene 1"}])
    ended = batch(capsys)
    assert ended.code == 2
    assert ended.complaint == "prompts.jsonl: line 2: image name used in line 1; set another id"
    write([{"prompt": "scene 1"}, {"prompt": "scene 1", "id": "again"}])
    assert batch(capsys).code == 0
    assert asked(imagen_emulator) == {"scene 1": 2}


def test_a_changed_row_is_made_again(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
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
    assert json.loads(ended.out)["failed"] == 1
    assert ": a data: URL is not an image of a known type\n" in ended.err
    assert bad[:16] not in ended.out + ended.err + Path("out/results.jsonl").read_text()


def test_failures_are_tried_again_but_refusals_are_not(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """The next run repeats a failed row, but not one that was blocked, which may cost again."""
    write(scenes(2))
    imagen_emulator.google.fail(faults.blocked(), times=1)
    imagen_emulator.google.set(faults.status(400))
    assert batch(capsys).code == 1
    reasons = {entry["id"]: entry["reason"] for entry in journal()}
    assert sorted(reasons.values()) == ["content_blocked", "invalid_request"]
    imagen_emulator.heal()
    ended = batch(capsys)
    assert ended.code == 1
    summary = json.loads(ended.out)
    assert (summary["made"], summary["failed"], summary["left"]) == (1, 1, 0)
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
    """All rows are served; a line for each row and the summary have the provider."""
    imagen_emulator.google.set(faults.overload())
    write(scenes(8))
    ended = cli(capsys, *COMMAND)
    assert ended.code == 0
    images, cost, closing = ended.out.splitlines()
    assert images == "images    8 by openai"
    assert float(cost.removeprefix("cost      $")) > 0
    assert closing == "out: 8 made, 0 kept, 0 failed, 0 left; see results.jsonl"
    numbers, lines = zip(*(line.split()[1:3] for line in ended.err.splitlines()), strict=True)
    assert list(numbers) == [f"{number}/8" for number in range(1, 9)]
    assert set(lines) == {f"{row['id']}.png:" for row in scenes(8)}
    assert ended.err.count(": openai, ") == 8


def test_images_of_earlier_runs_are_counted_apart(capsys: Capsys) -> None:
    """Images and costs are those of this run; images of earlier runs are counted."""
    write(scenes(2))
    batch(capsys)
    write(scenes(3))
    images, _, closing = cli(capsys, *COMMAND).out.splitlines()
    assert images == "images    1 by google"
    assert closing == "out: 1 made, 2 kept, 0 failed, 0 left; see results.jsonl"


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


def test_requests_that_may_be_billed_are_in_the_cost(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """A request whose connection broke may have made an image, so the summary has its price."""
    imagen_emulator.google.fail(faults.reset(), times=1)
    write(scenes(1))
    cost = cli(capsys, *COMMAND).out.splitlines()[1]
    assert cost == "cost      $0.1340, and perhaps $0.1340 for requests without an image"


def test_failures_have_lines(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """The line of a failed row has the cause."""
    imagen_emulator.google.set(faults.blocked())
    write(scenes(3))
    ended = cli(capsys, *COMMAND)
    assert ended.code == 1
    assert ended.err.count(": google gemini-3-pro-image: blocked by safety filters\n") == 3
    assert "out: 0 made, 0 kept, 3 failed, 0 left" in ended.out


# -- processes ------------------------------------------------------------------------------------


@pytest.mark.ci
def test_killed_runs_pay_for_no_finished_row_again(
    tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """After each SIGKILL, the next run requests only rows without a line."""
    write(scenes(12))
    imagen_emulator.google.set_latency(faults.log_normal(0.2, 0.6))
    finished: dict[str, int] = {}
    for lines in (3, 7):
        with started(*COMMAND, cwd=tmp_path, env=QUICK) as process:
            imagen_emulator.wait_until(partial(has_lines, lines), timeout=60)
            process.kill()
            process.communicate(timeout=60)
        sent = asked(imagen_emulator)
        finished = {**{each: sent[each] for each in finished_scenes()}, **finished}
    again = run(*COMMAND, cwd=tmp_path, env=QUICK)
    assert again.returncode == 0, again.stderr
    assert {path.stem for path in Path("out").glob("*.jpg")} == {row["id"] for row in scenes(12)}
    sent = asked(imagen_emulator)
    assert len(finished) >= 7
    assert finished.items() <= sent.items()
    assert sent.total() <= 12 + 2 * 4  # four were in flight at each kill


def test_two_runs_at_once_pay_once(
    tmp_path: Path, capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """A second process is refused while the first one runs, and sends nothing."""
    write(scenes(6))
    imagen_emulator.google.set_latency(0.5)
    with started(*COMMAND, cwd=tmp_path, env=QUICK) as process:
        imagen_emulator.wait_until(lambda: imagen_emulator.google.in_flight > 0, timeout=60)
        second = batch(capsys)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert (second.code, second.complaint) == (2, "out/results.jsonl: another run is at work here")
    assert asked(imagen_emulator) == {row["prompt"]: 1 for row in scenes(6)}


@pytest.mark.ci
def test_a_full_disk_stops_the_run(tmp_path: Path, imagen_emulator: BackgroundEmulator) -> None:
    """Rows whose lines were written are kept, and half a line affects only itself.

    A limit of the file's size has the effect of a full disk.
    """
    write(scenes(20))
    limit = 2_000_000
    Path("out").mkdir()
    padding = json.dumps({"id": "other", "padding": "x" * (limit - 1100)})
    Path("out/results.jsonl").write_text(f"{padding}\n")
    limited = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "from resilient_imagen.cli import main; main()"
    )
    ended = python("-c", limited, *COMMAND, cwd=tmp_path, env=QUICK)
    assert ended.returncode == 1
    assert "stopping: out/results.jsonl: File too large; " in ended.stderr
    sent = asked(imagen_emulator)
    assert sent.total() < 20
    finished = {each: sent[each] for each in finished_scenes()}
    assert finished
    again = run(*COMMAND, cwd=tmp_path, env=QUICK)
    assert again.returncode == 0
    assert "ignoring the damaged line " in again.stderr
    assert finished.items() <= asked(imagen_emulator).items()
    assert len(finished_scenes()) == 20


def has_lines(count: int) -> bool:
    path = Path("out/results.jsonl")
    return path.exists() and path.read_bytes().count(b"\n") >= count


def finished_scenes() -> set[str]:
    """Return the scenes of rows with a line, which may be followed by half a line."""
    lines = Path("out/results.jsonl").read_text().splitlines()
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return {f"scene {each['id'][1:]}" for each in whole if each.get("status") == "done"}
