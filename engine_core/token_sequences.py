"""What a row has to know of the tokens behind which something must not, or must, be sampled; in the form of a plan."""

from collections.abc import Sequence

import numpy as np

from engine_core.ipc.sampling_params import MAX_SEQUENCE_TOKENS, SamplingParams
from engine_core.ipc.step import THINKING_ENDED, THINKING_NOT_BEGUN


def sequence_words(sampling: SamplingParams, tokens: np.ndarray, num_prompt_tokens: int) -> np.ndarray:
    """The bulk words of a row that uses sequences: they themselves, then the end of its output so far."""
    sequences = [sampling.thinking_start_token_ids, sampling.thinking_end_token_ids, *sampling.bad_words_token_ids]
    words = np.full((len(sequences) + 1, MAX_SEQUENCE_TOKENS), -1, np.int32)
    for line, sequence in zip(words, sequences, strict=False):
        line[: len(sequence)] = sequence[::-1]
    positions = np.arange(max(num_prompt_tokens, len(tokens) - MAX_SEQUENCE_TOKENS), len(tokens))
    words[-1, positions % MAX_SEQUENCE_TOKENS] = tokens[positions]
    return words.reshape(-1)


def num_sequence_words(sampling: SamplingParams) -> int:
    """How many those are."""
    return (3 + len(sampling.bad_words_token_ids)) * MAX_SEQUENCE_TOKENS if sampling.uses_sequences else 0


def thinking_begin(output: Sequence[int], start: list[int], end: list[int]) -> int:
    """How many tokens of an output so far come before its thinking, or that this has not begun or has ended."""
    begin = THINKING_NOT_BEGUN if start else 0
    for count in range(1, len(output) + 1):
        if begin == THINKING_NOT_BEGUN:
            if list(output[max(0, count - len(start)) : count]) == start:
                begin = count
        elif count - begin >= len(end) and list(output[count - len(end) : count]) == end:
            return THINKING_ENDED
    return begin
