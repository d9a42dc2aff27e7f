"""Plain PyTorch versions of what happens to the rows around a forward pass: deltas applied, a step's inputs built.

Legend: S = rows, N = scheduled rows, T = tokens of the step.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's tokens, one scheduled row after the other."""

    input_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    slot_mapping: torch.Tensor  # [num_groups, T]: block * block_size + offset
    query_start_loc: torch.Tensor  # [N + 1]
    seq_lens: torch.Tensor  # [N], this step's tokens included
    block_tables: torch.Tensor  # [num_groups, N, blocks of the longest row]


def apply_block_deltas(block_tables: torch.Tensor, deltas: torch.Tensor) -> None:
    """Writes (group, row, index, block id) entries [num_deltas, 4] into `block_tables` [num_groups, S, max_blocks]."""
    group, row, index, block = deltas.long().unbind(1)
    block_tables[group, row, index] = block.to(block_tables.dtype)


def prepare_inputs(
    rows: torch.Tensor,
    num_query_tokens: torch.Tensor,
    num_given: torch.Tensor,
    token_ids: torch.Tensor,
    last_token: torch.Tensor,
    num_computed_tokens: torch.Tensor,
    block_tables: torch.Tensor,
    block_size: int,
) -> StepInputs:
    """Builds the inputs of scheduled `rows` [N], advances their counters `num_computed_tokens` [S], and makes the last
    input of each the row's last token.

    A row runs `num_query_tokens` [N] tokens; the last `num_given` of them stand in `token_ids`, one row after the
    other, and the one that may be missing before them is the row's `last_token` [S]. `block_tables` are
    [num_groups, S, max_blocks].
    """
    num_seqs = len(rows)
    query_start_loc = torch.zeros(num_seqs + 1, dtype=torch.long)
    torch.cumsum(num_query_tokens, 0, out=query_start_loc[1:])
    starts = query_start_loc[:-1]
    num_tokens = int(query_start_loc[-1])
    seq_index = torch.repeat_interleave(num_query_tokens, output_size=num_tokens)  # [T]
    computed = num_computed_tokens[rows]  # [N]
    positions = torch.arange(num_tokens) + (computed - starts)[seq_index]

    fed_back = num_given < num_query_tokens
    if bool(fed_back.any()):
        input_ids = torch.empty(num_tokens, dtype=torch.long)
        is_given = torch.ones(num_tokens, dtype=torch.bool)
        is_given[starts[fed_back]] = False
        input_ids[is_given] = token_ids
        input_ids[starts[fed_back]] = last_token[rows[fed_back]]
    else:
        input_ids = token_ids

    seq_lens = computed + num_query_tokens
    num_computed_tokens[rows] = seq_lens
    last_token[rows] = input_ids[query_start_loc[1:] - 1]
    tables = block_tables[:, :, : -(-int(seq_lens.max()) // block_size)][:, rows]  # as wide as the longest row needs
    blocks = tables[:, seq_index, positions // block_size].long()
    return StepInputs(
        input_ids, positions, blocks * block_size + positions % block_size, query_start_loc, seq_lens, tables
    )
