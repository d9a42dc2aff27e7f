"""The model's vocabulary as llguidance needs it, and what one grammar may cost."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_MAX_LEXER_STATES = 20_000
"""Of one grammar, shared by all its matchers; 1 to 2 KB each."""
_IN_STRINGS = r'[^"\\\x00-\x1F\x7F]'
_SLICES = [r"[\x20\x0A\x0D\x09]+", *(f"{_IN_STRINGS}{{1,{length}}}" for length in (3, 5, 10, 30)), f"{_IN_STRINGS}+"]
"""Sets of tokens that llguidance allows at once where a grammar takes all strings of the kind: blanks, and what may
stand in a JSON string. Its own have lengths of 10 and 30; short ones halve the time of strings with a maxLength, whose
last characters leave no room for 10."""


def error_of(matcher: LLMatcher) -> str | None:
    """What is wrong with a grammar, in one line; None: nothing."""
    if not matcher.is_error():
        return None
    message, _, _ = matcher.get_error().partition("\n   1 |")  # the grammar's text is not what the user wrote
    return " ".join(message.replace("<non-verbose/>", "").split())


class VocabularyError(ValueError):
    """The model's tokenizer cannot be used for grammars; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    tokenizer: LLTokenizer
    size: int
    eos_token_ids: tuple[int, ...]

    @classmethod
    def load(cls, folder: str, size: int, eos_token_ids: tuple[int, ...]) -> "Vocabulary":
        """From the tokenizer.json in `folder`. Raises `VocabularyError`."""
        if not eos_token_ids:
            raise VocabularyError("Grammars need a model with an end-of-sequence token.")
        try:
            text = _read_tokenizer(Path(folder) / "tokenizer.json")
            tokenizer = LLTokenizer(text, n_vocab=size, eos_token=list(eos_token_ids), slices=_SLICES)
        except (OSError, ValueError) as error:
            raise VocabularyError(f"Grammars need a tokenizer.json that llguidance can read: {error}.") from error
        return cls(tokenizer, size, eos_token_ids)

    def compile(self, grammar: str) -> LLMatcher:
        """A matcher at the beginning of its output. Whether the grammar is any good `get_error` says."""
        limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            # The first mask is part of the cost, and some grammars fail only here.
            matcher.compute_bitmask()
        return matcher


def _read_tokenizer(path: Path) -> str:
    """tokenizer.json without what cuts or fills up texts: that was meant for training, and llguidance would do it to
    the texts that a grammar forces."""
    parts = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    parts |= dict.fromkeys(("truncation", "padding"), msgspec.Raw(b"null"))
    return msgspec.json.encode(parts).decode()
