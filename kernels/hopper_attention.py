"""The long variant of paged attention on Hopper: softmax(scale · q·kᵀ, causal) · v on wgmma, fed by TMA.

The same task map, partials and formulas as kernels/paged_attention.py (whose docstring has them and the legend), for
16-bit elements and head_dim 64 or 128. One program per SM is specialized by warps: a producer has the copy engine fetch
queries and the blocks of keys and values, two consumers of four warps have half of the q-tile's rows each. A consumer
starts the product of the next keys before that of the last probabilities with their values, so that the softmax of one
tile runs beside the matrix units' work on another, and the consumers issue products in turns, so that one's softmax
runs beside the other's products (FlashAttention-3, Shah et al. 2024). Blocks lie anywhere in the
cache: one copy brings B rows of 64 elements, which is what a swizzled row of shared memory holds, so a tile of 128 keys
takes 128 / B · D / 64 copies for keys and as many for values, of which each names its block.

What lies past the last key in shared memory: keys count for nothing, since their scores are hidden; values would, since
0 · NaN is NaN, and are set to zero. In place of blocks wholly before the window, which may be another request's by now,
the first block that is seen is fetched: its values are finite, and are hidden like all before the window.

Written in Gluon, because Triton's own pipeliner neither specializes warps on Hopper nor lets two products overlap with
the softmax between them. Measured: see docs/log.md.
"""

from typing import Any

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.attention_combine import HIDDEN, LOG2E
from kernels.attention_workspace import PROGRAM_WORDS, SEGMENT_WORDS, AttentionWorkspace

_PANEL = 64
"""Elements of a row of shared memory whose 128 bytes are swizzled."""
_WORKER_REGISTERS = (240, 24)
"""Of the second consumer and the producer; the first consumer gets what is left, which is as much as the second's."""
_PANELS_2D = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
_PANELS_3D = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
_barrier: Any = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # Triton 3.7 and 3.6


@gluon.jit
def _load_segment(record):
    """(weight before, tiles, row, first token, tokens, first position, first tile)."""
    return (
        gl.load(record), gl.load(record + 1), gl.load(record + 2), gl.load(record + 3), gl.load(record + 4),
        gl.load(record + 5), gl.load(record + 6),
    )  # fmt: skip


