"""From logits to tokens: launches what the step's rows need and nothing else.

The order is vLLM's default: log-probabilities are those of the raw logits (before bias, penalties and temperature);
then comes what changes logits, in the order of the schema's needs, and what a grammar allows; for rows that are not
greedy then what chooses among the tokens that are left, temperature, min-p, top-k, top-p, the draw. Results go into
device memory that is laid out like a result's slot.
"""

from dataclasses import dataclass

import torch

from engine_core.ipc.row_fields import ROW_FIELD_INDEX
from engine_core.ipc.sampling_params import FILTERS, LOGPROBS, MAX_LOGPROBS, NEEDS, OF_DRAWN_ROWS, RANDOM
from engine_core.ipc.step import StepShape, result_layout
from gpu_workers.operations import Operations
from gpu_workers.running.rows import Rows
from kernels.step_tensors import SampledRows

Masks = tuple[torch.Tensor, torch.Tensor]
"""The scheduled rows int32 [M] that a grammar binds, and what it allows, int32 [M, W]."""


@dataclass(frozen=True, slots=True)
class _Result:
    """The arrays of a result on the device; a row of each is a scheduled sequence."""

    num_sampled: torch.Tensor  # int32 [S]
    sampled: torch.Tensor  # int32 [S]
    logprobs: torch.Tensor  # float32 [S]
    ranks: torch.Tensor  # int32 [S]
    top_token_ids: torch.Tensor  # int32 [S, MAX_LOGPROBS]
    top_logprobs: torch.Tensor  # float32 [S, MAX_LOGPROBS]


class Sampler:
    def __init__(
        self, rows: Rows, shape: StepShape, operations: Operations, logits: torch.Tensor, raw: torch.Tensor
    ) -> None:
        """`logits` float32 [S, V]: where those of every step are. `raw` float32 [S or more, V]: room for them as they
        were, for steps that change them and want log-probabilities."""
        vocab_size, device = logits.shape[1], logits.device
        self._rows = rows
        self._operations = operations
        processors = operations.PROCESSORS
        self._processors = [(need, processors[name]) for name, need in NEEDS.items() if name in processors]
        self._changes_logits = sum(need for need, _ in self._processors)
        self._shape = shape
        self._num_top = min(MAX_LOGPROBS, vocab_size)
        step = rows.step
        self._all_rows = SampledRows(step.rows, step.samples, step.seq_lens, rows.rows.fields, ROW_FIELD_INDEX)
        self._logits = logits
        self._tokens = operations.TokenSampler(logits, self._all_rows, rows.rows.last_token, rows.rows.output_counts)
        self._raw = raw
        num_words = result_layout(shape).offsets["scores"] // 4
        self._scratch = self._views(torch.zeros(num_words, dtype=torch.int32, device=device))

    def open(self, results: list[torch.Tensor]) -> None:
        """`results`: int32 words laid out like the slots of the result ring, one for each slot."""
        self._results = [self._views(words) for words in results]

    def sample(self, num_seqs: int, needs: int, slot: int, masks: Masks | None = None) -> None:
        """Chooses the tokens of the step's first `num_seqs` sequences from their logits, which may be changed.
        `needs`: what the rows need, as bits. The tokens become the rows' last ones and the slot's result."""
        self._sample(num_seqs, needs, self._results[slot], masks)

    def warm_up(self) -> None:
        """Runs every kernel for every number of sequences, on rows that sample nothing."""
        capacity, changes = len(self._logits), self._changes_logits
        counts = {1 << bit for bit in range(capacity.bit_length())} | {capacity}
        for count in sorted(counts, reverse=True):
            for needs in (0, RANDOM, RANDOM | FILTERS, changes | LOGPROBS, changes | RANDOM):
                self._sample(count, needs, self._scratch)
        words = torch.full((1, self._shape.num_mask_words), -1, dtype=torch.int32, device=self._logits.device)
        self._sample(1, 0, self._scratch, (torch.zeros_like(words[0, :1]), words))

    def _sample(self, num_seqs: int, needs: int, result: _Result, masks: Masks | None = None) -> None:
        raw = self._logits
        if needs & self._changes_logits or masks is not None:
            if needs & LOGPROBS:
                raw = self._raw
                raw[:num_seqs].copy_(self._logits[:num_seqs])
            self._process(num_seqs, needs & ~OF_DRAWN_ROWS)
            if masks is not None:
                self._operations.apply_token_masks(self._logits[:num_seqs], *masks)
            self._process(num_seqs, needs & OF_DRAWN_ROWS)
        self._tokens.sample(
            num_seqs,
            result.sampled,
            result.num_sampled,
            any_drawn=bool(needs & RANDOM),
            any_filtered=bool(needs & FILTERS),
        )
        if needs & LOGPROBS:
            logprobs, ranks, top_ids, top_logprobs = self._operations.token_logprobs(
                raw[:num_seqs], result.sampled[:num_seqs], self._num_top
            )
            result.logprobs[:num_seqs].copy_(logprobs)
            result.ranks[:num_seqs].copy_(ranks)
            result.top_token_ids[:num_seqs, : self._num_top].copy_(top_ids)
            result.top_logprobs[:num_seqs, : self._num_top].copy_(top_logprobs)

    def _process(self, num_seqs: int, needs: int) -> None:
        logits, step = self._logits[:num_seqs], self._all_rows.first(num_seqs)
        for need, process in self._processors:
            if needs & need:
                process(logits, step, self._rows.rows)

    def _views(self, words: torch.Tensor) -> _Result:
        """A result's arrays over its int32 words; one token per sequence so far."""
        offsets, num_seqs = result_layout(self._shape).offsets, self._shape.max_num_seqs
        assert self._shape.num_speculative_tokens == 0

        def view(name: str, width: int = 1) -> torch.Tensor:
            start = offsets[name] // 4
            return words[start : start + num_seqs * width]

        return _Result(
            num_sampled=view("num_sampled"),
            sampled=view("sampled"),
            logprobs=view("logprobs").view(torch.float32),
            ranks=view("ranks"),
            top_token_ids=view("top_token_ids", MAX_LOGPROBS).view(num_seqs, MAX_LOGPROBS),
            top_logprobs=view("top_logprobs", MAX_LOGPROBS).view(torch.float32).view(num_seqs, MAX_LOGPROBS),
        )
