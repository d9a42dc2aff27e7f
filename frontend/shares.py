"""Whose part of the engine a request takes: what its queue, its limits and its prefix cache tell apart."""

import hashlib
import ipaddress

from sanic import Request

from engine_core.config.engine_config import FrontendConfig
from frontend.protocol.common import share_key_of

_IPV6_PREFIX_BITS = 64
"""Of an IPv6 address: whoever has one has all that begin alike."""


class Shares:
    """Only what a client cannot make up tells it apart: one of several configured keys, or else its address."""

    def __init__(self, config: FrontendConfig) -> None:
        self._tells_apart = config.tells_apart
        self._separates_prefixes = config.separates_prefixes

    def key_of(self, request: Request) -> str | None:
        """A digest, of the request's API key or of its client's address; None where all are alike."""
        if self._tells_apart == "keys":
            return share_key_of(request.headers)
        if self._tells_apart == "addresses":
            return _digest(_network_of(request.ip))
        return None

    def salt_of(self, request: Request, salt: str | None) -> str | None:
        """What prompts in the prefix cache are kept apart by. `salt`: the request's own `cache_salt`."""
        key = share_key_of(request.headers) if self._separates_prefixes else None
        if key is None:
            return salt
        return key if salt is None else _digest(f"{key} {salt}")


def _network_of(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv4Address):
        return text
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((address, _IPV6_PREFIX_BITS), strict=False))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
