"""Each format's grammar of calls: whatever it allows, its parser reads as calls that keep to the schemas."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine_core.grammar.vocabulary import Vocabulary
from frontend.errors import ApiError
from frontend.grammars.request_grammar import CallRules, chat_grammar
from frontend.grammars.tool_calls import BoundTool, InputGrammar, bound_tool
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


def takes(vocabulary: Vocabulary, grammar: str, tokens: list[int]) -> bool:
    """Whether an output of these tokens is in the grammar's language."""
    matcher = vocabulary.compile(grammar)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def spelled(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The text without any special token: the tokens of each character."""
    return [token for character in text for token in tokenizer.encode(character, add_special_tokens=False)]


FORBIDDEN = {
    "gpt_oss": [
        "<|channel|>final<|message|>Well.<|end|><|start|>assistant{call}",
        "<|channel|>analysis<|message|>Hm.<|return|><|start|>assistant{call}",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{call}",
    ],
    "llama3_json": ["\t\x1f{call}", "Well.<|python_tag|>{call}", "<|python_tag|>{call}"],
    "pythonic": ["\t\x1f{call}", "Well.<|python_start|>{call}", "<|python_start|>{call}"],
    "qwen3_coder": ["{body}", "Well.{body}", "Well.\n{call}", "{allowed}\n{call}", "{allowed}{body}"],
    "granite": ["<tool_call>{body}", "Well.\n<tool_call>{body}", "Well.\n{call}", "{allowed}\n{call}"],
    "phi4": ["functools{body}", "Well.\nfunctools{body}", "Well.\n{call}", "{allowed}\n{call}"],
    "kimi_k2": ["{body}", "Well.\n{body}", "Well.\n{call}", "{allowed}\n{call}"],
    "deepseek_v3": ["{body}", "Well.\n{body}", "Well.\n{call}", "{allowed}\n{call}"],
}
"""Wherever else a parser finds a call. `body`: what comes after its opening."""


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("is_forced", [False, True])
@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_a_tool_that_is_not_allowed_cannot_be_called(
    form: str, is_forced: bool, many: bool, tokenizer: TextTokenizer, vocabulary: Vocabulary
) -> None:
    """Not of what the parser finds a call in is in the language: not as the model's format has it, and not in letters
    that spell its special tokens."""
    tools = tools_for(form)
    bound = [bound_tool(name, schema, is_strict=False) for name, schema in tools.items() if tools[name]["properties"]]
    parsers = ParserPlan(form, HARMONY if form == HARMONY else None)
    calls_only = ParserPlan(form, None)

    def grammar(plan: ParserPlan, tools: list[BoundTool], is_forced: bool, many: bool = False) -> str:
        rules = CallRules(tools, is_forced, many, is_restricted=True)
        made = chat_grammar(StructureFields(), rules, plan, "", tokenizer.grammar_token_id)
        assert made is not None
        return made.text

    def read(text: str) -> set[str]:
        maker = parsers.for_request("", tools)
        assert maker is not None
        parser = maker.make()
        return {event.name for event in (*parser.feed(text), *parser.finish()) if isinstance(event, ToolCall)}

    allowed, forbidden = (written(vocabulary, grammar(calls_only, [tool], True), 1) for tool in bound)
    asked = grammar(parsers, bound[:1], is_forced, many)
    both_allowed = grammar(parsers, bound, False, many)
    assert takes(vocabulary, asked, tokenizer.encode(allowed, add_special_tokens=False))
    parts = {"call": forbidden, "allowed": allowed, "body": ""}
    if form not in (HARMONY, "llama3_json", "pythonic"):
        opening = TOOL_FORMATS[form].load().openings[0]
        assert forbidden.startswith(opening)
        parts["body"] = forbidden.removeprefix(opening)
    for text in ["{call}", *FORBIDDEN.get(form, ["Well.\n{call}", "{allowed}\n{call}"])]:
        text = text.format(**parts)
        assert bound[1].name in read(text), text
        for tokens in (tokenizer.encode(text, add_special_tokens=False), spelled(tokenizer, text)):
            assert not takes(vocabulary, asked, tokens), text
    for seed in range(6):
        text = written(vocabulary, grammar(calls_only, bound, True, many), seed)
        is_allowed = read(text) == {bound[0].name}
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert takes(vocabulary, asked, tokens) == is_allowed, text
        assert takes(vocabulary, both_allowed, tokens), text


@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_any_other_text_is_free(form: str, tokenizer: TextTokenizer, vocabulary: Vocabulary) -> None:
    tool = bound_tool("nothing", TOOLS["nothing"] | {"properties": {"a": {"type": "integer"}}, "required": ["a"]}, True)
    plan = ParserPlan(form, HARMONY if form == HARMONY else None)
    rules = CallRules([tool], False, True, is_restricted=True)
    grammar = chat_grammar(StructureFields(), rules, plan, "", tokenizer.grammar_token_id)
    assert grammar is not None
    begin = "<|channel|>final<|message|>" if form == HARMONY else ""
    for text in ("No calls: <tool, [TOOL], functools.reduce, <|x|>.\n{[(🦊", "\n\nx", "<"):
        assert takes(vocabulary, grammar.text, tokenizer.encode(begin + text, add_special_tokens=False)), text


@pytest.mark.parametrize("is_forced", [False, True])
def test_beside_a_structure_the_same_tools_may_be_called(
    is_forced: bool, tokenizer: TextTokenizer, vocabulary: Vocabulary
) -> None:
    """Calls or an answer of the structure, and where there must be a call no answer."""
    rules = CallRules([bound_tool("nothing", TOOLS["nothing"], False)], is_forced, True, is_restricted=True)
    asked = StructureFields(guided_choice=["yes", "no"])
    grammar = chat_grammar(asked, rules, ParserPlan("hermes", None), "", tokenizer.grammar_token_id)
    assert grammar is not None
    call = '<tool_call>\n{"name": "nothing", "arguments": {}}\n</tool_call>'
    for text, is_wanted in ((call, True), (call.replace("nothing", "stop-it"), False), ("yes", not is_forced)):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert takes(vocabulary, grammar.text, tokens) == is_wanted, text


def test_reasoning_ends_for_a_grammar_where_it_ends_for_the_parser(
    tokenizer: TextTokenizer, vocabulary: Vocabulary
) -> None:
    plan = ParserPlan("hermes", "qwen3")
    rules = CallRules([bound_tool("nothing", TOOLS["nothing"], True)], False, True, is_restricted=True)
    grammar = chat_grammar(StructureFields(), rules, plan, "<think>", tokenizer.grammar_token_id)
    assert grammar is not None
    call = '<tool_call>\n{"name": "stop-it", "arguments": {}}\n</tool_call>'
    within, after = f"Hm: {call}", f"Hm.</think>{call}"
    end = tokenizer.encode("</think>", add_special_tokens=False)
    assert takes(vocabulary, grammar.text, spelled(tokenizer, within) + end)
    assert not takes(vocabulary, grammar.text, spelled(tokenizer, after) + end)


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


PATCH = 'start: "*** Begin" LF line+\nline: ("+" | "-") /(.{0,4})/ LF -> change\n%import common.LF'


@pytest.mark.slow
@pytest.mark.parametrize("is_forced", [False, True])
@pytest.mark.parametrize("form", [form for form in TOOL_FORMATS if form not in ("glm", "qwen3_coder")])
def test_a_text_that_a_lark_grammar_binds(
    form: str, is_forced: bool, tokenizer: TextTokenizer, vocabulary: Vocabulary
) -> None:
    schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    tool = bound_tool("patch", schema, True, InputGrammar(PATCH, "tools[0].format"))
    plan = ParserPlan(form, HARMONY if form == HARMONY else None)
    grammar, forced = (
        chat_grammar(StructureFields(), CallRules([tool], each, False), plan, "", tokenizer.grammar_token_id)
        for plan, each in ((plan, is_forced), (ParserPlan(form, None), True))
    )
    assert grammar is not None
    assert forced is not None
    for seed in range(4):
        text = written(vocabulary, forced.text, seed)
        assert takes(vocabulary, grammar.text, tokenizer.encode(text, add_special_tokens=False))
        call = [call for call in calls_in(form, text, {"patch": schema}) if call.name == "patch"][-1]
        assert re.fullmatch(r"\*\*\* Begin\n([+-].{0,4}\n)+", json.loads(call.arguments)["input"]), text
    wrong = text.replace("*** Begin", "*** End")
    assert not takes(vocabulary, grammar.text, tokenizer.encode(wrong, add_special_tokens=False))


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


@pytest.mark.parametrize("form", REASONING_FORMATS)
@pytest.mark.parametrize("prompt", ["", "<think>\n", "</think>\n\n"])
@pytest.mark.parametrize("kind", ["answer", "call", "text"])
def test_what_is_bound_has_no_reasoning_where_thinking_is_switched_off(
    form: str, prompt: str, kind: str, tokenizer: TextTokenizer, vocabulary: Vocabulary
) -> None:
    """What a prompt has begun ends at once, and the parser reads what is left as the answer."""
    if form == "mistral":
        prompt = prompt.replace("think", "THINK").replace("<", "[").replace(">", "]")
    plan = ParserPlan(HARMONY if form == HARMONY else "hermes", form)
    tool = bound_tool("nothing", TOOLS["nothing"], True)
    asked = StructureFields(guided_regex="[a-z<>/ ]+") if kind == "answer" else StructureFields()
    rules = CallRules([] if kind == "answer" else [tool], kind == "call", True)
    off = replace(plan, is_thinking_off=True)
    grammars = [chat_grammar(asked, rules, each, prompt, tokenizer.grammar_token_id) for each in (plan, off)]
    start, end = ("[THINK]", "[/THINK]") if form == "mistral" else ("<think>", "</think>")
    begins = "" if prompt.startswith(start) else start
    thought, final, shortest = f"{begins}Hm.{end}\n", "yes", ""
    if prompt.startswith(start) and form != HARMONY:
        shortest = f"\n{end}\n\n"
    if kind == "call":
        final = '<tool_call>\n{"name": "nothing", "arguments": {}}\n</tool_call>'
    if form == HARMONY:
        thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
        final = "<|channel|>final<|message|>yes"
        if kind == "call":
            final = "<|channel|>commentary to=functions.nothing <|constrain|>json<|message|>{}"
    on_grammar, off_grammar = grammars
    assert on_grammar is not None
    assert off_grammar is not None
    tokens = tokenizer.encode(thought + final, add_special_tokens=False)
    if not prompt.startswith(end):
        assert takes(vocabulary, on_grammar.text, tokens)
    assert not takes(vocabulary, off_grammar.text, tokens)
    assert takes(vocabulary, off_grammar.text, tokenizer.encode(shortest + final, add_special_tokens=False))
    maker = off.for_request(prompt, {"nothing": TOOLS["nothing"]})
    assert maker is not None
    parser = maker.make()
    events = [*parser.feed(shortest + final), *parser.finish()]
    assert [event for event in events if not isinstance(event, Content | ToolCall)] == []
    assert [event.text for event in events if isinstance(event, Content)] == ([] if kind == "call" else ["yes"])


def test_tokens_that_are_no_text_for_a_grammar(tokenizer: TextTokenizer, vocabulary: Vocabulary) -> None:
    """Our rule is llguidance's."""
    inner = vocabulary.tokenizer
    assert isinstance(inner, LLTokenizer)
    for token_id, text in tokenizer.added_tokens.items():
        assert (tokenizer.grammar_token_id(text) == token_id) == inner.is_special_token(token_id), text
    assert tokenizer.grammar_token_id("the") is None
    limits = LLParserLimits()
    assert not LLMatcher(inner, 'start: "<think>"', limits=limits).is_error()
