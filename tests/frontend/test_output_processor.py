"""Which tokens of an output count as what: reasoning, content, stop strings. The expected counts come from bytes."""

import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from frontend.client import Finished, LogprobColumns, TokenDelta
from frontend.client.deltas import int32_array
from frontend.output_processor import OutputOptions, OutputPiece, OutputProcessor, TokenLogprobs
from frontend.parsers.chat_parser import ParserMaker, ParserPlan
from frontend.parsers.events import Content
from frontend.parsers.registry import HARMONY, REASONING_FORMATS, TOOL_FORMATS
from frontend.tokenizer import TextTokenizer
from tests.frontend.parsers.corpus import GPT_OSS, REASONING_CORPUS, TOOL_CORPUS, TOOLS, Sample
from tests.frontend.support import END, train_tokenizer
from tests.frontend.test_text import naive_stop

Range = tuple[int, int]


@cache
def tokenizer_with(*special: str) -> TextTokenizer:
    """Byte-level BPE with these special tokens; without any a marker is several tokens, and one goes on behind it."""
    tokenizer = train_tokenizer()
    if special:
        tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in special])
    else:
        tokenizer.add_tokens([AddedToken(">b ", special=False), AddedToken("]b ", special=False)])
    return TextTokenizer(tokenizer, {"type": "ByteLevel"}, {})


PLAIN, THINK = tokenizer_with(), tokenizer_with("<think>", "</think>")
CASES = [
    pytest.param(is_special, name, sample, id=f"{name}-{number}-{'special' if is_special else 'plain'}")
    for is_special in (True, False)
    for name, samples in {**REASONING_CORPUS, HARMONY: GPT_OSS}.items()
    for number, sample in enumerate(samples)
]


def deltas(token_ids: list[int], size: int, reason: str = "length", stop_token_id: int | None = None):
    """The tokens, so many at a time, with a log-probability each; the last delta has the end."""
    for start in range(0, max(1, len(token_ids)), size):
        part = token_ids[start : start + size]
        columns = LogprobColumns(0)
        columns.logprobs.extend([-0.5] * len(part))
        columns.ranks.extend([1] * len(part))
        end = Finished(reason, stop_token_id, 1, 0, len(token_ids), 0, 0.0, 0.0, 0.0)
        yield TokenDelta(int32_array(part), columns, end if start + size >= len(token_ids) else None)


def run(
    tokenizer: TextTokenizer, options: OutputOptions, token_ids: list[int], size: int = 1, *, end: int | None = None
) -> tuple[OutputPiece, OutputProcessor]:
    processor, whole = OutputProcessor(tokenizer, [1], options), OutputPiece()
    for delta in deltas(token_ids, size, "length" if end is None else "stop", end):
        if not processor.finished:
            whole.add(processor.push(delta))
    assert processor.finished
    return whole, processor


def touching(tokenizer: TextTokenizer, token_ids: list[int], text: str, ranges: list[Range]) -> list[int]:
    """The tokens whose bytes are among those of one of the ranges of characters."""
    in_bytes = [(len(text[:start].encode()), len(text[:end].encode())) for start, end in ranges if start < end]
    found, place = [], 0
    for token_id in token_ids:
        start, place = place, place + len(tokenizer.token_bytes(token_id))
        if any(start < range_end and place > range_start for range_start, range_end in in_bytes):
            found.append(token_id)
    assert place == len(text.encode())
    return found


def reasoning_ranges(name: str, sample: Sample) -> list[Range]:
    """Up to the end marker, or to the output's end without one."""
    text = sample.text
    if name == HARMONY:
        analysis = re.compile(r"<\|channel\|>analysis<\|message\|>.*?(<\|end\|>|$)", re.DOTALL)
        return [match.span() for match in analysis.finditer(text)]
    start, end = ("[THINK]", "[/THINK]") if name == "mistral" else ("<think>", "</think>")
    if not text.lstrip().startswith(start) and name != "deepseek_r1":
        return []
    place = text.find(end)
    return [(0, len(text) if place < 0 else place + len(end))]


def ids_of(tokens: list[TokenLogprobs]) -> list[int]:
    return [token.token_id for token in tokens]


