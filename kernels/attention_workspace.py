"""What paged attention keeps between calls: tile shapes, the task map's buffers, room for partial results.

Everything has a fixed capacity and a fixed address, so that a CUDA graph captured once stays right whatever a step
holds. A workspace belongs to the layers with one sliding window: they share head counts, and so the task map, which
knows nothing of block tables.

Each step is worked on by two variants of one kernel: "short" rows are those whose queries (query_len · G rows) fit into
one small tile, i.e. decode and small verification; all others are "long" and are cut into q-tiles.

Legend: S = max_num_seqs, T = max_num_tokens, H = KV heads, G = query heads per KV head, D = head_dim.
"""

from dataclasses import dataclass, replace

import torch
import triton

SEGMENT_WORDS = 8
"""int32 words of a segment's record, see kernels/attention_tasks.py."""
PROGRAM_WORDS = 16
"""int32 words of a program's record."""
_PROGRAMS_WITHOUT_GPU = 4
_REGISTERS_PER_SM = 65536


@dataclass(frozen=True, slots=True)
class Tile:
    """How one variant cuts its work; which values are fast is a question for benchmarks/sweep_attention.py."""

    block_m: int  # rows of a q-tile: (token, head of the group) pairs
    block_n: int  # tokens of a KV tile
    num_warps: int
    num_stages: int  # KV tiles in flight, the one in use included
    programs_per_sm: int
    min_units: int = 1  # KV tiles that a program takes at least: less would cost more to combine than to read
    overhead: int = 0  # KV tiles that take as long as beginning and ending a walk over them

    def __post_init__(self) -> None:
        assert self.block_m in (8, 16, 32, 64, 128, 256), f"matrix units take powers of two, not {self.block_m}"
        assert self.block_n in (16, 32, 64, 128, 256), f"matrix units take powers of two from 16 on, not {self.block_n}"

    @property
    def shares(self) -> int:
        """Into how many shares short rows cut a KV tile: one for each warp, of at least the 16 keys that matrix units
        take at once."""
        return min(self.num_warps, self.block_n // 16)

    @property
    def max_registers(self) -> int | None:
        """Per thread, so that all of an SM's programs run at once: one that waits for its turn ruins the balance."""
        registers = _REGISTERS_PER_SM // (self.programs_per_sm * self.num_warps * 32) // 8 * 8
        return registers if registers < 255 else None


# Keyed by D padded to a power of two, at least 64, and the bytes of an element. A stage holds a K and a V tile; an SM
# has 227 KB of shared memory and 64 K registers for its programs. Float32 does without matrix units: small tiles.
SHORT_TILES = {
    (64, 2): Tile(8, 64, 4, 3, 3, min_units=4),
    (128, 2): Tile(8, 32, 2, 3, 4, min_units=4),
    (256, 2): Tile(8, 32, 2, 3, 3, min_units=8),
    (64, 4): Tile(8, 64, 4, 3, 3, min_units=4),
    (128, 4): Tile(8, 32, 4, 3, 3, min_units=8),
    (256, 4): Tile(8, 16, 4, 3, 2, min_units=16),
}
LONG_TILES = {
    (64, 2): Tile(128, 128, 8, 3, 1, overhead=2),
    (128, 2): Tile(128, 64, 8, 3, 1, overhead=4),
    (256, 2): Tile(128, 32, 8, 2, 1, overhead=4),
    (64, 4): Tile(32, 32, 8, 2, 2, overhead=1),
    (128, 4): Tile(32, 32, 8, 2, 1, overhead=1),
    (256, 4): Tile(16, 16, 4, 2, 2, overhead=1),
}
WGMMA_TILES = {
    64: Tile(128, 128, 4, 2, 1, overhead=2),
    128: Tile(128, 128, 4, 2, 1, overhead=2),
    256: Tile(128, 64, 4, 2, 1, overhead=4),
}
"""Of kernels/hopper_attention.py, for the long rows, by head_dim."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the two kernel variants of a workspace with its share of the task map."""

    tile: Tile
    tokens_per_tile: int  # block_m // G
    num_programs: int
    segments: torch.Tensor  # int32 [capacity + 1, SEGMENT_WORDS]; the last one is read ahead and never used
    programs: torch.Tensor  # int32 [num_programs, PROGRAM_WORDS]
    partial_acc: torch.Tensor  # float32 [num_programs, 2, block_m, padded D]
    partial_stats: torch.Tensor  # float32 [num_programs, 2, 2, block_m]: running maximum, sum
    arrivals: torch.Tensor  # int32 [capacity, H]: partials stored so far; all zero between launches


@dataclass(frozen=True, slots=True)
class AttentionWorkspace:
    """The buffers of the layers with one sliding window. Calls that share it run on one stream, one after the other."""

    max_num_seqs: int
    max_num_tokens: int
    num_kv_heads: int
    group_size: int
    head_dim: int
    padded_dim: int  # D as a power of two, at least 16
    sliding_window: int  # tokens that a query sees, itself included; 0: all
    uses_wgmma: bool  # whether kernels/hopper_attention.py works on the long rows
    short: Variant
    long: Variant
    long_seqs: torch.Tensor  # int32 [S], scratch of the task map: which scheduled sequences are long
    first_segment: torch.Tensor  # int32 [S], likewise: segments before each of them
    # Of the keys with which all rows that decode begin; empty where that is never looked at.
    shared_out: torch.Tensor  # float32 [shared tokens, H·G, D]
    shared_lse: torch.Tensor  # float32 [shared tokens, H·G]: logarithms of the sums that it was divided by, to base 2

    @property
    def max_shared_tokens(self) -> int:
        """Of rows that begin with the same blocks; 0: these are read row by row."""
        return len(self.shared_lse)


def make_attention_workspace(
    max_num_seqs: int,
    max_num_tokens: int,
    num_kv_heads: int,
    group_size: int,
    head_dim: int,
    device: torch.device | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    sliding_window: int = 0,
    short_tokens: int = 1,
    short_tile: Tile | None = None,
    long_tile: Tile | None = None,
    use_wgmma: bool = False,
    max_shared_tokens: int = 0,
    num_programs_short: int | None = None,
    num_programs_long: int | None = None,
) -> AttentionWorkspace:
    """Buffers for steps of up to `max_num_seqs` sequences and `max_num_tokens` tokens, padding included.

    `dtype` is the KV cache's. Rows of up to `short_tokens` tokens are short: 1 for decode, more where so many are
    verified at once. `max_shared_tokens`: of steps whose rows' common beginning is attended to once for all; not with a
    sliding window. `use_wgmma` where `kernels.hopper_attention.supports` says so. Tiles and program counts come from
    the tables and the device unless they are given.
    """
    assert num_kv_heads > 0
    assert group_size > 0
    assert head_dim > 0
    assert short_tokens > 0
    assert sliding_window >= 0
    assert not (sliding_window and max_shared_tokens)
    device = torch.device(device)
    padded_dim = max(16, triton.next_power_of_2(head_dim))
    key = (max(64, padded_dim), dtype.itemsize)
    assert key in SHORT_TILES, f"no tile for head_dim {head_dim} in {dtype}"
    short_tile = short_tile or SHORT_TILES[key]
    long_tile = long_tile or (WGMMA_TILES[head_dim] if use_wgmma else LONG_TILES[key])
    # A q-tile holds the heads of at least one token.
    short_rows = triton.next_power_of_2(group_size * short_tokens)
    short_tile = replace(short_tile, block_m=max(short_tile.block_m, short_rows))
    long_tile = replace(long_tile, block_m=max(long_tile.block_m, triton.next_power_of_2(group_size)))
    # Every sequence of the long variant may end in a tile that is not full.
    long_capacity = max_num_tokens // (long_tile.block_m // group_size) + max_num_seqs

    def make_variant(tile: Tile, capacity: int, num_programs: int | None) -> Variant:
        count = num_programs or tile.programs_per_sm * _num_sms(device)
        return Variant(
            tile=tile,
            tokens_per_tile=tile.block_m // group_size,
            num_programs=count,
            segments=torch.zeros(capacity + 1, SEGMENT_WORDS, dtype=torch.int32, device=device),
            programs=torch.zeros(count, PROGRAM_WORDS, dtype=torch.int32, device=device),
            partial_acc=torch.zeros(count, 2, tile.block_m, padded_dim, device=device),
            partial_stats=torch.zeros(count, 2, 2, tile.block_m, device=device),
            arrivals=torch.zeros(capacity, num_kv_heads, dtype=torch.int32, device=device),
        )

    return AttentionWorkspace(
        max_num_seqs=max_num_seqs,
        max_num_tokens=max_num_tokens,
        num_kv_heads=num_kv_heads,
        group_size=group_size,
        head_dim=head_dim,
        padded_dim=padded_dim,
        sliding_window=sliding_window,
        uses_wgmma=use_wgmma,
        short=make_variant(short_tile, max_num_seqs, num_programs_short),
        long=make_variant(long_tile, long_capacity, num_programs_long),
        long_seqs=torch.zeros(max_num_seqs, dtype=torch.int32, device=device),
        first_segment=torch.zeros(max_num_seqs, dtype=torch.int32, device=device),
        shared_out=torch.zeros(max_shared_tokens, num_kv_heads * group_size, head_dim, device=device),
        shared_lse=torch.zeros(max_shared_tokens, num_kv_heads * group_size, device=device),
    )


def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return _PROGRAMS_WITHOUT_GPU
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
