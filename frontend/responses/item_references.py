"""Items of a request that stand for items of stored responses."""

from frontend.client import EngineClient
from frontend.errors import ApiError, bad_request
from frontend.protocol.responses import InputItem, OutputItem
from frontend.responses.conversation import is_reference
from frontend.responses.stored import HAS_ANSWER, find_items, load_response

_MAX_ID_LENGTH = 128
_MOST_AT_ONCE = 4096


async def referenced_items(
    client: EngineClient, items: str | list[InputItem], owner: str | None, known: list[str]
) -> dict[str, OutputItem]:
    """What the references stand for, by id. Raises a 400 for what is not kept, and for what stands there twice.

    `known`: items that the conversation before has already.
    """
    wanted = _wanted(items, set(known))
    found: dict[str, OutputItem] = {}
    ids = list(wanted)
    for begin in range(0, len(ids), _MOST_AT_ONCE):
        part = ids[begin : begin + _MOST_AT_ONCE]
        for item_id, response_id in zip(part, await find_items(client, part), strict=True):
            if response_id is not None and item_id not in found:
                found |= {item.id: item for item in await _items_of(client, response_id, owner) if item.id in wanted}
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


async def _items_of(client: EngineClient, response_id: str, owner: str | None) -> list[OutputItem]:
    """Nothing where the response is somebody else's, or was forgotten just now."""
    try:
        response = (await load_response(client, response_id, owner)).response
    except ApiError as error:
        if error.status != 404:
            raise
        return []
    return response.output if response.status in HAS_ANSWER else []
