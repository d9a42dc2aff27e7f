"""A request's grammar: its structure, its tools and its model's formats put together.

reasoning, then  calls            where a call is forced
                 calls | answer   where there are tools and a structure
                 answer           where there is a structure
                 text with calls  where a tool is strict, or not all of the tools may be called
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine_core.ipc.messages import ERROR_GRAMMAR
from frontend.errors import ApiError, bad_request
from frontend.grammars.builder import GrammarBuilder, GrammarTooLong
from frontend.grammars.client_parts import WrongStructure
from frontend.grammars.structured_outputs import StructuredOutputs, structure_expression
from frontend.grammars.tool_calls import BoundTool, CannotBind
from frontend.parsers.chat_parser import ParserPlan
from frontend.protocol.structure import Structure, StructureFields, structure_of

TokenIdOf = Callable[[str], int | None]


@dataclass(frozen=True, slots=True)
class RequestGrammar:
    """In llguidance's form, and the field to blame where it cannot be compiled."""

    text: str
    param: str


@dataclass(frozen=True, slots=True)
class CallRules:
    """What a request says of its calls."""

    tools: Sequence[BoundTool]
    """Those that may be called."""
    is_forced: bool
    """Whether there must be a call."""
    many: bool
    is_restricted: bool = False
    """Whether there may be no call of another tool, also where there need not be one."""


def grammar_text(asked: StructuredOutputs, token_id_of: TokenIdOf) -> str:
    """The grammar of a program's own wish. Raises `ValueError`."""
    structure = Structure(asked, "structured_outputs", {})
    builder = GrammarBuilder(token_id_of)
    return _build(builder, _answer(structure, builder), structure.field).text


def plain_grammar(request: StructureFields, token_id_of: TokenIdOf) -> RequestGrammar | None:
    """The grammar of a request without reasoning and tools. Raises a 400."""
    structure = structure_of(request)
    if structure is None:
        return None
    builder = GrammarBuilder(token_id_of)
    return _build(builder, _answer(structure, builder), structure.field)


def chat_grammar(
    request: StructureFields, rules: CallRules, plan: ParserPlan, prompt: str, token_id_of: TokenIdOf
) -> RequestGrammar | None:
    """The grammar of a chat whose rendered prompt is `prompt`. Raises a 400."""
    structure = structure_of(request)
    binds_calls = rules.is_forced or rules.is_restricted or any(tool.is_strict for tool in rules.tools)
    if structure is None and not binds_calls:
        return None
    builder = GrammarBuilder(token_id_of)
    param = "tools" if structure is None or rules.is_forced else structure.field
    answer = None if structure is None or rules.is_forced else _answer(structure, builder)
    if not rules.tools:
        assert answer is not None
        return _build(builder, plan.output(builder, prompt, answer=answer, calls=None), param)
    if plan.tool_format is None:
        field = "tool_choice" if rules.is_forced or rules.is_restricted else "tools"
        raise bad_request(f"{field} needs a format for tool calls, which this server was started without.", field)
    try:
        if rules.is_forced or answer is not None:
            calls = plan.calls(builder, rules.tools, rules.many)
            start = plan.output(builder, prompt, answer=answer, calls=calls)
        else:
            start = plan.text_with_calls(builder, prompt, rules.tools, rules.many)
    except WrongStructure as error:
        raise bad_request(f"{error.field} {error}", error.field, ERROR_GRAMMAR) from error
    except CannotBind as error:
        raise bad_request(f"The schema of a tool {error}.", "tools", ERROR_GRAMMAR) from error
    return _build(builder, start, param)


def _answer(structure: Structure, builder: GrammarBuilder) -> str:
    try:
        return structure_expression(structure.asked, builder)
    except WrongStructure as error:
        place = structure.place(error.field)
        raise bad_request(f"{place} {error}", place, error.code) from error
    except ApiError as error:
        place = structure.place(error.param or "")
        raise bad_request(error.message.replace(error.param or "", place, 1), place) from error


def _build(builder: GrammarBuilder, start: str, param: str) -> RequestGrammar:
    try:
        return RequestGrammar(builder.build(start), param)
    except GrammarTooLong as error:
        raise bad_request(f"{param} is too long: {error}.", param) from error
