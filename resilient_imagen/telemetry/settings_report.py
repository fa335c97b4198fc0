"""The report of the settings in effect, for later readers of logs and traces.

It is emitted with a call, not at the creation of the client, because the application has configured
its logging by then. Once an hour it is repeated, so that a rotated log file has it, too.
"""

from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING, Final

from resilient_imagen._provider_settings import limit_variables
from resilient_imagen.effective_settings import value_text, variable_of, variables_of
from resilient_imagen.telemetry.events import SettingsReported

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from resilient_imagen.circuitbreaker import CircuitBreaker
    from resilient_imagen.settings import Settings
    from resilient_imagen.telemetry.dispatcher import SinkDispatcher

__all__ = ["SettingsReporter"]

_EVERY: Final = 3600.0
"""Seconds after which the settings are reported again."""


class SettingsReporter:
    """Reports a client's settings, with the changes that were made while it runs.

    Args:
        settings: Returns the settings in effect.
        breakers: The breakers of the configured routes.
        dispatcher: Receives the reports.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        breakers: Sequence[CircuitBreaker],
        dispatcher: SinkDispatcher,
    ) -> None:
        self._settings = settings
        self._breakers = breakers
        self._dispatcher = dispatcher
        self._client_id = token_hex(8)
        self._reported: list[object] = []
        """The content of the last report."""
        self._at = 0.0

    def report_if_due(self, at: float) -> None:
        """Report the settings if they have changed since the last report, or if that is old.

        Args:
            at: The loop time now.
        """
        settings = self._settings()
        present: list[object] = [settings]
        for breaker in self._breakers:
            present += breaker.config, _is_kept_open(breaker)
        if present == self._reported and 0.0 <= at - self._at < _EVERY:
            return
        self._reported, self._at = present, at
        variables = self._variables(settings)
        self._dispatcher.emit(
            SettingsReported(at=at, client_id=self._client_id, variables=variables)
        )

    def _variables(self, settings: Settings) -> dict[str, str]:
        usable = {_provider(each): _is_kept_open(each) for each in self._breakers}
        forced = tuple(name for name, is_forced in usable.items() if is_forced)
        found = variables_of(settings.model_copy(update={"force_open": forced}))
        found[variable_of("routes")] = ",".join(_usable_steps(settings, usable))
        for breaker in self._breakers:
            name, config = _provider(breaker), breaker.config
            found[variable_of("breaker_mode")] = config.mode.value
            usual = settings.breaker_settings("")
            changes = {
                field: getattr(config, field)
                for field, value in usual.items()
                if field != "mode" and getattr(config, field) != value
            }
            variable = limit_variables(name)["breaker"]
            found.pop(variable, None)
            if changes:
                found[variable] = value_text(changes)
        return found


def _usable_steps(settings: Settings, providers: Container[str]) -> Iterator[str]:
    """Yield the steps of the chain without accounts that lack their key."""
    for step in settings.routes:
        usable = [each.provider for each in step.accounts if each.provider in providers]
        if usable:
            yield f"{'+'.join(usable)}:{step.partition(':')[2]}"


def _is_kept_open(breaker: CircuitBreaker) -> bool:
    """Return whether the settings, the application or an operator's order keep the breaker open."""
    return breaker.force_open or (breaker.held is not None and breaker.held.opens)


def _provider(breaker: CircuitBreaker) -> str:
    return breaker.name.partition(":")[0]
