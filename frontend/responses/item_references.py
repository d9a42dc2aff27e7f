"""Items of a request that stand for items of stored responses."""

from frontend.errors import ApiError, bad_request
from frontend.protocol.responses import InputItem, OutputItem
from frontend.responses.conversation import is_reference
from frontend.responses.store import ResponseStore

_MAX_ID_LENGTH = 128
_MOST_AT_ONCE = 4096


async def referenced_items(
    store: ResponseStore, items: str | list[InputItem], owner: str | None, known: list[str]
) -> dict[str, OutputItem]:
    """What the references stand for, by id. Raises a 400 for what is not kept, and for what stands there twice.

    `known`: items that the conversation before has already.
    """
    wanted = _wanted(items, set(known))
    found: dict[str, OutputItem] = {}
    ids = list(wanted)
    for begin in range(0, len(ids), _MOST_AT_ONCE):
        part = ids[begin : begin + _MOST_AT_ONCE]
        for item_id, response_id in zip(part, await store.find_items(part, owner), strict=True):
            if response_id is not None and item_id not in found:
                found |= {item.id: item for item in await _items_of(store, response_id, owner) if item.id in wanted}
            if item_id not in found:
                message = f"There is no stored item {item_id!r}; the oldest responses are forgotten first."
                raise bad_request(message, wanted[item_id], "item_not_found")
    return found


def _wanted(items: str | list[InputItem], known: set[str]) -> dict[str, str]:
    """Where each id is asked for."""
    wanted: dict[str, str] = {}
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if not is_reference(item):
            continue
        where = f"input[{index}].id"
        if not item.id or len(item.id) > _MAX_ID_LENGTH:
            raise bad_request(f"{where} must be the id of an item, of 1 to {_MAX_ID_LENGTH} characters.", where)
        if item.id in wanted or item.id in known:
            message = f"The item {item.id!r} is part of the conversation already: refer to it once."
            raise bad_request(message, where, "duplicate_item")
        wanted[item.id] = where
    return wanted


async def _items_of(store: ResponseStore, response_id: str, owner: str | None) -> list[OutputItem]:
    """Nothing where the response was forgotten just now."""
    try:
        response = (await store.load(response_id, owner)).response
    except ApiError as error:
        if error.status != 404:
            raise
        return []
    return response.output
