"""Each format of a structural tag: texts that fit it and texts that do not, and what of it is refused."""

from pathlib import Path
from typing import Any

import pytest

from engine_core.grammar.vocabulary import Vocabulary
from frontend.errors import ApiError
from frontend.grammars.request_grammar import grammar_text
from frontend.grammars.structured_outputs import StructuredOutputs
from frontend.tokenizer import TextTokenizer
from tests.frontend.grammars.formats import (
    ANY,
    const,
    ebnf,
    either,
    fits,
    grammar_of,
    matcher_of,
    regex,
    schema,
    separated,
    sequence,
    tag,
    triggered,
)

DEMO_MODEL = Path(__file__).parents[3] / "demo_model"
INT = schema({"type": "integer"})
OBJECT = schema(
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
)
TAGS = [tag("<f=a>", OBJECT, "</f>"), tag("<f=b>", ANY, "</f>"), tag("<f=c>", regex("[0-9]+"), "</f>")]
A, B, C = '<f=a>{"a": 1}</f>', "<f=b>hi\n</</f>", "<f=c>12</f>"
NESTED = 'root ::= "(" root ")" | "x"'


@pytest.mark.parametrize(
    ("form", "inside", "outside"),
    [
        (const('Hi\n"x" é'), ['Hi\n"x" é'], ["", "Hi"]),
        (const(""), [""], ["x"]),
        (OBJECT, ['{"a":1}'], ["{}", "x", ""]),
        ({**OBJECT, "style": "json", "any_order": False}, ['{"a":1}'], ["{}"]),
        (regex("[a-z]+b"), ["ab", "abb"], ["a", "b", ""]),
        (ebnf('root ::= "yes" | [0-9]+ x\nx ::= "!"'), ["yes", "12!"], ["12", "no"]),
        (ebnf(NESTED), ["x", "((x))"], ["(x", "x)", ""]),
        (ANY, ["", "any\n <text> é"], []),
        ({"type": "any_text", "excludes": ["ab", "<"]}, ["", "a b"], ["ab", "x<y"]),
        ({"type": "any_text", "max_chars": 3}, ["", "éßü"], ["abcd"]),
        # Sequences: what could be read in several ways is found in all of them.
        (sequence(regex("[a-z]*"), const("b")), ["b", "abb"], ["a", ""]),
        (sequence(const("n="), INT, const(";")), ["n=1;", "n=-22;"], ["n=;", "n=1"]),
        (sequence(regex("[a-z]+"), OBJECT), ['x{"a":1}', 'true{"a":2}'], ["x", '{"a":1}']),
        (sequence({"type": "any_text", "excludes": ["{"]}, OBJECT), ['x{"a":1}', '{"a":2}'], ["x", "x{}"]),
        (either(const("a"), OBJECT, const("ab")), ["a", "ab", '{"a":1}'], ["", "b", "abc"]),
        (either(tag("<a>", OBJECT, "</a>"), tag("<a>x", INT, "<")), ['<a>{"a":1}</a>', "<a>x7<"], ['<a>{"a":1}<']),
        # Repetition.
        ({"type": "optional", "content": OBJECT}, ["", '{"a":1}'], ['{"a":1}{"a":1}']),
        ({"type": "star", "content": const("ab")}, ["", "abab"], ["aba"]),
        ({"type": "plus", "content": TAGS[0]}, [A, A * 3], [""]),
        ({"type": "repeat", "min": 2, "max": 3, "content": TAGS[0]}, [A * 2, A * 3], [A, A * 4]),
        ({"type": "repeat", "min": 1, "max": -1, "content": TAGS[0]}, [A, A * 5], [""]),
        ({"type": "repeat", "min": 0, "max": 0, "content": TAGS[0]}, [""], [A]),
        # A tag's content ends before the first of its ends.
        (tag("<t>", ANY, "</t>"), ["<t></t>", "<t>x</</t>"], ["<t>", "<t>a</t></t>", "<t>a</t> "]),
        (tag("```", ANY, "```"), ["```a```", "```ab``c```", "``````"], ["```a````"]),
        (tag("", ANY, ["ab", "bc"]), ["xab", "bc", "aab"], ["abc", "x"]),
        (tag("<t>", OBJECT, ["</t>", "</s>"]), ['<t>{"a":1}</t>', '<t>{"a":1}</s>'], ['<t>{"a":1}</x>']),
        (tag("<t>", regex(".*"), "</t>"), ["<t>a</t>", "<t></t></t>"], ["<t>\n</t>"]),
        (tag("<t>", ebnf(NESTED), "</t>"), ["<t>(x)</t>"], ["<t>(x</t>"]),
        (tag("<o>", sequence(ANY, const("!")), "</o>"), ["<o>a!b!</o>"], ["<o>a</o>", "<o></o>!</o>"]),
        # Triggered tags.
        (
            triggered(["<f="], TAGS),
            ["", "text <f", A, f"x{A}y{B}{C}{A} end <f"],
            ["<f=", "<f=d>", f"x{A[:-1]}", "x<f=a>{}</f>"],
        ),
        (triggered(["<f="], TAGS, at_least_one=True), [A, f"{B}x", f"{A}y{C}z"], ["", "x", f"x{A}"]),
        (triggered(["<f="], TAGS, stop_after_first=True), ["", "x", A, f"x{C}"], [f"{A}x", f"{B}{A}", f"{C} "]),
        (triggered(["<f="], TAGS, at_least_one=True, stop_after_first=True), [A, B, C], ["", "x", f"x{A}", f"{A}x"]),
        (triggered(["<f="], TAGS, excludes=["bad"]), [A, f"ba{B}d"], [f"bad{A}", f"{A}a bad"]),
        (triggered(["<f=a", "<f=b"], TAGS[:2]), [f"{A}{B}<f=c"], ["<f=a", "<f=b<"]),
        (
            triggered(["a", "ba"], [tag("a1", OBJECT, ";"), tag("ba2", INT, ";")]),
            ['ba1{"a":1};', "xba27;"],
            ["a2"],
        ),
        (
            tag("<o>", triggered(["<f="], TAGS), "</o>"),
            ["<o></o>", f"<o>x{A}y</o>", f"<o>{A}{B}</o>"],
            [f"<o>{A}", "<o></o></o>", "<o><f=</o>", "<o>x"],
        ),
        (
            tag("<o>", triggered(["<f="], TAGS, stop_after_first=True), "</o>"),
            ["<o></o>", f"<o>x{A}</o>", "<o>x</o>"],
            [f"<o>{A}y</o>", "<o></o></o>"],
        ),
        # Tags with separators.
        (separated(TAGS, ","), ["", A, f"{A},{B}", f"{B},{B},{C}"], [",", f"{A},", f"{A}{B}", "x"]),
        (separated(TAGS, ",", at_least_one=True), [A, f"{A},{B}"], ["", f"{A},"]),
        (separated(TAGS, ",", stop_after_first=True), ["", A, B], [f"{A},{B}", ","]),
        (separated(TAGS, ",", at_least_one=True, stop_after_first=True), [A, B], ["", f"{A},{B}"]),
        (separated(TAGS, ""), ["", f"{A}{B}{A}"], [f"{A},"]),
        (tag("[", separated(TAGS, ", "), "]"), ["[]", f"[{A}]", f"[{A}, {C}]"], [f"[{A},]", f"[{A}, ]"]),
        (
            {"type": "dispatch", "rules": [["<a>", OBJECT], ["<b>", const("x")]]},
            ["", 'q<a>{"a":1} <b>x<b>x'],
            ["<a>", "<b>y"],
        ),
        (
            {"type": "dispatch", "rules": [["<a>", OBJECT], ["<b>", const("x")]], "loop": False},
            ["", 'q<a>{"a":1}', "z<b>x"],
            ["<b>y", "<b>x "],
        ),
        # Reasoning, then text with calls.
        (sequence(tag("<r>", ANY, "</r>"), triggered(["<f="], TAGS)), [f"<r>x<f=</r>y{A}"], [f"y{A}", "<r>x"]),
    ],
)
def test_what_fits(form: Any, inside: list[str], outside: list[str]) -> None:
    matcher = matcher_of(grammar_of(form))
    for text in inside:
        assert fits(matcher, text), text
    for text in outside:
        assert not fits(matcher, text), text


