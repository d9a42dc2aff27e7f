"""Llama 4: the output is a Python list of calls with literal arguments, sometimes between two special tokens.

Nothing else marks a call but its place at the beginning, so it must name a tool of the request.
"""

import ast
import keyword
from collections.abc import Sequence

from frontend.grammars.builder import PLAIN_ESCAPES, GrammarBuilder
from frontend.grammars.tool_calls import BoundTool, CannotBind, repeated
from frontend.parsers.call_json import Calls, object_of
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.parser import ToolParser
from frontend.parsers.python_values import NotPython, parsed, value_of_node
from frontend.parsers.scanners import PythonScanner

_BEGIN, _END = "<|python_start|>", "<|python_end|>"


class Pythonic(ToolParser):
    markers = (_BEGIN, _END)
    other_begins = (_BEGIN,)

    @classmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        call = builder.any_of([_call_expression(builder, tool) for tool in tools])
        return f"{builder.text('[')} {repeated(call, builder.text(', '), many)} {builder.text(']')}"

    def read(self, cursor: Cursor) -> Steps[None]:
        yield from cursor.skip_space()
        yield from cursor.skip(_BEGIN)
        yield from self._read_calls(cursor)
        while (yield from cursor.content_until((_BEGIN,))) is not None:
            yield from self._read_calls(cursor)

    def _read_calls(self, cursor: Cursor) -> Steps[None]:
        yield from cursor.skip_space()
        body = None
        if (yield from cursor.comes_next("[")):
            body = yield from cursor.bracketed(PythonScanner())
        calls = [] if body is None else calls_in(body)
        if not calls or any(name not in self._tools for name, _ in calls):
            cursor.reject()
            return
        yield from cursor.skip_space()
        yield from cursor.skip(_END)
        cursor.calls(calls)


def _call_expression(builder: GrammarBuilder, tool: BoundTool) -> str:
    """JSON's values are Python's but for the names, which are read, and some escapes in texts, which are left out."""
    if tool.input_grammar is not None:
        name, text = tool.bound_input(builder, tool.input_grammar)
        return f"{builder.text(f'{tool.name}({name}=')} {text} {builder.text(')')}"
    properties, required = tool.named()
    if not all(name.isidentifier() and not keyword.iskeyword(name) for name in properties):
        raise CannotBind("has properties that are no names in Python, which this model's format of calls needs")
    expression = ""
    # Required ones first, so that only what follows an argument needs a comma.
    for name in sorted(properties, key=lambda name: name not in required):
        value = tool.value(builder, properties[name], json_allowed_escapes=PLAIN_ESCAPES)
        argument = f"{builder.text(f'{name}=')} {value}"
        if name in required:
            expression += f" {builder.text(', ')} {argument}" if expression else argument
        else:
            expression += f" ({builder.text(', ')} {argument})?" if required else ""
    if not required and properties:
        raise CannotBind("needs a property that is required in this model's format of calls")
    return f"{builder.text(f'{tool.name}(')} {expression} {builder.text(')')}"


def calls_in(text: str) -> Calls:
    """The calls in a Python list; none when it has anything else."""
    try:
        tree = parsed(text)
        return [_call(node) for node in tree.elts] if isinstance(tree, ast.List) else []
    except (NotPython, RecursionError):
        return []


def _call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args:
        raise NotPython
    arguments = {keyword.arg: value_of_node(keyword.value) for keyword in node.keywords}
    if None in arguments:
        raise NotPython
    return ast.unparse(node.func), object_of({str(name): value for name, value in arguments.items()})
