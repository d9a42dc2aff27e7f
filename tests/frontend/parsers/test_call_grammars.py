"""Each format's grammar of calls: whatever it allows, its parser reads as calls that keep to the schemas."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine_core.grammar.vocabulary import Vocabulary
from frontend.errors import ApiError
from frontend.grammars.request_grammar import CallRules, chat_grammar
from frontend.grammars.tool_calls import bound_tool
from frontend.parsers.chat_parser import ParserPlan
from frontend.parsers.events import Content, ToolCall
from frontend.parsers.registry import HARMONY, REASONING_FORMATS, TOOL_FORMATS
from frontend.protocol.structure import StructureFields
from frontend.tokenizer import TextTokenizer
from tests.e2e.json_validator import is_valid

DEMO_MODEL = Path(__file__).parents[3] / "demo_model"
TOOLS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "Köln"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 30},
            "detail": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "stop-it": {
        "type": "object",
        "properties": {"why": {"$ref": "#/$defs/reasons"}},
        "$defs": {"reasons": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2}},
        "required": ["why"],
        "additionalProperties": False,
    },
    "nothing": {"type": "object", "properties": {}, "additionalProperties": False},
}
# A function's name is an identifier there.
NAMES = {"pythonic": {"stop-it": "stop_it"}}


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.from_folder(str(DEMO_MODEL))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(str(DEMO_MODEL), 8192, (1,))  # `<|end|>` ends no output of gpt-oss


def tools_for(form: str) -> dict[str, Any]:
    return {NAMES.get(form, {}).get(name, name): schema for name, schema in TOOLS.items()}


def written(vocabulary: Vocabulary, grammar: str, seed: int) -> str:
    """A text that the grammar allows, token by token at random; one that may end does so in half of the cases."""
    rng, tokens = random.Random(seed), []
    matcher = vocabulary.compile(grammar)
    assert not matcher.is_error(), matcher.get_error()
    while not matcher.is_stopped():
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little"))
        assert len(allowed), matcher.get_error()
        if 1 in allowed and (len(allowed) == 1 or rng.random() < 0.5):
            break
        token = int(rng.choice([token for token in allowed if token not in vocabulary.eos_token_ids]))
        assert matcher.consume_token(token), matcher.get_error()
        tokens.append(token)
        assert len(tokens) < 2000
    return TextTokenizer.from_folder(str(DEMO_MODEL)).decode(tokens, skip_special_tokens=False)


def calls_in(form: str, text: str, tools: dict[str, Any], prompt: str = "") -> list[ToolCall]:
    reasoning = HARMONY if form == HARMONY else None
    maker = ParserPlan(form, reasoning).for_request(prompt, tools)
    assert maker is not None
    parser = maker.make()
    events = [*parser.feed(text), *parser.finish()]
    assert not any(isinstance(event, Content) for event in events), text
    return [event for event in events if isinstance(event, ToolCall)]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_what_a_grammar_allows_is_read_as_calls(
    form: str, many: bool, tokenizer: TextTokenizer, vocabulary: Vocabulary
) -> None:
    tools = tools_for(form)
    rules = CallRules([bound_tool(name, schema, is_strict=True) for name, schema in tools.items()], True, many)
    grammar = chat_grammar(StructureFields(), rules, ParserPlan(form, None), "", tokenizer.grammar_token_id)
    assert grammar is not None
    numbers = set()
    for seed in range(12):
        text = written(vocabulary, grammar.text, seed)
        calls = calls_in(form, text, tools)
        assert calls, text
        numbers.add(len(calls))
        for call in calls:
            assert is_valid(json.loads(call.arguments), tools[call.name]), text
    assert numbers == {1} if not many or form == HARMONY else max(numbers) > 1


@pytest.mark.parametrize("form", ["glm", "qwen3_coder"])
def test_texts_without_quotes_end_at_their_tag(form: str, tokenizer: TextTokenizer, vocabulary: Vocabulary) -> None:
    tools = {"say": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}}
    rules = CallRules([bound_tool("say", tools["say"], is_strict=True)], True, False)
    grammar = chat_grammar(StructureFields(), rules, ParserPlan(form, None), "", tokenizer.grammar_token_id)
    assert grammar is not None
    value = 'two <b>lines</b>\nand "quotes"'
    text = {
        "glm": f"<tool_call>say\n<arg_key>text</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>",
        "qwen3_coder": "<tool_call>\n<function=say>\n<parameter=text>\n"
        f"{value}\n</parameter>\n</function>\n</tool_call>",
    }[form]
    matcher = vocabulary.compile(grammar.text)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert matcher.try_consume_tokens(tokens) == len(tokens), matcher.get_error()
    assert matcher.is_accepting()
    (call,) = calls_in(form, text, tools)
    assert json.loads(call.arguments) == {"text": value}


@pytest.mark.parametrize("form", ["glm", "qwen3_coder"])
def test_what_a_format_cannot_express_is_refused(form: str, tokenizer: TextTokenizer) -> None:
    schema = {"type": "object", "properties": {"code": {"type": "string", "pattern": "^[a-z]{3}$"}}}
    for is_strict in (True, False):
        rules = CallRules([bound_tool("f", schema, is_strict=is_strict)], True, False)
        if is_strict:
            with pytest.raises(ApiError, match="quotes"):
                chat_grammar(StructureFields(), rules, ParserPlan(form, None), "", tokenizer.grammar_token_id)
        else:
            assert chat_grammar(StructureFields(), rules, ParserPlan(form, None), "", tokenizer.grammar_token_id)


@pytest.mark.parametrize("form", REASONING_FORMATS)
@pytest.mark.parametrize("prompt", ["", "<think>\n", "</think>\n\n"])
def test_an_answer_comes_after_the_reasoning(
    form: str, prompt: str, tokenizer: TextTokenizer, vocabulary: Vocabulary
) -> None:
    """What the grammar lets a model think is reasoning for the parser, and the answer after it content."""
    asked = StructureFields(guided_choice=["yes", "no"])
    plan = ParserPlan(None, form)
    grammar = chat_grammar(asked, CallRules([], False, True), plan, prompt, tokenizer.grammar_token_id)
    assert grammar is not None
    start, end = ("[THINK]", "[/THINK]") if form == "mistral" else ("<think>", "</think>")
    thought = f"{'' if prompt == '<think>' + chr(10) and form != 'mistral' else start}\nIs it {{no}}?\n{end}\n"
    final = "yes"
    if form == HARMONY:
        thought = "<|channel|>analysis<|message|>Is it {no}?<|end|><|start|>assistant"
        final = "<|channel|>final<|message|>yes"
    if prompt.startswith("</think>") and form in ("qwen3", "glm", "deepseek_r1"):
        thought = ""
    matcher = vocabulary.compile(grammar.text)
    tokens = tokenizer.encode(thought + final, add_special_tokens=False)
    assert matcher.try_consume_tokens(tokens) == len(tokens), (thought, matcher.get_error())
    assert matcher.is_accepting()
    maker = plan.for_request(prompt, {})
    assert maker is not None
    parser = maker.make()
    events = [*parser.feed(thought + final), *parser.finish()]
    assert [event.text for event in events if isinstance(event, Content)] == ["yes"]


def test_tokens_that_are_no_text_for_a_grammar(tokenizer: TextTokenizer, vocabulary: Vocabulary) -> None:
    """Our rule is llguidance's."""
    inner = vocabulary.tokenizer
    assert isinstance(inner, LLTokenizer)
    for token_id, text in tokenizer.added_tokens.items():
        assert (tokenizer.grammar_token_id(text) == token_id) == inner.is_special_token(token_id), text
    assert tokenizer.grammar_token_id("the") is None
    limits = LLParserLimits()
    assert not LLMatcher(inner, 'start: "<think>"', limits=limits).is_error()
