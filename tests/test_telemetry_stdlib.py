"""Whom a record of logging's would reach: for nobody, no line is put together."""

from __future__ import annotations

import io
import logging
import math
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import pytest

from resilient_imagen import ImageClient, InvalidRequestError, Settings
from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry.stdlib import reached_from
from resilient_imagen.testing import FakeProvider
from resilient_imagen.virtualtime import run_virtual

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A library's, below an application's, which has no handlers yet; nothing reaches pytest's."""
    application = logging.getLogger("an_application")
    application.propagate = False
    application.setLevel(logging.INFO)
    library = logging.getLogger("an_application.library")
    library.addHandler(logging.NullHandler())
    yield library
    for each in (library, application):
        each.handlers.clear()
        each.filters.clear()
        each.setLevel(logging.NOTSET)
        each.propagate, each.disabled = True, False


def test_nobody_is_reached_where_there_is_only_the_handler_that_keeps_quiet(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python starts: the library's own NullHandler, and none above."""
    monkeypatch.setattr(logger.parent, "handlers", [])  # else pytest listens
    assert reached_from(logger) == math.inf


def test_a_handler_anywhere_above_is_reached_from_the_loggers_level_on(
    logger: logging.Logger,
) -> None:
    """Levels are inherited, and what is assigned holds at once."""
    assert logger.parent is not None
    logger.parent.addHandler(logging.StreamHandler(io.StringIO()))
    assert reached_from(logger) == logging.INFO
    logger.setLevel(logging.ERROR)
    assert reached_from(logger) == logging.ERROR
    logger.level = logging.DEBUG
    assert reached_from(logger) == logging.DEBUG


def test_what_is_switched_off_reaches_nobody(logger: logging.Logger) -> None:
    """No way up, everything below a level disabled, or the logger itself."""
    assert logger.parent is not None
    logger.parent.addHandler(logging.StreamHandler(io.StringIO()))
    logger.propagate = False
    assert reached_from(logger) == math.inf
    logger.propagate = True
    logging.disable(logging.WARNING)
    try:
        assert reached_from(logger) == logging.WARNING + 1
    finally:
        logging.disable(logging.NOTSET)
    logger.disabled = True
    assert reached_from(logger) == math.inf


def test_a_filter_may_be_what_listens(logger: logging.Logger) -> None:
    """Some count or copy records so."""
    logger.addFilter(lambda _: True)
    assert reached_from(logger) == logging.INFO


@pytest.mark.parametrize("way", ["isEnabledFor", "log", "_log", "handle", "callHandlers"])
def test_who_replaces_a_way_of_loggings_may_want_everything(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Sentry does so; wrappers pretend to be the original, and tests replace it on one logger."""

    @wraps(getattr(logging.Logger, way))
    def patched(*_: Any) -> None:
        """Listen."""

    class Wrapper:
        __module__ = "logging"

        def __call__(self, *_: Any) -> None:
            """Listen."""

    for listening in (patched, Wrapper()):
        with monkeypatch.context() as patch:
            patch.setattr(logging.Logger, way, listening)
            assert reached_from(logger) == logging.NOTSET
    monkeypatch.setitem(vars(logger), way, patched)
    assert reached_from(logger) == logging.NOTSET


def test_a_factory_of_records_may_listen(logger: logging.Logger) -> None:
    """Whoever makes the records sees them."""
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(partial(before))
    try:
        assert reached_from(logger) == logging.INFO
    finally:
        logging.setLogRecordFactory(before)


def test_without_any_handler_there_is_the_last_resort(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that took ours away has warnings printed, as Python does."""
    monkeypatch.setattr(logger.parent, "handlers", [])
    logger.handlers.clear()
    assert reached_from(logger) == logging.INFO
    monkeypatch.setattr(logging, "lastResort", None)
    assert reached_from(logger) == math.inf


def test_a_logger_of_another_class_may_listen_itself(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `logging.setLoggerClass` makes them."""
    monkeypatch.setattr(logger.parent, "handlers", [])

    class Named(logging.Logger):
        """Of its own in name only, as structlog's is."""

    class Listening(logging.Logger):
        def handle(self, record: logging.LogRecord) -> None:
            """Listen."""

    for kind, reached in ((Named, math.inf), (Listening, logging.NOTSET)):
        own = kind("an_application.own")
        own.addHandler(logging.NullHandler())
        own.parent = logger.parent
        assert reached_from(own) == reached


async def outage() -> None:
    """A failure, a retry, a fallback, a refusal; two calls end well and one does not.

    No sinks of the test's: they would want to be told everything.
    """
    google, openai = FakeProvider("google"), FakeProvider("openai")
    google.fail(Reason.OVERLOADED, status=503, times=3)
    settings = Settings(ipm=1000, burst=100)
    async with ImageClient(settings, providers=[google, openai]) as client:
        await client.generate("a lighthouse")
        await client.generate("a lighthouse")
        openai.fail(Reason.INVALID_REQUEST, status=400)
        with pytest.raises(InvalidRequestError):
            await client.generate("a lighthouse")


@pytest.mark.parametrize(
    "level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL]
)
def test_each_level_sees_exactly_its_lines(level: int) -> None:
    """What is not put together for want of a reader is what would have been filtered anyway."""
    logger = logging.getLogger("imagegen")

    def lines(level: int) -> list[tuple[int, str]]:
        caught: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = caught.append  # type: ignore[method-assign,assignment]
        logger.addHandler(handler)
        logger.setLevel(level)
        try:
            run_virtual(outage())
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
        return [(record.levelno, record.__dict__["event"]) for record in caught]

    everything = lines(logging.DEBUG)
    assert {severity for severity, _ in everything} == {10, 20, 30, 40}
    assert lines(level) == [line for line in everything if line[0] >= level]
