"""Files for Prometheus and Grafana: alert rules and a dashboard, and a function that writes them.

The files are templates to be copied and edited; the library does not read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["FILES", "write_files"]

FILES: Final = ("alerts.yml", "dashboard.json")
"""Prometheus' alert rules, and a dashboard that Grafana imports."""


def write_files(directory: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the files into a directory, which is made if it is missing.

    Args:
        directory: The target directory.
        overwrite: Replace files whose contents differ, such as alerts that were edited.

    Returns:
        The paths of all files, also of those that were there already.

    Raises:
        FileExistsError: A file with other contents is there; nothing was written.
        OSError: The directory cannot be written to.
    """
    contents = {directory / name: (Path(__file__).parent / name).read_bytes() for name in FILES}
    if not overwrite:
        for path, content in contents.items():
            if path.exists() and path.read_bytes() != content:
                raise FileExistsError(path)
    directory.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        path.write_bytes(content)
    return list(contents)