def test_many_triggers_and_many_tags() -> None:
    tags = [tag(f"<f={number}>", OBJECT, "</f>") for number in range(100)]
    for triggers in (["<f="], [f"<f={number}>" for number in range(100)]):
        matcher = matcher_of(grammar_of(triggered(triggers, tags)))
        assert fits(matcher, 'x <f=7>{"a":1}</f> y <f=70>{"a":2}</f> <f')
        assert not fits(matcher, "x <f=70>y")


def test_a_trigger_of_two_formats() -> None:
    """Both are looked for at once, and what follows the trigger in each is told apart."""
    first, second = triggered(["<"], [tag("<a", OBJECT, ">")]), triggered(["<"], [tag("<ab", OBJECT, ">")])
    matcher = matcher_of(grammar_of(either(first, second)))
    for text in ('x<a{"a":1}>', 'x<ab{"a":1}>', ""):
        assert fits(matcher, text), text
    assert not fits(matcher, '<a{"a":1}><ab{"a":1}>')
    with pytest.raises(ApiError, match="could go on"):
        grammar_of(either(triggered(["<"], [tag("<a", INT, ">")]), triggered(["<"], [tag("<a1", INT, ">")])))


def test_what_follows_different_contents_is_told_apart() -> None:
    """By the contents, where no text is both; else by what follows them."""
    for form, texts in (
        (sequence(either(tag("", INT, "a"), tag("", OBJECT, "aa")), const("a")), ("1aa", '{"a":1}aaa')),
        (sequence(either(tag("", INT, "a"), tag("", INT, "ba")), const("a")), ("1aa", "1baa")),
    ):
        matcher = matcher_of(grammar_of(form))
        assert all(fits(matcher, text) for text in texts)
        assert not fits(matcher, "1aaa")


