"""Prompt files of ``generate --from``: mistakes are reported with their line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen.cli.batch_prompts import PromptRow, read_prompts
from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.cli.image_spec import ImageSpec
from resilient_imagen.request import ASPECT_RATIOS, RESOLUTIONS

DEFAULTS = ImageSpec("", "9:16", "2K")


def read(content: str | bytes, defaults: ImageSpec = DEFAULTS) -> list[PromptRow]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_prompts(path, defaults)


NO_OBJECT = "is not a valid JSON object, like"
NO_FILE_NAME = "id must be a string or a whole number that can name a file: up to 150 bytes"
WRONG = {
    '{"prompt": "a", "aspect": "1:1"}': "has the unknown key 'aspect'; keys are prompt, id, aspect",
    "nothing": NO_OBJECT,
    "[]": NO_OBJECT,
    '"a"': NO_OBJECT,
    '{"id": 3}': "prompt must be a str that is not empty",
    '{"prompt": ""}': "prompt must be a str that is not empty",
    '{"prompt": 7}': "prompt must be a str that is not empty",
    '{"prompt": null}': "prompt must be a str that is not empty",
    '{"prompt": "a", "aspect_ratio": "7:1"}': "aspect_ratio '7:1' is not allowed; use one of",
    '{"prompt": "a", "aspect_ratio": []}': "aspect_ratio list is not allowed",
    '{"prompt": "a", "resolution": "9K"}': "resolution '9K' is not allowed; use one of",
    '{"prompt": "a", "n": 11}': "n 11 is not allowed; use a number from 1 to 10",
    '{"prompt": "a", "n": "2"}': "n must be an int or None",
    '{"prompt": "a", "id": "../a"}': NO_FILE_NAME,
    '{"prompt": "a", "id": ""}': NO_FILE_NAME,
    '{"prompt": "a", "id": ".hidden"}': NO_FILE_NAME,
    '{"prompt": "a", "id": "-o"}': NO_FILE_NAME,
    '{"prompt": "a", "id": true}': NO_FILE_NAME,
    '{"prompt": "a", "id": "GOOD"}': "image name used in line 1; set another id",
    '{"prompt": "a", "references": "b.png"}': "references must be a list of paths",
    '{"prompt": "a", "references": [1]}': "references must be a list of paths",
    '{"prompt": "a", "references": ["b.png"]}': "there is no file at the reference b.png",
    '{"prompt": "a", "references": ["\\u0000"]}': "there is no file at the reference",
    '{"prompt": "a", "references": [""]}': "there is no file at the reference",
    f'{{"prompt": "a", "references": ["{"A" * 9000}"]}}': "at the reference a string of 9000",
    "[" * 100_000: NO_OBJECT,
    f'{{"prompt": "a", "id": "{"a" * 151}"}}': NO_FILE_NAME,
    f'{{"prompt": "a", "id": "{"狐" * 51}"}}': NO_FILE_NAME,
    '{"prompt": "a", "id": "a/b"}': NO_FILE_NAME,
    '{"prompt": "a", "id": "a\\u0007"}': NO_FILE_NAME,
    '{"prompt": "a", "id": "a\\u202eb"}': NO_FILE_NAME,
    '{"prompt": "a", "id": "\\ud800"}': NO_FILE_NAME,
    '{"prompt": "a \\ud800"}': "the prompt contains an unpaired surrogate",
    '{"prompt": "a", "id": "a:b"}': NO_FILE_NAME,
    '{"prompt": "a", "id": "a?"}': NO_FILE_NAME,
    f'{{"prompt": "a", "id": {"9" * 400}}}': NO_FILE_NAME,
    f'{{"prompt": "a", "id": {"9" * 5000}}}': NO_OBJECT,
}


@pytest.mark.parametrize("line", WRONG, ids=[line[:40] for line in WRONG])
def test_a_wrong_line_is_named(line: str) -> None:
    """The message has the line's number, the mistake and what is allowed."""
    good = '{"prompt": "a", "id": "good"}'
    with pytest.raises(CommandError, match=r"prompts\.jsonl: line 3: ") as caught:
        read(f"{good}\n\n{line}\n")
    assert WRONG[line] in str(caught.value)


def test_null_means_not_given() -> None:
    """A key with null is treated as absent, as tools with a column for every key write it."""
    names = ("id", "aspect_ratio", "resolution", "references")
    (row,) = read(json.dumps({"prompt": "a", **dict.fromkeys(names)}))
    assert row == read('{"prompt": "a"}')[0]
    assert (row.spec.aspect_ratio, row.spec.resolution) == ("9:16", "2K")


@pytest.mark.parametrize(
    "name", ["狐-1", "Füchsin.v2", "लोमड़ी", "ثعلب", "_x", "7", "狐" * 50, "scene 1"]
)
def test_ids_may_be_of_any_language(name: str) -> None:
    """Letters with their combining marks, digits and spaces are allowed."""
    (row,) = read(json.dumps({"prompt": "a", "id": name}))
    assert row.id == name


