"""What is kept of a response, beside what its client sees: enough to go on after it and to tell its events again."""

import msgspec

from frontend.protocol.chat import ChatMessage
from frontend.protocol.responses import Response


class Delta(msgspec.Struct, array_like=True, frozen=True):
    """One event by which an item's text grew."""

    num_chars: int
    num_logprobs: int


class StoredResponse(msgspec.Struct, kw_only=True):
    """A response and what it takes to go on after it."""

    response: Response
    messages: list[ChatMessage]
    """The conversation up to and without the answer; instructions do not belong to it."""
    item_ids: list[str]
    """The items of earlier responses that are part of that conversation."""
    deltas: list[list[Delta]]
    """For each item of the output the events in which its text came; a call has none of these."""
    owner: str | None
    """The digest of the API key that it was made for: no other key finds it."""
    num_events: int | None = None
    """Those before the one that ended it; None: not known. Set when it is loaded."""