@pytest.mark.parametrize(("is_special", "name", "sample"), CASES)
def test_tokens_of_reasoning_and_of_content(is_special: bool, name: str, sample: Sample) -> None:
    tokenizer = tokenizer_with(*REASONING_FORMATS[name].load().markers) if is_special else PLAIN
    plan = ParserPlan(name if name == HARMONY else None, name)
    options = OutputOptions(parsers=ParserMaker(plan, "", TOOLS), logprobs_of_content=True)
    ids = tokenizer.encode(sample.text, add_special_tokens=False)
    reasoning = touching(tokenizer, ids, sample.text, reasoning_ranges(name, sample))
    start = sample.text.rindex(sample.content)
    content = touching(tokenizer, ids, sample.text, [(start, start + len(sample.content))])
    for size in (1, 3, max(1, len(ids))):
        piece, processor = run(tokenizer, options, ids, size)
        assert (piece.text, piece.reasoning) == (sample.content, sample.reasoning)
        assert processor.num_reasoning_tokens == len(reasoning)
        assert ids_of(piece.logprobs) == content
    if is_special and name != HARMONY:
        assert b"".join(map(tokenizer.token_bytes, content)).decode() == sample.content


@pytest.mark.parametrize("is_special", [True, False])
@pytest.mark.parametrize("name", TOOL_CORPUS)
def test_tokens_of_calls_are_not_among_those_of_content(is_special: bool, name: str) -> None:
    tokenizer = tokenizer_with(*TOOL_FORMATS[name].load().markers) if is_special else PLAIN
    maker = ParserMaker(ParserPlan(name, name if name == HARMONY else None), "", TOOLS)
    options = OutputOptions(parsers=maker, logprobs_of_content=True)
    for sample in TOOL_CORPUS[name]:
        ids = tokenizer.encode(sample.text, add_special_tokens=False)
        parser = maker.make()
        events = [*parser.feed(sample.text), *parser.finish()]
        ranges = [(event.start, event.end) for event in events if isinstance(event, Content)]
        for size in (1, max(1, len(ids))):
            piece, _ = run(tokenizer, options, ids, size)
            assert ids_of(piece.logprobs) == touching(tokenizer, ids, sample.text, ranges)


@pytest.mark.parametrize("tokenizer", [PLAIN, THINK])
def test_reasoning_that_the_prompt_began(tokenizer: TextTokenizer) -> None:
    options = OutputOptions(parsers=ParserMaker(ParserPlan(None, "qwen3"), "<think>\n"), logprobs_of_content=True)
    reasoning, answer = (tokenizer.encode(text, add_special_tokens=False) for text in ("hm.\n</think>", "\n\nHello"))
    piece, processor = run(tokenizer, options, reasoning + answer)
    assert processor.num_reasoning_tokens == len(reasoning)
    assert "".join(map(tokenizer.token_text, ids_of(piece.logprobs))) == piece.text == "Hello"
    assert ids_of(piece.logprobs)[0] == tokenizer.encode("Hello", add_special_tokens=False)[0]
    closed = OutputOptions(parsers=ParserMaker(ParserPlan(None, "qwen3"), "<think>\n\n</think>\n\n"))
    assert run(tokenizer, closed, answer)[1].num_reasoning_tokens == 0
    assert run(tokenizer, OutputOptions(), answer)[1].num_reasoning_tokens is None


def test_reasoning_grows_token_by_token() -> None:
    """`continuous_usage_stats` shows it while it grows; the end token after reasoning without end is part of it."""
    tokenizer = THINK
    end = tokenizer.tokenizer.token_to_id(END)
    ids = [*tokenizer.encode("<think>one two", add_special_tokens=False), end]
    options = OutputOptions(parsers=ParserMaker(ParserPlan(None, "qwen3"), ""))
    processor = OutputProcessor(tokenizer, [1], options)
    counts = []
    for delta in deltas(ids, 1, "stop", end):
        processor.push(delta)
        counts.append(processor.num_reasoning_tokens)
    assert counts == list(range(1, len(ids) + 1))


@settings(max_examples=200)
@given(
    text=st.text("abü🦊 ", max_size=20),
    stop=st.text("abü🦊", min_size=1, max_size=3),
    size=st.integers(1, 6),
    include=st.booleans(),
)
def test_tokens_that_a_stop_string_cut_off(text: str, stop: str, size: int, include: bool) -> None:
    tokenizer = PLAIN
    ids = tokenizer.encode(text, add_special_tokens=False)
    options = OutputOptions(stop_strings=[stop], include_stop=include, logprobs_of_content=True)
    piece, _ = run(tokenizer, options, ids, size)
    wanted, _ = naive_stop(text, [stop], include)
    assert piece.text == wanted
    assert ids_of(piece.logprobs) == touching(tokenizer, ids, text, [(0, len(wanted))])
    of_all, processor = run(tokenizer, OutputOptions(stop_strings=[stop], include_stop=include), ids, size)
    assert len(of_all.logprobs) == processor.num_output_tokens == len(of_all.token_ids)


