"""The report of the settings in effect, for whoever reads telemetry later.

It is emitted with a call, not when the client is made: by then the application has configured its
logging. Once an hour it is repeated, so that a rotated log file has it, too.
"""

from __future__ import annotations

from dataclasses import fields, replace
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from resilient_imagen._provider_settings import limit_variables
from resilient_imagen.effective_settings import value_text, variable_of, variables_of
from resilient_imagen.telemetry.events import SettingsReported, now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.circuitbreaker import BreakerConfig, CircuitBreaker
    from resilient_imagen.settings import Settings
    from resilient_imagen.telemetry.dispatcher import SinkDispatcher

__all__ = ["SettingsReporter"]

_EVERY: Final = 3600.0
"""Seconds after which the settings are reported again."""


class SettingsReporter:
    """Reports a client's settings, with the changes that were made to its breakers.

    Args:
        settings: The client's settings.
        breakers: The breakers of the configured routes.
        dispatcher: Receives the reports.
    """

    def __init__(
        self, settings: Settings, breakers: Sequence[CircuitBreaker], dispatcher: SinkDispatcher
    ) -> None:
        self._settings = settings
        self._breakers = breakers
        self._configured = tuple(breaker.config for breaker in breakers)
        self._dispatcher = dispatcher
        self._client_id = token_hex(8)
        self._reported: tuple[tuple[BreakerConfig, bool], ...] | None = None
        """What the last report said about the breakers."""
        self._at = 0.0

    def report_if_due(self) -> None:
        """Report the settings if they have changed since the last report, or if that is old."""
        present = tuple((breaker.config, breaker.force_open) for breaker in self._breakers)
        at = now()
        if present == self._reported and 0.0 <= at - self._at < _EVERY:
            return
        self._reported, self._at = present, at
        self._dispatcher.emit(
            SettingsReported(at=at, client_id=self._client_id, variables=self._variables())
        )

    def _variables(self) -> dict[str, str]:
        forced = {_provider(each): None for each in self._breakers if each.force_open}
        found = variables_of(self._settings.model_copy(update={"force_open": tuple(forced)}))
        if self._breakers:
            found[variable_of("breaker_mode")] = self._breakers[0].config.mode.value
        for breaker, configured in zip(self._breakers, self._configured, strict=True):
            if breaker.config != configured:
                name = _provider(breaker)
                own = self._settings.providers.get(name)
                changes = {**((own and own.breaker) or {}), **_changes(breaker.config, configured)}
                found[limit_variables(name)["breaker"]] = value_text(changes)
        return found


def _provider(breaker: CircuitBreaker) -> str:
    return breaker.name.partition(":")[0]


def _changes(config: BreakerConfig, configured: BreakerConfig) -> dict[str, object]:
    comparable = replace(config, mode=configured.mode, probe_deadline=configured.probe_deadline)
    return {
        field.name: getattr(comparable, field.name)
        for field in fields(config)
        if getattr(comparable, field.name) != getattr(configured, field.name)
    }