@gluon.jit
def _produce(
    query_desc, cache_desc, query_smem, key_smem, value_smem, query_full, query_empty, key_full, key_empty, value_full,
    value_empty, block_tables, segments, record, stride_block, stride_value, stride_head, stride_table,
    NUM_KV_HEADS: gl.constexpr, GROUP_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    WINDOW: gl.constexpr, OVERHEAD: gl.constexpr, STAGES: gl.constexpr, BLOCK_N: gl.constexpr, HALF_M: gl.constexpr,
    PANEL: gl.constexpr, PANELS_3D: gl.constexpr, SEGMENT_WORDS: gl.constexpr, PROGRAM_WORDS: gl.constexpr,
):  # fmt: skip
    """Fetches queries, keys and values of all pieces in the order in which the consumers take them."""
    NUM_PANELS: gl.constexpr = HEAD_DIM // PANEL
    TILE_BLOCKS: gl.constexpr = BLOCK_N // BLOCK_SIZE
    HALF_TOKENS: gl.constexpr = HALF_M // GROUP_SIZE
    unit, end_unit = gl.load(record), gl.load(record + 1)
    segment, head, within = gl.load(record + 3), gl.load(record + 4), gl.load(record + 5)
    _, num_tiles, table_row, first_token, num_tokens, first_position, first_tile = _load_segment(
        record + (PROGRAM_WORDS - SEGMENT_WORDS)
    )
    num_pieces = unit * 0
    num_fetched = unit * 0
    while unit < end_unit:
        width = num_tiles + OVERHEAD
        num_units = gl.minimum(width - within, end_unit - unit)
        piece_begin = gl.maximum(within - OVERHEAD, 0)
        piece_end = gl.maximum(within + num_units - OVERHEAD, 0)
        if piece_begin < piece_end:
            mbarrier.wait(query_empty, (num_pieces & 1) ^ 1)
            mbarrier.expect(query_full, 2 * HALF_M * HEAD_DIM * 2)
            for half in gl.static_range(2):
                for panel in gl.static_range(NUM_PANELS):
                    target = query_smem.index(half).slice(panel * HALF_M, HALF_M)
                    tma.async_copy_global_to_shared(
                        query_desc,
                        [first_token + half * HALF_TOKENS, head * GROUP_SIZE, panel * PANEL],
                        query_full,
                        target._reinterpret(query_smem.dtype, [HALF_TOKENS, GROUP_SIZE, PANEL], PANELS_3D),
                    )
            num_pieces += 1
            table = block_tables + table_row.to(gl.int64) * stride_table
            last_block = (first_position + num_tokens - 1) // BLOCK_SIZE
            first_key = gl.maximum(first_position - WINDOW + 1, 0)
            for tile in range(first_tile + piece_begin, first_tile + piece_end):
                stage = num_fetched % STAGES
                phase = (num_fetched // STAGES & 1) ^ 1
                mbarrier.wait(key_empty.index(stage), phase)
                mbarrier.expect(key_full.index(stage), BLOCK_N * HEAD_DIM * 2)
                keys = key_smem.index(stage)
                for i in gl.static_range(TILE_BLOCKS):
                    place = gl.minimum(tile * TILE_BLOCKS + i, last_block)
                    if WINDOW > 0:
                        place = gl.maximum(place, first_key // BLOCK_SIZE)
                    block = gl.load(table + place)
                    row = block * stride_block + head * stride_head
                    for panel in gl.static_range(NUM_PANELS):
                        tma.async_copy_global_to_shared(
                            cache_desc, [row, panel * PANEL], key_full.index(stage),
                            keys.slice(panel * BLOCK_N + i * BLOCK_SIZE, BLOCK_SIZE),
                        )  # fmt: skip
                mbarrier.wait(value_empty.index(stage), phase)
                mbarrier.expect(value_full.index(stage), BLOCK_N * HEAD_DIM * 2)
                values = value_smem.index(stage)
                for i in gl.static_range(TILE_BLOCKS):
                    place = gl.minimum(tile * TILE_BLOCKS + i, last_block)
                    if WINDOW > 0:
                        place = gl.maximum(place, first_key // BLOCK_SIZE)
                    block = gl.load(table + place)
                    row = block * stride_block + head * stride_head + stride_value
                    for panel in gl.static_range(NUM_PANELS):
                        tma.async_copy_global_to_shared(
                            cache_desc, [row, panel * PANEL], value_full.index(stage),
                            values.slice(panel * BLOCK_N + i * BLOCK_SIZE, BLOCK_SIZE),
                        )  # fmt: skip
                num_fetched += 1
        unit += num_units
        within = within * 0
        head += 1
        if head == NUM_KV_HEADS:
            head = head * 0
            segment += 1
            _, num_tiles, table_row, first_token, num_tokens, first_position, first_tile = _load_segment(
                segments + segment * SEGMENT_WORDS
            )


@gluon.jit
def _hide(
    scores, tile, full_from, full_to, first_position, HALF: gl.constexpr, GROUP_SIZE: gl.constexpr,
    HALF_M: gl.constexpr, BLOCK_N: gl.constexpr, WINDOW: gl.constexpr, MMA: gl.constexpr,
):  # fmt: skip
    """HIDDEN for what lies after a row's own token or outside its window, in tiles that have such keys."""
    if (tile < full_from) | (tile >= full_to):
        row = HALF * HALF_M + gl.arange(0, HALF_M, gl.SliceLayout(1, MMA))
        query_position = first_position + row // GROUP_SIZE
        key_position = tile * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, MMA))
        visible = key_position[None, :] <= query_position[:, None]
        if WINDOW > 0:
            visible = visible & (key_position[None, :] > query_position[:, None] - WINDOW)
        scores = gl.where(visible, scores, HIDDEN)
    return scores


@gluon.jit
def _clear_values(
    values, num_keys, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr, PANEL: gl.constexpr, PANELS_2D: gl.constexpr
):
    """Zeros for the values from number `num_keys` on: whatever lies there may be NaN. The consumers both do it, and
    neither changes what the other one reads."""
    ROWS: gl.constexpr = 16
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    groups = values._reinterpret(values.dtype, [HEAD_DIM // PANEL * BLOCK_N // ROWS, ROWS, PANEL], PANELS_2D)
    for group in range(num_keys // ROWS, BLOCK_N // ROWS):
        key = group * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
        for panel in gl.static_range(HEAD_DIM // PANEL):
            place = groups.index(panel * (BLOCK_N // ROWS) + group)
            place.store(gl.where((key < num_keys)[:, None], place.load(LAYOUT), 0.0))
    fence_async_shared()
    _barrier()


@gluon.jit
def _consume(
    out, sinks, partial_acc, partial_stats, arrivals, query_smem, key_smem, value_smem, query_full, query_empty,
    key_full, key_empty, value_full, value_empty, turns, segments, record, program, qk_scale,
    HALF: gl.constexpr, NUM_KV_HEADS: gl.constexpr, GROUP_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr,
    SINKS: gl.constexpr, WINDOW: gl.constexpr, OVERHEAD: gl.constexpr, STAGES: gl.constexpr, BLOCK_N: gl.constexpr,
    HALF_M: gl.constexpr, PANEL: gl.constexpr, PANELS_2D: gl.constexpr, SEGMENT_WORDS: gl.constexpr,
    PROGRAM_WORDS: gl.constexpr,
):  # fmt: skip
    """Rows HALF·64 to HALF·64 + 63 of every piece's q-tile: scores, softmax, output or partial result."""
    dtype: gl.constexpr = query_smem.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    ACC_ROWS: gl.constexpr = gl.SliceLayout(1, ACC)
    PROBS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=ACC, k_width=2)
    unit, end_unit, per = gl.load(record), gl.load(record + 1), gl.load(record + 2)
    segment, head, within = gl.load(record + 3), gl.load(record + 4), gl.load(record + 5)
    weight_before, num_tiles, _, first_token, num_tokens, first_position, first_tile = _load_segment(
        record + (PROGRAM_WORDS - SEGMENT_WORDS)
    )
    never = gl.load(record + 6)  # 0, which no compiler knows
    query = query_smem.index(HALF)._reinterpret(dtype, [HALF_M, HEAD_DIM], PANELS_2D)
    num_pieces = unit * 0
    num_taken = unit * 0
    num_turns = unit * 0
    while unit < end_unit:
        width = num_tiles + OVERHEAD
        num_units = gl.minimum(width - within, end_unit - unit)
        piece_begin = gl.maximum(within - OVERHEAD, 0)
        piece_end = gl.maximum(within + num_units - OVERHEAD, 0)
        if piece_begin < piece_end:
            last_key = first_position + num_tokens - 1
            begin_tile, end_tile = first_tile + piece_begin, first_tile + piece_end
            full_to = (first_position + 1) // BLOCK_N
            full_from = begin_tile
            if WINDOW > 0:
                full_from = (gl.maximum(last_key - WINDOW + 1, 0) + BLOCK_N - 1) // BLOCK_N

            no_scores = gl.zeros([HALF_M, BLOCK_N], gl.float32, SCORES)
            mbarrier.wait(query_full, num_pieces & 1)
            num_pieces += 1
            stage = num_taken % STAGES
            mbarrier.wait(key_full.index(stage), num_taken // STAGES & 1)
            keys = key_smem.index(stage)._reinterpret(dtype, [BLOCK_N, HEAD_DIM], PANELS_2D)
            token = warpgroup_mma(query, keys.permute((1, 0)), no_scores, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(0, deps=(token,))
            mbarrier.arrive(key_empty.index(stage))
            scores = _hide(
                scores, begin_tile, full_from, full_to, first_position, HALF, GROUP_SIZE, HALF_M, BLOCK_N, WINDOW,
                SCORES,
            )  # fmt: skip
            row_max = gl.max(scores, 1) * qk_scale
            p = gl.exp2(scores * qk_scale - row_max[:, None])
            row_sum = gl.sum(p, 1)
            probs = gl.convert_layout(p.to(dtype), PROBS)
            acc = gl.zeros([HALF_M, HEAD_DIM], gl.float32, ACC)
            for tile in range(begin_tile + 1, end_tile):
                last_stage = stage
                num_taken += 1
                stage = num_taken % STAGES
                mbarrier.wait(key_full.index(stage), num_taken // STAGES & 1)
                keys = key_smem.index(stage)._reinterpret(dtype, [BLOCK_N, HEAD_DIM], PANELS_2D)
                mbarrier.wait(turns.index(HALF), (num_turns & 1) ^ (1 - HALF))
                score_token = warpgroup_mma(query, keys.permute((1, 0)), no_scores, use_acc=False, is_async=True)
                mbarrier.wait(value_full.index(last_stage), (num_taken - 1) // STAGES & 1)
                values = value_smem.index(last_stage)._reinterpret(dtype, [BLOCK_N, HEAD_DIM], PANELS_2D)
                acc_token = warpgroup_mma(probs, values, acc, is_async=True)
                mbarrier.arrive(turns.index(1 - HALF))
                num_turns += 1
                scores = warpgroup_mma_wait(1, deps=(score_token,))
                mbarrier.arrive(key_empty.index(stage))
                scores = _hide(
                    scores, tile, full_from, full_to, first_position, HALF, GROUP_SIZE, HALF_M, BLOCK_N, WINDOW,
                    SCORES,
                )  # fmt: skip
                new_max = gl.maximum(row_max, gl.max(scores, 1) * qk_scale)
                p = gl.exp2(scores * qk_scale - new_max[:, None])
                shrink = gl.exp2(row_max - new_max)
                row_sum = row_sum * shrink + gl.sum(p, 1)
                row_max = new_max
                # Within one basic block ptxas moves the softmax behind the wait for acc, where no product hides it. So
                # a wait for nothing ties it here, and a loop that never runs ends the block. p is rounded only behind
                # the wait: until then the products under way read the registers of `probs`.
                p, row_sum = warpgroup_mma_wait(1, deps=(p, row_sum))
                for _ in range(0, never):
                    _barrier()
                acc, p = warpgroup_mma_wait(0, deps=(acc_token, p))
                mbarrier.arrive(value_empty.index(last_stage))
                acc = acc * gl.convert_layout(shrink, ACC_ROWS)[:, None]
                probs = gl.convert_layout(p.to(dtype), PROBS)
            mbarrier.arrive(query_empty)
            mbarrier.wait(value_full.index(stage), num_taken // STAGES & 1)
            values = value_smem.index(stage)
            if end_tile * BLOCK_N > last_key + 1:
                _clear_values(values, last_key + 1 - (end_tile - 1) * BLOCK_N, HEAD_DIM, BLOCK_N, PANEL, PANELS_2D)
            values = values._reinterpret(dtype, [BLOCK_N, HEAD_DIM], PANELS_2D)
            acc = warpgroup_mma_wait(0, deps=(warpgroup_mma(probs, values, acc, is_async=True),))
            mbarrier.arrive(value_empty.index(stage))
            num_taken += 1

            row_max = gl.convert_layout(row_max, ACC_ROWS)
            row_sum = gl.convert_layout(row_sum, ACC_ROWS)
            if piece_end - piece_begin == num_tiles:
                _store_output(
                    out, sinks, acc, row_max, row_sum, num_tokens, first_token, head, HALF, NUM_KV_HEADS, GROUP_SIZE,
                    HEAD_DIM, HALF_M, SINKS, ACC,
                )  # fmt: skip
            else:
                first_unit = weight_before * NUM_KV_HEADS + head * width
                _store_partial(
                    out, sinks, partial_acc, partial_stats, arrivals + segment * NUM_KV_HEADS + head, acc, row_max,
                    row_sum, program, (first_unit + OVERHEAD) // per, (first_unit + width - 1) // per, piece_begin,
                    num_tokens, first_token, head, HALF, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM, HALF_M, SINKS, ACC,
                )  # fmt: skip
        unit += num_units
        within = within * 0
        head += 1
        if head == NUM_KV_HEADS:
            head = head * 0
            segment += 1
            weight_before, num_tiles, _, first_token, num_tokens, first_position, first_tile = _load_segment(
                segments + segment * SEGMENT_WORDS
            )


@gluon.jit
def _store_output(
    out, sinks, acc, row_max, row_sum, num_tokens, first_token, head, HALF: gl.constexpr, NUM_KV_HEADS: gl.constexpr,
    GROUP_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr, HALF_M: gl.constexpr, SINKS: gl.constexpr, ACC: gl.constexpr,
):  # fmt: skip
    """Divides rows by their sums and writes them to `out` [T, H·G, D]."""
    if SINKS:
        row = HALF * HALF_M + gl.arange(0, HALF_M, gl.SliceLayout(1, ACC))
        q_head = head * GROUP_SIZE + row % GROUP_SIZE
        sink = gl.load(sinks + q_head) * LOG2E
        new_max = gl.maximum(row_max, sink)
        shrink = gl.exp2(row_max - new_max)
        acc = acc * shrink[:, None]
        row_sum = row_sum * shrink + gl.exp2(sink - new_max)
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    result = gl.convert_layout((acc / row_sum[:, None]).to(out.dtype.element_ty), WIDE)
    row = HALF * HALF_M + gl.arange(0, HALF_M, gl.SliceLayout(1, WIDE))
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, WIDE))
    q_head = head * GROUP_SIZE + row % GROUP_SIZE
    offset = (first_token + row // GROUP_SIZE).to(gl.int64) * (NUM_KV_HEADS * GROUP_SIZE * HEAD_DIM) + q_head * HEAD_DIM
    gl.store(out + offset[:, None] + dim[None, :], result, mask=(row < num_tokens * GROUP_SIZE)[:, None])


@gluon.jit
def _store_partial(
    out, sinks, partial_acc, partial_stats, arrival, acc, row_max, row_sum, program, first_program, last_program,
    piece_begin, num_tokens, first_token, head, HALF: gl.constexpr, NUM_KV_HEADS: gl.constexpr,
    GROUP_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr, HALF_M: gl.constexpr, SINKS: gl.constexpr, ACC: gl.constexpr,
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
    _barrier()  # all threads' stores come before the one thread's release
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
        _store_output(
            out, sinks, acc, row_max, row_sum, num_tokens, first_token, head, HALF, NUM_KV_HEADS, GROUP_SIZE,
            HEAD_DIM, HALF_M, SINKS, ACC,
        )  # fmt: skip
        gl.atomic_add(arrival, -(num_parts << SHIFT), sem="relaxed", scope="gpu")


@gluon.jit
def _hopper_attention_kernel(
    query_desc,  # [T, H·G, D], boxes of half a q-tile's tokens, the G heads of a KV head, 64 elements
    cache_desc,  # one layer's cache as rows of D elements, boxes of B rows and 64 elements
    out,  # [T, H·G·D]
    block_tables,  # int32 [S, max_blocks]
    segments,  # int32 [segments, SEGMENT_WORDS]
    programs,  # int32 [P, PROGRAM_WORDS]
    partial_acc,  # float32 [P, 2, BLOCK_M, D]
    partial_stats,  # float32 [P, 2, 2, BLOCK_M]
    arrivals,  # int32 [segments, H], zero before and after
    sinks,  # float32 [H·G], or None
    stride_block,  # in rows of D elements, as the next two
    stride_value,
    stride_head,
    stride_table,
    qk_scale,  # to units of log2
    NUM_KV_HEADS: gl.constexpr,
    GROUP_SIZE: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    WINDOW: gl.constexpr,
    SINKS: gl.constexpr,
    OVERHEAD: gl.constexpr,
    STAGES: gl.constexpr,
    BLOCK_N: gl.constexpr,
    HALF_M: gl.constexpr,
    PANEL: gl.constexpr,
    PANELS_2D: gl.constexpr,
    PANELS_3D: gl.constexpr,
    SEGMENT_WORDS: gl.constexpr,
    PROGRAM_WORDS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """One persistent program: its run of units, piece by piece."""
    dtype: gl.constexpr = query_desc.dtype
    NUM_PANELS: gl.constexpr = HEAD_DIM // PANEL
    query_smem = gl.allocate_shared_memory(dtype, [2, NUM_PANELS * HALF_M, PANEL], PANELS_2D)
    key_smem = gl.allocate_shared_memory(dtype, [STAGES, NUM_PANELS * BLOCK_N, PANEL], PANELS_2D)
    value_smem = gl.allocate_shared_memory(dtype, [STAGES, NUM_PANELS * BLOCK_N, PANEL], PANELS_2D)
    query_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    query_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    key_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    key_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(query_full, count=1)
    mbarrier.init(query_empty, count=2)
    mbarrier.init(turns.index(0), count=1)
    mbarrier.init(turns.index(1), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(key_full.index(stage), count=1)
        mbarrier.init(key_empty.index(stage), count=2)
        mbarrier.init(value_full.index(stage), count=1)
        mbarrier.init(value_empty.index(stage), count=2)
    program = gl.program_id(0)
    record = programs + program * PROGRAM_WORDS
    gl.warp_specialize(
        [
            (_consume, (
                out, sinks, partial_acc, partial_stats, arrivals, query_smem, key_smem, value_smem, query_full,
                query_empty, key_full, key_empty, value_full, value_empty, turns, segments, record, program, qk_scale,
                0, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM, SINKS, WINDOW, OVERHEAD, STAGES, BLOCK_N, HALF_M, PANEL,
                PANELS_2D, SEGMENT_WORDS, PROGRAM_WORDS,
            )),
            (_consume, (
                out, sinks, partial_acc, partial_stats, arrivals, query_smem, key_smem, value_smem, query_full,
                query_empty, key_full, key_empty, value_full, value_empty, turns, segments, record, program, qk_scale,
                1, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM, SINKS, WINDOW, OVERHEAD, STAGES, BLOCK_N, HALF_M, PANEL,
                PANELS_2D, SEGMENT_WORDS, PROGRAM_WORDS,
            )),
            (_produce, (
                query_desc, cache_desc, query_smem, key_smem, value_smem, query_full, query_empty, key_full, key_empty,
                value_full, value_empty, block_tables, segments, record, stride_block, stride_value, stride_head,
                stride_table, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM, BLOCK_SIZE, WINDOW, OVERHEAD, STAGES, BLOCK_N, HALF_M,
                PANEL, PANELS_3D, SEGMENT_WORDS, PROGRAM_WORDS,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def supports(
    device: torch.device, dtype: torch.dtype, head_dim: int, group_size: int, block_size: int, plain_scores: bool = True
) -> bool:
    """Whether this kernel can take the long variant. `plain_scores`: neither soft cap nor ALiBi."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device)[0] == 9  # wgmma is in no other architecture
        and dtype.itemsize == 2
        and head_dim in (64, 128)
        and group_size in (1, 2, 4, 8, 16, 32, 64)
        and block_size in (8, 16, 32, 64, 128)  # swizzling repeats after 8 rows
        and plain_scores
    )


def launch(
    workspace: AttentionWorkspace,
    query: torch.Tensor,
    layer_cache: torch.Tensor,
    out: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    sinks: torch.Tensor | None,
) -> None:
    """Attention of the long rows of the step that was mapped last; shapes as in `paged_attention`, which checks them,
    but `layer_cache` is one layer's [num_blocks, 2, H, B, D]."""
    variant, head_dim, group_size = workspace.long, workspace.head_dim, workspace.group_size
    block_size = layer_cache.shape[3]
    strides = layer_cache.stride()
    num_rows = sum((size - 1) * stride for size, stride in zip(layer_cache.shape[:4], strides, strict=False)) + head_dim
    tile = variant.tile
    # The consumers know that the stage of two tiles ago is the present one's.
    assert (tile.block_m, tile.num_warps, tile.num_stages) == (128, 4, 2), tile
    half = tile.block_m // 2
    _hopper_attention_kernel[(variant.num_programs,)](
        TensorDescriptor(
            query, list(query.shape), list(query.stride()), [half // group_size, group_size, _PANEL], _PANELS_3D
        ),
        TensorDescriptor(
            layer_cache, [num_rows // head_dim, head_dim], [head_dim, 1], [block_size, _PANEL], _PANELS_2D
        ),
        out,
        block_tables,
        variant.segments,
        variant.programs,
        variant.partial_acc,
        variant.partial_stats,
        variant.arrivals,
        sinks,
        strides[0] // head_dim,
        strides[1] // head_dim,
        strides[2] // head_dim,
        block_tables.stride(0),
        scale * LOG2E.value,
        NUM_KV_HEADS=workspace.num_kv_heads,
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        WINDOW=workspace.sliding_window,
        SINKS=sinks is not None,
        OVERHEAD=tile.overhead,
        STAGES=tile.num_stages,
        BLOCK_N=tile.block_n,
        HALF_M=half,
        PANEL=_PANEL,
        PANELS_2D=_PANELS_2D,
        PANELS_3D=_PANELS_3D,
        SEGMENT_WORDS=SEGMENT_WORDS,
        PROGRAM_WORDS=PROGRAM_WORDS,
        CONSUMER_REGISTERS=_WORKER_REGISTERS[0],
        PRODUCER_REGISTERS=_WORKER_REGISTERS[1],
        num_warps=tile.num_warps,
    )
