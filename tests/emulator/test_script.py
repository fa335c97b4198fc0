"""Fault scripts: validation, error messages, and the requests to which faults apply."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_imagen.emulator import Emulator, Fault, Latency, ScriptError, faults, parse_script
from resilient_imagen.emulator.fault_plan import FaultPlan
from resilient_imagen.emulator.faults import KINDS
from resilient_imagen.emulator.vendor_api import ParsedRequest

FULL = {
    "seed": 7,
    "google": {
        "latency": {"median": 20, "p95": 60},
        "next": [{"fault": "reset", "times": 2}],
        "windows": [
            {"from": 0, "to": 60, "fault": {"kind": "overload", "share": 0.5}},
            {"from": 60, "to": 120, "fault": "hang", "model": "gemini-3-pro-image"},
        ],
        "always": [{"fault": {"kind": "status", "code": 429, "retry_after": 30, "after": 2}}],
    },
    "openai": {"latency": 12},
}


def test_a_script_with_all_parts_is_parsed() -> None:
    """Every part of a script gives the corresponding fault."""
    script = parse_script(json.dumps(FULL))
    assert script.seed == 7
    assert script.google.next[0].fault == faults.reset()
    assert script.google.windows[0].fault == faults.overload(0.5)
    assert script.google.windows[1].model == "gemini-3-pro-image"
    assert script.google.always[0].fault == faults.status(429, retry_after=30).after(2)
    assert script.google.latency == faults.log_normal(20, 60)
    assert script.openai.latency == faults.fixed(12)


def test_an_emulator_is_created_from_a_script() -> None:
    """It has the script's seed and faults, and a share of 0.5 applies to half of the requests."""
    app = parse_script(json.dumps(FULL)).emulator(picture="tiny")
    served = [
        app.google.arrived(ParsedRequest("generate", "gemini-3-pro-image"))[1] for _ in range(12)
    ]
    assert served[:2] == [faults.reset()] * 2
    overload = [fault for fault in served[2:] if fault]
    assert set(overload) == {faults.overload(0.5)}
    assert 1 < len(overload) < 10
    assert app.openai.arrived(ParsedRequest("generate", "gpt-image-2"))[1:] == (None, 12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "script: is not valid JSON: "),
        ("[]", "script: must be an object"),
        ('{"gogle": {}}', "gogle: is not known"),
        ('{"google": {"next": [{"fault": "nope"}]}}', r"google.next.0.fault: a fault's kind is"),
        (
            '{"google": {"next": [{"fault": "hang", "times": 0}]}}',
            r"google.next.0.times: must be at least 1, not 0",
        ),
        ('{"google": {"next": [{"fault": {"kind": "status", "cod": 1}}]}}', "code: is missing"),
        ('{"google": {"next": [{"fault": {"kind": "status", "code": 7}}]}}', "from 200 to 999"),
        ('{"google": {"next": [{"fault": {"kind": "cut", "at": 2}}]}}', "below 1"),
        ('{"google": {"next": [{"fault": {"kind": "hang", "share": 2}}]}}', "between 0 and 1"),
        (
            '{"openai": {"next": [{"fault": {"kind": "finish", "reason": "SPII"}}]}}',
            "openai has no",
        ),
        ('{"google": {"windows": [{"from": 3, "to": 2, "fault": "hang"}]}}', "0 <= start < end"),
        ('{"google": {"latency": -1}}', "google.latency: a latency must be at least 0"),
        ('{"google": {"latency": {"median": 3, "p95": 1}}}', "median <= p95"),
    ],
)
def test_mistakes_are_named(text: str, said: str) -> None:
    """The error of an invalid script names the place and the allowed values."""
    with pytest.raises(ScriptError, match=said):
        parse_script(text)


def test_a_mistake_does_not_repeat_the_body() -> None:
    """The error does not contain the script's bodies."""
    fault = {"kind": "status", "code": "x", "body": "a secret page"}
    with pytest.raises(ScriptError) as caught:
        parse_script(json.dumps({"google": {"next": [{"fault": fault}]}}))
    assert "secret" not in str(caught.value)


def test_every_kind_has_a_json_form() -> None:
    """Each kind of fault can be written in JSON, and equals the result of its function."""
    needed: dict[str, dict[str, Any]] = {
        "answer": {"shape": "good"}, "drip": {"seconds": 1}, "error": {"name": "rate_limited"},
        "finish": {"reason": "SPII"}, "slow": {"latency": 3}, "status": {"code": 500},
        "cut_stream": {"events": 1}, "stall": {"events": 1}, "silent": {"latency": 3},
        "error_event": {"name": "rate_limited"},
    }  # fmt: skip
    for kind, make in KINDS.items():
        arguments = needed.get(kind, {})
        text = json.dumps({"google": {"next": [{"fault": {"kind": kind, **arguments}}]}})
        assert parse_script(text).google.next[0].fault == make(**arguments)