def test_a_piece_of_a_character_at_the_end_is_no_content() -> None:
    tokenizer = PLAIN
    ids = tokenizer.encode("a🦊", add_special_tokens=False)[:-1]
    assert ids_of(run(tokenizer, OutputOptions(logprobs_of_content=True), ids)[0].logprobs) == ids[:1]
    assert ids_of(run(tokenizer, OutputOptions(), ids)[0].logprobs) == ids


def test_text_offsets() -> None:
    """Of every token, where its text begins: pieces of a character stand together, a token without text takes no room,
    and what a stop string cuts off goes on beyond the text."""
    tokenizer = PLAIN
    ids = tokenizer.encode("a🦊b<|user|>c", add_special_tokens=False)
    num_pieces = len(tokenizer.encode("🦊", add_special_tokens=False))
    wanted = [0, *[1] * num_pieces, 2, 3, 3]
    for stops in ([], ["x<|user|>"], ["zz"]):
        piece, _ = run(tokenizer, OutputOptions(stop_strings=stops), ids)
        assert (piece.text, [token.text_offset for token in piece.logprobs]) == ("a🦊bc", wanted)
    piece, _ = run(tokenizer, OutputOptions(stop_strings=["bc"]), ids)
    assert (piece.text, [token.text_offset for token in piece.logprobs]) == ("a🦊", wanted)
    shown, _ = run(tokenizer, OutputOptions(skip_special_tokens=False), ids)
    assert [token.text_offset for token in shown.logprobs] == [*wanted[:-1], 3 + len("<|user|>")]


@pytest.mark.parametrize(
    ("text", "stop", "wanted", "stops"),
    [
        ("a<|user|>b", "<|user|>", "a", True),
        ("ab<|user|>c", "b<|user|>", "a", True),
        ("a<|user|>b", "<|user|>b", "a", True),
        ("a<|user|><|system|>b", "<|user|><|system|>", "a", True),
        ("a<|user|>b", "<|user|>c", "ab", False),
        ("a<|user|>b", "<|assistant|>", "ab", False),
        ("a<|user|>bc", "bc", "a", True),
        ("a <|user|>", " <|user|>", "a", True),
    ],
)
@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("with_parser", [False, True])
def test_a_special_token_in_a_stop_string(
    text: str, stop: str, wanted: str, stops: bool, size: int, with_parser: bool
) -> None:
    """It is found, and is no part of the text where it does not stop."""
    tokenizer = PLAIN
    ids = tokenizer.encode(text, add_special_tokens=False)
    parsers = ParserMaker(ParserPlan("hermes", "qwen3"), "", TOOLS) if with_parser else None
    options = OutputOptions(stop_strings=[stop], parsers=parsers, logprobs_of_content=True)
    piece, processor = run(tokenizer, options, ids, size)
    assert (piece.text, piece.finish_reason) == (wanted, "stop" if stops else "length")
    assert piece.stop_reason == (stop if stops else None)
    assert "".join(map(tokenizer.token_text, ids_of(piece.logprobs))) == wanted
    complete = text[: text.index(stop) + len(stop)] if stops else text
    assert processor.num_output_tokens == len(tokenizer.encode(complete, add_special_tokens=False))


def test_a_special_token_that_may_not_stop_yet_or_there() -> None:
    tokenizer = PLAIN
    ids = tokenizer.encode("a<|user|>b<|user|>c", add_special_tokens=False)
    piece, _ = run(tokenizer, OutputOptions(stop_strings=["<|user|>"], min_tokens=3), ids)
    assert (piece.text, piece.finish_reason, len(piece.token_ids)) == ("ab", "stop", 4)
    piece, _ = run(tokenizer, OutputOptions(stop_strings=["<|user|>"], include_stop=True), ids)
    assert piece.text == "a", "special tokens are left out"
    options = OutputOptions(stop_strings=["<|user|>"], include_stop=True, skip_special_tokens=False)
    assert run(tokenizer, options, ids)[0].text == "a<|user|>"
    parsers = ParserMaker(ParserPlan(None, "qwen3"), "")
    ids = tokenizer.encode("<think>a<|user|>b</think>c<|user|>d", add_special_tokens=False)
    piece, _ = run(tokenizer, OutputOptions(stop_strings=["<|user|>"], parsers=parsers), ids)
    assert (piece.reasoning, piece.text, piece.finish_reason) == ("ab", "c", "stop")
