"""A client's Lark grammar of a text as one of that text within quotes of JSON.

JSON writes quotation marks, backslashes and control characters as escapes. So each terminal becomes one of the same
texts with escapes, each written in one way only. llguidance's lexer takes the longest text that fits a terminal and
never comes back to it, and by its backslash alone no escape tells whether it belongs to a terminal. Hence a grammar
with escapes becomes one terminal, which is possible where no rule is part of itself.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from itertools import groupby

from frontend.grammars.client_parts import WrongStructure
from frontend.grammars.lark import lark_grammar
from frontend.grammars.patterns import ascii_of

_ESCAPES = {char: json.dumps(char)[1:-1] for char in ('"', "\\", *map(chr, range(32)))}
_MARK = "\x01"
"""Before each escape that is written here."""
_NOT_ESCAPED = r'[^"\\\x00-\x1F]'
_PART = re.compile(
    r"""(?P<comment>(?://|\#)[^\n]*)
    |(?P<first>"(?:\\.|[^"\\\n])*")\s*\.\.\s*(?P<last>"(?:\\.|[^"\\\n])*")
    |(?P<text>"(?:\\.|[^"\\\n])*"i?)
    |/(?P<regex>(?:\\.|[^/\\\n])+)/(?P<flags>[a-z]*)
    |%import[ \t]+common\.(?P<name>\w+)(?:[ \t]*->[ \t]*(?P<alias>\w+))?
    |(?P<attributes>(?<=\w)\[[^\]\n]*\](?=[ \t]*:))
    |(?P<times>~[ \t]*\d)
    |(?P<other>%(?!ignore\b)\w+|[~<@])""",
    re.VERBOSE,
)
"""What is no name and no operator."""
_DEFINED = re.compile(r"^[ \t]*([A-Za-z_]\w*)[ \t]*:|^[ \t]*%.*$", re.MULTILINE)
"""What begins a definition, or a directive."""
_NAME = re.compile(r"(?:->[ \t]*)?[A-Za-z_]\w*")
_LITERAL = re.compile("\x00(\\d+)\x00")
_IMPORTED = {
    "ESCAPED_STRING": r'"([^"\\\n]|\\[^\n])*"',
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(\r?\n)+",
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"\/\/[^\n]*",
    "C_COMMENT": r"\/\*([^*]|\*+[^*\/])*\*+\/",
    "SQL_COMMENT": r"--[^\n]*",
}
"""Of Lark's library the terminals that may have characters to be escaped."""
_ATOM = re.compile(
    r"""(?P<group>\(\?(?:P?<\w+>|(?P<flags>[a-z-]*):)|[()|*+?^$]|\{\d*,?\d*\})
    |(?P<escape>\\(?:[pPxuU]\{[^}]*\}|[pP].|x..|u....|U.{8}|.))
    |(?P<char>.)""",
    re.VERBOSE | re.DOTALL,
)
"""A part of a regular expression, but for a set."""


def lark_in_json(grammar: str, where: str) -> str:
    """The grammar of what stands between the quotes. Raises `WrongStructure` for what cannot be written so."""
    return _Grammar(lark_grammar(grammar, where), where).written()