_VALUE: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-3, 700) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
_FAULT = (
    st.sampled_from(sorted(KINDS))
    | _VALUE
    | st.fixed_dictionaries(
        {"kind": st.sampled_from(sorted(KINDS)) | _VALUE},
        optional=dict.fromkeys(
            ("share", "after", "code", "body", "headers", "retry_after", "seconds", "at",
             "abrupt", "detail", "shape", "latency", "reason", "name", "events"),
            _VALUE,
        ),
    )
)  # fmt: skip
_PART = st.fixed_dictionaries(
    {},
    optional={
        "latency": _VALUE,
        "next": st.lists(st.fixed_dictionaries({"fault": _FAULT}, optional={"times": _VALUE})),
        "windows": st.lists(
            st.fixed_dictionaries({"fault": _FAULT}, optional={"from": _VALUE, "to": _VALUE})
        ),
        "always": st.lists(st.fixed_dictionaries({"fault": _FAULT}, optional={"model": _VALUE})),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional={"seed": _VALUE, "google": _PART, "openai": _PART}))
def test_any_script_is_accepted_or_refused(script: dict[str, Any]) -> None:
    """No JSON causes another error, and an accepted script can be applied again."""
    try:
        parsed = parse_script(json.dumps(script))
    except ScriptError as error:
        assert str(error)  # noqa: PT017 - either outcome is right; this one must say something
    else:
        parsed.apply(Emulator(picture="tiny"))


@settings(max_examples=200, deadline=None)
@given(
    times=st.lists(st.integers(1, 4), max_size=4),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_counted_faults_precede_the_permanent_one(
    times: list[int], share: float, seed: int
) -> None:
    """Counted faults apply in order to exactly as many requests as stated, then the permanent
    one.
    """
    plan = FaultPlan(random.Random(seed))
    queued = [Fault(str(index)) for index in range(len(times))]
    for fault, count in zip(queued, times, strict=True):
        plan.add_next(fault, count, None)
    plan.set_standing(Fault("standing", share=share), None)
    expected = [
        fault.name for fault, count in zip(queued, times, strict=True) for _ in range(count)
    ]
    assert [_name(plan, 0.0) for _ in expected] == expected
    after = {_name(plan, 0.0) for _ in range(20)}
    assert after <= {"standing", None}
    if share in (0, 1):
        assert after == {"standing" if share else None}
    plan.clear()
    assert _name(plan, 0.0) is None


@given(
    start=st.floats(0, 1e6), length=st.floats(1e-3, 1e6), origin=st.floats(0, 1e9),
    offset=st.floats(0, 3e6),
)  # fmt: skip
def test_a_window_applies_from_its_start_until_before_its_end(
    start: float, length: float, origin: float, offset: float
) -> None:
    """The window counts from its origin."""
    plan = FaultPlan(random.Random(0))
    plan.add_windows([(start, start + length, Fault("window"))], None, origin)
    now = origin + offset
    found = start <= now - origin < start + length
    assert (_name(plan, now) == "window") == found


def test_windows_without_an_origin_count_from_the_first_request() -> None:
    """A script that is parsed before the server runs starts with the server."""
    plan = FaultPlan(random.Random(0))
    plan.add_windows([(0, 10, Fault("window"))], None, None)
    assert _name(plan, 500.0) == "window"
    assert _name(plan, 509.9) == "window"
    assert _name(plan, 510.0) is None


def _name(plan: FaultPlan, now: float) -> str | None:
    fault = plan.choose(now, "m")
    return fault.name if fault else None


@given(median=st.floats(0.1, 100), factor=st.floats(1, 10), seed=st.integers(0, 99))
def test_latencies_stay_within_their_maximum(median: float, factor: float, seed: int) -> None:
    """A latency is never negative and never above its maximum; a fixed one is exact."""
    rng = random.Random(seed)
    drawn = faults.log_normal(median, median * factor, maximum=median * 2).sample(rng)
    assert 0 <= drawn <= median * 2
    assert faults.fixed(median).sample(rng) == median


def test_latencies_meet_their_percentiles() -> None:
    """Half of many samples are below the median, and 95 of 100 below p95."""
    rng = random.Random(1)
    drawn = sorted(faults.log_normal(20, 60).sample(rng) for _ in range(4001))
    assert drawn[2000] == pytest.approx(20, rel=0.1)
    assert drawn[3800] == pytest.approx(60, rel=0.15)


@pytest.mark.parametrize("numbers", [(-1.0,), (float("nan"),), (1.0, 99.0), (1.0, 0.0, -1.0)])
def test_invalid_latencies_are_refused(numbers: tuple[float, ...]) -> None:
    """Latencies that cannot be slept are refused when the script is created."""
    with pytest.raises(ValueError, match="a latency must be at least 0"):
        Latency(*numbers)
