"""The recipe "a tool-call format" of docs/extending.md, followed for an invented one: `[[call]]`, JSON, `[[end]]`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine_core.grammar.vocabulary import Vocabulary
from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.request_grammar import CallRules, chat_grammar
from frontend.grammars.tool_calls import BoundTool, bound_tool, json_calls
from frontend.parsers.call_json import calls_of
from frontend.parsers.chat_parser import ParserMaker, ParserPlan
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.parser import ToolParser
from frontend.parsers.registry import TOOL_FORMATS, Format, resolve_formats
from frontend.protocol.structure import StructureFields
from frontend.tokenizer import TextTokenizer
from tests.frontend.parsers.corpus import TOOLS, Sample, plain
from tests.frontend.parsers.test_call_grammars import calls_in, written
from tests.frontend.parsers.test_parsers import check_every_cut

DEMO_MODEL = Path(__file__).parents[2] / "demo_model"
NAME = "invented"
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Oslo"]}}, "required": ["city"]}


class Invented(ToolParser):
    openings = ("[[call]]",)
    markers = ("[[call]]", "[[end]]")

    @classmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        call = f"{json_calls(builder, tools, 'arguments')} {builder.marker('[[end]]')}"
        return f"{call} ({builder.marker('[[call]]')} {call})*" if many else call

    def read(self, cursor: Cursor) -> Steps[None]:
        while (yield from cursor.content_until(self.openings)) is not None:
            body = yield from cursor.json_value()
            calls = None if body is None else calls_of(body)
            if calls and (yield from cursor.skip("[[end]]")):
                cursor.calls(calls)
            else:
                cursor.reject()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file among the others, and its line in the registry."""
    monkeypatch.setitem(sys.modules, f"frontend.parsers.{NAME}", sys.modules[__name__])
    monkeypatch.setitem(TOOL_FORMATS, NAME, Format(f"{NAME}:Invented", ("[[call]]",)))


def test_the_format_is_chosen_by_flag_and_by_template() -> None:
    assert resolve_formats(NAME, "none", "") == (NAME, None)
    assert resolve_formats("auto", "auto", "Write [[call]] before a call.") == (NAME, None)


@pytest.mark.parametrize(
    "sample",
    [
        Sample('[[call]]{"name": "now", "arguments": {}}[[end]]', (("now", {}),)),
        Sample('Yes.[[call]]{"name": "look", "arguments": {"days": 2}}[[end]]', (("look", {"days": 2}),), "Yes."),
        plain('[[call]]{"name": "now"'),
        plain("[[call]] and no call"),
    ],
    ids=["call", "text and call", "cut off", "no call"],
)
def test_calls_do_not_depend_on_the_cuts(sample: Sample) -> None:
    check_every_cut(ParserMaker(ParserPlan(NAME, None), "", TOOLS), sample)


def test_what_the_grammar_allows_is_read_as_calls() -> None:
    tokenizer = TextTokenizer.from_folder(str(DEMO_MODEL))
    vocabulary = Vocabulary.load(str(DEMO_MODEL), 8192, (1,))
    rules = CallRules([bound_tool("weather", CITY, is_strict=True)], True, True)
    grammar = chat_grammar(StructureFields(), rules, ParserPlan(NAME, None), "", tokenizer.grammar_token_id)
    assert grammar is not None
    for seed in range(4):
        for call in calls_in(NAME, written(vocabulary, grammar.text, seed), {"weather": CITY}):
            assert call.name == "weather"
            assert json.loads(call.arguments)["city"] in ("Paris", "Oslo")
