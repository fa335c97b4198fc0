"""Files of prompts: every mistake is named by its line, before anything is paid for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen.cli import prompts
from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.cli.image_spec import ImageSpec
from resilient_imagen.cli.prompts import PromptRow, read_prompts
from resilient_imagen.request import ASPECT_RATIOS, RESOLUTIONS

DEFAULTS = ImageSpec("", "9:16", "2K")


def read(content: str | bytes, defaults: ImageSpec = DEFAULTS) -> list[PromptRow]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_prompts(path, defaults)


WRONG = {
    '{"prompt": "a", "aspect": "1:1"}': "has 'aspect'; known are prompt, id, aspect_ratio",
    "nothing": "is not JSON",
    "[]": "is not an object like",
    '"a"': "is not an object like",
    '{"id": 3}': 'has no "prompt"',
    '{"prompt": ""}': "prompt must be a str that is not empty",
    '{"prompt": 7}': "prompt must be a str that is not empty",
    '{"prompt": "a", "aspect_ratio": "7:1"}': "aspect_ratio '7:1' is not allowed; use one of",
    '{"prompt": "a", "aspect_ratio": []}': "aspect_ratio list is not allowed",
    '{"prompt": "a", "resolution": "9K"}': "resolution '9K' is not allowed; use one of",
    '{"prompt": "a", "id": "../a"}': "has an id that is no file name",
    '{"prompt": "a", "id": ".hidden"}': "has an id that is no file name",
    '{"prompt": "a", "id": true}': "has an id that is neither a text nor a whole number",
    '{"prompt": "a", "id": "GOOD"}': "has the id of line 1",
    '{"prompt": "a", "references": "b.png"}': "has references that are no list of paths",
    '{"prompt": "a", "references": [1]}': "has references that are no list of paths",
    '{"prompt": "a", "references": ["b.png"]}': "names the reference b.png, which is not there",
    '{"prompt": "a", "references": ["\\u0000"]}': "names the reference",
    f'{{"prompt": "a", "references": ["{"A" * 9000}"]}}': "a text of 9000 characters, which is not",
    "[" * 100_000: "is not JSON",
    '{"a":' * 100_000: "is not JSON",
    f'{{"prompt": "a", "id": "{"a" * 101}"}}': "has an id that is no file name",
    f'{{"prompt": "a", "id": "{"狐" * 51}"}}': "has an id that is no file name",
    '{"prompt": "a", "id": "a/b"}': "has an id that is no file name",
    '{"prompt": "a", "id": "a\\u0007"}': "has an id that is no file name",
    '{"prompt": "a", "id": "a\\u202eb"}': "has an id that is no file name",
    '{"prompt": "a", "id": "\\u0301"}': "has an id that is no file name",
    '{"prompt": "a", "id": "\\ud800"}': "has an id that is no file name",
    '{"prompt": "a \\ud800"}': "the prompt contains an unpaired surrogate",
    '{"prompt": "a", "id": "CON"}': "has the id 'CON', which names a device on Windows",
    '{"prompt": "a", "id": "nul.tar.gz"}': "has the id 'nul.tar.gz', which names a device",
    '{"prompt": "a", "id": "Com1."}': "has the id 'Com1.', which names a device on Windows",
    '{"prompt": "a", "id": "LPT¹"}': "has the id 'LPT¹', which names a device on Windows",
    '{"prompt": "a", "id": "con "}': "has an id that is no file name",
    '{"prompt": "a", "id": "a:b"}': "has an id that is no file name",
    '{"prompt": "a", "id": "a?"}': "has an id that is no file name",
    f'{{"prompt": "a", "id": {"9" * 400}}}': "has an id that is no file name",
    f'{{"prompt": "a", "id": {"9" * 5000}}}': "is not JSON",
}


@pytest.mark.parametrize("line", WRONG, ids=[line[:40] for line in WRONG])
def test_a_wrong_line_is_named(line: str) -> None:
    """With what is wrong and, where it helps, what is allowed."""
    good = '{"prompt": "a", "id": "good"}'
    with pytest.raises(CommandError, match=r"prompts\.jsonl: line 3: ") as caught:
        read(f"{good}\n\n{line}\n")
    assert WRONG[line] in str(caught.value)


def test_null_means_not_given() -> None:
    """As tools write it that have a column for everything."""
    names = ("id", "aspect_ratio", "resolution", "references")
    (row,) = read(json.dumps({"prompt": "a", **dict.fromkeys(names)}))
    assert row == read('{"prompt": "a"}')[0]
    assert (row.order.aspect_ratio, row.order.resolution) == ("9:16", "2K")


@pytest.mark.parametrize(
    "name",
    [
        "狐-1",
        "Füchsin.v2",
        "लोमड़ी",
        "ثعلب",
        "_x",
        "7",
        "狐" * 50,
        "console",
        "com",
        "com10",
        "aux2",
    ],
)
def test_ids_may_be_of_any_language(name: str) -> None:
    """Letters with their marks, and digits."""
    (row,) = read(json.dumps({"prompt": "a", "id": name}))
    assert row.id == name


def test_two_spellings_are_one_id() -> None:
    """Some file systems do not tell them apart."""
    spellings = ("caf\u00e9", "cafe\u0301", "CAF\u00c9")
    for first, second in (*itertools.permutations(spellings, 2), ("\u03c3", "\u03c2")):
        lines = [json.dumps({"prompt": "a", "id": name}) for name in (first, second)]
        with pytest.raises(CommandError, match="line 2: has the id of line 1"):
            read("\n".join(lines))


def test_a_picture_in_a_reference_is_not_told() -> None:
    """A data URL may stand there, and is none of the things that a mistake names."""
    url = "data:image/png;base64," + "QUFB" * 1000
    (row,) = read(json.dumps({"prompt": "a", "references": [url]}))
    assert row.order.references == (url,)
    with pytest.raises(CommandError) as caught:
        read(json.dumps({"prompt": "a", "references": [url.removeprefix("data:")]}))
    assert "QUFB" not in str(caught.value)


def test_a_reference_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows share it."""
    (tmp_path / "fox.png").write_bytes(b"fox")
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"scene {number}", "references": ["fox.png"]} for number in range(50)]
    path.write_text("\n".join(map(json.dumps, lines)))
    read_by = []

    def digest_of(path: Path) -> str:
        read_by.append(path)
        return "0"

    monkeypatch.setattr(prompts, "digest_of", digest_of)
    assert len(read_prompts(path, DEFAULTS)) == 50
    assert read_by == [tmp_path / "fox.png"]


