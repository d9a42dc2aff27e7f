"""From logits to tokens: log-probabilities, logits processors, filters, the draw.

The order is vLLM's default: log-probabilities are those of the raw logits (before bias, penalties and temperature);
then logit bias and min_tokens, penalties, allowed tokens, bad words, the end of thinking and what a grammar allows, and
for rows that are not greedy temperature, min-p, top-k, top-p, the draw. Whether an operation runs at all is decided on
the host from the rows' records.
"""

from dataclasses import dataclass

import numpy as np
import torch

from gpu_workers.input_batch import InputBatch
from gpu_workers.operations import HostOperations
from gpu_workers.sampling.logits_processors import PROCESSORS


@dataclass(frozen=True, slots=True)
class Logprobs:
    """For the sampled rows `index` [n] that want log-probabilities."""

    index: torch.Tensor
    sampled: torch.Tensor  # [n]
    ranks: torch.Tensor  # [n]
    top_token_ids: torch.Tensor  # [n, num_top]
    top_logprobs: torch.Tensor  # [n, num_top]


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """What grammars allow in the sampled rows `index` [n]."""

    index: torch.Tensor
    bits: torch.Tensor  # int32 [n, W]


@dataclass(frozen=True, slots=True)
class SamplerOutput:
    token_ids: torch.Tensor  # [N]
    logprobs: Logprobs | None


class Sampler:
    def __init__(self, batch: InputBatch, operations: HostOperations) -> None:
        self._batch = batch
        self._operations = operations

    def sample(
        self, logits: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, masks: TokenMasks | None = None
    ) -> SamplerOutput:
        """One token for each of `rows` [N] from `logits` [N, vocab_size], which are changed. A position is the number
        of tokens before the sampled one. The tokens become the rows' last ones."""
        records = self._batch.records[rows.numpy()]
        logits = self._operations.make_finite(logits)
        wants_logprobs = torch.from_numpy(np.flatnonzero(records["num_logprobs"] >= 0))
        raw = logits[wants_logprobs] if len(wants_logprobs) else None
        for process in PROCESSORS:
            process(logits, records, rows, positions, self._batch, self._operations)
        if masks is not None:  # last: nothing else may bring back what a grammar rules out
            self._operations.apply_token_masks(logits, masks.index, masks.bits)
        token_ids = self._choose(logits, records, rows, positions)
        self._remember(records, rows, token_ids)
        if raw is None:
            return SamplerOutput(token_ids, None)
        num_top = min(int(records["num_logprobs"].max()), logits.shape[1])
        tops = self._operations.token_logprobs(raw, token_ids[wants_logprobs], num_top)
        return SamplerOutput(token_ids, Logprobs(wants_logprobs, *tops))

    def _choose(
        self, logits: torch.Tensor, records: np.ndarray, rows: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Greedy where the temperature is 0, and where top_k is 1 so that equal logits do not make that a lottery."""
        drawn = np.flatnonzero((records["temperature"] > 0) & (records["top_k"] != 1))
        if len(drawn) == 0:
            return self._operations.greedy(logits)
        index = torch.from_numpy(drawn)
        batch, rows, records = self._batch, rows[index], records[drawn]
        # Far from 0 a tiny temperature would overflow; relative to the row's largest logit it only rules others out.
        chosen = logits[index]
        scaled = (chosen - chosen.amax(dim=-1, keepdim=True)) / batch.floats("temperature", rows)[:, None]
        threshold = self._operations.filter_thresholds(
            scaled, batch.integers("top_k", rows), batch.floats("top_p", rows), batch.floats("min_p", rows)
        )
        keys = self._operations.row_keys(
            records["seed_low"], records["seed_high"], records["sample_index"], positions[index].numpy()
        )
        samples = self._operations.sample_gumbel(scaled, threshold, keys)
        if len(drawn) == len(logits):
            return samples
        token_ids = self._operations.greedy(logits)
        token_ids[index] = samples
        return token_ids

    def _remember(self, records: np.ndarray, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
        self._batch.last_token[rows] = token_ids
        for i in np.flatnonzero(records["num_sequences"]):
            self._batch.sequences[int(rows[i])].sampled(int(token_ids[i]))
        counted = np.flatnonzero(records["penalty_slot"] >= 0)
        if len(counted):
            index = torch.from_numpy(counted)
            slots = self._batch.integers("penalty_slot", rows[index]).long()
            self._batch.penalties.count(slots, token_ids[index])
