"""The model table and the arithmetic that depends on it."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen import models
from resilient_imagen.cost import TokenUsage, cost_usd
from resilient_imagen.request import ASPECT_RATIOS, RESOLUTIONS

DEFAULTS = {"google": "gemini-3-pro-image", "openai": "gpt-image-2.5-flare"}
FREE = "gpt-image-2.5-flare"


def answer(**usage: Any) -> TokenUsage:
    return TokenUsage(**usage)


def test_every_successor_is_a_current_model_of_the_same_vendor() -> None:
    """A successor is an available model of the same vendor."""
    for row in models.MODELS.values():
        assert (row.retired_on is None) == (row.successor is None), row.name
        if row.successor is not None:
            successor_name = models.MODELS[row.successor]
            assert successor_name.vendor == row.vendor
            assert successor_name.retired_on is None


@pytest.mark.parametrize(
    ("name", "last_day"),
    [
        ("gpt-image-1", date(2026, 10, 22)),
        ("gpt-image-1.5", date(2026, 11, 30)),
        ("gpt-image-1-mini", date(2026, 11, 30)),
        ("chatgpt-image-latest", date(2026, 11, 30)),
        ("gemini-3-pro-image-preview", date(2026, 6, 24)),
        ("dall-e-3", date(2026, 5, 11)),
    ],
)
def test_a_name_is_replaced_from_the_day_of_its_retirement_on(name: str, last_day: date) -> None:
    """Until the last day a name is used as it is; from the next day on its successor is."""
    assert models.successor(name, last_day) is None
    successor_name = models.successor(name, last_day + timedelta(days=1))
    assert successor_name == models.MODELS[name].successor


def test_current_and_unknown_names_have_no_successor() -> None:
    """Available and unknown models are passed on unchanged."""
    for name in (*DEFAULTS.values(), "gemini-9-image", "somebody-elses-model"):
        assert models.successor(name, date(2030, 1, 1)) is None


@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("gemini-3-pro-image", "google"),
        ("nano-banana-pro-preview", "google"),
        ("gemini-nano-banana-2.1", "google"),
        ("gemini-7-image", "google"),
        ("imagen-9", "google"),
        ("nano-banana-5", "google"),
        ("gpt-image-2.6-flare", "openai"),
        ("gpt-image-3", "openai"),
        ("dall-e-4", "openai"),
        ("chatgpt-image-next", "openai"),
        ("flux-pro", None),
        ("", None),
    ],
)
def test_the_vendor_is_known_by_table_or_family(name: str, vendor: str | None) -> None:
    """The vendor is that of the row, else of the name's family."""
    assert models.vendor_of(name) == vendor


@given(
    ratio=st.sampled_from(ASPECT_RATIOS),
    resolution=st.sampled_from(RESOLUTIONS),
    model=st.sampled_from([row.name for row in models.MODELS.values() if row.vendor == "openai"]),
)
def test_openai_sizes_keep_every_limit(ratio: str, resolution: str, model: str) -> None:
    """Every request gets a size that the model accepts."""
    size = models.openai_size(model, ratio, resolution)
    assert size is not None
    width, height = size
    row = models.MODELS[model]
    if row.sizes:
        assert (width, height) in row.sizes
        return
    assert width % 16 == height % 16 == 0
    assert max(width, height) <= 3840
    assert 655_360 <= width * height <= 8_294_400
    assert max(width, height) <= 3 * min(width, height)
    asked = [int(side) for side in ratio.split(":")]
    if max(asked) <= 3 * min(asked):
        assert width * asked[1] == height * asked[0]
    else:
        assert (width > height) == (asked[0] > asked[1])


def test_openai_sizes_of_the_default_ratio() -> None:
    """The sizes of 9:16 are exact at each resolution."""
    sizes = [models.openai_size(FREE, "9:16", resolution) for resolution in RESOLUTIONS]
    assert sizes == [(720, 1280), (1584, 2816), (2160, 3840)]


