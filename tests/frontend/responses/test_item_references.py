"""Items of a request that stand for items of stored responses."""

import pytest

from engine_core.ipc.messages import AddRequest
from tests.frontend.responses.test_responses import PATH, named_events, respond
from tests.frontend.support import END, Setup
from tests.frontend.test_http_answers import prompt_text
from tests.frontend.test_http_errors import error_of


def reference(item_id: str) -> dict[str, str]:
    return {"type": "item_reference", "id": item_id}


def answered(setup: Setup, text: str, **fields: object) -> tuple[str, str]:
    """The ids of a response and of its message."""
    setup.say(text)
    body = respond(setup, "A", **fields).json()
    return body["id"], body["output"][0]["id"]


def test_they_stand_for_items_of_several_responses(setup):
    (_, one), (_, two) = answered(setup, "One."), answered(setup, "Two.")
    user = {"role": "user", "content": "U"}
    for forms in (
        (reference(one), reference(two)),
        ({"id": one}, {"type": None, "id": two}),
    ):
        assert respond(setup, [user, forms[0], user, forms[1], user]).status_code == 200
        assert prompt_text(setup) == (
            f"<|user|>U{END}<|assistant|>One.{END}<|user|>U{END}<|assistant|>Two.{END}<|user|>U{END}<|assistant|>"
        )


def test_streamed_and_background_items(setup):
    setup.say("Streamed.")
    streamed = named_events(respond(setup, stream=True))[-1]["response"]["output"][0]["id"]
    body = respond(setup, background=True).json()
    while (ended := setup.http.get(f"{PATH}/{body['id']}").json())["status"] == "in_progress":
        pass
    for item_id in (streamed, ended["output"][0]["id"]):
        respond(setup, [reference(item_id), {"role": "user", "content": "U"}])
        assert prompt_text(setup) == f"<|assistant|>Streamed.{END}<|user|>U{END}<|assistant|>"


def test_beside_an_earlier_response(setup):
    first, one = answered(setup, "One.")
    second, two = answered(setup, "Two.", previous_response_id=first)
    _, other = answered(setup, "Other.")
    body = respond(setup, [reference(other), {"role": "user", "content": "U"}], previous_response_id=second).json()
    assert body["status"] == "completed"
    assert prompt_text(setup) == (
        f"<|user|>A{END}<|assistant|>One.{END}<|user|>A{END}<|assistant|>Two.{END}<|assistant|>Other.{END}"
        f"<|user|>U{END}<|assistant|>"
    )
    # What the conversation has already is not said again, however it came into it.
    for known, last in ((one, second), (two, second), (other, body["id"])):
        refused = respond(setup, [{"role": "user", "content": "U"}, reference(known)], previous_response_id=last)
        error = error_of(refused, 400)
        assert (error["param"], error["code"]) == ("input[1].id", "duplicate_item")


@pytest.mark.parametrize(
    ("items", "param", "code"),
    [
        ([{"role": "user", "content": "x"}, reference("msg_none")], "input[1].id", "item_not_found"),
        ([{"id": "msg_none"}], "input[0].id", "item_not_found"),
        ([reference("x" * 129)], "input[0].id", None),
        ([reference("")], "input[0].id", None),
        ([{"type": "item_reference"}], "input[0].id", None),
        ([{"type": "message", "id": "msg_none"}], "input[0].role", None),
        ([{"id": "msg_none", "role": "tool"}], "input[0].role", None),
    ],
)
def test_what_is_refused(setup, items, param, code):
    error = error_of(respond(setup, items), 400)
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"]
    assert setup.core.received(AddRequest) == []


def test_an_item_stands_there_once(setup):
    _, one = answered(setup, "One.")
    error = error_of(respond(setup, [reference(one), {"id": one}]), 400)
    assert (error["param"], error["code"]) == ("input[1].id", "duplicate_item")


def test_they_go_with_their_response(setup):
    response_id, one = answered(setup, "One.")
    assert respond(setup, [reference(one)]).status_code == 200
    setup.http.delete(f"{PATH}/{response_id}")
    assert error_of(respond(setup, [reference(one)]), 400)["param"] == "input[0].id"


def test_what_is_not_stored_cannot_be_referred_to(setup):
    _, one = answered(setup, "One.", store=False)
    assert error_of(respond(setup, [reference(one)]), 400)["param"] == "input[0].id"


def test_nobody_elses_items(setup):
    setup.say("secret")
    mine, theirs = {"Authorization": "Bearer mine"}, {"Authorization": "Bearer theirs"}
    item_id = setup.post(PATH, {"input": "x"}, headers=mine).json()["output"][0]["id"]
    body = {"input": [reference(item_id)]}
    assert setup.post(PATH, body, headers=mine).status_code == 200
    for headers in (theirs, {}):
        error = error_of(setup.post(PATH, body, headers=headers), 400)
        unknown = error_of(setup.post(PATH, {"input": [reference("msg_x")]}, headers=headers), 400)
        assert error["message"].replace(item_id, "msg_x") == unknown["message"]
