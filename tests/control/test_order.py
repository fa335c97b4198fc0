"""Orders: format, rules, signature, and replacement."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen import ConfigurationError
from resilient_imagen.control.order import (
    BREAKER_ACTIONS,
    LONGEST,
    Order,
    parse_duration,
)

SECRET, NAMESPACE = "an operator's secret", "resilient_imagen"
VALID: dict[str, Any] = {"ttl": 60, "by": "ops", "serial": 1}

texts = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=80)
common: dict[str, Any] = {
    "ttl": st.integers(1, LONGEST),
    "by": texts.filter(bool),
    "why": texts,
    "serial": st.integers(1, 2**53 - 1),
}
routes = st.sampled_from(["google", "openai", "google:gemini-3-pro-image", "openai:gpt-image-2"])
orders = st.one_of(
    st.builds(Order, action=st.sampled_from(["open", "reset"]), target=routes, **common),
    st.builds(
        Order,
        action=st.sampled_from(["close", "hold"]),
        target=routes,
        even_account=st.booleans(),
        **common,
    ),
    st.builds(
        Order,
        action=st.just("set"),
        target=st.sampled_from(["IMAGE_GEN_IPM", "IMAGE_GEN_BREAKER_FAIL_MAX"]),
        value=texts,
        **common,
    ),
    st.builds(Order, action=st.just("unset"), target=st.just("IMAGE_GEN_IPM"), **common),
)


@given(orders)
def test_a_serialized_order_is_read_back(order: Order) -> None:
    """Serializing and parsing gives an equal order, with and without a signature."""
    for each in (order, order.signed(SECRET, NAMESPACE)):
        assert Order.parse(each.to_json()) == each


@given(orders, st.data())
def test_a_signature_is_valid_for_one_order_only(order: Order, data: st.DataObject) -> None:
    """Another secret, namespace or value of any field makes it invalid."""
    signed = order.signed(SECRET, NAMESPACE)
    assert signed.is_signed(SECRET, NAMESPACE)
    assert not order.is_signed(SECRET, NAMESPACE)
    assert not signed.is_signed(SECRET + "!", NAMESPACE)
    assert not signed.is_signed(SECRET, NAMESPACE + ":other")
    other = data.draw(orders)
    forged = replace(other, signature=signed.signature)
    assert forged.is_signed(SECRET, NAMESPACE) is (other == order)


@given(st.binary(max_size=60) | st.text(max_size=60) | orders.map(Order.to_json), st.data())
def test_damaged_orders_raise_a_configuration_error(text: str | bytes, data: st.DataObject) -> None:
    """No other exception is raised, and the error does not repeat the order."""
    cut = data.draw(st.integers(0, len(text)))
    message = ""
    try:
        Order.parse(text[:cut])
    except ConfigurationError as error:
        message = str(error)
    assert len(message) < 200
    assert message or cut == len(text)


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)


@given(orders, st.sampled_from(sorted(Order.__dataclass_fields__)), values)
def test_each_field_is_checked(order: Order, field: str, value: object) -> None:
    """A changed field is either rejected or gives a valid order."""
    try:
        changed = Order.from_dict({**order.to_dict(), field: value})
    except ConfigurationError:
        return
    assert Order.parse(changed.to_json()) == changed
    assert 1 <= changed.ttl <= LONGEST
    assert str(changed).isprintable()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"action": "explode", "target": "google"}, "action must be one of open, close, hold"),
        ({"action": "open", "target": "google openai"}, "route must be provider:model"),
        ({"action": "open", "target": "google:"}, "route must be provider:model"),
        ({"action": "set", "target": "OPENAI_API_KEY", "value": "x"}, "variable IMAGE_GEN_"),
        ({"action": "set", "target": "IMAGE_GEN_IPM"}, "a value exactly if its action is set"),
        ({"action": "open", "target": "google", "value": "5"}, "a value exactly if"),
        ({"action": "open", "target": "google", "even_account": True}, "only close and hold"),
        ({"action": "open", "target": "google", "ttl": 0}, "from 1 second to 24 hours"),
        ({"action": "open", "target": "google", "ttl": 86_401}, "from 1 second to 24 hours"),
        ({"action": "open", "target": "google", "ttl": 60.0}, "ttl must be a whole number"),
        ({"action": "open", "target": "google", "ttl": True}, "ttl must be a whole number"),
        ({"action": "open", "target": "google", "by": " "}, "name its author"),
        ({"action": "open", "target": "google", "why": "\x1b[2J"}, "why must be printable"),
        ({"action": "open", "target": "google", "why": "x" * 201}, "at most 200 characters"),
        ({"action": "open", "target": "google", "serial": 0}, "microseconds since 1970"),
        ({"action": "open", "target": "google", "serial": 2**53}, "microseconds since 1970"),
        ({"action": "open", "target": "google", "signature": "é"}, "64 hexadecimal digits"),
        ({"action": "open"}, "lacks a field"),
        ({"action": "open", "target": "google", "force": True}, "must be an object with"),
    ],
)
def test_each_rule_of_an_order_has_a_message(fields: dict[str, Any], message: str) -> None:
    """The message names the field and what is allowed."""
    with pytest.raises(ConfigurationError, match=message):
        Order.from_dict({**VALID, **fields})


def test_a_target_is_a_route_or_a_provider() -> None:
    """A provider's name targets all its routes, including those of models named later."""
    google = Order(action="open", target="google", **VALID)
    pro = Order(action="open", target="google:gemini-3-pro-image", **VALID)
    names = ["google:gemini-3-pro-image", "google:other", "google_b:gemini-3-pro-image"]
    assert [google.applies_to(name) for name in names] == [True, True, False]
    assert [pro.applies_to(name) for name in names] == [True, False, False]
    setting = Order(action="unset", target="IMAGE_GEN_IPM", **VALID)
    assert not setting.applies_to("google:other")


