"""The arguments and results of the utilities that keep responses, and of `abort_requests`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from engine_core.ipc.messages import Name

MAX_VALUE_BYTES = 16 * 2**20
MAX_ITEMS = 2**16

Value = Annotated[bytes, Meta(max_length=MAX_VALUE_BYTES)]
Items = Annotated[list[Name], Meta(max_length=MAX_ITEMS)]


class StoreArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    value: Value
    is_final: bool
    """A final value is never replaced; of one that is not, the client that stores it is to bring the final one."""
    items: Items = []
    """Names of parts of the value, by which `find_items` finds it as long as it is kept."""
    progress: Value | None = None
    """What stands beside the value from now on; None: what stood there before."""
    owner: Annotated[str, Meta(max_length=64)] | None = None
    """Whose it is: where there is no more room, who has the most loses its own oldest."""


class ProgressArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    progress: Value


class NameArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name


class ItemsArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    items: Items


class LoadedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `load_response`."""

    value: bytes | None
    """None: there is none."""
    is_abandoned: bool
    """Whether it is not final and the client is gone that was to bring the final one."""


class LoadedProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `load_progress`."""

    progress: bytes
    """Empty: there is none."""
    is_running: bool
    """Whether there is a value that is not final, and a client that is to bring the final one."""


class AbortArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prefix: Annotated[str, Meta(min_length=16, max_length=256)]
    """Of the ids of requests; long enough that it cannot be everybody's."""
