"""``breaker`` and ``settings``: orders for running processes, by a control file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Ended, cli
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen.control import Order
from resilient_imagen.control.control_file import read_orders
from resilient_imagen.control.issue import in_force, issued
from resilient_imagen.control.order_book import OrderBook

SECRET = "a secret of the operators"
KEY = "sk-abcdefghijklmnopqrstuvwxyz012345"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.json"


def orders(path: Path) -> list[dict[str, Any]]:
    found, problems = read_orders(path)
    assert problems == []
    return [each.to_dict() for each in found]


def test_open_writes_an_order(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The order has author, reason and end, which are printed."""
    done = cli(
        capsys, "breaker", "open", "google", "--for", "20s", "--why", "incident 7",
        "--control-file", path,
    )  # fmt: skip
    assert done.code == 0
    (order,) = orders(path)
    assert (order["action"], order["target"], order["ttl"]) == ("open", "google", 20)
    assert order["why"] == "incident 7"
    assert "@" in order["by"]
    assert abs(order["serial"] / 1e6 - time.time()) < 60
    assert done.out.startswith("breaker open google until ")
    assert f"written to {path}" in done.out


def test_the_variable_names_the_file(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """IMAGE_GEN_CONTROL_FILE names the file, as for the processes that read it."""
    monkeypatch.setenv("IMAGE_GEN_CONTROL_FILE", str(path))
    assert cli(capsys, "breaker", "open", "google").code == 0
    assert orders(path)[0]["ttl"] == 1800


def test_close_hold_and_reset(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A later order replaces an earlier one, and lasts as long as that would have."""
    for arguments in (
        ["open", "google:gemini-3-pro-image", "--for", "2h"],
        ["close", "google", "--hold", "--even-account", "--for", "1h"],
        ["close", "google"],
        ["reset", "google"],
    ):
        assert cli(capsys, "breaker", *arguments, "--control-file", path).code == 0
        (order,) = orders(path)
        if "--hold" in arguments:
            assert (order["action"], order["even_account"]) == ("hold", True)
    assert order["action"] == "reset"
    assert 3590 <= order["ttl"] <= 3600


def test_settings_are_set_and_unset(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Limits of a provider that only the processes have declared can be set, too."""
    for assignment in ("IMAGE_GEN_BREAKER_FAIL_MAX=5", "IMAGE_GEN_GOOGLE_B_IPM=7.5"):
        done = cli(capsys, "settings", "set", assignment, "--for", "2h", "--control-file", path)
        assert done.out.startswith(f"{assignment} until ")
    done = cli(capsys, "settings", "unset", "IMAGE_GEN_BREAKER_FAIL_MAX", "--control-file", path)
    assert done.out.startswith("IMAGE_GEN_BREAKER_FAIL_MAX unset: written")
    assert [(each["action"], each["value"]) for each in orders(path)] == [
        ("set", "7.5"),
        ("unset", None),
    ]


def test_show_has_value_and_source(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source is the default, the environment, or an order with author and end.

    Secrets are not shown.
    """
    monkeypatch.setenv("IMAGE_GEN_CONTROL_FILE", str(path))
    monkeypatch.setenv("IMAGE_GEN_IPM", "20")
    monkeypatch.setenv("GOOGLE_GENAI_API_KEY", "AIzaNOBODY")
    monkeypatch.setenv("IMAGE_GEN_OPENAI_MAX_CONCURRENT", "2")
    cli(capsys, "settings", "set", "IMAGE_GEN_BREAKER_FAIL_MAX=5", "--why", "incident 7")
    cli(capsys, "settings", "set", "IMAGE_GEN_GOOGLE_IPM=6")
    done = cli(capsys, "settings", "show", "--json")
    rows = {row["variable"]: (row["value"], row["source"]) for row in json.loads(done.out)}
    assert rows["IMAGE_GEN_IPM"] == ("20", "environment")
    assert rows["IMAGE_GEN_BURST"] == ("1", "default")
    assert rows["IMAGE_GEN_OPENAI_MAX_CONCURRENT"] == ("2", "environment")
    assert rows["GOOGLE_GENAI_API_KEY"] == ("set, not shown", "environment")
    value, source = rows["IMAGE_GEN_BREAKER_FAIL_MAX"]
    assert value == "5"
    assert source.startswith("ordered by ")
    assert source.endswith(": incident 7")
    assert rows["IMAGE_GEN_GOOGLE_IPM"][0] == "6"
    assert "AIzaNOBODY" not in done.out
    table = cli(capsys, "settings", "show").out
    assert f"orders of control file {path}" in table.replace("\n", "")
    assert "IMAGE_GEN_BREAKER_HALF_OPEN_CALLS" in table


def test_show_works_without_redis_and_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The command shows the settings of the environment alone."""
    done = cli(capsys, "settings", "show")
    assert (done.code, "no orders: neither Redis" in done.out) == (0, True)


def test_with_a_secret_orders_are_signed(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unsigned order in the file is not shown as in force."""
    cli(capsys, "settings", "set", "IMAGE_GEN_IPM=7", "--control-file", path)
    monkeypatch.setenv("IMAGE_GEN_CONTROL_SECRET", SECRET)
    cli(capsys, "breaker", "open", "google", "--control-file", path)
    signed = read_orders(path).orders[1]
    assert signed.is_signed(SECRET, "file")
    shown = cli(capsys, "settings", "show", "--control-file", path, "--json")
    assert '"7"' not in shown.out
    assert "1 order is not shown" in shown.complaint


@pytest.mark.parametrize("other", [None, "another secret of theirs"])
def test_an_order_with_another_signature_displaces_none(
    other: str | None,
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signed order stays in the file, where processes find it that start later."""

    def give(secret: str | None, action: str) -> list[str]:
        if secret is None:
            monkeypatch.delenv("IMAGE_GEN_CONTROL_SECRET", raising=False)
        else:
            monkeypatch.setenv("IMAGE_GEN_CONTROL_SECRET", secret)
        assert cli(capsys, "breaker", action, "google", "--control-file", path).code == 0
        signed = [each for each in read_orders(path).orders if each.is_signed(SECRET, "file")]
        return [each.action for each in signed]

    assert give(SECRET, "open") == ["open"]
    assert give(other, "reset") == ["open"]
    assert give(other, "open") == ["open"]
    assert len(read_orders(path).orders) == 2
    assert give(SECRET, "close") == ["close"]


WRONG: dict[str, str] = {
    "breaker open google": "no process can be reached: set IMAGE_GEN_REDIS_URL or IMAGE_GEN_C",
    "breaker open google --for 3": "--for must be a time such as 20s, 30m or 2h",
    "breaker open google --for 25h": "at most 24h, not '25h'",
    "breaker open google --hold": "--hold and --even-account belong to close",
    "breaker opn google": "open",
    "breaker open google,openai": "an order's route must be provider:model",
    "settings set": "write settings set VARIABLE=VALUE, such as IMAGE_GEN_BREAKER_FAIL_MAX=5",
    "settings set IMAGE_GEN_IPM": "write settings set VARIABLE=VALUE",
    "settings unset X=4": "write settings unset VARIABLE, such as IMAGE_GEN_BREAKER_FAIL_MAX\n",
    "settings show IMAGE_GEN_IPM": "settings show needs no variable",
    "settings set IMAGE_GEN_IPM=x": "IMAGE_GEN_IPM must be a number, not 'x'",
    "settings set IMAGE_GEN_BREAKER_FAILMAX=5": "did you mean IMAGE_GEN_BREAKER_FAIL_MAX",
    "settings set IMAGE_GEN_IMP=10": "IMAGE_GEN_IMP is not a setting; did you mean IMAGE_GEN_IPM?",
    "settings unset IMAGE_GEN_XYZZY": "IMAGE_GEN_XYZZY is not a setting; no setting has a similar",
    "settings set image_gen_deadlin=9": "is not a setting; did you mean IMAGE_GEN_DEADLINE?",
    "settings set IMAGE_GEN_DEADLINE=9": "IMAGE_GEN_DEADLINE cannot change at runtime",
    "settings set IMAGE_GEN_PROVIDER_MINE=openai": "cannot change at runtime",
    "settings set OPENAI_API_KEY=sk-x": "OPENAI_API_KEY cannot change at runtime; these can",
    "settings set IMAGE_GEN_REDIS_URL=x": "cannot change at runtime",
    "breaker open google --redis-url redis://h --control-file f": "--redis-url for a fleet or",
}


@pytest.mark.parametrize("line", WRONG)
def test_invalid_orders_are_reported_in_one_line(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written, and the line states what is allowed."""
    done: Ended = cli(capsys, *line.split())
    assert done.code == 2
    assert WRONG[line] in f"{done.complaint}\n"


def test_a_key_in_place_of_a_variable_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A command line with a pasted key may be visible in a shared terminal or a log."""
    done = cli(capsys, "settings", "set", f"{KEY}=5", "--control-file", "f")
    assert done.code == 2
    assert "cannot change at runtime" in done.complaint
    assert KEY not in done.complaint


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_rejected_as_control_file(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opening it could block forever, while other commands wait for the folder's lock."""
    os.mkfifo(path)
    done = cli(capsys, "breaker", "open", "google", "--control-file", path)
    assert (done.code, f"{path}: is not a regular file" in done.complaint) == (1, True)


@pytest.mark.parametrize("command", ["breaker open google", "settings show"])
def test_a_damaged_file_is_not_overwritten(
    command: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may contain orders of another version. The message states what its deletion changes."""
    path.write_text("{}")
    done = cli(capsys, *command.split(), "--control-file", path)
    assert (done.code, path.read_text()) == (2, "{}")
    assert (
        f'{path}: the file must be JSON: {{"orders": [...]}}; correct or delete' in done.complaint
    )
    assert "running processes keep the orders that they have read" in done.complaint


def test_a_missing_folder_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line has the system's message with the path."""
    done = cli(capsys, "breaker", "open", "google", "--control-file", tmp_path / "no" / "c.json")
    assert done.code == 1
    assert done.complaint.endswith("no: No such file or directory")


drafts = st.builds(
    Order,
    action=st.sampled_from(["open", "close", "hold", "reset"]),
    target=st.sampled_from(["google", "google:a", "google:b", "openai"]),
    ttl=st.integers(1, 86_400),
    by=st.just("ops"),
    serial=st.just(1),
) | st.builds(
    Order,
    action=st.just("unset"),
    target=st.sampled_from(["IMAGE_GEN_IPM", "IMAGE_GEN_BURST"]),
    ttl=st.integers(1, 86_400),
    by=st.just("ops"),
    serial=st.just(1),
)


@given(st.lists(st.tuples(drafts, st.integers(0, 40_000)), max_size=8), st.integers(0, 90_000))
def test_a_process_that_starts_later_obeys_the_same_orders(
    drafts: list[tuple[Order, int]], after: int
) -> None:
    """A process that received every order, and one that reads the stored ones, agree.

    An order is stored until its end, or until one on the same topic replaces it. An order that ends
    an order on another topic is therefore stored as long as that one.
    """
    known: list[Order] = []
    book = OrderBook()
    now = 1_000_000_000_000_000
    for draft, pause in drafts:
        now += pause * 1_000_000
        order = issued(draft, known, now)
        known = [each for each in known if not order.replaces(each) and each.ends_at > now]
        known.append(order)
        book.end(now / 1e6)
        book.add(order, order.ends_at / 1e6)
    assert len({each.serial for each in known}) == len(known)
    later = now + after * 1_000_000
    book.end(later / 1e6)
    newcomer = [order for order, _ in in_force(known, later)]
    assert newcomer == [each.order for each in book if each.order.lasts]
