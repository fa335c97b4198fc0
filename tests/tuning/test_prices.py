"""The model table is the only source of prices of simulations, recordings and replays."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from paths import ROOT
from tuning_kit import bad, record, world

from resilient_imagen import Settings, models
from resilient_imagen.cost import usual_image_cost
from resilient_imagen.tuning import replay, simulate
from resilient_imagen.tuning.recorded_run import recorded_run
from resilient_imagen.tuning.run_metrics import measure
from resilient_imagen.tuning.simulation import play

OWN_PRICES = """
[gemini-house-image]
vendor = "google"
resolutions = ["2K"]
prices = {per_image = {"2K" = 0.5}}

[gpt-house-image]
vendor = "openai"
prices = {text_in = 1.0, image_in = 1.0, image_out = 100.0}
"""
ROUTES = "google:gemini-house-image,openai:gpt-house-image"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Provide settings with two models whose prices are in a file of rows."""
    rows = tmp_path / "models.toml"
    rows.write_text(OWN_PRICES)
    return Settings(routes=ROUTES, models=rows)


def test_prices_of_a_table_row_reach_simulations_recordings_and_replays(settings: Settings) -> None:
    """An image costs the price of its row; a model charged by token has 6,000 output tokens."""
    scenario = world(bad(0.2, 10), hours=0.6, per_minute=4)
    run = play(scenario, settings, seed=3)
    images = {(each.route, each.cost_usd) for each in run.sent if each.reason is None}
    assert images == {(0, 0.5), (1, 0.6)}
    recording = record(scenario, settings)
    happened = measure(recorded_run(recording, settings), ())
    assert happened.cost_usd == pytest.approx(simulate(scenario, settings, seed=3).cost_usd)
    replayed, _ = replay(recording, settings)
    assert {(each.route, each.cost_usd) for each in replayed.sent if each.reason is None} == images


def test_a_recording_without_costs_has_the_same_dollars_before_and_after_a_replay(
    settings: Settings,
) -> None:
    """Costs that were not recorded are those of the table, in what happened and in a replay."""
    recording = record(world(hours=0.3, per_minute=4), settings)
    for log in recording.routes.values():
        for index in range(len(log)):
            log.cost[index] = float("nan")
    happened = measure(recorded_run(recording, settings), ())
    replayed, truth = replay(recording, settings)
    assert happened.cost_usd_per_image == pytest.approx(0.5)
    assert measure(replayed, truth.incidents()).cost_usd_per_image == pytest.approx(0.5)


def test_the_default_models_have_a_price() -> None:
    """Otherwise the studies would compare settings by dollars that are zero."""
    for route in Settings().accounts:
        assert usual_image_cost(route.model, "2K")


def test_no_module_but_the_model_table_contains_a_price() -> None:
    """No price of the table is a number in the tuner's code or in a study."""
    prices = {
        price
        for row in models.MODELS.values()
        if row.prices is not None
        for price in (row.prices.per_image or {}).values()
    } | {usual_image_cost(route.model, "2K") for route in Settings().accounts}
    places = (
        "resilient_imagen/tuning/*.py", "benchmarks/*.py", "tests/support/independent_*.py",
        "tests/support/tuning_accuracy.py",
    )  # fmt: skip
    for path in (each for place in places for each in sorted(ROOT.glob(place))):
        numbers = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, float)
        }
        assert not numbers & prices, path