def nested(depth: int) -> Any:
    form: Any = ANY
    for _ in range(depth):
        form = {"type": "optional", "content": form}
    return form


@pytest.mark.parametrize(
    ("form", "place"),
    [
        (None, ""),
        ({}, ".type"),
        ({"type": "what"}, ".type"),
        ({"type": ["tag"]}, ".type"),
        ({"type": "qwen_xml_parameter", "json_schema": {}}, ".type"),
        ({"type": "any_tokens"}, ".type"),
        ({"type": "token", "token": 3}, ".type"),
        ({"type": "const_string"}, ".value"),
        ({"type": "const_string", "value": "a", "more": 1}, ""),
        (sequence(ANY, {"type": "const_string", "value": 3}), ".elements[1].value"),
        (sequence(), ".elements"),
        (either(), ".elements"),
        (either(ANY, sequence(ANY, regex("("))), ".elements[1].elements[1].pattern"),
        (regex(""), ".pattern"),
        (regex("a(?=b)"), ".pattern"),
        (regex("a" * 70_000), ".pattern"),
        (sequence(*[regex(f"{number}+") for number in range(40)]), ".elements[32].pattern"),
        (schema({"type": "what"}), ".json_schema.type"),
        ({**OBJECT, "style": "qwen_xml"}, ".style"),
        ({**OBJECT, "any_order": True}, ".any_order"),
        (ebnf("start: 'a'"), ".grammar"),
        (ebnf("root ::= ("), ".grammar"),
        (ebnf("root ::= other"), ".grammar"),
        (ebnf('other ::= "a"'), ".grammar"),
        ({"type": "any_text", "excludes": [""]}, ".excludes[0]"),
        ({"type": "any_text", "max_tokens": 5}, ".max_tokens"),
        ({"type": "any_text", "max_chars": -1}, ".max_chars"),
        ({"type": "repeat", "min": -1, "max": 1, "content": ANY}, ".min"),
        ({"type": "repeat", "min": 3, "max": 2, "content": ANY}, ".max"),
        (tag("<a>", {}, "</a>"), ".content.type"),
        (tag("<a>", ANY, []), ".end"),
        ({"type": "tag", "begin": {"type": "token", "token": 3}, "content": ANY, "end": ">"}, ".begin"),
        (triggered([], TAGS), ".tags[0].begin"),
        (triggered(["<f="], []), ".tags"),
        (triggered(["<f=", ""], TAGS), ".triggers[1]"),
        (triggered(["<f=", "<f="], TAGS), ".triggers[1]"),
        (triggered(["<f=", "<g="], TAGS), ".triggers[1]"),
        (triggered(["<f=", "<f=a"], TAGS), ".tags[0].begin"),
        (triggered(["<g="], TAGS), ".tags[0].begin"),
        (triggered(["<f="], [*TAGS, ANY]), ".tags[3].type"),
        (triggered(["<f="], TAGS, excludes=["f"]), ".triggers[0]"),
        (triggered(["a", "bab"], [tag("a", ANY, "."), tag("bab", ANY, ".")]), ".triggers[1]"),
        (triggered([f"{n}." for n in range(300)], [tag(f"{n}.", ANY, "!") for n in range(300)]), ""),
        (separated([tag("<", sequence(ANY, 3), ">")], ","), ".tags[0].content.elements[1]"),
        ({"type": "dispatch", "rules": []}, ".rules"),
        ({"type": "dispatch", "rules": [["a", ANY], ["", ANY]]}, ".rules[1]"),
        (nested(40), ".content" * 33),
        (sequence(*[ANY] * 1001), ""),
        # Ends that the lexer would overlook.
        (sequence(ANY, OBJECT), ".elements[0]"),
        (sequence(const("n="), INT, const("5")), ".elements[1].json_schema"),
        (sequence(regex("[a-z]+"), schema(True)), ".elements[0].pattern"),
        (sequence(regex(".+"), OBJECT), ".elements[0].pattern"),
        (either(tag("<a>", INT, "."), tag("<a>1", INT, ".")), ".elements[0].begin"),
        (either(regex("t[a-z]*!"), schema({"type": "boolean"})), ".elements[0].pattern"),
        # What follows equal contents is tried at once: the lexer takes "aa", where "a" and "a" may be meant.
        (sequence(either(tag("", INT, "a"), tag("", INT, "aa")), const("a")), ".elements[0].elements[0].end"),
        (tag("", separated([tag("", const(""), "a"), tag("", INT, ["a", "aa"])], ""), "a"), ".content.tags[1].end"),
        (tag("<t>", ebnf('root ::= "(" root ")" | [^a]*'), "</t>"), ".content.grammar"),
        (sequence(ebnf(NESTED), OBJECT), ".elements[0].grammar"),
        (either(ebnf(NESTED), OBJECT), ".elements[0].grammar"),
    ],
)
def test_what_is_refused(form: Any, place: str) -> None:
    with pytest.raises(ApiError) as caught:
        grammar_of(form)
    assert caught.value.param == f"structured_outputs.structural_tag.format{place}"
    assert caught.value.status == 400
    assert caught.value.message.startswith(caught.value.param)


