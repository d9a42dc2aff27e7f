"""The items of a response's input, page by page."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.frontend.responses.test_responses import PATH, respond
from tests.frontend.responses.test_tools import CALL, LOOK
from tests.frontend.support import Setup, running_setup
from tests.frontend.test_http_answers import prompt_text
from tests.frontend.test_http_errors import error_of

ITEMS: list[dict[str, Any]] = [
    {"role": "developer", "content": "D"},
    {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "U"}, {"type": "text", "text": "V"}],
    },
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "A"}]},
    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"place": 1}'},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "x"}]},
]


@pytest.fixture(scope="module")
def module_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with running_setup(tmp_path_factory.mktemp("run"), tool_call_parser="hermes") as setup:
        yield setup


def page(setup: Setup, response_id: str, **query: Any) -> dict[str, Any]:
    answer = setup.http.get(f"{PATH}/{response_id}/input_items", params=query)
    answer.raise_for_status()
    return answer.json()


def test_what_was_given_is_listed(setup: Setup) -> None:
    setup.say("ok")
    response_id = respond(setup, ITEMS, instructions="I").json()["id"]
    listed = page(setup, response_id, order="asc")
    data = listed["data"]
    assert listed["object"] == "list"
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (data[0]["id"], data[-1]["id"], False)
    assert len({item["id"] for item in data}) == len(data)
    assert {item["status"] for item in data} == {"completed"}
    plain = [{key: value for key, value in item.items() if key not in ("id", "status")} for item in data]
    assert plain == [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "D"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text} for text in "UV"]},
        ITEMS[2],
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "A", "annotations": [], "logprobs": []}],
        },
        ITEMS[4],
        {**ITEMS[5], "output": "x"},
    ]
    # What is listed is an input again.
    first = prompt_text(setup)
    respond(setup, data, instructions="I").raise_for_status()
    assert prompt_text(setup) == first


def test_pages(setup: Setup) -> None:
    setup.say("ok")
    response_id = respond(setup, [{"role": "user", "content": str(number)} for number in range(25)]).json()["id"]

    def texts(**query: Any) -> tuple[list[str], bool, str | None]:
        listed = page(setup, response_id, **query)
        return [item["content"][0]["text"] for item in listed["data"]], listed["has_more"], listed["last_id"]

    numbers = [str(number) for number in range(25)]
    assert texts()[:2] == (numbers[:4:-1], True)
    assert texts(limit=100, order="desc")[:2] == (numbers[::-1], False)
    seen: list[str] = []
    after: dict[str, str | None] = {}
    for count, more in ((10, True), (10, True), (5, False)):
        found, has_more, last_id = texts(limit=10, order="asc", **after)
        assert (len(found), has_more) == (count, more)
        seen += found
        after = {"after": last_id}
    assert seen == numbers
    assert texts(order="asc", **after) == ([], False, None)


def test_earlier_turns_are_part_of_it(setup: Setup) -> None:
    setup.say(CALL)
    first = respond(setup, "Where?", tools=[LOOK], max_output_tokens=300).json()
    setup.say("There.")
    result = {"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "a bridge"}
    second = respond(setup, [result], previous_response_id=first["id"]).json()
    types = [item["type"] for item in page(setup, second["id"], order="asc")["data"]]
    assert types == ["message", "function_call", "function_call_output"]


@pytest.mark.parametrize(
    ("query", "param"),
    [({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"order": "up"}, "order"), ({"after": "msg_x"}, "after")],
)
def test_a_wrong_field_is_named(setup: Setup, query: dict[str, Any], param: str) -> None:
    setup.say("ok")
    path = f"{PATH}/{respond(setup).json()['id']}/input_items"
    assert error_of(setup.http.get(path, params=query), 400)["param"] == param


def test_nobody_elses(setup: Setup) -> None:
    setup.say("ok")
    response_id = setup.post(PATH, {"input": "secret"}, headers={"Authorization": "Bearer mine"}).json()["id"]
    for path in (f"{PATH}/{response_id}/input_items", f"{PATH}/resp_x/input_items"):
        assert error_of(setup.http.get(path), 404)["code"] == "response_not_found"
