"""Which products kernels/skinny_linear.py takes from cuBLAS, how it cuts them, and the memory that it keeps for that.

A memory-bound kernel that lasts 5 to 50 µs wins or loses at its ends. Two rules follow: all programs should be on the
chip at once (a second, partly filled wave of them reads with a fraction of the chip), and all should have the same
work. The split of K is what fills the chip where the weight has too few rows for that.

A tile has so many stages that hardly more programs fit onto an SM than each SM should get. A kernel that starts early
(kernels/programmatic.py) finds room first where the one before it ends first. With three stages six programs fit where
three should be, so a part of the SMs did most of the reading: a step of an 8B model with two to eight rows took up to
40 % longer than one with nine.

Values are for Hopper (132 SMs, 227 KB of shared memory and 64 K registers each) and bf16 or fp16;
benchmarks/sweep_linear.py measures them. Measured: see docs/log.md.

Legend: M = rows of x, N = rows of the weight (output features), K = input features.
"""

import functools
from dataclasses import dataclass, replace

import torch
import triton

MAX_ROWS = 32
"""Above, cuBLAS: its larger tiles read x less often."""
MAX_VECTOR_ROWS = 2
"""Up to so many, the plain units multiply."""
ALIGNMENT = 16
"""Elements that K must be a multiple of: rows of the weight are then read in aligned pieces of 16 bytes."""
_NUM_SMS = 132
_SHARED_BYTES = 227 * 1024
"""Shared memory of an SM."""
_BLOCK_N = 64
"""Rows of the weight that one instruction of the matrix units takes."""
_SMALL_WEIGHT = 2**23
"""Elements up to which a weight is read in a few microseconds: many narrow tiles are then all on their way sooner."""
_LARGE_WEIGHT = 2 * _SMALL_WEIGHT
_EVEN_IN = 1024
"""Elements of a row that the vector kernel reads at a time where K is large. Some threads are idle in the last round
where K is no multiple; with two rows and a large weight the matrix units are then faster (Gemma 2 9B, K = 3,584)."""
_MIN_STEPS = 2
"""Tiles along K that a part has at least: less takes longer to sum up than to read."""


@dataclass(frozen=True, slots=True)
class SkinnyTile:
    """How a product is cut; sizes are powers of two."""

    block_m: int  # rows of x at most; up to 2: the vector kernel, else the matrix units, which take 8 and more
    block_n: int  # rows of the weight that a program multiplies
    block_k: int  # elements of each of them that it reads at a time
    num_warps: int
    num_stages: int  # tiles along K in flight, the one in use included; 1 in the vector kernel: straight to registers
    split: int = 1  # programs that share a tile, each with a part of K; the vector kernel splits nothing

    @property
    def is_vector(self) -> bool:
        """Whether the plain units multiply, and not the matrix units."""
        return self.block_m <= MAX_VECTOR_ROWS

    @property
    def num_slots(self) -> int:
        """Programs that should be on the chip at once: so many fit, if each held all of its stages. Triton keeps one
        stage less, so one more may fit. Elements have two bytes."""
        return _NUM_SMS * (_SHARED_BYTES // (self.num_stages * (self.block_n + self.block_m) * self.block_k * 2))

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
    """Room for every tile of `choose`: 1.1 MB."""
    return SkinnyWorkspace(
        partials=torch.zeros(_NUM_SMS * _BLOCK_N * MAX_ROWS, device=device),
        arrivals=torch.zeros(2 * _NUM_SMS, dtype=torch.int32, device=device),
    )


def choose(num_rows: int, num_out: int, num_in: int, dtype: torch.dtype) -> SkinnyTile | None:
    """The tile for x [num_rows, num_in] times weight [num_out, num_in] transposed; None where cuBLAS is to multiply."""
    if not 0 < num_rows <= MAX_ROWS or num_in % ALIGNMENT or dtype.itemsize != 2:
        return None
    is_uneven = num_in % _EVEN_IN != 0 and num_out * num_in > _LARGE_WEIGHT
    if num_rows == 1 or (num_rows <= MAX_VECTOR_ROWS and not is_uneven):
        return _vector_tile(num_rows, num_in)
    return _matrix_tile(triton.next_power_of_2(num_rows), num_out, num_in)


@functools.cache
def _vector_tile(num_rows: int, num_in: int) -> SkinnyTile:
    """Four rows; each thread has a 16-byte piece of each of them in flight."""
    block_k = min(2048, max(256, triton.next_power_of_2(num_in)))
    if num_in % block_k and num_in > _EVEN_IN:  # fewer threads are idle in the last round
        block_k = _EVEN_IN
    return SkinnyTile(num_rows, 4, block_k, num_warps=block_k // 256, num_stages=1)


@functools.cache
def _matrix_tile(num_rows: int, num_out: int, num_in: int) -> SkinnyTile:
    """As many parts of K as fit onto the chip. Up to 16 rows share their tiles. With eight columns two programs an SM
    read as fast alone, but not behind others: a step of an 8B model with eight rows took 4.70 ms and takes 4.48."""
    block_m = max(16, num_rows)
    narrow = SkinnyTile(block_m, 16, 256, num_warps=1, num_stages=6)
    if block_m == 16 and num_out * num_in <= _SMALL_WEIGHT and narrow.num_tiles(num_out) <= narrow.num_slots:
        return _split(narrow, num_out, num_in, 2 * _NUM_SMS)
    tile = SkinnyTile(block_m, _BLOCK_N, 128, num_warps=4, num_stages=6)
    if tile.num_tiles(num_out) > tile.num_slots:
        return replace(tile, num_stages=4)  # two programs an SM
    return _split(tile, num_out, num_in, tile.num_slots)


def _split(tile: SkinnyTile, num_out: int, num_in: int, most_programs: int) -> SkinnyTile:
    """The tile with K in as many parts as make up to so many programs."""
    num_steps = triton.cdiv(num_in, tile.block_k)
    split = max(1, min(most_programs // tile.num_tiles(num_out), num_steps // _MIN_STEPS))
    # No part is left without work.
    return replace(tile, split=triton.cdiv(num_steps, triton.cdiv(num_steps, split)))
