"""Whether a lexer that takes the longest text finds the ends of pieces where they can be.

After each piece certain others may come, and the lexer tries all of these at once. It finds every way to read a text if
no text of one of them, followed by a character with which its successor may begin, is the beginning of a text of one of
them: then it must stop there, and all that are complete at that point are followed up. So what may come after pieces
with a common text is tried at once too: the lexer's states are found as those of an automaton are, from sets of
positions.
"""

import json
from collections.abc import Callable, Iterable, Sequence

from frontend.grammars.client_parts import WrongStructure
from frontend.grammars.patterns import CHAR, CHARS, is_empty
from frontend.grammars.pieces import Chars, InOrder, Json, OneOf, Piece, Recursive, Terminal, Times, Token

MAX_CHECKS = 64
"""Questions about patterns that one request may raise, some milliseconds each at most."""
MAX_STATES = 4096
_BEYOND_ASCII = r"/[^\x00-\x7F]/"
"""Characters that share a first byte are not told apart by it, and the lexer decides byte by byte."""

_Leaf = Terminal | Token | Json | Recursive


def check_boundaries(piece: Piece, definitions: Callable[[], str]) -> set[Terminal]:
    """Raises `WrongStructure` where the end of a piece could be overlooked, or that cannot be told. `definitions`: of
    the terminals that expressions name. Answers with those that are tried with none but others of their family."""
    positions = _Positions()
    _, firsts, _ = positions.add(piece)
    checker = _Checker(positions, definitions())
    mixed = set[Terminal]()
    states = [frozenset(firsts)]
    known = set(states)
    while states:
        state = sorted(states.pop())
        leaves = [positions.leaves[number] for number in state]
        checker.check_state(leaves, state)
        terminals = [leaf for leaf in leaves if isinstance(leaf, Terminal)]
        mixed |= set() if _are_of_one_family(terminals) else set(terminals)
        reached = {frozenset(following) for following in checker.followers(state)} - known
        known |= reached
        states += reached
        if len(known) > MAX_STATES:
            raise WrongStructure("structural_tag.format", f"has more than {MAX_STATES} places where parts meet.")
    return {leaf for leaf in positions.leaves if isinstance(leaf, Terminal)} - mixed


class _Positions:
    """Which leaf may follow which: numbers of leaves as they occur (Glushkov's construction)."""

    def __init__(self) -> None:
        self.leaves: list[_Leaf] = []
        self.following: list[set[int]] = []

    def add(self, piece: Piece) -> tuple[bool, set[int], set[int]]:
        """Whether it may be empty, and the leaves with which it may begin and end."""
        match piece:
            case InOrder():
                return self._in_order(piece.parts)
            case OneOf():
                found = [self.add(part) for part in piece.parts]
                return (
                    any(is_nullable for is_nullable, _, _ in found),
                    set().union(*(first for _, first, _ in found)),
                    set().union(*(last for _, _, last in found)),
                )
            case Times():
                is_nullable, first, last = self.add(piece.part)
                self._follow(last, first)
                return is_nullable or piece.least == 0, first, last
        number = len(self.leaves)
        self.leaves.append(piece)
        self.following.append(set())
        return isinstance(piece, Terminal) and piece.is_nullable, {number}, {number}

    def _in_order(self, parts: Iterable[Piece]) -> tuple[bool, set[int], set[int]]:
        is_nullable, first, last = True, set[int](), set[int]()
        for part in parts:
            part_is_nullable, part_first, part_last = self.add(part)
            self._follow(last, part_first)
            first = first | part_first if is_nullable else first
            last = last | part_last if part_is_nullable else part_last
            is_nullable = is_nullable and part_is_nullable
        return is_nullable, first, last

    def _follow(self, last: set[int], first: set[int]) -> None:
        for number in last:
            self.following[number] |= first

    def next_chars(self, number: int) -> Chars:
        """With what the text after a leaf may begin; none where only a token or the end comes."""
        chars: Chars = frozenset()
        for other in self.following[number]:
            leaf = self.leaves[other]
            first = frozenset() if isinstance(leaf, Token) else None if isinstance(leaf, Recursive) else leaf.first
            chars = None if chars is None or first is None else chars | first
        return chars


