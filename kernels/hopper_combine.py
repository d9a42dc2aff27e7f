"""The end of a q-tile's half in kernels/hopper_attention.py: rows normalized and written, or left as a partial result
to the last of the programs that share them. As kernels/attention_combine.py, by the layouts of wgmma."""

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kernels.attention_combine import HIDDEN, LOG2E

barrier: Any = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # Triton 3.7 and 3.6


@gluon.jit
def store_output(
    out, shared_out, shared_lse, is_shared, sinks, acc, row_max, row_sum, num_tokens, first_token, head,
    HALF: gl.constexpr, NUM_KV_HEADS: gl.constexpr, GROUP_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr,
    HALF_M: gl.constexpr, SINKS: gl.constexpr, TO_SHARED: gl.constexpr, ACC: gl.constexpr,
):  # fmt: skip
    """Divides rows by their sums and writes them to `out` [T, H·G, D], or to `shared_out` with what a later part needs
    to know of them."""
    if SINKS:
        row = HALF * HALF_M + gl.arange(0, HALF_M, gl.SliceLayout(1, ACC))
        q_head = head * GROUP_SIZE + row % GROUP_SIZE
        sink = gl.load(sinks + q_head) * LOG2E
        if TO_SHARED:
            sink = gl.where(is_shared != 0, HIDDEN, sink)  # it counts once, at the end
        new_max = gl.maximum(row_max, sink)
        shrink = gl.exp2(row_max - new_max)
        acc = acc * shrink[:, None]
        row_sum = row_sum * shrink + gl.exp2(sink - new_max)
    result = acc / row_sum[:, None]
    end_row = num_tokens * GROUP_SIZE
    if TO_SHARED:  # noqa: SIM102 (one is a constant, the other a value)
        if is_shared != 0:
            row = HALF * HALF_M + gl.arange(0, HALF_M, gl.SliceLayout(1, ACC))
            dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, ACC))
            place = (
                (first_token + row // GROUP_SIZE) * (NUM_KV_HEADS * GROUP_SIZE) + head * GROUP_SIZE + row % GROUP_SIZE
            )
            gl.store(shared_out + (place * HEAD_DIM)[:, None] + dim[None, :], result, mask=(row < end_row)[:, None])
            gl.store(shared_lse + place, row_max + gl.log2(row_sum), mask=row < end_row)
            end_row = end_row * 0
    # Rows of 128 elements and less take turns through shared memory to be written in wide pieces. For those of 256 the
    # tiles leave no room.
    ROWS: gl.constexpr = (
        ACC if HEAD_DIM > 128 else gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    )
    result = gl.convert_layout(result.to(out.dtype.element_ty), ROWS)
    row = HALF * HALF_M + gl.arange(0, HALF_M, gl.SliceLayout(1, ROWS))
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, ROWS))
    q_head = head * GROUP_SIZE + row % GROUP_SIZE
    offset = (first_token + row // GROUP_SIZE).to(gl.int64) * (NUM_KV_HEADS * GROUP_SIZE * HEAD_DIM) + q_head * HEAD_DIM
    gl.store(out + offset[:, None] + dim[None, :], result, mask=(row < end_row)[:, None])


@gluon.jit
def store_partial(
    out, shared_out, shared_lse, is_shared, sinks, partial_acc, partial_stats, arrival, acc, row_max, row_sum, program,
    first_program, last_program, piece_begin, num_tokens, first_token, head, HALF: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr, GROUP_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr, HALF_M: gl.constexpr,
    SINKS: gl.constexpr, TO_SHARED: gl.constexpr, ACC: gl.constexpr,
):  # fmt: skip
    """Leaves this piece's result to the last of the programs that share the (segment, head), or, as that one, combines
    all in the order of their keys. Each half of the rows has 16 bits of the counter."""
    BLOCK_M: gl.constexpr = 2 * HALF_M
    row = HALF * HALF_M + gl.arange(0, HALF_M, gl.SliceLayout(1, ACC))
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, ACC))
    is_row = row < num_tokens * GROUP_SIZE
    # Slot 0: the piece began in an earlier program; slot 1: it begins here and goes on in the next one.
    slot = program * 2
    if piece_begin == 0:
        slot += 1
    place = (slot * BLOCK_M + row) * HEAD_DIM
    gl.store(partial_acc + place[:, None] + dim[None, :], acc, mask=is_row[:, None])
    gl.store(partial_stats + slot * (2 * BLOCK_M) + row, row_max)
    gl.store(partial_stats + slot * (2 * BLOCK_M) + BLOCK_M + row, row_sum)
    barrier()  # all threads' stores come before the one thread's release
    SHIFT: gl.constexpr = 16 * HALF
    num_parts = last_program - first_program + 1
    arrived = (gl.atomic_add(arrival, 1 << SHIFT, sem="acq_rel", scope="gpu") >> SHIFT & 0xFFFF) + 1
    if arrived == num_parts:
        acc = gl.zeros([HALF_M, HEAD_DIM], gl.float32, ACC)
        row_max = gl.full([HALF_M], HIDDEN, gl.float32, gl.SliceLayout(1, ACC))
        row_sum = gl.zeros([HALF_M], gl.float32, gl.SliceLayout(1, ACC))
        for part in range(first_program, last_program + 1):
            slot = part * 2
            if part == first_program:
                slot += 1
            # Past the first-level cache, which knows nothing of other SMs' stores.
            stats = partial_stats + slot * (2 * BLOCK_M) + row
            part_max = gl.load(stats, cache_modifier=".cg")
            part_sum = gl.load(stats + BLOCK_M, cache_modifier=".cg")
            place = (slot * BLOCK_M + row) * HEAD_DIM
            part_acc = gl.load(
                partial_acc + place[:, None] + dim[None, :], mask=is_row[:, None], other=0.0, cache_modifier=".cg"
            )
            new_max = gl.maximum(row_max, part_max)
            shrink, weight = gl.exp2(row_max - new_max), gl.exp2(part_max - new_max)
            acc = acc * shrink[:, None] + part_acc * weight[:, None]
            row_sum = row_sum * shrink + part_sum * weight
            row_max = new_max
        store_output(
            out, shared_out, shared_lse, is_shared, sinks, acc, row_max, row_sum, num_tokens, first_token, head, HALF,
            NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM, HALF_M, SINKS, TO_SHARED, ACC,
        )  # fmt: skip
        gl.atomic_add(arrival, -(num_parts << SHIFT), sem="relaxed", scope="gpu")