def test_two_spellings_are_one_id() -> None:
    """Names that a file system may treat as equal cannot be ids of two rows."""
    for first, second in itertools.permutations(("caf\u00e9", "cafe\u0301", "CAF\u00c9"), 2):
        lines = [json.dumps({"prompt": "a", "id": name}) for name in (first, second)]
        with pytest.raises(CommandError, match="line 2: image name used in line 1"):
            read("\n".join(lines))


def test_image_data_in_a_reference_is_not_shown() -> None:
    """A data URL is accepted, and a message about a wrong one does not contain its data."""
    url = "data:image/png;base64," + "QUFB" * 1000
    (row,) = read(json.dumps({"prompt": "a", "references": [url]}))
    assert row.spec.references == (url,)
    with pytest.raises(CommandError) as caught:
        read(json.dumps({"prompt": "a", "references": [url.removeprefix("data:")]}))
    assert "QUFB" not in str(caught.value)


def test_a_reference_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that many rows share is read once by a run, and again by the next run."""
    (tmp_path / "fox.png").write_bytes(b"fox")
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"scene {number}", "references": ["fox.png"]} for number in range(50)]
    path.write_text("\n".join(map(json.dumps, lines)))
    opened, usual = [], Path.read_bytes

    def read_bytes(file: Path) -> bytes:
        opened.append(file.name)
        return usual(file)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for run in (1, 2):
        assert len(read_prompts(path, DEFAULTS)) == 50
        assert opened == ["prompts.jsonl", "fox.png"] * run


def test_an_id_does_not_depend_on_a_row_that_has_its_own() -> None:
    """A row without an id keeps its derived one if an equal request with an id is moved."""
    lines = ['{"prompt": "a", "id": "own"}', '{"prompt": "a"}']
    ids = [{row.id for row in read("\n".join(each))} for each in (lines, lines[::-1])]
    assert ids[0] == ids[1]


def test_an_empty_file_is_a_mistake() -> None:
    """A file without prompts is refused."""
    with pytest.raises(CommandError, match="contains no prompts"):
        read("\n\n")


def test_references_lie_beside_the_file(tmp_path: Path) -> None:
    """Paths are relative to the prompt file; addresses are not changed."""
    (tmp_path / "fox.png").touch()
    path = tmp_path / "prompts.jsonl"
    address = "https://example.com/a.png"
    path.write_text(json.dumps({"prompt": "a", "references": ["fox.png", address]}))
    (row,) = read_prompts(path, DEFAULTS)
    assert row.spec.references == (str(tmp_path / "fox.png"), address)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("fox.png", "prompts.jsonl"):
        (tmp_path / name).rename(elsewhere / name)
    (moved,) = read_prompts(elsewhere / "prompts.jsonl", DEFAULTS)
    assert (moved.id, moved.asked) == (row.id, row.asked)


def test_the_request_decides_the_fingerprint() -> None:
    """Every part of the request changes the fingerprint; the deadline does not."""
    asked = {
        read(line, defaults)[0].asked
        for line in ('{"prompt": "a"}', '{"prompt": "b"}', '{"prompt": "a", "resolution": "4K"}')
        for defaults in (
            DEFAULTS,
            ImageSpec("", "1:1", "2K"),
            ImageSpec("", "9:16", "2K", model="m"),
        )
    }
    assert len(asked) == 9
    patient = ImageSpec("", "9:16", "2K", deadline=5.0)
    assert read('{"prompt": "a"}', patient)[0].asked == read('{"prompt": "a"}')[0].asked


_ROWS: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {"prompt": st.text(min_size=1, max_size=60).filter(str.strip)},
    optional={
        "aspect_ratio": st.sampled_from(ASPECT_RATIOS),
        "resolution": st.sampled_from(RESOLUTIONS),
        "references": st.just([]),
    },
)


def _meaning(row: dict[str, object]) -> tuple[object, ...]:
    """Return the row with its defaults: equal rows are refused."""
    return row["prompt"], row.get("aspect_ratio", "9:16"), row.get("resolution", "2K")


@given(st.lists(_ROWS, min_size=1, max_size=8, unique_by=_meaning), st.randoms())
def test_rows_keep_their_ids_when_moved(rows: list[dict[str, object]], chance: object) -> None:
    """Derived ids are unique file names and do not depend on the order of the rows."""
    lines = [json.dumps(row) for row in rows]
    ids = [row.id for row in read("\n".join(lines))]
    assert len({name.lower() for name in ids}) == len(rows)
    assert all(name == Path(name).name and not name.startswith(".") for name in ids)
    chance.shuffle(lines)  # type: ignore[attr-defined]
    assert sorted(row.id for row in read("\n".join(lines))) == sorted(ids)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_rows_or_a_clear_mistake(content: bytes) -> None:
    """Any content is read as rows or refused with a message; nothing else is raised."""
    try:
        rows = read(content)
    except CommandError as error:
        mistake = str(error)
    else:
        mistake = "" if rows else "no rows, and no word about it"
    assert not mistake or "line " in mistake or mistake.endswith("contains no prompts")