class _Checker:
    def __init__(self, positions: _Positions, definitions: str) -> None:
        self._positions = positions
        self._definitions = definitions
        self._num_checks = 0

    def followers(self, state: Sequence[int]) -> list[set[int]]:
        """What may come next, together for leaves of a state that may have a text in common."""
        groups: list[tuple[list[_Leaf], set[int]]] = []
        for number in state:
            leaves, following = [self._positions.leaves[number]], set(self._positions.following[number])
            apart = []
            for others, theirs in groups:
                if theirs == following or any(self._may_be_equal(leaves[0], other) for other in others):
                    leaves, following = leaves + others, following | theirs
                else:
                    apart.append((others, theirs))
            groups = [*apart, (leaves, following)]
        return [following for _, following in groups]

    def _may_be_equal(self, one: _Leaf, other: _Leaf) -> bool:
        """Whether a text, or a token, may be both. Other kinds are not mixed up: `check_state` has seen to that."""
        if isinstance(one, Json) and isinstance(other, Json):
            return bool(one.first & other.first)
        if not isinstance(one, Terminal) or not isinstance(other, Terminal):
            return one == other
        if one.words is not None and other.words is not None:
            return bool({*one.words} & {*other.words} - {""})
        if one.first is not None and other.first is not None and not one.first & other.first:
            return False
        if _are_of_one_family([one, other]) and ((one.is_closed and other.is_closed) or one.trigger != other.trigger):
            return (one.trigger, one.tail, one.expression) == (other.trigger, other.tail, other.expression)
        self._count_check()
        common = f"{_not_empty(one)} & {_not_empty(other)}"
        return is_empty(common, self._definitions) is not True

    def check_state(self, leaves: Sequence[_Leaf], numbers: Sequence[int]) -> None:
        """Of leaves that the lexer tries at once."""
        terminals = [
            (leaf, self._positions.next_chars(number))
            for leaf, number in zip(leaves, numbers, strict=True)
            if isinstance(leaf, Terminal)
        ]
        recursive = next((leaf for leaf in leaves if isinstance(leaf, Recursive)), None)
        if recursive is not None and not all(isinstance(leaf, Token) or leaf is recursive for leaf in leaves):
            raise _overlooked(recursive.place, "could begin like what else may stand there")
        self._check_terminals(terminals)
        for leaf, number in zip(leaves, numbers, strict=True):
            if isinstance(leaf, Json):
                self._check_json(leaf, number, [terminal for terminal, _ in terminals])
            elif isinstance(leaf, Recursive):
                self._check_recursive(leaf, number)

    def _check_terminals(self, terminals: Sequence[tuple[Terminal, Chars]]) -> None:
        blamed = next((one for one, _ in terminals if one.words is None), terminals[0][0]) if terminals else None
        if blamed is None:
            return
        if blamed.words is not None:
            if _words_overlap([(word, chars) for one, chars in terminals for word in one.words or () if word]):
                raise _overlooked(blamed.place, "goes on like what may follow it")
            return
        going_on = [one for one, chars in terminals if not one.is_closed and (chars is None or chars)]
        if not going_on and (len(terminals) == 1 or _are_of_one_family([one for one, _ in terminals])):
            return
        longer = [f"{_not_empty(one)} {_char(chars)}" for one, chars in terminals if chars is None or chars]
        if longer:
            whole = " | ".join(f"({one.expression})" for one, _ in terminals)
            self._demand(
                f"(({' | '.join(longer)}) {CHARS}) & ({whole})", blamed.place, "could go on into what follows it"
            )

    def _check_json(self, leaf: Json, number: int, terminals: Sequence[Terminal]) -> None:
        chars = self._positions.next_chars(number)
        if leaf.goes_on and (chars is None or chars & leaf.goes_on):
            raise _overlooked(leaf.place, "may be a number, which could go on into what follows it")
        for one in terminals:
            if one.first is not None and not one.first & leaf.first:
                continue
            begun = f"({one.expression}) & ({_char(leaf.first)} {CHARS})"
            self._demand(begun, one.place, "could begin like the JSON that may stand there too")

    def _check_recursive(self, leaf: Recursive, number: int) -> None:
        """Where it ends, its own terminals and those of what follows are tried at once."""
        followers = [self._positions.leaves[other] for other in self._positions.following[number]]
        if any(isinstance(one, Json | Recursive) for one in followers):
            raise _overlooked(leaf.place, "is followed by JSON or another grammar")
        chars = self._positions.next_chars(number)
        after = " | ".join(_not_empty(one) for one in followers if isinstance(one, Terminal))
        if not after or chars == frozenset():
            return
        reason = "has parts that could go on into what follows it"
        own = f"(({leaf.lexeme}) & {CHAR}+)"
        self._demand(f"({own} {_char(chars)} {CHARS}) & {own}", leaf.place, reason)
        self._demand(f"({own} {CHAR}+) & ({after})", leaf.place, reason)
        self._demand(f"(({after}) {CHAR}+) & {own}", leaf.place, reason)

    def _demand(self, expression: str, place: str, otherwise: str) -> None:
        """That nothing fits the expression."""
        self._count_check()
        if is_empty(expression, self._definitions) is not True:
            raise _overlooked(place, otherwise)

    def _count_check(self) -> None:
        self._num_checks += 1
        if self._num_checks > MAX_CHECKS:
            raise WrongStructure("structural_tag.format", f"has more than {MAX_CHECKS} places where patterns meet.")


def _are_of_one_family(terminals: Sequence[Terminal]) -> bool:
    families = {one.family for one in terminals}
    return len(families) == 1 and None not in families


def _words_overlap(words: Sequence[tuple[str, Chars]]) -> bool:
    """Whether a word and a character after it are the beginning of a word."""
    every = {word for word, _ in words}
    beginnings = {word[:length] for word in every for length in range(1, len(word) + 1)}
    longer = {beginning[:-1]: set[str]() for beginning in beginnings}
    for beginning in beginnings:
        longer[beginning[:-1]].add(beginning[-1])
    return any(
        word in longer and (chars is None or any(_same_byte(one, other) for one in chars for other in longer[word]))
        for word, chars in words
    )


def _same_byte(one: str, other: str) -> bool:
    return one == other or (one > "\x7f" and other > "\x7f")


def _not_empty(one: Terminal) -> str:
    """Of a terminal the texts that the lexer sees."""
    return f"(({one.expression}) & {CHAR}+)" if one.is_nullable else f"({one.expression})"


def _char(chars: Chars) -> str:
    """Any of these characters; some of those beyond ASCII count as all of them."""
    if chars is None:
        return CHAR
    ascii_chars = [json.dumps(one) for one in sorted(chars) if one <= "\x7f"]
    return f"({' | '.join(ascii_chars + [_BEYOND_ASCII] * (len(ascii_chars) < len(chars)))})"


def _overlooked(place: str, reason: str) -> WrongStructure:
    return WrongStructure(
        place, f"{reason}, so that its end could not be told: what comes next must begin with other characters."
    )
