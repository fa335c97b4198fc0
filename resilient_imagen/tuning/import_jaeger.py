"""Jaeger import: read a recording by Jaeger's ``api/v3``, else by the older ``/api/traces``."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.redaction import redact
from resilient_imagen.tuning.import_otlp import rows_of_jaeger, rows_of_otlp
from resilient_imagen.tuning.rows import MALFORMED, RecordingError, checked

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Mapping, Sequence

    import httpx2

    from resilient_imagen.tuning.rows import Row

__all__ = ["rows_of_service"]

_TRACES: Final = 500
"""Maximum traces of a query; if there are as many, its time range is halved and queried again."""
_SHORTEST: Final = 1.0
"""Seconds below which a time range is not halved."""
_PIECE: Final = 3600.0
"""Time range of the first query in seconds."""
_MARGIN: Final = 0.001
"""Seconds added at both ends of a range: Jaeger's times are in microseconds."""
_MOST: Final = 64_000_000
"""Maximum bytes of a response; for a larger one the time range is halved, too."""
_NOT_FOUND: Final = 404
_ERRORS: Final = 400


def rows_of_service(
    url: str,
    service: str,
    lookback: float,
    notes: Counter[str],
    *,
    now: float | None = None,
    client: httpx2.Client | None = None,
) -> Iterator[Row]:
    """Yield the rows of a service's traces, oldest first, one time range after the other.

    Args:
        url: Jaeger's address, such as ``http://127.0.0.1:16686``.
        service: The service's name in Jaeger.
        lookback: Seconds to go back.
        notes: Counts skipped data by kind.
        now: Seconds since the epoch; None means the present time.
        client: The HTTP client; None means a new one.

    Raises:
        RecordingError: Jaeger cannot be reached, or its response is not valid.
    """
    import httpx2

    from resilient_imagen.providers.transport_errors import description

    end = time.time() if now is None else now
    own = httpx2.Client(timeout=30.0) if client is None else client
    try:
        jaeger = _Jaeger(own, url.rstrip("/"), service, notes)
        start = end - lookback
        while start < end:
            until = min(start + _PIECE, end)
            yield from jaeger.between(start, until)
            start = until
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        words = redact(description(error)) or type(error).__name__
        raise RecordingError(f"Jaeger cannot be asked: {words}") from None
    except RecordingError:
        raise
    except MALFORMED:
        raise RecordingError("Jaeger's answer is not as it should be") from None
    finally:
        if client is None:
            own.close()


class _Jaeger:
    def __init__(self, client: httpx2.Client, url: str, service: str, notes: Counter[str]) -> None:
        self._client = client
        self._url = url
        self._service = service
        self._notes = notes
        self._old = False

    def between(self, start: float, end: float) -> Iterator[Row]:
        """Yield the rows of the spans that began in this time range.

        Jaeger returns whole traces. Spans that began outside the range belong to another query.
        """
        found = self._documents(start - _MARGIN, end + _MARGIN)
        full = found is None or len(_traces_in(found)) >= _TRACES
        if full and end - start > _SHORTEST:
            middle = (start + end) / 2
            yield from self.between(start, middle)
            yield from self.between(middle, end)
            return
        if found is None:
            raise RecordingError(
                f"Jaeger's answer about {end - start:.1f} s is larger than {_MOST // 10**6} MB"
            )
        if full:
            self._notes["seconds with more traces than Jaeger gives at once"] += 1
        rows = rows_of_jaeger if self._old else rows_of_otlp
        for document in found:
            for row in rows(document, self._notes):
                if start <= row.at < end:
                    yield checked(row)

    def _documents(self, start: float, end: float) -> list[dict[str, Any]] | None:
        """Return Jaeger's response for a time range; None if it is too large."""
        if not self._old:
            status, text = self._answer("api/v3/traces", _v3_query(self._service, start, end))
            if status == _NOT_FOUND and "trace" in (text or "").lower():
                return []  # Jaeger's status for no traces
            if status < _ERRORS:
                return None if text is None else _all_objects(text)
            self._old = True
        query = {
            "service": self._service,
            "start": str(int(start * 1e6)),
            "end": str(int(end * 1e6)),
            "limit": str(_TRACES),
        }
        status, text = self._answer("api/traces", query)
        if status >= _ERRORS:
            raise RecordingError(f"Jaeger answers {status}")
        return None if text is None else _all_objects(text)

    def _answer(self, path: str, query: Mapping[str, str]) -> tuple[int, str | None]:
        """Return status and body; None for a body that is too large, which is not read fully."""
        content = bytearray()
        with self._client.stream("GET", f"{self._url}/{path}", params=query) as answer:
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > _MOST:
                    return answer.status_code, None
        return answer.status_code, content.decode("utf-8", "replace")


def _v3_query(service: str, start: float, end: float) -> dict[str, str]:
    """Return the query with names for Jaeger 1, in snake_case, and Jaeger 2, in camelCase."""
    return {
        "query.serviceName": service,
        "query.startTimeMin": _rfc3339(start),
        "query.startTimeMax": _rfc3339(end),
        "query.searchDepth": str(_TRACES),
        "query.service_name": service,
        "query.start_time_min": _rfc3339(start),
        "query.start_time_max": _rfc3339(end),
        "query.num_traces": str(_TRACES),
    }


def _traces_in(documents: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the ids of all traces, including other services' spans, which Jaeger counts, too."""
    return {trace["traceID"] for document in documents for trace in document.get("data") or ()} | {
        span["traceId"]
        for document in documents
        for resource in document.get("result", document).get("resourceSpans", ())
        for scope in resource.get("scopeSpans", ())
        for span in scope.get("spans", ())
    }


def _all_objects(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a response; Jaeger streams several in sequence."""
    decoder, found, position = json.JSONDecoder(), [], 0
    text = text.strip()
    while position < len(text):
        try:
            document, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            raise RecordingError("Jaeger's answer is not JSON") from None
        if not isinstance(document, dict):
            raise RecordingError("Jaeger's answer is not an object")
        found.append(document)
        while position < len(text) and text[position].isspace():
            position += 1
    return found


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
