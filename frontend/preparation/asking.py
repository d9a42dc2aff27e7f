"""Who asks, and how much of it there is: known where a request comes in, wanted where its work is done."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asking:
    client: str
    """A request's API key, or its client's address."""
    num_bytes: int
    """Of the request's body."""


_NOBODY = Asking(client="", num_bytes=0)
_asking: ContextVar[Asking] = ContextVar("asking", default=_NOBODY)


def asking() -> Asking:
    """Of the request that the current task answers."""
    return _asking.get()


def note_asking(client: str, num_bytes: int) -> None:
    """To be called at the beginning of a request."""
    _asking.set(Asking(client, num_bytes))
