"""Grammars as clients of other servers write them: what fits is what their authors meant."""

import pytest

from frontend.errors import ApiError
from frontend.grammars.request_grammar import grammar_text
from frontend.grammars.structured_outputs import StructuredOutputs
from tests.frontend.grammars.formats import ebnf, fits, matcher_of

JSON = r"""# What a JSON object is.
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
SQL = """?start: select
?select: "SELECT " columns " FROM " table
columns: column ("," column)*   // at least one
!column: NAME
table : NAME
      | "(" select ")"
NAME.2: /[a-z_]+/
"""


@pytest.mark.parametrize(
    ("grammar", "inside", "outside"),
    [
        # Lark.
        ('?start: "rated " rating\n?rating: /[1-5]/\n', ["rated 1"], ["rated 6", "rated"]),
        ('!start: "a"', ["a"], ["b"]),
        ('?!start: "a"', ["a"], ["b"]),
        ('// A comment: first\n\nstart: "a"\n', ["a"], ["b"]),
        ('\ufeffstart: "a"\r\n  | "b"\r\n', ["a", "b"], ["c"]),
        ("%import common.INT\n?start: INT\n", ["12"], ["a"]),
        ("start: x (WS x)*\nx: NUMBER\n%import common.NUMBER\n%import common.WS", ["1 2.5"], ["1,2"]),
        ('start: sum\nsum: INT | sum "+" INT\n%import common.INT', ["1+2+3"], ["1+"]),
        ('start[lazy]: /[a-z]+b/\n%ignore " "', ["ab"], ["a"]),
        ('start: "x ::= y"', ["x ::= y"], ["x"]),
        (SQL, ["SELECT a,b FROM (SELECT c FROM d)"], ["SELECT  FROM d"]),
        ('start.3: "a" -> one\n | "b" -> two', ["a", "b"], ["ab"]),
        # EBNF.
        ('root ::=\n  "a"\n  | "b"\n', ["a", "b"], ["ab", ""]),
        ('root ::= "a" |\n  "b"\n\n\n  "c"', ["a", "bc"], ["b", "ac"]),
        ('# first\nroot ::= x # last\n  y\nx ::= "x" # more\ny::="y"', ["xy"], ["x", "xyx"]),
        ('root::="a"|"b"', ["a", "b"], [""]),
        ('\r\nroot ::= x y\r\n\r\nx ::= "1"\r\ny ::= "2"\r\n', ["12"], ["1"]),
        ('root ::= first-part second_part\nfirst-part ::= "a"\nsecond_part ::= "b"', ["ab"], ["a"]),
        ('rest ::= "b"\nroot ::= "a" rest', ["ab"], ["b"]),
        ('root ::= "a"{3} "b"{1,2} "c"{ 0 , } "d"?', ["aaab", "aaabbccd"], ["aab", "aaabbb"]),
        ('root ::= ("a" | "b")+ (\n"c"\n|\n"d"\n)*', ["a", "abacd"], ["", "c"]),
        ('root ::= "a" | ', ["a", ""], ["b"]),
        ('root ::= ( | "a") "b"', ["b", "ab"], ["a"]),
        (r'root ::= "\"\\\n\x41\u00e9\U0001F600\t/"', ['"\\\nAé😀\t/'], ["A"]),
        (
            r"root ::= [\]\[\\/^-] [a\-c] [^\n\"] [\u3041-\u3096é]",
            ["]ax\u3042", "/-'é", "-cx\u3096"],
            ["abx\u3042", "]b\né"],
        ),
        ("root ::= [^] [^a] .", ["a\n\n", "bé "], ["aab"]),
        ('root ::= "(" root ")" | [0-9]+', ["((12))"], ["((1)", ""]),
        (
            JSON,
            ['{"a":[1,true,{}],"b":"\\u00e9"}', "{}", '{\n  "a": -1.5e3}'],
            ["[1]", '{"a"}', '{"a":}', '{"a":"\n"}'],
        ),
    ],
)
def test_what_fits(grammar: str, inside: list[str], outside: list[str]) -> None:
    matcher = matcher_of(grammar_text(StructuredOutputs(grammar=grammar), lambda _: None))
    for text in inside:
        assert fits(matcher, text), text
    for text in outside:
        assert not fits(matcher, text), text


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("x: /a/", "rule 'start'"),
        ("started: /a/", "rule 'start'"),
        ("just text", "rule 'start'"),
        ('other ::= "a"', "rule 'root'"),
        ('root ::= "a" x', "'x', which there is not"),
        ('root ::= "a"\nroot ::= "b"', "line 2.*'root'.*second time"),
        ('"a"\nroot ::= "b"', "line 1, there is no rule yet"),
        ('root ::= ("a"\nx ::= "b"', "line 2, a parenthesis is not closed"),
        ('root ::= "a")', "line 1, parentheses do not match"),
        (f"root ::= {'(' * 101}", "more than 100"),
        ("root ::= *", "nothing stands before"),
        ('root ::= "a"*?', "nothing stands before"),
        ('root ::= "a" | {3}', "nothing stands before"),
        ('root ::= "a', "line 1, there is something"),
        ("root ::=\n 'a'", "line 2, there is something"),
        ("root ::= [a", "there is something"),
        ("root ::= []", "allows no character"),
        ("root ::= [z-a]", "ends before it begins"),
        (r'root ::= "\q"', "no escape"),
        (r'root ::= "\ud83d"', "no character"),
        (f'root ::= "{"a" * 70_000}"', "at most 65536 characters"),
    ],
)
def test_what_is_refused(grammar: str, reason: str) -> None:
    with pytest.raises(ApiError, match=f"(?s){reason}") as caught:
        grammar_text(StructuredOutputs(grammar=grammar), lambda _: None)
    assert caught.value.status == 400
    assert caught.value.param == "structured_outputs.grammar"


def test_within_a_structural_tag_it_means_the_same() -> None:
    for grammar, inside, outside in (
        ('root ::=\n "a" # one\n | "b"\n', ["a", "b"], ["ab"]),
        ('root ::=\n "(" root ")"\n | x x\nx ::= [0-9]', ["(12)"], ["(1)"]),
    ):
        matcher = matcher_of(grammar_text(StructuredOutputs(structural_tag={"format": ebnf(grammar)}), lambda _: None))
        for text in inside:
            assert fits(matcher, text), text
        for text in outside:
            assert not fits(matcher, text), text
