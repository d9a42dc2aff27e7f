"""What a request's head and a chunk's size have to look like (RFC 9112) before a parser that is more lenient sees them.

Where two readers of one connection disagree on where a request ends, the rest of it is a request to one of them. So
whatever frames a message is taken in one form only, and anything else is refused. Knows no web framework.
"""

import re
from collections.abc import Sequence

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") (/[!-~]*|https?://([^/?#\s]+)[!-~]*|\*) HTTP/1\.([01])")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?")
_BARE_LINE_BREAK = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}(?:;[\t\x20-\x7e\x80-\xff]*)?")
_MAX_SHOWN_BYTES = 60


class MalformedRequest(ValueError):
    """One sentence for the client: where its request ends cannot be told for certain."""


def check_head(head: bytes) -> None:
    """Raises `MalformedRequest`. `head`: all before the empty line, without the last line's end."""
    check_line_breaks(head)
    request_line, *lines = head.split(b"\r\n")
    start = _REQUEST_LINE.fullmatch(request_line)
    if start is None:
        raise MalformedRequest(
            f"The request line {_shown(request_line)} is not a method, a path and HTTP/1.1 with one space between."
        )
    is_old = start.group(4) == b"0"
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, value = _field(line)
        fields.setdefault(name, []).append(value)
    _check_host(fields.get(b"host", []), start.group(3), is_old)
    _check_length(fields.get(b"content-length", []), fields.get(b"transfer-encoding", []), is_old)


def check_line_breaks(head: bytes | bytearray, is_whole: bool = True) -> None:
    """Raises `MalformedRequest` where CR or LF stands alone. A head that is not whole may end within a line break."""
    found = _BARE_LINE_BREAK.search(head)
    if found is not None and (is_whole or found.end() < len(head) or found.group() == b"\n"):
        raise MalformedRequest("A line of the request's head must end with CR and LF; one of them stands alone.")


def check_chunk_size(line: bytes) -> None:
    """Raises `MalformedRequest`. `line`: the size with what follows it, without the line's end."""
    if _CHUNK_SIZE.fullmatch(line) is None:
        raise MalformedRequest(
            f"The chunk size {_shown(line)} is not 1 to 16 hexadecimal digits, without signs and spaces."
        )


def _field(line: bytes) -> tuple[bytes, bytes]:
    found = _FIELD.fullmatch(line)
    if found is not None:
        return found.group(1).lower(), found.group(2).rstrip(b" \t")
    if line[:1] in (b" ", b"\t"):
        raise MalformedRequest("A header must stand on one line; a line of the head begins with white space.")
    name, colon, _ = line.partition(b":")
    if colon and name != name.rstrip(b" \t"):
        raise MalformedRequest(f"The header {_shown(name)} must not have white space before its colon.")
    raise MalformedRequest(f"The line {_shown(line)} of the request's head is not a header: NAME: VALUE.")


def _check_host(hosts: Sequence[bytes], authority: bytes | None, is_old: bool) -> None:
    if len(hosts) > 1 or not (hosts or is_old):
        raise MalformedRequest(f"A request must have one Host header, not {len(hosts)}.")
    for host in hosts:
        if _HOST.fullmatch(host) is None:
            raise MalformedRequest(
                f"The Host header {_shown(host)} is not a name or an address, with or without a port."
            )
        if authority is not None and authority.lower() != host.lower():
            raise MalformedRequest(f"The Host header {_shown(host)} must be that of the URL, {_shown(authority)}.")


def _check_length(lengths: Sequence[bytes], codings: Sequence[bytes], is_old: bool) -> None:
    if lengths and codings:
        raise MalformedRequest("A request must have Content-Length or Transfer-Encoding, not both.")
    if len(lengths) > 1:
        raise MalformedRequest(f"A request must have at most one Content-Length header, not {len(lengths)}.")
    if lengths and _LENGTH.fullmatch(lengths[0]) is None:
        raise MalformedRequest(f"Content-Length must be 1 to 18 digits, not {_shown(lengths[0])}.")
    if codings and (is_old or list(codings) != [b"chunked"]):
        raise MalformedRequest(
            f"Transfer-Encoding must be 'chunked' alone and come with HTTP/1.1, not {_shown(b', '.join(codings))}."
        )


def _shown(value: bytes) -> str:
    """For a message: what is not printable is escaped."""
    text = value[:_MAX_SHOWN_BYTES].decode("latin-1")
    return ascii(text) + ("..." if len(value) > _MAX_SHOWN_BYTES else "")
