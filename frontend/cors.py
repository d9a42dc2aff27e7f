"""Cross-origin requests: which web pages a browser lets read our answers. Without configured origins there are none."""

import re
from collections.abc import Mapping, Sequence

ANY_ORIGIN = "*"
PREFLIGHT_SECONDS = 600
MAX_HEADER_CHARS = 1024
_REQUESTED_METHOD = "access-control-request-method"
_REQUESTED_HEADERS = "access-control-request-headers"
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_OWN_PORTS = {("http", "80"), ("https", "443")}


def is_origin(text: str) -> bool:
    """Whether a browser could send it: others are compared with what browsers send and never match. Or it means all."""
    found = _ORIGIN.fullmatch(text)
    return text == ANY_ORIGIN or (found is not None and found.groups() not in _OWN_PORTS)


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser asks what it may do. It sends no key with that, so that none can be wanted."""
    return method == "OPTIONS" and "origin" in headers and _REQUESTED_METHOD in headers


def cors_headers(method: str, headers: Mapping[str, str], allow: str | None, origins: Sequence[str]) -> dict[str, str]:
    """What an answer says about origins. `allow`: its Allow header, the methods that there are."""
    if ANY_ORIGIN in origins:
        answer = {"Access-Control-Allow-Origin": ANY_ORIGIN}
    else:
        answer = {"Vary": "Origin"}  # a cache must not give one origin's answer to another
        origin = headers.get("origin")
        if origin is None or origin not in origins:
            return answer
        answer["Access-Control-Allow-Origin"] = origin
    if is_preflight(method, headers):
        answer["Access-Control-Allow-Methods"] = allow or "GET, HEAD, POST, OPTIONS"
        # Repeated, because the wildcard does not cover Authorization.
        answer["Access-Control-Allow-Headers"] = headers.get(_REQUESTED_HEADERS, "")[:MAX_HEADER_CHARS]
        answer["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    else:
        answer["Access-Control-Expose-Headers"] = "Retry-After, Warning"
    return answer
