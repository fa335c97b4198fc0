"""The public contract equals the snapshot in ``data/contract.json``."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from contract_kit import contract, snapshot

AGREED = snapshot()


@cache
def _present() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(contract()))  # tuples become lists
    return found


@pytest.mark.parametrize("part", [part for part in AGREED if part != "error_texts"])
def test_the_contract_equals_its_snapshot(part: str) -> None:
    """Names, signatures, defaults, reasons, telemetry and commands equal the snapshot.

    After a deliberate change run ``python tests/support/contract_kit.py``, and describe it in
    CHANGELOG.md.
    """
    assert _present()[part] == AGREED[part]


def test_the_snapshot_has_every_part() -> None:
    """Each part of the contract is in the snapshot."""
    assert set(AGREED) == {*_present(), "error_texts"}
