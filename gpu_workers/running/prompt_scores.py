"""Log-probabilities of prompts: a slice of tokens at a time, so that the logits of all never exist at once.

What the slices need beside the hidden states lies in fixed tensors. Results go into device memory laid out like a
result's slot; nothing here waits.
"""

from dataclasses import dataclass

import torch

from engine_core.ipc.sampling_params import MAX_LOGPROBS
from engine_core.ipc.step import SCORE_DTYPE, StepShape, result_layout
from gpu_workers.layers.decoder import CausalLM
from gpu_workers.operations import Operations

_WORDS = SCORE_DTYPE.itemsize // 4


@dataclass(frozen=True, slots=True)
class _Scores:
    """The `scores` of a result on the device. Legend: T = max_num_batched_tokens."""

    logprobs: torch.Tensor  # float32 [T]
    ranks: torch.Tensor  # int32 [T]
    top_token_ids: torch.Tensor  # int32 [T, MAX_LOGPROBS]
    top_logprobs: torch.Tensor  # float32 [T, MAX_LOGPROBS]


class PromptScores:
    def __init__(self, model: CausalLM, shape: StepShape, operations: Operations, logits: torch.Tensor) -> None:
        """`logits` float32 [rows of a slice, V]: room for those of a slice."""
        self._model = model
        self._operations = operations
        self._logits = logits
        self._first_word = result_layout(shape).offsets["scores"] // 4
        self._num_tokens = shape.max_num_batched_tokens
        self._num_top = min(MAX_LOGPROBS, logits.shape[1])
        words = torch.zeros(self._num_tokens * _WORDS, dtype=torch.int32, device=logits.device)
        self._scratch = self._views(words)

    def open(self, results: list[torch.Tensor]) -> None:
        """`results`: int32 words laid out like the slots of the result ring, one for each slot."""
        self._results = [self._views(words[self._first_word :]) for words in results]

    def end_word(self, num_scored: int) -> int:
        """Where the scores of so many tokens end in a slot."""
        return self._first_word + num_scored * _WORDS

    def write(self, hidden: torch.Tensor, token_ids: torch.Tensor, slot: int | None) -> None:
        """Finds how likely `token_ids` (int32 [n]) are behind the states `hidden` [n, hidden_size], for the result of
        `slot`; without one for nobody (a warm-up)."""
        scores = self._scratch if slot is None else self._results[slot]
        for start in range(0, len(hidden), len(self._logits)):
            part = slice(start, min(start + len(self._logits), len(hidden)))
            logits = self._model.logits(hidden[part], self._logits[: part.stop - start])
            logprobs, ranks, top_ids, top_logprobs = self._operations.token_logprobs(
                logits, token_ids[part], self._num_top
            )
            scores.logprobs[part].copy_(logprobs)
            scores.ranks[part].copy_(ranks)
            scores.top_token_ids[part, : self._num_top].copy_(top_ids)
            scores.top_logprobs[part, : self._num_top].copy_(top_logprobs)

    def _views(self, words: torch.Tensor) -> _Scores:
        integers = words[: self._num_tokens * _WORDS].view(self._num_tokens, _WORDS)
        floats = integers.view(torch.float32)
        # In the order of the record: two numbers, ids, log-probabilities.
        tops = slice(2, 2 + MAX_LOGPROBS), slice(2 + MAX_LOGPROBS, 2 + 2 * MAX_LOGPROBS)
        return _Scores(floats[:, 0], integers[:, 1], integers[:, tops[0]], floats[:, tops[1]])
