"""From logits to tokens on a GPU: launches what the step's rows need and nothing else.

The order is that of the CPU's sampler (`gpu_workers/sampling/sampler.py`): log-probabilities are those of the raw
logits; then logit bias, penalties and stops held back, then filters and draw. Results go into device memory laid
out like a result's slot.
"""

from dataclasses import dataclass

import torch

from engine_core.ipc.sampling_params import MAX_LOGPROBS
from engine_core.ipc.step import ROW_FIELD_INDEX, StepShape, result_layout
from gpu_workers.cuda.device_rows import BIAS, FILTERS, HELD_BACK, LOGPROBS, PENALTIES, RANDOM, DeviceRows
from kernels.logits_processors import add_logit_bias, apply_penalties, hold_back_stops
from kernels.sample import make_sample_workspace, sample
from kernels.sampling_fields import FieldColumns, SampledRows
from kernels.token_logprobs import token_logprobs

_CHANGES_LOGITS = BIAS | HELD_BACK | PENALTIES


@dataclass(frozen=True, slots=True)
class _DeviceResult:
    """The arrays of a result in device memory; a row of each is a scheduled sequence."""

    num_sampled: torch.Tensor  # int32 [S]
    sampled: torch.Tensor  # int32 [S]
    logprobs: torch.Tensor  # float32 [S]
    ranks: torch.Tensor  # int32 [S]
    top_token_ids: torch.Tensor  # int32 [S, MAX_LOGPROBS]
    top_logprobs: torch.Tensor  # float32 [S, MAX_LOGPROBS]


class DeviceSampler:
    def __init__(self, rows: DeviceRows, shape: StepShape, vocab_size: int, device: torch.device) -> None:
        self._rows = rows
        self._shape = shape
        self._num_top = min(MAX_LOGPROBS, vocab_size)
        self._columns = FieldColumns.from_index(ROW_FIELD_INDEX)
        self._workspace = make_sample_workspace(shape.max_num_seqs, vocab_size, device)
        self._raw = torch.zeros(shape.max_num_seqs, vocab_size, dtype=torch.float32, device=device)
        """Logits as they were, for steps that change them and want log-probabilities."""
        self._scratch = self._views(torch.zeros(result_layout(shape).num_bytes // 4, dtype=torch.int32, device=device))

    def open(self, results: list[torch.Tensor]) -> None:
        """`results`: int32 words laid out like the slots of the result ring, one for each slot."""
        self._results = [self._views(words) for words in results]

    def sample(self, logits: torch.Tensor, needs: int, slot: int) -> None:
        """Chooses the tokens of the step's first N sequences from `logits` float32 [N, V], which may be changed.
        `needs`: what the rows need, as bits. The tokens become the rows' last ones and the slot's result."""
        self._sample(logits, needs, self._results[slot])

    def warm_up(self, logits: torch.Tensor) -> None:
        """Runs every kernel for every number of sequences, on rows that sample nothing."""
        counts = {1 << bit for bit in range(len(logits).bit_length())} | {len(logits)}
        for count in sorted(counts, reverse=True):
            for needs in (0, RANDOM, RANDOM | FILTERS, _CHANGES_LOGITS | LOGPROBS, _CHANGES_LOGITS | RANDOM):
                self._sample(logits[:count], needs, self._scratch)

    def _sample(self, logits: torch.Tensor, needs: int, result: _DeviceResult) -> None:
        num_seqs = len(logits)
        rows, step = self._rows.rows, self._rows.step
        sampled_rows = SampledRows(
            step.rows[:num_seqs], step.samples[:num_seqs], step.seq_lens[:num_seqs], rows.fields, self._columns
        )
        raw = logits
        if needs & LOGPROBS and needs & _CHANGES_LOGITS:
            raw = self._raw[:num_seqs].copy_(logits)
        if needs & BIAS:
            add_logit_bias(logits, sampled_rows, rows.bias_ids, rows.bias_values)
        if needs & PENALTIES:
            apply_penalties(logits, sampled_rows, rows.prompt_mask, rows.output_counts)
        if needs & HELD_BACK:
            hold_back_stops(logits, sampled_rows, rows.stop_ids)
        sample(
            logits,
            sampled_rows,
            self._workspace,
            rows.last_token,
            result.sampled,
            result.num_sampled,
            rows.output_counts if needs & PENALTIES else None,
            any_drawn=bool(needs & RANDOM),
            any_filtered=bool(needs & FILTERS),
        )
        if needs & LOGPROBS:
            logprobs, ranks, top_ids, top_logprobs = token_logprobs(raw, result.sampled[:num_seqs], self._num_top)
            result.logprobs[:num_seqs].copy_(logprobs)
            result.ranks[:num_seqs].copy_(ranks)
            result.top_token_ids[:num_seqs, : self._num_top].copy_(top_ids)
            result.top_logprobs[:num_seqs, : self._num_top].copy_(top_logprobs)

    def _views(self, words: torch.Tensor) -> _DeviceResult:
        """A result's arrays over its int32 words; one token per sequence so far."""
        offsets, num_seqs = result_layout(self._shape).offsets, self._shape.max_num_seqs
        assert self._shape.num_speculative_tokens == 0

        def view(name: str, width: int = 1) -> torch.Tensor:
            start = offsets[name] // 4
            return words[start : start + num_seqs * width]

        return _DeviceResult(
            num_sampled=view("num_sampled"),
            sampled=view("sampled"),
            logprobs=view("logprobs").view(torch.float32),
            ranks=view("ranks"),
            top_token_ids=view("top_token_ids", MAX_LOGPROBS).view(num_seqs, MAX_LOGPROBS),
            top_logprobs=view("top_logprobs", MAX_LOGPROBS).view(torch.float32).view(num_seqs, MAX_LOGPROBS),
        )
