"""What attention on a CPU needs in all layers of a step, worked out once: which rows of the cache to write and gather.

Legend and the cache's layout as in `kernels/cpu/attention.py`.
"""

from dataclasses import dataclass

import torch

GATHER_BYTES = 4 * 2**20
"""Decode rows are gathered in groups of about this size: they stay in the processor's cache until they are used."""
_MIN_FILL = 0.5
"""A group's shortest row has at least this share of its longest one's blocks; the rest would be padding."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Scheduled rows with one query token each, whose KV is gathered together and padded to the longest."""

    gather_rows: torch.Tensor  # [L, 2 * n * H * num_blocks], into the cache as [num_blocks * L * 2 * H, B * D]
    bias: torch.Tensor  # [n * H, 1, num_blocks * B]: 0, and -inf beyond the row's length and behind its window
    lens: torch.Tensor  # [n, 1]: keys of each row
    num_rows: int


@dataclass(frozen=True, slots=True)
class PrefillSeq:
    """One scheduled row with several query tokens."""

    start: int
    end: int
    num_keys: int
    """Of the blocks that are gathered: all tokens, or those from the first block that the window reaches."""
    gather_rows: torch.Tensor  # [L, 2 * H * num_blocks]
    mask: torch.Tensor | None  # [query_len, num_keys] of 0 and -inf; None: purely causal, nothing before the chunk


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What attention needs in every layer of one step, worked out once: the CPU's counterpart of a GPU's task map."""

    num_tokens: int
    """Without padding."""
    write_rows: torch.Tensor  # [L, 2, T * H], into the cache as [num_blocks * L * 2 * H * B, D]
    decode_tokens: torch.Tensor  # tokens of all decode rows, one group after the other
    decode: list[DecodeGroup]
    prefill: list[PrefillSeq]


def plan_attention(
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    slot_mapping: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    sliding_window: int = 0,
) -> AttentionPlan:
    """Plans a step over rows with `block_tables` [num_seqs, max_blocks], `query_start_loc` [num_seqs + 1] and
    `seq_lens` [num_seqs], this step's tokens included. Token t is written to slot_mapping[t] = block * B + offset,
    padding (-1) nowhere. A query sees `sliding_window` tokens, itself included (0: all); table entries of blocks that
    nobody sees are not looked at."""
    num_layers, _, num_heads, block_size, head_dim = kv_cache.shape[1:]
    layers = torch.arange(num_layers)[:, None, None]  # [L, 1, 1]
    starts, lens = query_start_loc.tolist(), seq_lens.tolist()
    firsts = [0] * len(lens)  # the block with the first token that any of the row's queries sees
    if sliding_window:
        firsts = [
            max(0, seq_len - (starts[i + 1] - starts[i]) - sliding_window + 1) // block_size
            for i, seq_len in enumerate(lens)
        ]
    lens = [seq_len - first * block_size for seq_len, first in zip(lens, firsts, strict=True)]  # from there on
    cap = max(1, GATHER_BYTES // (2 * num_heads * block_size * head_dim * kv_cache.element_size()))
    groups = group_rows([i for i in range(len(lens)) if starts[i + 1] - starts[i] == 1], lens, block_size, cap)
    decode_tokens = torch.tensor([starts[i] for group in groups for i in group], dtype=torch.long)
    decode = [_plan_group(group, lens, firsts, block_tables, kv_cache, sliding_window) for group in groups]
    prefill = []
    for i, num_keys in enumerate(lens):
        start, end = starts[i], starts[i + 1]
        if end - start > 1:
            blocks = block_tables[i : i + 1, firsts[i] : firsts[i] - (-num_keys // block_size)].long()
            mask = None
            if end - start < num_keys or 0 < sliding_window < num_keys:
                positions = torch.arange(num_keys - (end - start), num_keys)
                mask = causal_bias(positions, num_keys, kv_cache.dtype, sliding_window)
            prefill.append(PrefillSeq(start, end, num_keys, _gather_rows(blocks, num_layers, num_heads), mask))

    num_tokens = starts[-1]  # padding comes behind them
    slot_mapping = slot_mapping[:num_tokens].long()
    block, offset = slot_mapping // block_size, slot_mapping % block_size
    heads = torch.arange(num_heads) * block_size
    first = (block * (num_layers * 2 * num_heads * block_size) + offset)[:, None] + heads  # [T, H]
    key_or_value = torch.arange(2)[None, :, None]
    write_rows = first.flatten() + (layers * 2 + key_or_value) * (num_heads * block_size)
    return AttentionPlan(num_tokens, write_rows, decode_tokens, decode, prefill)


def group_rows(rows: list[int], lens: list[int], block_size: int, cap: int) -> list[list[int]]:
    """Rows of similar length together, at most `cap` gathered blocks (padding included) in a group."""
    groups: list[list[int]] = []
    longest = 0
    for i in sorted(rows, key=lambda i: -lens[i]):
        blocks = -(-lens[i] // block_size)
        if groups and (len(groups[-1]) + 1) * longest <= cap and blocks >= _MIN_FILL * longest:
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = blocks
    return groups


def _plan_group(
    group: list[int],
    lens: list[int],
    firsts: list[int],
    block_tables: torch.Tensor,
    kv_cache: torch.Tensor,
    sliding_window: int,
) -> DecodeGroup:
    """`lens` counts from the beginning of the block number `firsts` of each row."""
    num_layers, _, num_heads, block_size, _ = kv_cache.shape[1:]
    group_lens = torch.tensor([lens[i] for i in group])[:, None]
    first = torch.tensor([firsts[i] for i in group])[:, None]
    num_blocks = -(-lens[group[0]] // block_size)
    # Padding repeats the row's last block: what another request keeps in its blocks is never read for this one.
    columns = first + torch.arange(num_blocks).minimum((group_lens - 1) // block_size)
    blocks = block_tables[torch.tensor(group)].long().gather(1, columns)  # [n, num_blocks]
    keys = torch.arange(num_blocks * block_size)
    hidden = keys >= group_lens
    if sliding_window:
        hidden |= keys < group_lens - sliding_window
    bias = torch.zeros(len(group), num_blocks * block_size, dtype=kv_cache.dtype)
    bias.masked_fill_(hidden, -torch.inf)
    return DecodeGroup(
        gather_rows=_gather_rows(blocks, num_layers, num_heads),
        bias=bias.repeat_interleave(num_heads, dim=0)[:, None],
        lens=group_lens,
        num_rows=len(group),
    )


def _gather_rows(blocks: torch.Tensor, num_layers: int, num_heads: int) -> torch.Tensor:
    """Rows of the cache as [num_blocks * L * 2 * H, B * D] that hold keys, then values of `blocks` [n, b], in the order
    [2, n, H, b], for each layer: [L, 2 * n * H * b]."""
    per_layer = 2 * num_heads
    first = blocks[None, :, None, :] * (num_layers * per_layer) + torch.arange(per_layer).view(2, 1, num_heads, 1)
    return first.flatten() + torch.arange(num_layers)[:, None] * per_layer


def causal_bias(positions: torch.Tensor, num_keys: int, dtype: torch.dtype, sliding_window: int) -> torch.Tensor:
    """[query_len, num_keys]: 0 up to each query's own position and from its window's first on, else -inf."""
    keys, own = torch.arange(num_keys), positions[:, None]
    hidden = keys > own
    if sliding_window:
        hidden |= keys <= own - sliding_window
    return torch.zeros(len(positions), num_keys, dtype=dtype).masked_fill_(hidden, -torch.inf)


class Workspace:
    """Memory for gathered KV that lives on: fresh memory of this size costs more in page faults than the gather."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def take(self, num_rows: int, row_size: int, dtype: torch.dtype) -> torch.Tensor:
        """[num_rows, row_size], undefined content, valid until the next call."""
        size = num_rows * row_size
        if self._buffer.numel() < size or self._buffer.dtype != dtype:
            self._buffer = torch.empty(size, dtype=dtype)
        return self._buffer[:size].view(num_rows, row_size)