def test_openai_sizes_of_models_with_three_sizes() -> None:
    """Models with fixed sizes get the nearest one by ratio."""
    sizes = {ratio: models.openai_size("gpt-image-1.5", ratio, "2K") for ratio in ASPECT_RATIOS}
    assert sizes["9:16"] == sizes["4:5"] == sizes["1:8"] == (1024, 1536)
    assert sizes["16:9"] == sizes["5:4"] == sizes["21:9"] == (1536, 1024)
    assert sizes["1:1"] == (1024, 1024)


def test_unknown_models_behave_like_their_vendors_newest() -> None:
    """An unknown model gets the properties of its vendor's newest row."""
    assert models.openai_size("gpt-image-9", "9:16", "1K") == (720, 1280)
    assert models.google_aspect("gemini-9-image", "1:8") == "1:8"
    assert models.google_image_size("gemini-9-image", "4K") == "4K"
    assert models.clamp_quality("gpt-image-9", "max") == "high"


@given(ratio=st.sampled_from(ASPECT_RATIOS))
def test_google_ratios_are_supported_by_the_model(ratio: str) -> None:
    """A native ratio is passed on; another becomes the nearest on the same side of square."""
    for row in models.MODELS.values():
        if row.vendor == "google":
            native = models.google_aspect(row.name, ratio)
            assert native in row.aspect_ratios
            assert native == ratio or ratio not in row.aspect_ratios
    assert models.google_aspect("gemini-3-pro-image", "1:8") == "9:16"
    assert models.google_aspect("gemini-3-pro-image", "4:1") == "21:9"


def test_image_size_is_not_sent_to_models_that_reject_it() -> None:
    """2.5-flash-image answers imageSize with a 500; the lite model knows 1K only."""
    assert models.google_image_size("gemini-2.5-flash-image", "2K") is None
    assert not models.MODELS["gemini-2.5-flash-image"].resolutions
    assert models.google_image_size("gemini-3.1-flash-lite-image", "4K") == "1K"
    assert models.google_image_size("gemini-3-pro-image", "4K") == "4K"


def test_quality_is_limited_to_that_of_the_model() -> None:
    """xhigh and max exist on 2.5 only; unknown qualities become high."""
    assert models.clamp_quality(FREE, "max") == "max"
    assert models.clamp_quality("gpt-image-2", "xhigh") == "high"
    assert models.clamp_quality("gpt-image-2", "medium") == "medium"
    assert models.clamp_quality("gpt-image-2", "hd") == "high"


def test_costs_by_image_and_by_token() -> None:
    """Google's models charge by image and resolution, OpenAI's by kind of token."""
    assert cost_usd("gemini-3-pro-image", answer(), "2K") == 0.134
    assert cost_usd("gemini-3-pro-image", answer(), "4K") == 0.24
    assert cost_usd("gemini-2.5-flash-image", answer(), "4K") == 0.039
    assert cost_usd("gemini-3.1-flash-image", answer(), "2K") == 0.101
    assert cost_usd("gemini-3.1-flash-lite-image", answer(), "4K") == 0.0336
    three = answer(billed_images=3)
    assert cost_usd("gemini-3-pro-image", three, "2K") == pytest.approx(0.402)
    # A high-quality square of these takes 4160 tokens, and costs what the price lists say.
    square = answer(input_tokens=0, output_tokens=4160)
    assert cost_usd("gpt-image-1.5", square, "1K") == pytest.approx(0.133, abs=1e-3)
    assert cost_usd("gpt-image-1-mini", square, "1K") == pytest.approx(0.033, abs=1e-3)
    used = answer(input_tokens=1100, input_image_tokens=1000, output_tokens=2000)
    assert cost_usd(FREE, used, "2K") == pytest.approx((100 * 5 + 1000 * 8 + 2000 * 30) / 1_000_000)


def test_an_unknown_cost_is_none_and_never_zero() -> None:
    """Without a price, token counts or resolution, the cost is None."""
    assert cost_usd("gemini-9-image", answer(), "2K") is None
    assert cost_usd("gemini-nano-banana-2.1", answer(), "4K") is None
    assert cost_usd(FREE, answer(input_tokens=3), "2K") is None


