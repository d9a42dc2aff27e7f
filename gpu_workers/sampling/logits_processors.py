"""What changes logits before a token is chosen, one function each, in the order in which they run.

Each gets the logits [N, vocab_size] to change in place, the records of the N sampled rows, the rows, their positions
(tokens before the sampled one), the batch and the device's operations; and returns at once where no row asks for it.
"""

import numpy as np
import torch

from gpu_workers.input_batch import InputBatch
from gpu_workers.operations import HostOperations

LOWEST = torch.finfo(torch.float32).min
"""Instead of -inf where all tokens of a row may be ruled out."""


def add_logit_bias(
    logits: torch.Tensor,
    records: np.ndarray,
    rows: torch.Tensor,
    positions: torch.Tensor,
    batch: InputBatch,
    operations: HostOperations,
) -> None:
    """Adds each row's own numbers to the logits of the tokens it names."""
    for i in np.flatnonzero(records["bias_length"]):
        row, count = int(rows[i]), int(records["bias_length"][i])
        ids = batch.bias_ids[row, :count]
        known = ids < logits.shape[1]  # an id beyond the vocabulary has no logit
        logits[i].index_add_(0, ids[known], batch.bias_values[row, :count][known])


def hold_back_stops(
    logits: torch.Tensor,
    records: np.ndarray,
    rows: torch.Tensor,
    positions: torch.Tensor,
    batch: InputBatch,
    operations: HostOperations,
) -> None:
    """EOS and stop token ids cannot be sampled before `min_tokens` tokens were generated."""
    if not records["stop_length"].any():
        return
    num_outputs = positions.numpy() - records["num_prompt_tokens"]
    for i in np.flatnonzero((records["stop_length"] > 0) & (num_outputs < records["min_tokens"])):
        ids = batch.stop_ids[int(rows[i])]
        logits[i, ids[ids < logits.shape[1]]] = -torch.inf


def apply_penalties(
    logits: torch.Tensor,
    records: np.ndarray,
    rows: torch.Tensor,
    positions: torch.Tensor,
    batch: InputBatch,
    operations: HostOperations,
) -> None:
    """Repetition, presence and frequency penalties from the counts of the rows' slots."""
    index = torch.from_numpy(np.flatnonzero(records["penalty_slot"] >= 0))
    if len(index) == 0:
        return
    rows = rows[index]
    slots = batch.integers("penalty_slot", rows).long()
    penalized = logits[index]
    operations.apply_penalties(
        penalized,
        batch.penalties.prompt_mask[slots],
        batch.penalties.output_counts[slots],
        batch.floats("repetition_penalty", rows),
        batch.floats("presence_penalty", rows),
        batch.floats("frequency_penalty", rows),
    )
    logits[index] = penalized


def keep_allowed(
    logits: torch.Tensor,
    records: np.ndarray,
    rows: torch.Tensor,
    positions: torch.Tensor,
    batch: InputBatch,
    operations: HostOperations,
) -> None:
    """Rules out all tokens but those of a row's list."""
    for i in np.flatnonzero(records["allowed_length"]):
        ids = batch.allowed_ids[int(rows[i])]
        ids = ids[ids < logits.shape[1]]
        kept = logits[i, ids]
        logits[i] = LOWEST
        logits[i, ids] = kept


def follow_sequences(
    logits: torch.Tensor,
    records: np.ndarray,
    rows: torch.Tensor,
    positions: torch.Tensor,
    batch: InputBatch,
    operations: HostOperations,
) -> None:
    """Rules out what would complete a bad word; forces the end of thinking where its budget is used up."""
    for i in np.flatnonzero(records["num_sequences"]):
        sequences = batch.sequences[int(rows[i])]
        ruled_out = [token for token in sequences.ruled_out() if token < logits.shape[1]]
        logits[i, ruled_out] = LOWEST
        forced = sequences.forced()
        if forced is not None:
            logits[i] = LOWEST
            logits[i, forced] = 0.0


PROCESSORS = (add_logit_bias, hold_back_stops, apply_penalties, keep_allowed, follow_sequences)
