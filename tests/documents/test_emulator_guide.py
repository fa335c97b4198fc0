"""The emulator's guide: its samples are a test that passes, and its faults exist."""

from __future__ import annotations

import re
from pathlib import Path

from cli_kit import python
from readme_kit import guide_of

from resilient_imagen.emulator import faults

GUIDE = guide_of("emulator")


def test_the_fixture_for_applications(tmp_path: Path) -> None:
    """The two samples are a conftest and a test that passes."""
    conftest, test = GUIDE.samples(heading="In your tests")
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_application.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), cwd=tmp_path)
    assert "1 passed" in done.stdout, done.stdout


def test_the_faults_exist() -> None:
    """Each fault that the guide names is a function of the module."""
    named = re.findall(r"`([a-z_0-9]+)`", GUIDE.section("Faults"))
    assert len(named) > 10
    assert all(callable(getattr(faults, name)) for name in named)
