"""The guide to runtime control: its sample is obeyed, and its lists agree with the code."""

from __future__ import annotations

import re

import pytest
from readme_kit import executed, guide_of

from resilient_imagen import ImageClient, Settings
from resilient_imagen.control.order import BREAKER_ACTIONS, SETTING_ACTIONS
from resilient_imagen.control.overrides import variables_for
from resilient_imagen.testing import FakeProvider, run_virtual

GUIDE = guide_of("control")


def test_the_sample_drains_a_provider() -> None:
    """The sample's orders are in force, and listed."""
    (code,) = GUIDE.samples()

    async def main() -> list[str]:
        providers = [FakeProvider("google"), FakeProvider("openai")]
        async with ImageClient(Settings(), providers=providers) as client:
            listed: list[str] = await executed(code)["drain"](client, "ana")
            assert (await client.generate("a lighthouse")).provider == "openai"
            return listed

    assert run_virtual(main()) == ["breaker open google", "IMAGE_GEN_BREAKER_FAIL_MAX=5"]


def test_every_action_is_listed() -> None:
    """The table has a row for each action, with the code's names."""
    rows = re.findall(r"^\| `(\w+)` ", GUIDE.text, re.MULTILINE)
    assert tuple(rows) == (*BREAKER_ACTIONS, *SETTING_ACTIONS)


@pytest.mark.parametrize("variable", variables_for(()))
def test_every_variable_is_listed(variable: str) -> None:
    """The variables of breakers are described together."""
    assert variable in GUIDE.text or variable.startswith("IMAGE_GEN_BREAKER_")
