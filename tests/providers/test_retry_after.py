"""Retry hints in all known notations."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen.circuitbreaker.open_period import MAX_HINT
from resilient_imagen.providers.retry_after import retry_hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Please try again in 12s.", 12),
        ("Please try again in 240ms.", 0.24),
        ("Please try again in 1m2s.", 62),
        ("Please try again in 7m12s. Visit", 432),
        ("please try again after 51.84 seconds.", 51.84),
        ("Please retry after 26 seconds", 26),
        ("Please retry in 34.858109876s.", 34.858109876),
        ("Your quota will reset after 7h35m.", 27_300),
        ("try again in 20 minutes, 3 seconds", 1203),
        ("Please try again in 1 minute and 30 seconds.", 90),
        ("retry after 2 hours, 3 minutes, and 4 seconds", 7384),
        ("try again in 2 minutes and tell us", 120),
        ("Please retry in 900 milliseconds", 0.9),
        ("Please try again in 1h2m3.5s", 3723.5),
        ("Please try again later", None),
        ("retry in 5 mountains", None),
        ("try again in 999999999999h", None),
        ("try again in 700h", MAX_HINT),
        ("12s of waiting", None),
        ("try again in 0s", None),
    ],
)
def test_hints_in_text(text: str, seconds: float | None) -> None:
    """All units and their compounds are read, but no similar words."""
    found = retry_hint({}, [], text)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "30"}, 30),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        (
            {
                "retry-after": "Wed, 21 Oct 2026 07:28:10 GMT",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            10,
        ),
        ({"retry-after": "Wed, 21 Oct 2020 07:28:00 GMT"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "86401"}, MAX_HINT),
        ({"retry-after": "1795987722"}, None),
        ({"retry-after": str(31 * 86_400)}, MAX_HINT),
        ({"retry-after": str(31 * 86_400 + 1)}, None),
        ({"retry-after-ms": "1795987722000", "retry-after": "9"}, 9),
        ({"retry-after": "37.5s"}, 37.5),
        ({"retry-after": "1m2s"}, 62),
        ({"retry-after": "1 minute and 30 seconds"}, 90),
        ({"retry-after": "soon"}, None),
    ],
)
def test_hints_in_headers(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds and dates are read; invalid and past values are not hints."""
    assert retry_hint(headers, [], "") == seconds


@pytest.mark.parametrize("zone", ["", " -0000"], ids=["none", "-0000"])
def test_a_date_without_a_zone_is_in_utc(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Retry-After date without a zone does not depend on the machine's time zone."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        headers = {
            "retry-after": f"Wed, 21 Oct 2026 07:28:10{zone}",
            "date": "Wed, 21 Oct 2026 07:28:00 GMT",
        }
        assert retry_hint(headers, [], "") == 10
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_date_without_the_servers_clock_is_measured_by_ours() -> None:
    """Without a Date header, the local clock is used."""
    found = retry_hint({"retry-after": formatdate(time.time() + 60, usegmt=True)}, [], "")
    assert found is not None
    assert 50 < found <= 60


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        ("37.5s", 37.5),
        ("37s", 37),
        ("-1s", None),
        ("1e9s", None),
        (5, 5),
        ("1m2s", 62),
        ({"seconds": 37, "nanos": 500_000_000}, 37.5),
        ("172800s", MAX_HINT),
        (None, None),
        ({}, None),
        ("NaNs", None),
    ],
)
def test_hints_in_retry_info(delay: Any, seconds: float | None) -> None:
    """RetryInfo is read with protobuf's notation of durations."""
    detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    assert retry_hint({}, [detail], "") == seconds


@pytest.mark.parametrize("name", ["retryDelay", "retry_delay"])
def test_retry_info_in_json_and_in_protobufs_own_spelling(name: str) -> None:
    """Both spellings of the field name are read; the first such detail counts."""
    kind = "type.googleapis.com/google.rpc.RetryInfo"
    other = {"@type": "type.googleapis.com/google.rpc.Help", name: "9s"}
    details = [other, {name: "8s"}, {"@type": kind, name: "7s"}, {"@type": kind, name: "6s"}]
    assert retry_hint({}, details, "") == 7


def test_the_exact_hint_wins() -> None:
    """RetryInfo takes precedence over headers, and headers over text."""
    detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3s"}
    assert retry_hint({"retry-after": "2"}, [detail], "try again in 1s") == 3
    assert retry_hint({"retry-after": "2"}, [], "try again in 1s") == 2
    assert retry_hint({"retry-after": "soon"}, [], "try again in 1s") == 1


@given(
    header=st.text(max_size=40),
    date=st.text(max_size=40),
    delay=st.none() | st.text(max_size=20) | st.floats() | st.integers(),
    text=st.text("0123456789.hms truyainefo", max_size=60),
)
def test_hints_stay_within_bounds(header: str, date: str, delay: Any, text: str) -> None:
    """Any hint is above 0 and at most one day."""
    detail = {"@type": "google.rpc.RetryInfo", "retryDelay": delay}
    headers = {"retry-after": header, "date": date}
    found = retry_hint(headers, [detail], f"try again in {text}")
    assert found is None or 0 < found <= MAX_HINT
