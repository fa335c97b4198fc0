"""Every test starts from an environment that says nothing about us."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

OURS = ("IMAGE_GEN_", "GOOGLE_", "GEMINI_", "OPENAI_", "OTEL_")

# A busy machine is no failure; .ci/slow looks longer, with --hypothesis-profile=thorough.
settings.register_profile("unhurried", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=3000)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no setting and no proxy of the developer's machine reaches a test."""
    for name in list(os.environ):
        if name.startswith(OURS) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
