"""Every format's parser: however an output is cut, the same is found in it, and nothing of it is lost."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.parsers.chat_parser import ParserMaker, ParserPlan
from frontend.parsers.events import Content, Event, Reasoning
from frontend.parsers.registry import HARMONY, REASONING_FORMATS, TOOL_FORMATS
from tests.frontend.parsers.corpus import NO_CALL, REASONING_CORPUS, TOOL_CORPUS, TOOLS, Sample, tagged

Found = tuple[list[tuple[str, str]], str, str]


def maker(name: str, *, reasoning: bool = False, prompt: str = "") -> ParserMaker:
    if name == "gpt_oss":
        return ParserMaker(ParserPlan(name, name), prompt, TOOLS)
    plan = ParserPlan(None, name) if reasoning else ParserPlan(name, None)
    return ParserMaker(plan, prompt, TOOLS)


def parse(made_by: ParserMaker, pieces: Iterator[str] | list[str]) -> Found:
    """Calls with their arguments' text, content, reasoning."""
    parser = made_by.make()
    events: list[Event] = []
    text = ""
    for piece in pieces:
        text += piece
        events += parser.feed(piece)
    events += parser.finish()
    calls, content, reasoning = [], "", ""
    for event in events:
        if isinstance(event, Content):
            assert event.text, "an event without text"
            assert text[event.start : event.end] == event.text
            content += event.text
        elif isinstance(event, Reasoning):
            assert event.text, "an event without text"
            reasoning += event.text
        else:
            assert event.index == len(calls)
            assert event.id
            calls.append((event.name, event.arguments))
    return calls, content, reasoning


def cut(data: bytes, size: int, first: int = 0) -> Iterator[str]:
    """The text in pieces of so many bytes, after a first one of its own size; a character comes when it is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    yield decoder.decode(data[:first])
    for start in range(first, len(data), size):
        yield decoder.decode(data[start : start + size])


def check_every_cut(made_by: ParserMaker, sample: Sample) -> None:
    whole = parse(made_by, [sample.text])
    calls, content, reasoning = whole
    assert [(name, json.loads(arguments)) for name, arguments in calls] == list(sample.calls)
    assert (content, reasoning) == (sample.content, sample.reasoning)
    data = sample.text.encode()
    for size in range(1, len(data) + 1):
        assert parse(made_by, cut(data, size)) == whole, f"in pieces of {size} bytes"
    for place in range(len(data)):
        assert parse(made_by, cut(data, len(data), place)) == whole, f"cut at byte {place}"


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        pytest.param(name, sample, id=f"{name}-{number}")
        for name, samples in TOOL_CORPUS.items()
        for number, sample in enumerate(samples + NO_CALL)
    ],
)
def test_calls_do_not_depend_on_the_cuts(name: str, sample: Sample) -> None:
    check_every_cut(maker(name), sample)


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        pytest.param(name, sample, id=f"{name}-{number}")
        for name, samples in REASONING_CORPUS.items()
        for number, sample in enumerate(samples)
    ],
)
def test_reasoning_does_not_depend_on_the_cuts(name: str, sample: Sample) -> None:
    check_every_cut(maker(name, reasoning=True), sample)


def test_every_format_has_a_corpus() -> None:
    assert TOOL_CORPUS.keys() == TOOL_FORMATS.keys()
    assert {*REASONING_CORPUS, "gpt_oss"} == REASONING_FORMATS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", TOOL_FORMATS)
@settings(max_examples=60)
@given(data=st.data())
def test_any_text_at_all(name: str, data: st.DataObject) -> None:
    """Pieces of the corpus in any order: the cuts change nothing, and without a call every character is content."""
    corpus = [sample.text for sample in TOOL_CORPUS[name] if len(sample.text) < 300]
    pieces = st.tuples(st.sampled_from(corpus), st.integers(0, 300), st.integers(0, 60)).map(
        lambda piece: piece[0][piece[1] : piece[1] + piece[2]]
    )
    text = "".join(data.draw(st.lists(pieces | st.text(max_size=3), max_size=8)))
    text = text.encode(errors="replace").decode()
    whole = parse(maker(name), [text])
    size = data.draw(st.integers(1, 20))
    assert parse(maker(name), cut(text.encode(), size)) == whole
    if not whole[0] and name != "gpt_oss":
        assert whole[1] == text


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_where_no_other_tools_may_be_called_their_calls_are_content(name: str) -> None:
    made_by = replace(maker(name), tools={"now": TOOLS["now"]}, is_restricted=True)
    is_tried = False
    for sample in TOOL_CORPUS[name]:
        whole = parse(made_by, [sample.text])
        assert parse(made_by, list(sample.text)) == whole
        calls, content, _ = whole
        wanted = [called for called, _ in sample.calls]
        if set(wanted) <= {"now"}:
            assert [called for called, _ in calls] == wanted
            continue
        assert {called for called, _ in calls} <= {"now"}
        assert "look" in content
        is_tried = True
        if not calls and name != HARMONY:
            assert content == sample.text
    assert is_tried


@pytest.mark.parametrize(
    ("prompt", "text", "reasoning", "content"),
    [
        ("<|assistant|>\n<think>\n", "hm</think>Hi", "hm", "Hi"),
        ("<|assistant|>\n<think>\n\n</think>\n\n", "<think>Hi", "", "<think>Hi"),
        ("<|assistant|>\n", "Hi", "", "Hi"),
    ],
)
def test_an_output_continues_its_prompt(prompt: str, text: str, reasoning: str, content: str) -> None:
    assert parse(maker("qwen3", reasoning=True, prompt=prompt), [text]) == ([], content, reasoning)


def test_tools_after_reasoning() -> None:
    call = tagged('{"name": "now", "arguments": {}}')
    made_by = ParserMaker(ParserPlan("hermes", "qwen3"), "", TOOLS)
    found = parse(made_by, list(f"<think>\n{call}\n</think>\n\n{call}"))
    assert found == ([("now", "{}")], "", call)


def test_the_arguments_are_what_the_model_wrote() -> None:
    text = tagged('{"name": "look", "arguments": {"days": 1.0,"place":"\\u00fc" , "big": 12345678901234567890123}}')
    assert parse(maker("hermes"), [text])[0][0][1] == '{"days": 1.0,"place":"\\u00fc" , "big": 12345678901234567890123}'


def test_ids_have_the_forms_that_templates_want() -> None:
    def first_id(name: str, text: str) -> str:
        parser = maker(name).make()
        return next(event.id for event in parser.feed(text) + parser.finish() if hasattr(event, "id"))

    assert first_id("hermes", tagged('{"name": "now"}')).startswith("call_")
    assert len(first_id("mistral", "[TOOL_CALLS]now[ARGS]{}")) == 9
    assert first_id("mistral", "[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}") == "abcdefghi"
    kimi = "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}"
    assert first_id("kimi_k2", kimi) == "functions.now:3"
