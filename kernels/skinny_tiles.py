"""Which products kernels/skinny_linear.py takes from cuBLAS, how it cuts them, and the memory that it keeps for that.

A memory-bound kernel that lasts 5 to 50 µs wins or loses at its ends. Two rules follow: all programs should be on the
chip at once (a second, partly filled wave of them reads with a fraction of the chip), and all should have the same
work. The split of K is what fills the chip where the weight has too few rows for that. Values are for Hopper (132 SMs,
227 KB of shared memory and 64 K registers each) and bf16 or fp16; benchmarks/sweep_linear.py measures them. Measured:
see docs/log.md.

Legend: M = rows of x, N = rows of the weight (output features), K = input features.
"""

import functools
from dataclasses import dataclass

import torch
import triton

MAX_ROWS = 32
"""Above, cuBLAS: its larger tiles read x less often."""
MAX_VECTOR_ROWS = 4
"""Up to so many, the plain units multiply."""
MAX_SPLIT_ROWS = 8
"""The same where K is split: with more rows the partial sums cost more than cuBLAS' do."""
ALIGNMENT = 16
"""Elements that K must be a multiple of: rows of the weight are then read in aligned pieces of 16 bytes."""
_NUM_SMS = 132
_PROGRAMS_PER_SM = 3
"""Of the matrix kernel's 64-row tiles: three times three stages fill an SM's shared memory."""
_SLOTS = _NUM_SMS * _PROGRAMS_PER_SM
_BLOCK_N, _BLOCK_K = 64, 128
_WIDE_BLOCK_N = 128
"""For weights whose tiles of 64 rows would not be on the chip at once; such tiles are never split."""
_MIN_STEPS = 2
"""Tiles along K that a part has at least: less takes longer to sum up than to read."""


@dataclass(frozen=True, slots=True)
class SkinnyTile:
    """How a product is cut; sizes are powers of two."""

    block_m: int  # rows of x at most; up to 4: the vector kernel, else the matrix units, which take 8 and more
    block_n: int  # rows of the weight that a program multiplies
    block_k: int  # elements of each of them that it reads at a time
    num_warps: int
    num_stages: int  # tiles along K in flight, the one in use included; 1 in the vector kernel: straight to registers
    split: int = 1  # programs that share a tile, each with a part of K; the vector kernel splits nothing

    @property
    def is_vector(self) -> bool:
        """Whether the plain units multiply, and not the matrix units."""
        return self.block_m <= MAX_VECTOR_ROWS

    def num_tiles(self, num_out: int) -> int:
        """Tiles of a weight with `num_out` rows."""
        return -(-num_out // self.block_n)

    def num_partials(self, num_out: int) -> int:
        """Float32 elements of partial sums."""
        return 0 if self.split == 1 else self.num_tiles(num_out) * self.split * self.block_n * self.block_m


@dataclass(frozen=True, slots=True)
class SkinnyWorkspace:
    """What products with a split K share: they run on one stream, one after the other. One that starts early touches
    this only when those before it have ended (kernels/programmatic.py)."""

    partials: torch.Tensor  # float32 [elements]
    arrivals: torch.Tensor  # int32 [tiles]: parts stored so far; all zero between launches


def make_skinny_workspace(device: torch.device | str) -> SkinnyWorkspace:
    """Room for every tile of `choose`: 0.8 MB."""
    return SkinnyWorkspace(
        partials=torch.zeros(_SLOTS * _BLOCK_N * MAX_SPLIT_ROWS, device=device),
        arrivals=torch.zeros(_SLOTS, dtype=torch.int32, device=device),
    )


def choose(num_rows: int, num_out: int, num_in: int, dtype: torch.dtype) -> SkinnyTile | None:
    """The tile for x [num_rows, num_in] times weight [num_out, num_in] transposed; None where cuBLAS is to multiply."""
    if not 0 < num_rows <= MAX_ROWS or num_in % ALIGNMENT or dtype.itemsize != 2:
        return None
    if num_rows <= MAX_VECTOR_ROWS:
        return _vector_tile(triton.next_power_of_2(num_rows), num_in)
    tile = _matrix_tile(num_rows, num_out, num_in)
    return tile if tile.split == 1 or num_rows <= MAX_SPLIT_ROWS else None


@functools.cache
def _vector_tile(block_m: int, num_in: int) -> SkinnyTile:
    """Four rows; each thread has a 16-byte piece of each of them in flight."""
    block_k = min(2048, max(256, triton.next_power_of_2(num_in)))
    if num_in % block_k and num_in > 1024:  # no thread should be idle in the last round
        block_k = 1024
    return SkinnyTile(block_m, 4, block_k, num_warps=block_k // 256, num_stages=1)


@functools.cache
def _matrix_tile(num_rows: int, num_out: int, num_in: int) -> SkinnyTile:
    """64 rows and as many parts of K as fit onto the chip."""
    block_m = max(8, triton.next_power_of_2(num_rows))
    num_tiles = triton.cdiv(num_out, _BLOCK_N)
    if num_tiles > _SLOTS:
        return SkinnyTile(block_m, _WIDE_BLOCK_N, _BLOCK_K, num_warps=4, num_stages=3)
    num_steps = triton.cdiv(num_in, _BLOCK_K)
    split = max(1, min(_SLOTS // num_tiles, num_steps // _MIN_STEPS))
    split = triton.cdiv(num_steps, triton.cdiv(num_steps, split))  # no part is left without work
    return SkinnyTile(block_m, _BLOCK_N, _BLOCK_K, num_warps=4, num_stages=3, split=split)