@pytest.mark.parametrize("value", [3, "{", "3", {}, {"type": "structural_tag"}, {"type": "other", "format": ANY}])
def test_what_is_no_structural_tag(value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        grammar_text(StructuredOutputs(structural_tag=value), lambda _: None)
    assert caught.value.param == "structured_outputs.structural_tag"


def test_the_older_form_is_free_text_with_triggered_tags() -> None:
    older = {
        "structures": [{"begin": tag["begin"], "schema": OBJECT["json_schema"], "end": "</f>"} for tag in TAGS[:2]],
        "triggers": ["<f=", "unused"],
    }
    matcher = matcher_of(grammar_text(StructuredOutputs(structural_tag=older), lambda _: None))
    for text in ("", f"unused {A}", f"{A}{A.replace('=a', '=b')} <f"):
        assert fits(matcher, text), text
    for text in ("<f=", B, A[:-1]):
        assert not fits(matcher, text), text


def test_without_white_space() -> None:
    asked = StructuredOutputs(structural_tag={"format": OBJECT}, disable_any_whitespace=True)
    matcher = matcher_of(grammar_text(asked, lambda _: None))
    assert fits(matcher, '{"a":1}')
    assert not fits(matcher, '{"a": 1}')


def test_special_tokens_are_tokens() -> None:
    """Within texts too; free text has none of them, nor is a tag's end spelled out in it."""
    tokenizer = TextTokenizer.from_folder(str(DEMO_MODEL))
    call = tag('<tool_call>\n{"name": "f", "arguments": ', OBJECT, "}\n</tool_call>")
    form = sequence(
        tag("<think>", ANY, "</think>"),
        triggered(["<tool_call>"], [call], at_least_one=True),
        const("<tool_response>!"),
    )
    grammar = grammar_of(form, tokenizer.grammar_token_id)
    vocabulary = Vocabulary.load(str(DEMO_MODEL), 8192, (1,))
    called = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    for text, is_in in (
        (f"<think>So?</think>{called} and {called}<tool_response>!", True),
        (f"<think>So <tool_call></think>{called}<tool_response>!", False),
        (f"<think>So?</think>{called}<tool_call><tool_response>!", False),
        (f"<think>So?</think>{called}", False),
    ):
        matcher = vocabulary.compile(grammar)
        tokens = tokenizer.encode(text, add_special_tokens=False)
        taken = matcher.try_consume_tokens(tokens)
        assert (taken == len(tokens) and matcher.is_accepting()) == is_in, (text, taken, matcher.get_error())
    spelled = [
        12,
        *(token for part in ("</", "think", ">") for token in tokenizer.encode(part, add_special_tokens=False)),
    ]
    assert 13 not in spelled
    matcher = vocabulary.compile(grammar)
    assert matcher.try_consume_tokens(spelled) < len(spelled)
