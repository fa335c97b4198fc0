"""Cloud test kit: Vertex AI and Azure with the real libraries, against a loopback server."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from providers_kit import http

from resilient_imagen.providers.azure import AzureProvider
from resilient_imagen.providers.vertex import VertexProvider

if TYPE_CHECKING:
    from collections.abc import Callable

    from providers_kit import Received

PROJECT = "planted-project-4711"
TOKEN = "ya29.planted-access-token-0123456789"
EMAIL = f"robot@{PROJECT}.iam.gserviceaccount.com"
ENTRA_TOKEN = "planted.entra-token.0123456789abcdef"
AZURE_KEY = "planted0azure1key2"


@cache
def private_key() -> str:
    """Return a private key in PEM; making one takes a moment."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def service_account(folder: Path, token_uri: str, **fields: Any) -> Path:
    """Write the file of a service account whose tokens come from ``token_uri``."""
    path = folder / "service-account.json"
    account = {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "1",
        "private_key": private_key(),
        "client_email": EMAIL,
        "token_uri": token_uri,
    }
    path.write_text(json.dumps({**account, **fields}))
    return path


def google_token(value: str = TOKEN, seconds: int = 3600) -> bytes:
    """Return the token server's response."""
    return http(200, {"access_token": value, "expires_in": seconds, "token_type": "Bearer"})


def with_tokens(
    answer: Callable[[Received], bytes | None] | bytes | None,
) -> Callable[[Received], bytes | None]:
    """Return an answer that also serves tokens at /token."""

    def both(request: Received) -> bytes | None:
        if request.path.startswith("/token"):
            return google_token()
        return answer(request) if callable(answer) else answer

    return both


def vertex(url: str, folder: Path, **options: Any) -> VertexProvider:
    """Return a provider with a service account; requests and token requests go to ``url``."""
    account = service_account(folder, options.pop("token_uri", f"{url}/token"))
    return VertexProvider(credentials=account, base_url=url, **options)


class FixedCredential:
    """A synchronous credential with a fixed token, or a failure."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.scopes: list[str] = []

    def get_token(self, *scopes: str) -> Any:
        self.scopes += scopes
        if self.failure is not None:
            raise self.failure

        class Token:
            token = ENTRA_TOKEN
            expires_on = int(time.time()) + 3600

        return Token()


def azure(url: str, **options: Any) -> AzureProvider:
    """Return a provider with a fixed token of Entra ID."""
    options.setdefault("credential", FixedCredential())
    return AzureProvider(endpoint=url, **options)
