"""Structural tags: an answer described by formats within formats, as xgrammar and vLLM have them.

Where their documentation leaves a choice: a special token that a text names is that token; free text has none of them;
what free text ends with, its tag's end or a trigger, is found at its first occurrence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from frontend.grammars.boundaries import check_boundaries
from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.client_parts import WrongStructure, decoded, json_schema, lark_pattern
from frontend.grammars.client_schema import schema_expression
from frontend.grammars.ebnf import Ebnf, is_ebnf
from frontend.grammars.patterns import is_empty, problem
from frontend.grammars.pieces import (
    Family,
    Json,
    Piece,
    Recursive,
    Terminal,
    early_ends,
    free_text,
    free_text_until,
    in_order,
    lark_expression,
    literal,
    one_of,
    times,
)
from frontend.grammars.structural_formats import (
    AnyTextFormat,
    ConstStringFormat,
    DispatchFormat,
    GrammarFormat,
    JsonSchemaFormat,
    OlderForm,
    OptionalFormat,
    OrFormat,
    PlusFormat,
    RegexFormat,
    RepeatFormat,
    SequenceFormat,
    StarFormat,
    TagFormat,
    TagsWithSeparatorFormat,
    TriggeredTagsFormat,
    read_format,
)

MAX_DEPTH = 32
MAX_FORMATS = 1000
MAX_TIMES = 1000
MAX_CHARS = 10_000
MAX_PATTERNS = 32
"""Regular expressions and grammars of one request: each is looked at here, which takes some milliseconds at most."""
MAX_PATTERN_CHARS = 64 * 2**10
"""Of all of these together."""
MAX_TRIGGERS = 256
"""Of one format. The lexer follows all of them at once, and masks take the longer."""
_FIRST_CHARS = {
    "object": "{",
    "array": "[",
    "string": '"',
    "integer": "-0123456789",
    "number": "-0123456789",
    "boolean": "tf",
    "null": "n",
}
_NUMBER_CHARS = frozenset("0123456789.eE")


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where a format stands."""

    depth: int = 0
    ends: tuple[str, ...] = ()
    """Of the innermost tag around it."""
    next_ends: tuple[str, ...] = ()
    """Those of them one of which comes next."""

    def within(self, *, is_last: bool) -> "_Scope":
        """Of a format within this one. `is_last`: nothing of this one comes after it."""
        return replace(self, depth=self.depth + 1, next_ends=self.next_ends if is_last else ())


@dataclass(frozen=True, slots=True)
class _TaggedPiece:
    """A tag, and what comes of it after a number of its first characters."""

    begin: str
    place: str
    after: Callable[[int], Piece]


def structural_tag_expression(value: Any, builder: GrammarBuilder, json_options: Mapping[str, Any]) -> str:
    """The answer as a Lark expression. Raises `WrongStructure`, or an `ApiError` about a part."""
    where = "structural_tag"
    tag = decoded(value, where)
    if not isinstance(tag, dict) or tag.get("type", where) != where or not {"format", "structures"} & set(tag):
        raise WrongStructure(
            where, "must be an object with a format, or of the older form with structures and triggers."
        )
    reader = _Reader(builder, json_options)
    if "format" in tag:
        piece = reader.read(tag["format"], f"{where}.format", _Scope())
    else:
        piece = reader.older_form(tag, where)
    only_family = check_boundaries(piece, builder.definitions)
    return lark_expression(piece, builder, only_family)