def test_many_wrong_lines_are_not_all_listed() -> None:
    """The first five, and how many more."""
    with pytest.raises(CommandError) as caught:
        read("nothing\n" * 8)
    assert str(caught.value).count("is not JSON") == 5
    assert str(caught.value).endswith("; and 3 more")


def test_an_empty_file_is_a_mistake() -> None:
    """Nothing to do is not what anybody wanted."""
    with pytest.raises(CommandError, match="holds no prompts"):
        read("\n\n")


def test_references_lie_beside_the_file(tmp_path: Path) -> None:
    """Wherever one calls from; addresses stay as they are."""
    (tmp_path / "fox.png").touch()
    path = tmp_path / "prompts.jsonl"
    address = "https://example.com/a.png"
    path.write_text(json.dumps({"prompt": "a", "references": ["fox.png", address]}))
    (row,) = read_prompts(path, DEFAULTS)
    assert row.order.references == (str(tmp_path / "fox.png"), address)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("fox.png", "prompts.jsonl"):
        (tmp_path / name).rename(elsewhere / name)
    (moved,) = read_prompts(elsewhere / "prompts.jsonl", DEFAULTS)
    assert (moved.id, moved.asked) == (row.id, row.asked)


def test_what_is_asked_for_decides_what_is_the_same() -> None:
    """Every part of the request counts; how long it may take does not."""
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


@given(st.lists(_ROWS, min_size=1, max_size=8), st.randoms())
def test_rows_keep_their_ids_when_moved(rows: list[dict[str, object]], chance: object) -> None:
    """Ids are unique file names, and the same set in whatever order the rows stand."""
    lines = [json.dumps(row) for row in rows]
    ids = [row.id for row in read("\n".join(lines))]
    assert len({name.lower() for name in ids}) == len(rows)
    assert all(name == Path(name).name and not name.startswith(".") for name in ids)
    chance.shuffle(lines)  # type: ignore[attr-defined]
    assert sorted(row.id for row in read("\n".join(lines))) == sorted(ids)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_rows_or_a_clear_mistake(content: bytes) -> None:
    """Nothing that a file may hold ends in anything else."""
    try:
        rows = read(content)
    except CommandError as error:
        mistake = str(error)
    else:
        mistake = "" if rows else "no rows, and no word about it"
    assert not mistake or "line " in mistake or mistake.endswith("holds no prompts")
