"""What changes logits before a token is chosen, one function each, in the order in which they run.

Each gets the logits [N, vocab_size] to change in place, the records of the N sampled rows, the rows, their positions
(tokens before the sampled one), the batch and the device's operations; and returns at once where no row asks for it.
"""

import numpy as np
import torch

from gpu_workers.input_batch import InputBatch
from gpu_workers.operations import HostOperations


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


PROCESSORS = (add_logit_bias, hold_back_stops, apply_penalties)
