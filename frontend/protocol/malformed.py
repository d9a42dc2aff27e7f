"""Which field of a body is no JSON: parsers say at which byte at best, and a client wants to know the name."""

import re

import msgspec

MAX_TOKENS = 20_000
"""So many are looked at, which takes some 10 ms."""
MAX_DEPTH = 128
"""No field of ours is nested as deeply; parsers give up at some hundreds."""

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]:,]|[^\s{}\[\]:,"]++|"', re.DOTALL)
_anything = msgspec.json.Decoder()


def malformed_field(body: bytes) -> str | None:
    """The first field of the object `body` whose value cannot be read; None where that is not to be told."""
    depth = 0
    field = text = None
    for number, found in enumerate(_TOKEN.finditer(body)):
        token = found.group()
        if number == MAX_TOKENS or depth > MAX_DEPTH:
            break
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
        elif token == b":" and depth == 1:
            field = text
        elif token not in b":,":
            try:
                text = _anything.decode(token)
            except (msgspec.DecodeError, UnicodeDecodeError):
                break
    else:
        return None
    return field[:64] if isinstance(field, str) and number < MAX_TOKENS else None
