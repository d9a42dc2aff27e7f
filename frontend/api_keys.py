"""API keys: where a request carries one, and whether it is one of the server's. Only digests are kept and compared."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from frontend.errors import ApiError

OPEN_PATHS = frozenset(("/health", "/ready"))
"""What an orchestrator asks, which has no key."""


def api_key_of(headers: Mapping[str, str]) -> str | None:
    """The key as OpenAI's clients send it (a bearer token), else as Anthropic's do."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        key = headers.get("x-api-key", "")
    return key.strip() or None


def digest_of(key: str) -> str:
    """What the configuration has instead of the key: files that others may see later must not open the server."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def check_api_key(path: str, headers: Mapping[str, str], digests: Sequence[str]) -> None:
    """Raises a 401 unless the request has one of the keys. The time it takes does not tell how much of one is right."""
    if path in OPEN_PATHS:
        return
    key = api_key_of(headers)
    if key is None:
        raise _refusal("This server wants an API key: send it as Authorization: Bearer KEY, or as x-api-key: KEY.")
    digest = digest_of(key)
    matches = [hmac.compare_digest(digest, known) for known in digests]  # all, whichever it is
    if True not in matches:
        raise _refusal("The API key is not one of this server's.")


def _refusal(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
