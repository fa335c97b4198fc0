"""Answer files: a command removes those of ended processes, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli_kit import Ended, cli

from resilient_imagen.control.file_answers import AnswerFile, read_answers

pytest.importorskip("fcntl")

NAME = "host-17-0a1b2c"
"""A name as processes create it."""


@pytest.fixture
def control_file(tmp_path: Path) -> Path:
    return tmp_path / "control.json"


@pytest.fixture
def folder(control_file: Path) -> Path:
    folder = control_file.with_name("control.json.answers")
    folder.mkdir()
    return folder


def test_only_answers_of_ended_processes_are_removed(control_file: Path, folder: Path) -> None:
    """Other files, folders, links and named pipes stay; a pipe does not block the reader."""
    target = control_file.with_name("target")
    target.write_text("kept")
    (folder / "README").write_text("kept")
    (folder / NAME).write_text('{"known": 1, "orders": {}}')
    (folder / "host-18-0a1b2c").symlink_to(target)
    (folder / "host-19-0a1b2c").mkdir()
    os.mkfifo(folder / "host-20-0a1b2c")
    running = AnswerFile(control_file)
    running.write(7, {"orders": {7: "ok"}})
    (found,) = read_answers(control_file)
    assert (found.known, found.orders) == (7, {7: "ok"})
    left = {each.name for each in folder.iterdir()} - {found.worker}
    assert left == {"README", "host-18-0a1b2c", "host-19-0a1b2c", "host-20-0a1b2c"}
    assert target.read_text() == "kept"
    running.close()


def test_a_folder_that_is_a_link_is_refused(
    control_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator with more rights than the processes would remove files of another folder."""
    other = control_file.with_name("other")
    other.mkdir()
    (other / NAME).write_text("kept")
    link = control_file.with_name("control.json.answers")
    link.symlink_to(other)
    with pytest.raises(OSError, match="is a symbolic link"):
        AnswerFile(control_file).write(0, {"orders": {}})
    done: Ended = cli(capsys, "breaker", "open", "google", "--control-file", control_file)
    assert done.code == 1
    assert (
        f"its answers cannot be read: {link}: is a symbolic link, but must be a folder"
        in done.complaint
    )
    assert [each.name for each in other.iterdir()] == [NAME]
