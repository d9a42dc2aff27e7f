"""A client's Lark grammar within quotes of JSON: the same texts, with JSON's escapes."""

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.client_parts import WrongStructure
from frontend.grammars.lark_in_json import lark_in_json

BYTES = LLTokenizer("byte")
PATCH = """
start: begin hunk+ end?
begin: "*** Begin" LF   // a comment
hunk: filename (add_line | del_line)* -> part
filename: /(.+)/ LF
?add_line: "+" /(.*)/ LF -> add
!del_line: "-" /(.*)/ LF
end: "*** End"
%import common.LF
"""
LISTS = """
start: list
list: "[" item ("," item)* "]"
item: list | QUOTE NAME QUOTE "\\n"?
QUOTE: "\\""
NAME: /[a-z]+/
"""


def takes(grammar: str, text: str) -> bool:
    builder = GrammarBuilder(lambda text: None)
    begin, end = map(builder.text, ('"', '"}'))
    whole = builder.build(f"{begin} {builder.lark(lark_in_json(grammar, 'field'))} {end}")
    matcher = LLMatcher(BYTES, whole, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = [*json.dumps(text, ensure_ascii=False).encode(), ord("}")]
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("grammar", "inside", "outside"),
    [
        (PATCH, ['*** Begin\na.py\n+say "x\\\n-\t\n', "*** Begin\nÄ🦊\n*** End"], ["*** Begin\na.py\n+say", "a"]),
        (LISTS, ['["a",["b"\n]]', '["a"\n,"b"]'], ['["a",["b"]', '[a"]', '["a"\t]']),
        ('start: "a\\"b" | "x\\n"i', ['a"b', "X\n", "x\n"], ["a", "x", "X\\n", "X\\N"]),
        ('start: "\\x41\\t" "\\u0042" "\\/"', ["A\tB/"], ["A\\tB/"]),
        (r"start: /[^\n]*\n.\s/", ['say "hi" \\ \n"\t', "\n\\\n"], ["a\n\n "]),
        (r"start: /.+/s", ["a\n\x00\x1f"], []),
        (r"start: /(?i:b)[\W]/i", ['B"', "b\\", "b\x0b", "b-"], ["bb"]),
        (r"start: /\x{22}|\x41|\p{Lu}|[\p{Ll}\x5C]{2}/", ['"', "A", "É", "a\\"], ["1", "a"]),
        (r"start: /[]a]+[^]]\//", [']a"/', "a\n/"], ["]/", "a]/"]),
        (r"start: /a|b{2,3}\"?/", ["a", "bb", 'bbb"'], ["b", 'a"']),
        (r"start: /[a-z&&[^b]\\]+/", ["ac"], ["ab"]),
        ('start: "\\t".."\\r" "a".."c"', ["\na", "\x0bb"], ["xa", "\x0ea"]),
        ("start: A ~ 2..3\nA: WS | B\nB: ESC\n%import common.WS\n%import common.ESCAPED_STRING -> ESC",
         [" \n\t", '"a" ', '"\\""""'], ["", '"']),
        ("start: C_COMMENT CR? NEWLINE\n%import common.C_COMMENT\n%import common.CR\n%import common.NEWLINE",
         ["/* a\n * \"b\" **/\r\n\n"], ["/* */ */\n"]),
        ('start: [A] "\\""\nA.2: "b"', ['"', 'b"'], ["b"]),
        ('start: sum\nsum: INT ("+" atom)*\natom: INT | "(" sum ")"\n%import common.INT', ["1+(2+3)"], ["1+(2"]),
        ("start: INT+\n%ignore / +/\n%import common.INT", ["1 22  3"], ["1\n2"]),
        ('root ::= "\\"" [a-z]* "\\n"', ['"ab\n'], ['"ab']),
    ],
)  # fmt: skip
def test_what_fits(grammar: str, inside: list[str], outside: list[str]) -> None:
    assert [text for text in inside if not takes(grammar, text)] == []
    assert [text for text in outside if takes(grammar, text)] == []


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("rule: A", "must have a rule 'start'"),
        ('start{a}: "\\""', "must have a rule 'start'"),
        ('start: a\na: "\\""\na: "b"', "'a' twice"),
        ("start: A\n%import common (LF)", "'%import'"),
        ('start: "(" start? ")" | /[^()]+/', "part of itself"),
        ('start: "(" start? ")" | A\nA: "x\\""', "part of itself"),
        ('start: "a\\n" "b"\n%ignore " "', "'%ignore'"),
        ('start[max_tokens=3]: "a"', "[max_tokens=3]"),
        ('start: %json {"type": "string"}', "'%json'"),
        ('start: ~"a"', "'~'"),
        ("start: <[5]>", "'<'"),
        ('start: @other "a"', "'@'"),
        ("start: /a/x", "flags 'x'"),
        ("start: /(?s:.)/", "(?s:"),
        (r"start: /a\b/", r"[\b]"),
        ("start: /[a/", "does not end"),
        ('start: "ab".."c"', "not one character"),
        ('start: "\x01"', "U+0001"),
    ],
)
def test_what_is_refused(grammar: str, reason: str) -> None:
    with pytest.raises(WrongStructure) as refused:
        lark_in_json(grammar, "field")
    assert reason in str(refused.value)
    assert refused.value.field == "field"
