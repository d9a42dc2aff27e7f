"""Events made again from what is kept of a response: those that its first reader got."""

from copy import deepcopy

import msgspec
import pytest

from frontend.output_processor import OutputPiece, TokenLogprobs
from frontend.parsers.events import Content, Event, Reasoning, ToolCall
from frontend.protocol.response_events import ResponseEvent
from frontend.protocol.responses import OutputItem, Response, ResponsesRequest, ResponseStatus
from frontend.protocol.stored_responses import Delta
from frontend.responses.answer import new_response
from frontend.responses.output import OutputWriter
from frontend.responses.replay import begun_response, last_event, replay
from frontend.tokenizer import TextTokenizer
from tests.frontend.support import write_model_folder

PIECES: list[list[Event]] = [
    [Reasoning("Hm")],
    [Reasoning(", let me see."), Content("\n\nThe ")],
    [Content("an"), Content("swer 你好")],
    [Content("."), ToolCall(index=0, id="call_1", name="f", arguments='{"a": 1}'), Content("  ")],
    [Content("More"), Reasoning("?"), ToolCall(index=1, id="call_2", name="g", arguments="{}")],
    [],
    [Content("Done")],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("model")
    write_model_folder(folder)
    return TextTokenizer.from_folder(str(folder))


def pieces(num_top: int | None) -> list[OutputPiece]:
    """As many tokens in the nth as n, where log-probabilities are wanted."""
    tokens = [TokenLogprobs(7, -0.5, [(8, -0.5)] * (num_top or 0), 0, 1)]
    return [
        OutputPiece(parts=parts, logprobs=[] if num_top is None else tokens * number)
        for number, parts in enumerate(PIECES)
    ]


def numbered(events: list[ResponseEvent]) -> list[ResponseEvent]:
    for number, event in enumerate(events):
        event.sequence_number = number
    return events


def kept(output: tuple[list[OutputItem], list[list[Delta]]]) -> tuple[list[OutputItem], list[list[Delta]]]:
    """It as it comes out of the store."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(output), type=tuple[list[OutputItem], list[list[Delta]]])


@pytest.mark.parametrize("num_top", [None, 0, 2])
@pytest.mark.parametrize("summary", [None, "auto"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_they_are_the_same_as_the_first_time(tokenizer, num_top, summary, is_cut):
    fields = {"input": "x", "top_logprobs": num_top, "reasoning": {"summary": summary}}
    if num_top == 0:
        fields["include"] = ["message.output_text.logprobs"]
    asked = msgspec.convert(fields, ResponsesRequest)
    response = new_response(asked, "resp_1", "m")
    writer = OutputWriter(asked, tokenizer)
    events = list(replay(response, [], []))
    assert [event.__struct_config__.tag for event in events] == ["response.created", "response.in_progress"]
    for piece in pieces(num_top):
        events += deepcopy(list(writer.push(piece)))
    writer.is_cut = is_cut
    events = numbered(events + list(writer.end()))
    response.output, response.status = writer.items, "incomplete" if is_cut else "completed"
    assert list(replay(response, *kept((response.output, writer.deltas)))) == events
    assert len(response.output) == 7
    assert response.output[-1].status == response.status


def test_an_answer_without_output(tokenizer):
    asked = ResponsesRequest(input="x")
    writer = OutputWriter(asked, tokenizer)
    response = new_response(asked, "resp_1", "m")
    events = numbered([*replay(response, [], []), *writer.end()])
    assert list(replay(response, writer.items, writer.deltas)) == events


def ended(status: ResponseStatus) -> Response:
    response = new_response(ResponsesRequest(input="x"), "resp_1", "m")
    response.status = status
    return response


@pytest.mark.parametrize(
    ("status", "name"),
    [("completed", "completed"), ("incomplete", "incomplete"), ("failed", "failed"), ("cancelled", "incomplete")],
)
def test_what_tells_of_the_end(status, name):
    event = last_event(ended(status))
    assert event.__struct_config__.tag == f"response.{name}"
    assert event.response.status == status
    assert begun_response(event.response).status == "in_progress"
