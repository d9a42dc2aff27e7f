"""The end of a q-tile's attention: partial results of several programs combined, rows normalized and written.

Device functions of kernels/paged_attention.py, whose docstring has formulas and legend. Partials (m, l, acc) of a row,
m in units of log2, combine to m' = max m, l' = sum l · 2^(m - m'), acc' = sum acc · 2^(m - m'); the output is acc' /
l'.

Measured: see docs/log.md.
"""

import triton
import triton.language as tl

from kernels.attention_workspace import Tile

_REGISTERS = 64
"""Elements of partial accumulators that a combining thread holds at once; more would take them from the main loop."""
LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-(2.0**120))
"""The score of what a query may not see. It is finite, so that no difference of two of them is NaN: a row that has seen
nothing yet sums up rubbish, which the first real score multiplies by 2^(HIDDEN - s) = 0. A power of two, so that its
product with the scale is exact: a fused multiply-add would else leave the product's rounding error, which is huge."""


@triton.jit
def add_shared(
    shared_out,
    shared_lse,
    is_shared,
    acc,
    row_max,
    row_sum,
    row,
    num_rows,
    first_token,
    head,
    NUM_Q_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
):
    """(acc, maximum, sum) with the finished result over a step's common keys as one more part, where `is_shared`."""
    dim = tl.arange(0, PADDED_DIM)
    is_row = (row < num_rows) & is_shared
    place = (first_token + row // GROUP_SIZE) * NUM_Q_HEADS + head * GROUP_SIZE + row % GROUP_SIZE
    lse = tl.load(shared_lse + place, mask=is_row, other=HIDDEN)
    part = tl.load(
        shared_out + (place * HEAD_DIM)[:, None] + dim[None, :],
        mask=is_row[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    new_max = tl.maximum(row_max, lse)
    shrink, weight = tl.exp2(row_max - new_max), tl.exp2(lse - new_max)
    return acc * shrink[:, None] + part * weight[:, None], new_max, row_sum * shrink + weight


@triton.jit
def store_output(
    out,
    shared_out,
    shared_lse,
    is_shared,
    sinks,
    acc,
    row_max,
    row_sum,
    row,
    num_rows,
    first_token,
    head,
    NUM_Q_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    SINKS: tl.constexpr,
    TO_SHARED: tl.constexpr,
):
    """Divides rows `row` of a q-tile's accumulator by their sums and writes them to `out` [T, H·G, D]; where TO_SHARED
    and `is_shared` to `shared_out`, with what a later part needs to know of them."""
    dim = tl.arange(0, PADDED_DIM)
    is_row = row < num_rows
    q_head = head * GROUP_SIZE + row % GROUP_SIZE
    if SINKS:
        sink = tl.load(sinks + q_head, mask=is_row, other=0.0) * LOG2E
        if TO_SHARED:
            sink = tl.where(is_shared, HIDDEN, sink)  # it counts once, at the end
        new_max = tl.maximum(row_max, sink)
        shrink = tl.exp2(row_max - new_max)
        acc = acc * shrink[:, None]
        row_sum = row_sum * shrink + tl.exp2(sink - new_max)
    offset = (first_token + row // GROUP_SIZE).to(tl.int64) * (NUM_Q_HEADS * HEAD_DIM) + q_head * HEAD_DIM
    result = acc / row_sum[:, None]
    is_written = is_row[:, None] & (dim < HEAD_DIM)[None, :]
    if TO_SHARED:
        tl.store(shared_out + (offset[:, None] + dim[None, :]), result, mask=is_written & is_shared)
        lse = row_max + tl.log2(row_sum)
        place = (first_token + row // GROUP_SIZE) * NUM_Q_HEADS + q_head
        tl.store(shared_lse + place, lse, mask=is_row & is_shared)
        is_written = is_written & ~is_shared
    tl.store(out + (offset[:, None] + dim[None, :]), result.to(out.dtype.element_ty), mask=is_written)


@triton.jit
def combine_partials(
    out,
    shared_out,
    shared_lse,
    is_shared,
    sinks,
    partial_acc,
    partial_stats,
    first_program,
    last_program,
    num_rows,
    first_token,
    head,
    NUM_Q_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SINKS: tl.constexpr,
    TO_SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Combines the partials of programs first_program..last_program, PARTS at a time and for ROWS rows at a time.

    The first program's partial lies in its slot 1 (a piece that goes on in the next program), the others' in slot 0.
    Each thread adds up its own elements: nothing is exchanged, and the loads of all PARTS are under way at once.
    """
    dim = tl.arange(0, PADDED_DIM)
    for first_row in range(0, num_rows, ROWS):
        row = first_row + tl.arange(0, ROWS)
        is_row = row < num_rows
        acc = tl.zeros([ROWS, PADDED_DIM], tl.float32)
        row_max = tl.full([ROWS], HIDDEN, tl.float32)
        row_sum = tl.zeros([ROWS], tl.float32)
        for first in range(first_program, last_program + 1, PARTS):
            new_max = row_max
            for i in tl.static_range(PARTS):
                program = first + i
                slot = program * 2 + tl.where(program == first_program, 1, 0)
                stats = partial_stats + slot * (2 * BLOCK_M) + row
                # Past the first-level cache, which knows nothing of other SMs' stores. What is no part weighs
                # 2^(HIDDEN - m) = 0.
                is_part = is_row & (program <= last_program)
                new_max = tl.maximum(new_max, tl.load(stats, mask=is_part, other=HIDDEN, cache_modifier=".cg"))
            shrink = tl.exp2(row_max - new_max)
            acc = acc * shrink[:, None]
            row_sum = row_sum * shrink
            for i in tl.static_range(PARTS):
                program = first + i
                slot = program * 2 + tl.where(program == first_program, 1, 0)
                stats = partial_stats + slot * (2 * BLOCK_M) + row
                is_part = is_row & (program <= last_program)
                part_max = tl.load(stats, mask=is_part, other=HIDDEN, cache_modifier=".cg")
                # In rows that are none the 1 spares a division of 0 by 0.
                part_sum = tl.load(stats + BLOCK_M, mask=is_part, other=1.0, cache_modifier=".cg")
                part = tl.load(
                    partial_acc + ((slot * BLOCK_M + row) * PADDED_DIM)[:, None] + dim[None, :],
                    mask=is_part[:, None],
                    other=0.0,
                    cache_modifier=".cg",
                )
                weight = tl.exp2(part_max - new_max)
                row_sum += part_sum * weight
                acc += part * weight[:, None]
            row_max = new_max
        store_output(
            out, shared_out, shared_lse, is_shared, sinks, acc, row_max, row_sum, row, num_rows, first_token, head,
            NUM_Q_HEADS, GROUP_SIZE, HEAD_DIM, PADDED_DIM, SINKS, TO_SHARED,
        )  # fmt: skip


def combine_tile(padded_dim: int, tile: Tile, is_short: bool) -> tuple[int, int]:
    """(ROWS, PARTS): decode has few rows and possibly many partials, prefill the other way round."""
    elements = _REGISTERS * 32 * tile.num_warps // padded_dim
    parts = max(2, min(16, elements // 4) if is_short else 2)
    return min(tile.block_m, max(1, elements // parts)), parts
