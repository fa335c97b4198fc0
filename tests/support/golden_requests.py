"""Golden requests: the default providers' requests on the wire, without versions.

``python tests/support/golden_requests.py`` records them. They must change on purpose only.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Final

from paths import DATA
from providers_kit import GOOD, KEY, PNG, PROMPT, Received, raw_server

from resilient_imagen import ImageClient, Settings

GOLDEN: Final = DATA / "golden_requests.json"
_BOUNDARY: Final = re.compile(r"boundary=([0-9a-f]+)")
_VERSIONS: Final = re.compile(r"(?<=[/ ])v?\d+(\.\d+)+\S*")
_OF_MACHINE: Final = frozenset({"host", "x-stainless-arch", "x-stainless-os"})
_CALLS: Final[dict[str, dict[str, Any]]] = {
    "a picture": {},
    "a picture in another form": {"aspect_ratio": "16:9", "resolution": "4K"},
    "a picture with references": {"aspect_ratio": "1:1", "references": [PNG, PNG]},
}


async def recorded() -> dict[str, dict[str, Any]]:
    """Return path, headers and body of each request, by provider and call.

    The clients have keys and addresses of the two default providers, and no other setting.
    """
    found: dict[str, dict[str, Any]] = {}
    for vendor, other in (("google", "openai"), ("openai", "google")):
        async with raw_server(GOOD[vendor]) as server:
            settings = Settings(
                google_api_key=KEY,
                google_base_url=server.url,
                openai_api_key=KEY,
                openai_base_url=f"{server.url}/v1",
                force_open=other,
                ipm=6000,
            )
            async with ImageClient(settings) as client:
                for name, options in _CALLS.items():
                    await client.generate(PROMPT, **options)
                    found[f"{vendor}: {name}"] = _plain(server.requests[-1])
    return found


def _plain(request: Received) -> dict[str, Any]:
    """Return a request without versions, the machine and the random boundary of a form."""
    body, kind = request.body.decode("latin-1"), request.headers["content-type"]
    if (boundary := _BOUNDARY.search(kind)) is not None:
        body, kind = (each.replace(boundary[1], "BOUNDARY") for each in (body, kind))
    headers = {
        name: _VERSIONS.sub("VERSION", value)
        for name, value in sorted({**request.headers, "content-type": kind}.items())
        if name not in _OF_MACHINE and not name.endswith("-version")
    }
    return {"path": request.path, "headers": headers, "body": body}


def main() -> None:
    """Record the requests."""
    GOLDEN.write_text(json.dumps(asyncio.run(recorded()), indent=1) + "\n")


if __name__ == "__main__":
    main()