class _Grammar:
    def __init__(self, grammar: str, where: str) -> None:
        self._where = where
        self._literals: list[str] = []
        self._has_escapes = self._has_escapes_beyond_words = False
        if "\x00" in grammar or _MARK in grammar:
            raise WrongStructure(where, "must not have the characters U+0000 and U+0001.")
        self._text = _PART.sub(self._taken_out, grammar)
        """With a number between two NULs in the place of each text and each pattern."""

    def written(self) -> str:
        if not self._has_escapes:
            return self._with_literals(self._text)
        definitions, directives = self._definitions()
        if any("%ignore" in directive for directive in directives):
            raise WrongStructure(
                self._where, "must not have '%ignore' beside quotation marks, backslashes or control characters."
            )
        if _is_recursive(definitions):
            return self._recursive(definitions)
        # All rules as terminals: what is regular is one terminal in the end.
        names = {name: f"PART{index}" for index, name in enumerate(definitions)}
        lines = [f"start: {names['start']}", *directives]
        for name, body in definitions.items():
            lines.append(f"{names[name]}: {_NAME.sub(lambda found: _renamed(found[0], names), body)}")
        return self._with_literals("\n".join(lines))

    def _recursive(self, definitions: Mapping[str, str]) -> str:
        """As it is, where the lexer can do without coming back: an escape is a terminal of its own."""
        for name, body in definitions.items():
            literals = _LITERAL.findall(body)
            is_char = _LITERAL.fullmatch(body) is not None and not self._literals[int(literals[0])].startswith("(")
            if name.lower() != name and not is_char and any(map(self._is_escaped, literals)):
                self._has_escapes_beyond_words = True
        if self._has_escapes_beyond_words:
            raise WrongStructure(
                self._where,
                "must not have a rule that is part of itself and a pattern that takes quotation marks, backslashes or "
                "control characters: within JSON its end could not be told.",
            )
        return self._with_literals(self._text)

    def _definitions(self) -> tuple[dict[str, str], list[str]]:
        """Bodies by name, and directives."""
        definitions: dict[str, str] = {}
        directives: list[str] = []
        heads = [*_DEFINED.finditer(self._text)]
        ends = [*(head.start() for head in heads[1:]), len(self._text)]
        for head, end in zip(heads, ends, strict=False):
            if head[1] is None:
                directives.append(head[0])
            elif head[1] in definitions:
                raise WrongStructure(self._where, f"must not define {head[1][:64]!r} twice.")
            else:
                definitions[head[1]] = " ".join(self._text[head.end() : end].split())
        if "start" not in definitions:
            raise WrongStructure(self._where, "must have a rule 'start' without parameters.")
        return definitions, directives

    def _taken_out(self, part: re.Match[str]) -> str:
        where, kind = self._where, part.lastgroup
        if kind == "comment":
            return ""
        if kind in ("attributes", "other"):
            found = part[kind][:64]
            raise WrongStructure(where, f"must not have {found!r}, which is nothing that texts within JSON can have.")
        if kind in ("name", "alias"):
            if part["name"] not in _IMPORTED:
                return part[0]
            kept = self._keep(_pattern(_IMPORTED[part["name"]], "", where), is_word=part["name"] in ("CR", "LF"))
            return f"{part['alias'] or part['name']}: {kept}"
        if kind == "text" and part["text"].endswith('"'):
            return self._keep(_word(part["text"], where), is_word=True)
        if kind == "text":
            text = _decoded(part["text"].removesuffix("i"), where)
            return self._keep(f"/{''.join(map(_char, text))}/i" if text else '""', is_word=False)
        if kind == "last":
            chars = f"[{_bound(part['first'], where)}-{_bound(part['last'], where)}]"
            return self._keep(_pattern(chars, "", where), is_word=False)
        if kind in ("regex", "flags"):
            return self._keep(_pattern(part["regex"], part["flags"], where), is_word=False)
        return part[0]

    def _keep(self, literal: str, *, is_word: bool) -> str:
        """Its place in the text."""
        self._literals.append(literal)
        place = len(self._literals) - 1
        if self._is_escaped(place):
            self._has_escapes = True
            self._has_escapes_beyond_words |= not is_word
        return f"\x00{place}\x00"

    def _is_escaped(self, place: int | str) -> bool:
        return _MARK in self._literals[int(place)]

    def _with_literals(self, text: str) -> str:
        return _LITERAL.sub(lambda found: self._literals[int(found[1])].replace(_MARK, ""), text)


def _is_recursive(definitions: Mapping[str, str]) -> bool:
    """Whether a definition names itself, if only by way of others."""
    open_names: set[str] = set()
    done: set[str] = set()

    def visit(name: str) -> bool:
        if name in open_names:
            return True
        if name in done or name not in definitions:
            return False
        open_names.add(name)
        is_recursive = any(visit(each) for each in _NAME.findall(definitions[name]))
        open_names.discard(name)
        done.add(name)
        return is_recursive

    return any(map(visit, definitions))


