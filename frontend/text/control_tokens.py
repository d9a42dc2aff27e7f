"""Control tokens in what users write, as text.

A template writes control tokens (`<|im_end|>`) around the contents of messages. In the contents they can be kept from
meaning anything: each is put between two private characters before the template runs, and what stands between them is
encoded without the tokens that were added to the vocabulary. Way and tokens: transformers' `sanitize_control_tokens`.
"""

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from frontend.errors import bad_request

_Trie = dict[str, "_Trie"]

START, END = "\U000f0000", "\U000f0001"
_ESCAPES = {r"\U000f0000": START, r"\U000f0001": END, r"\udb80\udc00": START, r"\udb80\udc01": END}


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """Of one tokenizer."""

    special: frozenset[str]
    """Always control tokens."""
    others: frozenset[str]
    """Added to the vocabulary, and control tokens where a template writes them."""
    listed: frozenset[str] | None
    """Control tokens beside the special ones by the word of the model's folder, whatever templates write."""

    def pattern(self, literals: str) -> re.Pattern[str]:
        """Finds them. `literals`: what the template writes by itself."""
        if self.listed is not None:
            others = self.others & self.listed
        else:
            others = frozenset(text for text in self.others if text in literals and not text.isspace())
        return re.compile(_any_of(self.special | others))

    def marked(self) -> re.Pattern[str]:
        """Finds a marked token, as its one group, or a mark that a template has parted from its token."""
        return re.compile(f"{START}({_any_of(self.special | self.others)}){END}|[{START}{END}]")


def mark(value: Any, pattern: re.Pattern[str]) -> Any:
    """A JSON value with the control tokens of its texts and names marked."""
    if isinstance(value, str):
        return pattern.sub(f"{START}\\g<0>{END}", unmarked(value))
    if isinstance(value, dict):
        return {mark(name, pattern): mark(entry, pattern) for name, entry in value.items()}
    if isinstance(value, list):
        return [mark(entry, pattern) for entry in value]
    return value


def with_marks(text: str) -> str:
    """A rendered text whose marks a template has written as escapes: JSON in ASCII, or Python's form of an object."""
    for written, character in _ESCAPES.items():
        text = text.replace(written, character)
    return text


def unmarked(text: str) -> str:
    return text.replace(START, "").replace(END, "")


def encode_marked(tokenizer: Tokenizer, split: Sequence[str | None], add_special_tokens: bool) -> list[int]:
    """Token ids of a text that was split at its marks: text and marked token in turn, None for a mark alone, which
    parts two texts. Raises a 400 for a token that the tokenizer makes of plain text too."""
    ids: list[int] = []
    for index, piece in enumerate(split):
        if not piece:
            continue
        if index % 2 == 0:
            ids += _ids_within(partial(_ids, tokenizer), piece) if index else _ids(tokenizer, piece)
            continue
        found = _ids_within(partial(_ids_as_text, tokenizer), piece)
        if tokenizer.token_to_id(piece) in found:
            raise bad_request(
                f"messages must not have {piece!r}: it is a control token, and this model's tokenizer has no other "
                "form of that text.",
                "messages",
            )
        ids += found
    if not add_special_tokens:
        return ids
    around = tokenizer.encode("a", add_special_tokens=True)
    of_text = [index for index, is_special in enumerate(around.special_tokens_mask) if not is_special]
    return [*around.ids[: of_text[0]], *ids, *around.ids[of_text[-1] + 1 :]]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _ids_as_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Without the tokens that were added to the vocabulary."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    words = [text]
    if tokenizer.pre_tokenizer is not None:
        words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in tokenizer.model.tokenize(word)]


def _ids_within(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Of a text that does not stand at a prompt's beginning, where some tokenizers put a space."""
    before, ids = encode("\n"), encode(f"\n{text}")
    return ids[len(before) :] if ids[: len(before)] == before else encode(text)


def _any_of(tokens: Set[str]) -> str:
    """A pattern for the longest token at a place. Tokens that begin alike share their beginning in it: thousands of
    them, tried one by one, would take seconds for a long text."""
    trie: _Trie = {}
    for token in sorted(tokens):
        node = trie
        for character in token:
            node = node.setdefault(character, {})
        node[""] = {}
    return _expression(trie) or "(?!)"


def _expression(node: _Trie) -> str:
    branches = [re.escape(character) + _expression(rest) for character, rest in node.items() if character]
    ends_here = "" in node
    if len(branches) == 1 and not ends_here:
        return branches[0]
    return f"(?:{'|'.join(branches)})" + ("?" if ends_here else "") if branches else ""
