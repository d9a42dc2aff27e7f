"""The arguments of the utilities `store_response`, `load_response`, `delete_response` and `abort_requests`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from engine_core.ipc.messages import Name

MAX_VALUE_BYTES = 16 * 2**20


class StoreArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    value: Annotated[bytes, Meta(max_length=MAX_VALUE_BYTES)]
    is_final: bool
    """A final value is never replaced; of one that is not, the client that stores it is to bring the final one."""


class NameArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name


class LoadedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `load_response`."""

    value: bytes | None
    """None: there is none."""
    is_abandoned: bool
    """Whether it is not final and the client is gone that was to bring the final one."""


class AbortArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prefix: Annotated[str, Meta(min_length=16, max_length=256)]
    """Of the ids of requests; long enough that it cannot be everybody's."""
