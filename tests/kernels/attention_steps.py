"""Steps for the tests of paged attention: mixed batches over shuffled blocks, padding included."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tests.kernels.device import DEVICE

NUM_LAYERS = 2
PADDED_SEQS = 2
PADDED_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Step:
    """The tensors of one step with two sequences and three tokens of padding at the end."""

    query: torch.Tensor  # [T, H·G, D], a view of rows that hold keys and values as well
    kv_cache: torch.Tensor  # [num_blocks, L, 2, H, B, D]
    rows: torch.Tensor
    block_tables: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    num_tokens: int  # without the padding


def make_indices(batch: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows, query_start_loc, seq_lens) of (seq_len, query_len) pairs, on rows in descending order, padded."""
    num_seqs = len(batch)
    starts = torch.tensor([0, *(query_len for _, query_len in batch), *[0] * PADDED_SEQS]).cumsum(0)
    lens = torch.tensor([*(seq_len for seq_len, _ in batch), *[0] * PADDED_SEQS])
    rows = torch.tensor([*range(num_seqs, 0, -1), *[0] * PADDED_SEQS])
    return rows.int().to(DEVICE), starts.int().to(DEVICE), lens.int().to(DEVICE)


def make_step(
    batch: Sequence[tuple[int, int]],
    heads: int,
    group: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype = torch.float32,
    layer_major: bool = False,
) -> Step:
    """Random contents; what no sequence owns in the cache is NaN, so that using it shows."""
    rows, query_start_loc, seq_lens = make_indices(batch)
    counts = [-(-seq_len // block_size) for seq_len, _ in batch]
    num_blocks = sum(counts) + 3
    shape = (num_blocks, NUM_LAYERS, 2, heads, block_size, head_dim)
    cache = torch.full(shape, torch.nan, dtype=dtype)
    free = torch.randperm(num_blocks).int()
    tables = torch.full((len(batch) + 1, max(counts)), -(2**30), dtype=torch.int32)
    for row, (seq_len, _), count in zip(rows.tolist(), batch, counts, strict=False):
        tables[row, :count], free = free[:count], free[count:]
        for i in range(count):
            used = min(block_size, seq_len - i * block_size)
            cache[tables[row, i], ..., :used, :] = torch.randn(*shape[1:4], used, head_dim).to(dtype)
    if layer_major:
        cache = cache.transpose(0, 1).contiguous().transpose(0, 1)
    num_tokens = int(query_start_loc[-1])
    qkv = torch.randn(num_tokens + PADDED_TOKENS, heads * (group + 2), head_dim).to(dtype).to(DEVICE)
    return Step(
        query=qkv[:, : heads * group],
        kv_cache=cache.to(DEVICE),
        rows=rows,
        block_tables=tables.to(DEVICE),
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        num_tokens=num_tokens,
    )


def share_beginning(step: Step, num_blocks: int) -> torch.Tensor:
    """Lets the first rows, those of one token, begin with the first one's blocks; returns the numbers of keys and of
    rows as the device takes them."""
    query_lens = step.query_start_loc.diff().tolist()
    num_seqs = next(index for index, length in enumerate(query_lens) if length != 1)
    rows = step.rows[:num_seqs].long()
    step.block_tables[rows, :num_blocks] = step.block_tables[rows[0], :num_blocks].clone()
    return torch.tensor([num_blocks * step.kv_cache.shape[4], num_seqs], dtype=torch.int32, device=DEVICE)
