"""Tile sizes of the kernels that walk over the rows of a matrix.

A program holds a tile of [rows, block] elements; both are powers of two, as Triton demands. The sizes depend on the
row's length alone, so that one compiled kernel serves every number of rows.
"""

import triton

_SMALL_TILE = 1024
"""Rows shorter than this are taken several at a time: a program has its cost, and 2 KB of bf16 are worth it."""


def whole_rows(n: int) -> tuple[int, int, int]:
    """(rows, block, num_warps) for programs that hold rows of `n` elements whole, as reductions need it.

    A thread has 16 elements, two 16-byte accesses of bf16 in flight per operand; 32 above 8192 elements.
    """
    block = triton.next_power_of_2(n)
    rows = max(1, _SMALL_TILE // block)
    return rows, block, min(16, rows * block // (32 * 16))


def split_rows(n: int) -> tuple[int, int, int, int]:
    """(rows, block, blocks_per_row, num_warps) for programs that take a piece of a row of `n` elements, or short rows
    whole. A thread has 8 elements, one 16-byte access of bf16: even a single long row occupies several multiprocessors.
    """
    block = min(_SMALL_TILE, triton.next_power_of_2(n))
    return _SMALL_TILE // block, block, triton.cdiv(n, block), _SMALL_TILE // (32 * 8)
