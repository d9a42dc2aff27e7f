"""What a structural tag's formats become: pieces of text, put together so that llguidance reads them as they are meant.

llguidance's lexer takes the longest text that fits a terminal and never comes back to it. So `/[a-z]*/ "b"` as two
terminals is never complete, as one it is. Hence what is regular becomes one terminal as far as possible, and
`boundaries` looks at the places where that is not possible.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.patterns import CHAR, CHARS

_MAX_WORDS = 64
"""Of a terminal whose words are kept as a list."""

Chars = frozenset[str] | None
"""Characters; None: any."""


@dataclass(frozen=True, slots=True)
class Family:
    """Free text in which neither triggers nor certain other words stand."""

    number: int
    """A family of its own for each format."""
    triggers: tuple[str, ...]
    without: tuple[str, ...]

    def may_end_with(self, word: str) -> bool:
        """Whether no trigger can be complete within free text of this kind and the word after it."""
        return word in self.without and not any(
            trigger in word or any(word.startswith(trigger[cut:]) for cut in range(1, len(trigger)))
            for trigger in self.triggers
        )


@dataclass(frozen=True, slots=True)
class Terminal:
    """A regular language."""

    expression: str
    place: str
    """The field that it comes from."""
    first: Chars
    """With what a text of it may begin."""
    is_nullable: bool
    """Whether it may be empty."""
    words: tuple[str, ...] | None = None
    """All of its texts, where they are few."""
    is_closed: bool = False
    """Whether it is known that no text of it is the beginning of another. Of words it is not asked here."""
    closed_by: frozenset[str] = frozenset()
    """It is closed together with any of these words after it."""
    family: "Family | None" = None
    """Of free text and what ends it. No text of a closed one of these is the beginning of one of another."""
    trigger: str = ""
    """The first trigger of the family is this one, and it ends with that and `tail`."""
    tail: str = ""

    @property
    def is_word(self) -> bool:
        return self.words is not None and len(self.words) == 1

    @property
    def may_go_on(self) -> bool:
        return self.words is None and not self.is_closed


@dataclass(frozen=True, slots=True)
class Token:
    """A special token, which is no text."""

    number: int


@dataclass(frozen=True, slots=True)
class Json:
    expression: str
    place: str
    first: frozenset[str]
    goes_on: frozenset[str]
    """Characters that may make a longer value of a complete one: those of numbers."""


@dataclass(frozen=True, slots=True)
class Recursive:
    """A grammar that is not regular."""

    expression: str
    place: str
    lexeme: str
    """A terminal expression of all that it puts together."""


@dataclass(frozen=True, slots=True)
class InOrder:
    parts: tuple["Piece", ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    parts: tuple["Piece", ...]


@dataclass(frozen=True, slots=True)
class Times:
    """From `least` to `most` times; None: without end."""

    part: "Piece"
    least: int
    most: int | None


Piece = Terminal | Token | Json | Recursive | InOrder | OneOf | Times


def word(text: str, place: str) -> Terminal:
    """Exactly this text, which has no special tokens."""
    return Terminal(json.dumps(text, ensure_ascii=False), place, frozenset(text[:1]), not text, (text,))


def literal(builder: GrammarBuilder, text: str, place: str) -> Piece:
    """Exactly this text, its special tokens as such."""
    return in_order(
        [Token(part) if isinstance(part, int) else word(part, place) for part in builder.split_at_tokens(text)]
        or [word("", place)]
    )


def early_ends(end: str, ends: Sequence[str]) -> list[str]:
    """With what a text must not end before `end`, because the two would have one of `ends` in them earlier: "`" before
    "```"."""
    cuts = ((other, cut) for other in ends for cut in range(1, len(other)))
    return sorted({other[:cut] for other, cut in cuts if len(other) - cut < len(end) and end.startswith(other[cut:])})


def free_text(
    place: str, family: Family, ends: Sequence[str] = (), next_ends: Sequence[str] = (), max_chars: int | None = None
) -> Terminal:
    """Any text of the family. `ends`: words that stand in none of its texts. `next_ends`: those of them one of which
    comes next; the text together with that has none of all earlier."""
    excluded = [*family.without, *family.triggers]
    early = sorted({early for end in next_ends for early in early_ends(end, ends)})
    parts = [CHARS if max_chars is None else f"/(.|\\n){{0,{max_chars}}}/"]
    parts += [f"~({CHARS} {_any_word(excluded)} {CHARS})"] if excluded else []
    parts += [f"~({CHARS} {_any_word(early)})"] if early else []
    has_prefix = any(one != other and other.startswith(one) for one in next_ends for other in next_ends)
    closed_by = frozenset() if has_prefix else frozenset(next_ends)
    return Terminal(f"({' & '.join(parts)})", place, None, is_nullable=True, closed_by=closed_by, family=family)


def free_text_until(place: str, trigger: str, family: Family) -> Terminal:
    """Any text of the family up to the first trigger, which is `trigger` and part of it."""
    parts = [f"({CHARS} {_any_word([trigger])})", f"~({CHARS} {_any_word(family.triggers)} {CHAR}+)"]
    parts += [f"~({CHARS} {_any_word(family.without)} {CHARS})"] if family.without else []
    # Of two triggers that end together both are found.
    is_alone = not any(one != trigger and (one.endswith(trigger) or trigger.endswith(one)) for one in family.triggers)
    own = family if is_alone else None
    return Terminal(
        f"({' & '.join(parts)})",
        place,
        None,
        is_nullable=False,
        is_closed=True,
        family=own,
        trigger=trigger if own else "",
    )


def _any_word(words: Sequence[str]) -> str:
    return f"({' | '.join(json.dumps(one, ensure_ascii=False) for one in words)})"


def in_order(parts: Sequence[Piece]) -> Piece:
    """One after another."""
    row: list[Piece] = []
    for part in parts:
        for one in part.parts if isinstance(part, InOrder) else (part,):
            _append(row, one)
    return row[0] if len(row) == 1 else InOrder(tuple(row))


def _append(row: list[Piece], part: Piece) -> None:
    before = row[-1] if row else None
    if isinstance(before, Terminal) and isinstance(part, Terminal):
        row[-1] = _joined(before, part)
    elif isinstance(before, Terminal) and before.may_go_on and isinstance(part, OneOf):
        row[-1] = one_of([in_order([before, branch]) for branch in part.parts])
    elif isinstance(before, OneOf) and isinstance(part, Terminal) and any(map(_is_open, before.parts)):
        row[-1] = one_of([in_order([branch, part]) for branch in before.parts])
    else:
        row.append(part)


def _is_open(part: Piece) -> bool:
    """Whether it ends with a terminal that may go on."""
    last = part.parts[-1] if isinstance(part, InOrder) else part
    return isinstance(last, Terminal) and (last.may_go_on or last.is_nullable)


def _joined(left: Terminal, right: Terminal) -> Terminal:
    if left.words == ("",):
        return right
    if right.words == ("",):
        return left
    words = None
    if left.words is not None and right.words is not None and len(left.words) * len(right.words) <= _MAX_WORDS:
        words = tuple(dict.fromkeys(one + other for one in left.words for other in right.words))
    if words is not None and len(words) == 1:
        return word(words[0], left.place)
    first = left.first
    if left.is_nullable:
        first = None if left.first is None or right.first is None else left.first | right.first
    # An error is about the part that is not just a text.
    place = left.place if left.words is None or right.words is not None else right.place
    expression = f"{left.expression} {right.expression}"
    family = _joined_family(left, right)
    trigger = left.trigger if family is not None else ""
    return Terminal(
        expression,
        place,
        first,
        left.is_nullable and right.is_nullable,
        words,
        is_closed=(_is_closed(left) and _is_closed(right)) or _closes(left, right),
        closed_by=right.closed_by if _is_closed(left) else frozenset(),
        family=family,
        trigger=trigger,
        tail=left.tail + (right.words or ("",))[0] if trigger else "",
    )


def _is_closed(one: Terminal) -> bool:
    return one.is_closed or one.is_word


def _closes(left: Terminal, right: Terminal) -> bool:
    return right.words is not None and bool(left.closed_by) and left.closed_by >= set(right.words)


def _joined_family(left: Terminal, right: Terminal) -> Family | None:
    family = left.family
    if family is None or right.words is None:
        return None
    if left.is_closed:
        return family if right.is_word else None
    return family if _closes(left, right) and all(map(family.may_end_with, right.words)) else None


def one_of(parts: Sequence[Piece]) -> Piece:
    """Any one of them; of terminals one is made."""
    branches: list[Piece] = []
    for part in parts:
        branches += part.parts if isinstance(part, OneOf) else (part,)
    terminals = [branch for branch in branches if isinstance(branch, Terminal)]
    others = [branch for branch in branches if not isinstance(branch, Terminal)]
    if len(terminals) > 1:
        terminals = [_any_of(terminals)]
    row = [*terminals, *dict.fromkeys(others)]
    return row[0] if len(row) == 1 else OneOf(tuple(row))


def _any_of(terminals: Sequence[Terminal]) -> Terminal:
    words: list[str] | None = []
    first: Chars = frozenset()
    for one in terminals:
        words = None if words is None or one.words is None else words + list(one.words)
        first = None if first is None or one.first is None else first | one.first
    expression = f"({' | '.join(dict.fromkeys(one.expression for one in terminals))})"
    place = next((one.place for one in terminals if one.words is None), terminals[0].place)
    kept = None if words is None else tuple(dict.fromkeys(words))
    return Terminal(expression, place, first, any(one.is_nullable for one in terminals), kept)


def times(part: Piece, least: int, most: int | None) -> Piece:
    """The same again and again; `most` None: without end."""
    if most == 0:
        return word("", _place(part))
    if (least, most) == (1, 1):
        return part
    if (least, most) == (0, 1):
        return one_of([word("", _place(part)), part])
    if not isinstance(part, Terminal):
        return Times(part, least, most)
    expression = f"({part.expression}){_times(least, most)}"
    return Terminal(expression, part.place, part.first, part.is_nullable or least == 0)


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _place(part: Piece) -> str:
    match part:
        case Terminal() | Json() | Recursive():
            return part.place
        case InOrder() | OneOf():
            return next((place for place in map(_place, part.parts) if place), "")
        case Times():
            return _place(part.part)
    return ""


def lark_expression(piece: Piece, builder: GrammarBuilder, only_family: Collection[Terminal]) -> str:
    """For a rule of a Lark grammar. `only_family`: terminals that are tried with none but others of their family."""
    match piece:
        case Terminal(family=Family(without=without), trigger=trigger) if trigger and piece in only_family:
            # All triggers of the family are tried then, and the first to be complete ends all: no complement is needed.
            excluded = f" & ~({CHARS} {_any_word(without)} {CHARS})" if without else ""
            until = builder.first(f"({CHARS} {_any_word([trigger])}){excluded}")
            return f"({until} {builder.text(piece.tail)})" if piece.tail else until
        case Terminal():
            return piece.expression if piece.is_word else builder.terminal(piece.expression)
        case Token():
            return builder.token(piece.number)
        case Json() | Recursive():
            return piece.expression
        case InOrder():
            return f"({' '.join(lark_expression(part, builder, only_family) for part in piece.parts)})"
        case OneOf():
            return builder.any_of([lark_expression(part, builder, only_family) for part in piece.parts])
        case Times():
            return f"({lark_expression(piece.part, builder, only_family)}){_times(piece.least, piece.most)}"
