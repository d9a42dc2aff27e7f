"""What the warps of kernels/hopper_attention.py do, whose docstring has formulas and legend: a producer that fetches,
two consumers that multiply. Each walks over its program's run of the task map by itself."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.attention_combine import HIDDEN
from kernels.hopper_combine import barrier, store_output, store_partial


@gluon.jit
def _load_segment(record):
    """(weight before, tiles, row, first token, tokens, first position, first tile, whether the result is shared)."""
    return (
        gl.load(record), gl.load(record + 1), gl.load(record + 2), gl.load(record + 3), gl.load(record + 4),
        gl.load(record + 5), gl.load(record + 6), gl.load(record + 7),
    )  # fmt: skip


@gluon.jit
def produce(
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
    NOWHERE: gl.constexpr = -BLOCK_SIZE  # the copy engine reads zeros before the first row
    unit, end_unit = gl.load(record), gl.load(record + 1)
    segment, head, within = gl.load(record + 3), gl.load(record + 4), gl.load(record + 5)
    _, num_tiles, table_row, first_token, num_tokens, first_position, first_tile, _ = _load_segment(
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
            first_block = gl.maximum(first_position - WINDOW + 1, 0) // BLOCK_SIZE
            for tile in range(first_tile + piece_begin, first_tile + piece_end):
                stage = num_fetched % STAGES
                phase = (num_fetched // STAGES & 1) ^ 1
                mbarrier.wait(key_empty.index(stage), phase)
                mbarrier.expect(key_full.index(stage), BLOCK_N * HEAD_DIM * 2)
                keys = key_smem.index(stage)
                for i in gl.static_range(TILE_BLOCKS):
                    place = gl.minimum(tile * TILE_BLOCKS + i, last_block)
                    row = gl.load(table + place) * stride_block + head * stride_head
                    if WINDOW > 0:
                        row = gl.where(place < first_block, NOWHERE, row)
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
                    row = gl.load(table + place) * stride_block + head * stride_head + stride_value
                    if WINDOW > 0:
                        row = gl.where(place < first_block, NOWHERE, row)
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
            _, num_tiles, table_row, first_token, num_tokens, first_position, first_tile, _ = _load_segment(
                segments + segment * SEGMENT_WORDS
            )


@gluon.jit
def _prepare(
    scores, tile, full_from, full_to, first_position, to_exponent, soft_cap, HALF: gl.constexpr,
    GROUP_SIZE: gl.constexpr, HALF_M: gl.constexpr, BLOCK_N: gl.constexpr, WINDOW: gl.constexpr, SOFT_CAP: gl.constexpr,
    MMA: gl.constexpr,
):  # fmt: skip
    """Capped scores, and HIDDEN for what lies after a row's own token or outside its window, in tiles that have such
    keys."""
    if SOFT_CAP:
        # tanh(x) = 1 - 2 / (1 + e^2x), 1 in float32 from far below x = 100 on.
        scores = soft_cap * (1.0 - 2.0 / (1.0 + gl.exp2(gl.minimum(scores * to_exponent, 100.0))))
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
    barrier()


@gluon.jit
def consume(
    out, shared_out, shared_lse, sinks, partial_acc, partial_stats, arrivals, query_smem, key_smem, value_smem,
    query_full, query_empty, key_full, key_empty, value_full, value_empty, turns, segments, record, program, qk_scale,
    soft_cap, HALF: gl.constexpr, NUM_KV_HEADS: gl.constexpr, GROUP_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr,
    SINKS: gl.constexpr, TO_SHARED: gl.constexpr, WINDOW: gl.constexpr, SOFT_CAP: gl.constexpr, OVERHEAD: gl.constexpr,
    STAGES: gl.constexpr, BLOCK_N: gl.constexpr, HALF_M: gl.constexpr, PANEL: gl.constexpr, PANELS_2D: gl.constexpr,
    SEGMENT_WORDS: gl.constexpr, PROGRAM_WORDS: gl.constexpr,
):  # fmt: skip
    """Rows HALF·64 to HALF·64 + 63 of every piece's q-tile: scores, softmax, output or partial result."""
    dtype: gl.constexpr = query_smem.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    ACC_ROWS: gl.constexpr = gl.SliceLayout(1, ACC)
    PROBS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=ACC, k_width=2)
    unit, end_unit, per = gl.load(record), gl.load(record + 1), gl.load(record + 2)
    segment, head, within = gl.load(record + 3), gl.load(record + 4), gl.load(record + 5)
    weight_before, num_tiles, _, first_token, num_tokens, first_position, first_tile, is_shared = _load_segment(
        record + (PROGRAM_WORDS - SEGMENT_WORDS)
    )
    never = gl.load(record + 6)  # 0, which no compiler knows
    to_log2 = qk_scale
    if SOFT_CAP:
        to_log2 = qk_scale * 0 + 1  # capped scores are in units of log2 already
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
            scores = _prepare(
                scores, begin_tile, full_from, full_to, first_position, qk_scale, soft_cap, HALF, GROUP_SIZE, HALF_M,
                BLOCK_N, WINDOW, SOFT_CAP, SCORES,
            )  # fmt: skip
            row_max = gl.max(scores, 1) * to_log2
            p = gl.exp2(scores * to_log2 - row_max[:, None])
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
                scores = _prepare(
                    scores, tile, full_from, full_to, first_position, qk_scale, soft_cap, HALF, GROUP_SIZE, HALF_M,
                    BLOCK_N, WINDOW, SOFT_CAP, SCORES,
                )  # fmt: skip
                new_max = gl.maximum(row_max, gl.max(scores, 1) * to_log2)
                p = gl.exp2(scores * to_log2 - new_max[:, None])
                shrink = gl.exp2(row_max - new_max)
                row_sum = row_sum * shrink + gl.sum(p, 1)
                row_max = new_max
                # Within one basic block ptxas moves the softmax behind the wait for acc, where no product hides it. So
                # a wait for nothing ties it here, and a loop that never runs ends the block. p is rounded only behind
                # the wait: until then the products under way read the registers of `probs`.
                p, row_sum = warpgroup_mma_wait(1, deps=(p, row_sum))
                for _ in range(0, never):
                    barrier()
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
                store_output(
                    out, shared_out, shared_lse, is_shared, sinks, acc, row_max, row_sum, num_tokens, first_token, head,
                    HALF, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM, HALF_M, SINKS, TO_SHARED, ACC,
                )  # fmt: skip
            else:
                first_unit = weight_before * NUM_KV_HEADS + head * width
                store_partial(
                    out, shared_out, shared_lse, is_shared, sinks, partial_acc, partial_stats,
                    arrivals + segment * NUM_KV_HEADS + head, acc, row_max, row_sum, program,
                    (first_unit + OVERHEAD) // per, (first_unit + width - 1) // per, piece_begin, num_tokens,
                    first_token, head, HALF, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM, HALF_M, SINKS, TO_SHARED, ACC,
                )  # fmt: skip
        unit += num_units
        within = within * 0
        head += 1
        if head == NUM_KV_HEADS:
            head = head * 0
            segment += 1
            weight_before, num_tiles, _, first_token, num_tokens, first_position, first_tile, is_shared = _load_segment(
                segments + segment * SEGMENT_WORDS
            )
