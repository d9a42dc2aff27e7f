"""Requests that a web page makes its reader's browser send, which reaches servers that nobody else can reach.

A browser asks the server first (a preflight) before a page of another origin may send JSON, and tells no such page what
was answered. Two ways lead around that, and both are closed here: a body of a type that needs no preflight, and a name
of the page's own that is made to point at this machine (DNS rebinding), so that the page and the server are one origin.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence

from frontend.cors import ANY_ORIGIN
from frontend.errors import ApiError

ANY_HOST = "*"
JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?")
_HOST_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_MAX_SHOWN_CHARS = 100


def is_host_name(text: str) -> bool:
    """Whether it can be the name in a Host header, which has no port here. Or it means all."""
    return text == ANY_HOST or _HOST_NAME.fullmatch(text) is not None


def served_hosts(address: str, host: str, allowed: Sequence[str]) -> frozenset[str] | None:
    """The names under which a server at `address` answers, beside loopback addresses; None: under all.

    Who listens on a loopback address serves this machine alone. `host` is what the user called that address.
    """
    if ANY_HOST in allowed or not (allowed or _is_loopback(address)):
        return None
    return frozenset(("localhost", host.lower(), f"[{host.lower()}]", *allowed))


def check_host(headers: Mapping[str, str], served: frozenset[str] | None) -> None:
    """Raises a 403 for a name that is not this server's. Only old programs send none; browsers always do."""
    host = headers.get("host")
    if served is None or host is None:
        return
    found = _HOST.fullmatch(host)
    name = "" if found is None else found.group(1).lower()
    if name not in served and not _is_loopback(name.strip("[]")):
        shown = repr(host[:_MAX_SHOWN_CHARS])
        message = f"This server does not answer to the host {shown}: use localhost, or start it with --allowed-hosts."
        raise ApiError(403, message, code="host_not_allowed")


def check_body_type(method: str, headers: Mapping[str, str], origins: Sequence[str]) -> None:
    """Raises a 415 for a body that is not sent as JSON, and a 403 where a page of another origin sends it.

    Browsers send `Origin` with every POST of another page, most of them `Sec-Fetch-Site` too. What has neither comes
    from a program, which may leave out the type or have the one that `curl -d` sends.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if method != "POST" or kind == JSON:
        return
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    is_page = origin is not None or site is not None
    if is_page and not _is_allowed(origin, site, headers.get("host", ""), origins):
        shown = "another site" if origin is None else repr(origin[:_MAX_SHOWN_CHARS])
        message = f"A page of {shown} may send JSON only, as {JSON}, and where --allowed-origins names its origin."
        raise ApiError(403, message, code="origin_not_allowed")
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    is_from_program = not is_page and kind in ("", _FORM)
    if not is_from_program and (kind or has_body):
        shown = repr(kind[:_MAX_SHOWN_CHARS]) if kind else "without a type"
        message = f"The body must be sent as Content-Type: {JSON}, not {shown}."
        raise ApiError(415, message, code="unsupported_media_type")


def _is_allowed(origin: str | None, site: str | None, host: str, origins: Sequence[str]) -> bool:
    if origin is None:
        return site in ("same-origin", "none")
    return ANY_ORIGIN in origins or origin in origins or origin.partition("://")[2].lower() == host.lower() != ""


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
