"""How a program that uses `LLM` says what answers it wants."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from engine_core.ipc.sampling_params import SamplingParams as EngineSamplingParams
from frontend.bad_words import bad_word_sequences
from frontend.beams.search import BeamParams, EarlyStopping
from frontend.grammars.request_grammar import grammar_text
from frontend.grammars.structured_outputs import StructuredOutputs
from frontend.protocol.common import MAX_CHOICES
from frontend.stop_strings import check_stop_strings
from frontend.tokenizer import TextTokenizer

_TEXT_FIELDS = ("n", "stop", "include_stop_str_in_output", "skip_special_tokens", "bad_words", "structured_outputs")


class SamplingParams(EngineSamplingParams, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a prompt is answered: the engine's parameters and those that are about text."""

    n: int = 1
    """Answers per prompt."""
    stop: str | Sequence[str] = ()
    """Strings that end an answer; they are not part of it."""
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    bad_words: Sequence[str] = ()
    """Words that an answer must not have."""
    structured_outputs: StructuredOutputs | None = None
    """What an answer has to be: a JSON schema, a regular expression, a choice, a grammar."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n <= MAX_CHOICES:
            raise ValueError(f"n must be from 1 to {MAX_CHOICES}, not {self.n}.")
        check_stop_strings(self.stop_strings)

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    def for_engine(self, tokenizer: TextTokenizer) -> dict[str, Any]:
        """The fields that travel to the engine. Raises `ValueError` for bad words that are too many or
        too long, and for a structure that cannot be had."""
        fields = msgspec.to_builtins(self)
        fields = {name: value for name, value in fields.items() if name not in _TEXT_FIELDS}
        if self.bad_words:
            words = [*self.bad_words_token_ids, *bad_word_sequences(self.bad_words, tokenizer)]
            fields["bad_words_token_ids"] = words
        if self.structured_outputs is not None:
            fields["grammar"] = grammar_text(self.structured_outputs, tokenizer.grammar_token_id)
        return fields


@dataclass(frozen=True, slots=True)
class BeamSearchParams:
    """How `LLM.beam_search` searches; `BeamParams` says what the numbers mean."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    def for_search(self, eos_token_ids: tuple[int, ...]) -> BeamParams:
        return BeamParams(self.beam_width, self.max_tokens, eos_token_ids, self.length_penalty, self.early_stopping)