def _renamed(name: str, names: Mapping[str, str]) -> str:
    return "" if name.startswith("->") else names.get(name, name)


def _decoded(literal: str, where: str) -> str:
    """What a text of Lark, with its quotation marks, stands for."""
    try:
        value = json.loads(literal)
    except ValueError:
        try:
            value = ast.literal_eval(literal)
        except (ValueError, SyntaxError) as error:
            raise WrongStructure(where, f"has a text that cannot be read: {literal[:64]}.") from error
    assert isinstance(value, str)
    return value


def _word(literal: str, where: str) -> str:
    """Exactly this text, each of its escapes apart."""
    parts = []
    for is_escaped, chars in groupby(_decoded(literal, where), lambda char: char in _ESCAPES):
        if is_escaped:
            parts += [_MARK + json.dumps(_ESCAPES[char]) for char in chars]
        else:
            parts.append(json.dumps("".join(chars), ensure_ascii=False))
    return f"({' '.join(parts)})" if len(parts) > 1 else "".join(parts) or '""'


def _bound(literal: str, where: str) -> str:
    """One character as a set has it."""
    char = _decoded(literal, where)
    if len(char) != 1:
        raise WrongStructure(where, f"has a range whose end is not one character: {literal[:64]}.")
    return f"\\x{{{ord(char):X}}}"


def _char(char: str) -> str:
    """One character as a pattern, which has no case where it is an escape."""
    escape = _ESCAPES.get(char)
    return f"\\x{{{ord(char):X}}}" if escape is None else f"{_MARK}(?-i:{re.escape(escape)})"


def _pattern(regex: str, flags: str, where: str) -> str:
    """A regular expression, with slashes around it."""
    if set(flags) - set("imsu"):
        raise WrongStructure(where, f"must not have a pattern with the flags {flags!r}: i, m, s and u are known.")
    return f"/{''.join(_atoms(regex, 's' in flags, where))}/{'i' if 'i' in flags else ''}"


def _atoms(regex: str, is_dot_all: bool, where: str) -> Iterator[str]:
    position = 0
    while position < len(regex):
        if regex[position] == "[":
            end = _end_of_set(regex, position, where)
            yield _chars(regex[position:end], where)
            position = end
            continue
        atom = _ATOM.match(regex, position)
        assert atom is not None
        position = atom.end()
        if set(atom["flags"] or "") - set("i-"):
            raise WrongStructure(where, f"must not have {atom[0]!r} in a pattern: of such flags i alone is known.")
        if atom["group"] is not None:
            yield atom[0]
        elif atom["escape"] is not None:
            yield _chars(f"[{atom[0]}]", where)
        elif atom[0] == ".":
            yield _chars(r"[\x00-\x{10FFFF}]" if is_dot_all else r"[^\n]", where)
        else:
            yield _char(atom[0]) if atom[0] in _ESCAPES else atom[0]


def _chars(set_: str, where: str) -> str:
    """Any character of a set."""
    chars = ascii_of(f"/{set_}/")
    if chars is None:
        raise WrongStructure(where, f"has a pattern that cannot be read: {set_[:64]}.")
    escapes = [_char(char) for char in sorted(chars & _ESCAPES.keys())]
    if not escapes:
        return set_
    others = f"[{set_}&&{_NOT_ESCAPED}]"
    if ascii_of(f"/{others}/") is not None:
        escapes.append(others)
    return f"(?:{'|'.join(escapes)})"


def _end_of_set(regex: str, start: int, where: str) -> int:
    """Behind the bracket that closes the set."""
    depth, position = 0, start
    while position < len(regex):
        char = regex[position]
        if char == "\\":
            position += 1
        elif char == "[":
            depth += 1
            position += regex.startswith("^", position + 1)
            position += regex.startswith("]", position + 1)  # in the first place it is a character
        elif char == "]":
            depth -= 1
            if depth == 0:
                return position + 1
        position += 1
    raise WrongStructure(where, "has a pattern whose set of characters does not end.")
