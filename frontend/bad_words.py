"""Words that an answer must not have, as sequences of tokens."""

from collections.abc import Iterable, Sequence

from engine_core.ipc.sampling_params import MAX_BAD_WORDS, MAX_SEQUENCE_TOKENS
from frontend.tokenizer import TextTokenizer

MAX_WORD_CHARS = 1024


def bad_word_sequences(words: Iterable[str], tokenizer: TextTokenizer) -> list[list[int]]:
    """Each word as it is written at a text's beginning, and as it is within one where a space before it is part of its
    first token (as vLLM has it). Raises `ValueError`."""
    sequences: list[list[int]] = []
    for word in words:
        text = word.lstrip()
        if not 1 <= len(text) <= MAX_WORD_CHARS:
            raise ValueError(f"bad_words must have 1 to {MAX_WORD_CHARS} characters each, beside spaces before them.")
        plain = tokenizer.encode(text, add_special_tokens=False)
        spaced = tokenizer.encode(f" {text}", add_special_tokens=False)
        sequences.append(plain)
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            sequences.append(spaced)
        _check(sequences[-1], text)
        if len(sequences) > MAX_BAD_WORDS:
            raise ValueError(f"bad_words must be at most {MAX_BAD_WORDS}; with a space before, a word may count twice.")
    return sequences


def _check(sequence: Sequence[int], text: str) -> None:
    if not 1 <= len(sequence) <= MAX_SEQUENCE_TOKENS:
        raise ValueError(
            f"bad_words must have at most {MAX_SEQUENCE_TOKENS} tokens each; {text[:64]!r} has {len(sequence)}."
        )