def test_prices_name_their_source() -> None:
    """Every price has a source and a date."""
    for row in models.MODELS.values():
        if row.prices is not None:
            assert row.prices.source.startswith("https://") or "not seen on" in row.prices.source
            assert row.prices.as_of.year >= 2026


def test_the_row_for_a_vendors_model() -> None:
    """An unknown name of a vendor's family gets the vendor's newest row."""
    assert models.get_model("google", "gemini-3-pro-image") is models.find_model(
        "gemini-3-pro-image"
    )
    for vendor, limit in (("google", 14), ("openai", 16)):
        row = models.get_model(vendor, {"google": "gemini-9-image", "openai": "gpt-9"}[vendor])
        assert row is not None
        assert (row.vendor, row.max_references) == (vendor, limit)
    assert models.get_model("openai", "gemini-3-pro-image") is models.get_model(
        "openai", "unheard-of"
    )
    assert models.get_model("mine", "gemini-3-pro-image") is None


def test_how_many_and_how_large_references_may_be() -> None:
    """The limits are the largest of all routes, and conservative for unknown models."""
    routes = [("google", "gemini-3-pro-image"), ("openai", "gpt-image-2")]
    assert models.max_references(routes) == 16
    assert models.max_references(routes[:1]) == 14
    assert models.max_references([*routes, ("mine", "model")]) is None
    assert models.max_reference_bytes(*routes[0]) == 70_000_000
    assert models.max_reference_bytes(*routes[1]) == 50_000_000
    assert models.max_reference_bytes("mine", "model") == 50_000_000


def test_every_current_model_has_a_price() -> None:
    """Every available model has a price for at least one resolution."""
    for row in models.MODELS.values():
        if row.retired_on is None or row.retired_on > date(2026, 11, 23):
            assert row.prices is not None, row.name


@pytest.mark.parametrize(
    ("vendor", "model", "resolution", "best"),
    [
        ("google", "gemini-3-pro-image", "4K", None),
        ("google", "gemini-3.1-flash-lite-image", "4K", "1K"),
        ("google", "gemini-2.5-flash-image", "2K", "1K"),
        ("openai", "gpt-image-2", "4K", None),
        ("openai", "gpt-image-1.5", "2K", "1K"),
        ("openai", "gpt-image-1.5", "1K", None),
        ("local", "sdxl", "4K", None),
    ],
)
def test_a_downgraded_resolution_is_reported(
    vendor: str, model: str, resolution: str, best: str | None
) -> None:
    """A smaller image than requested is reported."""
    assert models.downgraded_resolution(vendor, model, resolution) == best


@pytest.mark.parametrize("row", models.MODELS.values(), ids=lambda row: row.name)
def test_current_models_have_a_typical_latency_at_every_resolution(row: models.ModelInfo) -> None:
    """Latency increases with resolution; missing resolutions have that of the largest one."""
    seconds = [models.typical_latency(row.vendor, row.name, each) for each in RESOLUTIONS]
    if row.prices is None:
        assert seconds == [None] * 3, "its name is refused, so that nothing was measured"
    else:
        known = [each for each in seconds if each is not None]
        assert len(known) == 3
        assert known == sorted(known)
        assert 5 < known[0] < 300


@pytest.mark.parametrize("row", models.MODELS.values(), ids=lambda row: row.name)
def test_each_typical_latency_has_its_source(row: models.ModelInfo) -> None:
    """Each latency is marked as second-hand or as an estimate."""
    for typical in (row.typical_seconds or {}).values():
        assert typical.basis in {"second-hand", "estimate"}
        assert typical.source
    at_2k = models.find_latency(row.vendor, row.name, "2K")
    assert at_2k is None or at_2k.seconds == models.typical_latency(row.vendor, row.name, "2K")


def test_an_unknown_model_takes_as_long_as_its_vendors_newest() -> None:
    """Models of an unknown vendor have no typical latency."""
    newest = models.typical_latency("google", "gemini-nano-banana-2.1", "1K")
    assert models.typical_latency("google", "gemini-9-image", "1K") == newest
    assert models.typical_latency("local", "gemini-3-pro-image", "1K") is None