@given(orders, orders)
def test_only_a_later_order_replaces_one(first: Order, second: Order) -> None:
    """An order replaces earlier ones on the same target, or on routes of its provider."""
    assert not (first.replaces(second) and second.replaces(first))
    if first.replaces(second):
        assert first.serial > second.serial
        assert first.topic == second.topic or first.target == second.target.partition(":")[0]
    if first.topic == second.topic and first.serial != second.serial:
        assert first.replaces(second) or second.replaces(first)


def test_an_order_is_described_by_its_command() -> None:
    """Logs and spans show the command that gives the order."""
    written = [
        str(Order(action=action, target="google", **VALID)) for action in BREAKER_ACTIONS
    ] + [
        str(Order(action="hold", target="google", even_account=True, **VALID)),
        str(Order(action="set", target="IMAGE_GEN_IPM", value="5", **VALID)),
        str(Order(action="unset", target="IMAGE_GEN_IPM", **VALID)),
    ]
    assert written == [
        "breaker open google",
        "breaker close google",
        "breaker close --hold google",
        "breaker reset google",
        "breaker close --hold google --even-account",
        "IMAGE_GEN_IPM=5",
        "IMAGE_GEN_IPM unset",
    ]


def test_the_format_is_one_line_of_json() -> None:
    """The field names are part of the format, which the page, the file and other versions use."""
    order = Order(action="open", target="google", why="incident 7", **VALID)
    assert json.loads(order.to_json()) == {
        "action": "open", "target": "google", "value": None, "even_account": False, "ttl": 60,
        "by": "ops", "why": "incident 7", "serial": 1, "signature": "",
    }  # fmt: skip
    assert order.ends_at == 60_000_001


@pytest.mark.parametrize(
    ("text", "seconds"), [("20s", 20), ("30m", 1800), ("2h", 7200), ("24h", 86_400)]
)
def test_times_have_a_unit(text: str, seconds: int) -> None:
    """A time is parsed to seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "0s", "25h", "1441m", "-5m", "1.5h", "5 m", "m", "5M", "٣s", "9" * 50 + "s"]
)
def test_other_times_are_refused(text: str) -> None:
    """The message shows what is allowed, and the value if it is short."""
    with pytest.raises(ConfigurationError, match="such as 20s, 30m or 2h, at most 24h"):
        parse_duration(text)