class _Reader:
    """Formats to pieces."""

    def __init__(self, builder: GrammarBuilder, json_options: Mapping[str, Any]) -> None:
        self._builder = builder
        self._json_options = json_options
        self._num_formats = 0
        self._num_patterns = 0
        self._num_pattern_chars = 0
        self._num_families = 0

    def read(self, value: Any, place: str, scope: _Scope) -> Piece:
        self._count(place, scope)
        match read_format(value, place):
            case ConstStringFormat(value=text):
                return literal(self._builder, text, place)
            case JsonSchemaFormat() as form:
                return self._json(form, place)
            case RegexFormat(pattern=pattern):
                return self._regex(pattern, f"{place}.pattern")
            case GrammarFormat(grammar=grammar):
                return self._grammar(grammar, f"{place}.grammar")
            case AnyTextFormat() as form:
                return self._any_text(form, place, scope)
            case SequenceFormat(elements=elements):
                return in_order(self._elements(elements, place, scope, is_row=True))
            case OrFormat(elements=elements):
                return one_of(self._elements(elements, place, scope, is_row=False))
            case OptionalFormat(content=content):
                return times(self._content(content, place, scope.within(is_last=True)), 0, 1)
            case PlusFormat(content=content):
                return times(self._content(content, place, scope.within(is_last=False)), 1, None)
            case StarFormat(content=content):
                return times(self._content(content, place, scope.within(is_last=False)), 0, None)
            case RepeatFormat() as form:
                return self._repeat(form, place, scope)
            case TagFormat() as form:
                return self._tag(form, place, scope).after(0)
            case TriggeredTagsFormat() as form:
                return self._triggered_tags(form, place, scope)
            case TagsWithSeparatorFormat() as form:
                return self._tags_with_separator(form, place, scope)
            case DispatchFormat() as form:
                return self._dispatch(form, place, scope)
        raise AssertionError("a format that nobody reads")

    def older_form(self, value: Any, place: str) -> Piece:
        """Free text in which each trigger begins one of the structures."""
        try:
            form = msgspec.convert(value, OlderForm)
        except msgspec.ValidationError as error:
            raise WrongStructure(place, f"must have structures and triggers: {error}.") from error
        if not form.structures or not all(form.triggers):
            raise WrongStructure(place, "must have structures and triggers that are not empty.")
        tagged: dict[str, list[Piece]] = {}
        for index, one in enumerate(form.structures):
            where = f"{place}.structures[{index}]"
            trigger = next((trigger for trigger in form.triggers if one.begin.startswith(trigger)), None)
            if trigger is None:
                raise WrongStructure(f"{where}.begin", "must begin with one of the triggers.")
            rest = literal(self._builder, one.begin.removeprefix(trigger), f"{where}.begin")
            schema = self._schema(one.schema, f"{where}.schema")
            end = literal(self._builder, one.end, f"{where}.end")
            tagged.setdefault(trigger, []).append(in_order([rest, schema, end]))
        rules = [(trigger, one_of(rests), f"{place}.triggers") for trigger, rests in tagged.items()]
        branches, free = self._dispatched(rules, place, (), _Scope())
        return in_order([times(one_of(branches), 0, None), free])

    def _count(self, place: str, scope: _Scope) -> None:
        self._num_formats += 1
        if self._num_formats > MAX_FORMATS:
            raise WrongStructure("structural_tag.format", f"must have at most {MAX_FORMATS} formats.")
        if scope.depth > MAX_DEPTH:
            raise WrongStructure(place, f"must not stand within more than {MAX_DEPTH} formats.")

    def _content(self, value: Any, place: str, scope: _Scope) -> Piece:
        return self.read(value, f"{place}.content", scope)

    def _elements(self, values: Sequence[Any], place: str, scope: _Scope, *, is_row: bool) -> list[Piece]:
        _demand_some(values, f"{place}.elements")
        found = []
        for index, value in enumerate(values):
            inner = scope.within(is_last=index == len(values) - 1 or not is_row)
            found.append(self.read(value, f"{place}.elements[{index}]", inner))
        return found

    def _json(self, form: JsonSchemaFormat, place: str) -> Piece:
        if form.style != "json":
            raise WrongStructure(f"{place}.style", "must be 'json'; other styles are not supported.")
        if form.any_order:
            raise WrongStructure(f"{place}.any_order", "must be false: properties come in the schema's order.")
        return self._schema(form.json_schema, f"{place}.json_schema")

    def _schema(self, value: Any, place: str) -> Json:
        schema = json_schema(value, place)
        types = schema.get("type", list(_FIRST_CHARS)) if isinstance(schema, dict) else list(_FIRST_CHARS)
        kinds = types if isinstance(types, list) else [types]
        first = frozenset("".join(_FIRST_CHARS[kind] for kind in kinds))
        goes_on = _NUMBER_CHARS if {"integer", "number"} & set(kinds) else frozenset[str]()
        return Json(schema_expression(schema, place, self._builder, self._json_options), place, first, goes_on)

    def _regex(self, pattern: str, place: str) -> Piece:
        self._count_pattern(pattern, place)
        return self._terminal(lark_pattern(pattern, place), place)

    def _grammar(self, text: str, place: str) -> Piece:
        if not is_ebnf(text):
            raise WrongStructure(place, "must be EBNF with a rule 'root ::= ...'.")
        self._count_pattern(text, place)
        grammar = Ebnf(text, place)
        if grammar.is_regular:
            return self._terminal(grammar.expression(self._builder.terminal), place)
        lark = self._builder.lark(grammar.lark())
        return Recursive(lark, place, grammar.expression(self._builder.terminal))

    def _count_pattern(self, text: str, place: str) -> None:
        self._num_patterns += 1
        self._num_pattern_chars += len(text)
        if self._num_patterns > MAX_PATTERNS or self._num_pattern_chars > MAX_PATTERN_CHARS:
            raise WrongStructure(
                place,
                f"is one of more than {MAX_PATTERNS} patterns and grammars, or of {MAX_PATTERN_CHARS} characters.",
            )

    def _terminal(self, expression: str, place: str) -> Terminal:
        definitions = self._builder.definitions()
        wrong = problem(expression, definitions)
        if wrong is not None:
            raise WrongStructure(place, f"cannot be used: {wrong}.")
        # Where it is too hard to say it may as well be empty.
        is_nullable = is_empty(f'(({expression}) "$") & "$"', definitions) is not True
        return Terminal(f"({expression})", place, None, is_nullable)

    def _any_text(self, form: AnyTextFormat, place: str, scope: _Scope) -> Piece:
        _demand_texts(form.excludes, f"{place}.excludes")
        if form.max_tokens is not None:
            raise WrongStructure(f"{place}.max_tokens", "is not supported; max_chars is.")
        if form.max_chars is not None and not 0 <= form.max_chars <= MAX_CHARS:
            raise WrongStructure(f"{place}.max_chars", f"must be 0 to {MAX_CHARS}.")
        family = self._family((), _distinct(form.excludes, scope.ends))
        return free_text(place, family, scope.ends, self._next_texts(scope), form.max_chars)

    def _family(self, triggers: Sequence[str], without: Sequence[str]) -> Family:
        self._num_families += 1
        return Family(self._num_families, tuple(triggers), tuple(without))

    def _next_texts(self, scope: _Scope) -> Sequence[str]:
        # Free text has no special tokens, so before those it may end with anything.
        return scope.next_ends if all(map(self._is_text, scope.next_ends)) else ()

    def _is_text(self, text: str) -> bool:
        return not any(isinstance(part, int) for part in self._builder.split_at_tokens(text))

    def _repeat(self, form: RepeatFormat, place: str, scope: _Scope) -> Piece:
        if not 0 <= form.min <= MAX_TIMES:
            raise WrongStructure(f"{place}.min", f"must be 0 to {MAX_TIMES}.")
        if form.max != -1 and not form.min <= form.max <= MAX_TIMES:
            raise WrongStructure(f"{place}.max", f"must be min to {MAX_TIMES}, or -1: without end.")
        part = self._content(form.content, place, scope.within(is_last=False))
        return times(part, form.min, None if form.max == -1 else form.max)

    def _tag(self, form: TagFormat, place: str, scope: _Scope) -> _TaggedPiece:
        ends = [form.end] if isinstance(form.end, str) else form.end
        _demand_some(ends, f"{place}.end")
        inner = _Scope(scope.depth + 1, tuple(end for end in ends if end))
        # What free text may end with may depend on which end comes next.
        depends = len(ends) > 1 and any(early_ends(end, inner.ends) for end in ends)
        ways = []
        for its_ends in [[end] for end in ends] if depends else [ends]:
            next_ends = tuple(its_ends) if all(its_ends) else ()
            content = self._content(form.content, place, replace(inner, next_ends=next_ends))
            end = one_of([literal(self._builder, one, f"{place}.end") for one in its_ends])
            ways.append(in_order([content, end]))
        rest = one_of(ways)

        def after(length: int) -> Piece:
            return in_order([literal(self._builder, form.begin[length:], f"{place}.begin"), rest])

        return _TaggedPiece(form.begin, place, after)

    def _tags(self, values: Sequence[Any], place: str, scope: _Scope) -> list[_TaggedPiece]:
        _demand_some(values, f"{place}.tags")
        found = []
        for index, value in enumerate(values):
            where = f"{place}.tags[{index}]"
            self._count(where, scope)
            # Here the type may be left out: there can be nothing else.
            form = read_format({"type": "tag", **value} if isinstance(value, dict) else value, where)
            if not isinstance(form, TagFormat):
                raise WrongStructure(f"{where}.type", "must be 'tag'.")
            found.append(self._tag(form, where, scope.within(is_last=False)))
        return found

    def _tags_with_separator(self, form: TagsWithSeparatorFormat, place: str, scope: _Scope) -> Piece:
        one = one_of([tag.after(0) for tag in self._tags(form.tags, place, scope)])
        separator = literal(self._builder, form.separator, f"{place}.separator")
        many = one if form.stop_after_first else in_order([one, times(in_order([separator, one]), 0, None)])
        return many if form.at_least_one else times(many, 0, 1)

    def _triggered_tags(self, form: TriggeredTagsFormat, place: str, scope: _Scope) -> Piece:
        _demand_texts(form.triggers, f"{place}.triggers")
        tags = self._tags(form.tags, place, scope)
        tagged: dict[str, list[Piece]] = {trigger: [] for trigger in form.triggers}
        for tag in tags:
            triggers = [trigger for trigger in tagged if tag.begin.startswith(trigger)]
            if len(triggers) != 1:
                raise WrongStructure(f"{tag.place}.begin", f"must begin with one of the triggers, not {len(triggers)}.")
            tagged[triggers[0]].append(tag.after(len(triggers[0])))
        rules = []
        for index, trigger in enumerate(form.triggers):
            where = f"{place}.triggers[{index}]"
            if not tagged[trigger]:
                raise WrongStructure(where, "must be the beginning of a tag.")
            rules.append((trigger, one_of(tagged[trigger]), where))
        branches, free = self._dispatched(rules, place, form.excludes, scope)
        first = one_of([tag.after(0) for tag in tags])
        if form.stop_after_first:
            return first if form.at_least_one else one_of([free, *branches])
        more = in_order([times(one_of(branches), 0, None), free])
        return in_order([first, more]) if form.at_least_one else more

    def _dispatch(self, form: DispatchFormat, place: str, scope: _Scope) -> Piece:
        _demand_some(form.rules, f"{place}.rules")
        rules = []
        for index, (pattern, value) in enumerate(form.rules):
            where = f"{place}.rules[{index}]"
            inner = scope.within(is_last=not form.loop)
            rules.append((pattern, self.read(value, f"{where}[1]", inner), f"{where}[0]"))
        _demand_texts([pattern for pattern, _, _ in rules], f"{place}.rules")
        branches, free = self._dispatched(rules, place, form.excludes, scope)
        return in_order([times(one_of(branches), 0, None), free]) if form.loop else one_of([free, *branches])

    def _dispatched(
        self, rules: Sequence[tuple[str, Piece, str]], place: str, excludes: Sequence[str], scope: _Scope
    ) -> tuple[list[Piece], Piece]:
        """Free text up to each trigger with what comes after that, and free text without triggers. `rules`: triggers,
        what comes after each, and their places."""
        _demand_texts(excludes, f"{place}.excludes")
        triggers = [trigger for trigger, _, _ in rules]
        if len(triggers) > MAX_TRIGGERS:
            raise WrongStructure(place, f"must have at most {MAX_TRIGGERS} triggers.")
        texts = [trigger for trigger in triggers if self._is_text(trigger)]
        # Triggers that are special tokens are no text, and free text does not spell them out.
        without = _distinct(excludes, scope.ends, [trigger for trigger in triggers if trigger not in texts])
        family = self._family(texts, without)
        branches = []
        for trigger, after, where in rules:
            for other in _distinct(texts, excludes, scope.ends):
                # The end of the first of the two comes before that of the trigger.
                if other in trigger[:-1] or (other in trigger and other not in texts):
                    raise WrongStructure(
                        where, f"must not have {other[:64]!r} in it, which comes first or is excluded."
                    )
            if trigger in texts:
                until: Piece = free_text_until(where, trigger, family)
            else:
                until = in_order([free_text(where, family), literal(self._builder, trigger, where)])
            branches.append(in_order([until, after]))
        return branches, free_text(place, family, scope.ends, self._next_texts(scope))


def _demand_some(values: Sequence[Any], place: str) -> None:
    if not values:
        raise WrongStructure(place, "must not be empty.")


def _demand_texts(texts: Sequence[str], place: str) -> None:
    for index, text in enumerate(texts):
        if not text:
            raise WrongStructure(f"{place}[{index}]", "must not be empty.")
        if text in texts[:index]:
            raise WrongStructure(f"{place}[{index}]", "must not be there twice.")


def _distinct(*texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(one for some in texts for one in some))
