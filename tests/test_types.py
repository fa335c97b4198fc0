"""Every public symbol has a type that type checkers know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_kit import python

REQUIRED = 0.98


@pytest.mark.ci
def test_pyright_knows_the_type_of_public_symbols(tmp_path: Path) -> None:
    """Pyright's score of type completeness stays above 98 %.

    Types of other packages are left out: pydantic's, for instance, are not complete.
    """
    done = python(
        *("-m", "pyright", "--outputjson", "--ignoreexternal"),
        *("--verifytypes", "resilient_imagen"),
        cwd=tmp_path,
    )
    report = json.loads(done.stdout)["typeCompleteness"]
    unknown = [
        f"{symbol['name']}: {problem['message']}"
        for symbol in report["symbols"]
        for problem in symbol["diagnostics"]
    ]

    assert report["packageName"] == "resilient_imagen"
    assert report["completenessScore"] >= REQUIRED, "\n".join(unknown)
