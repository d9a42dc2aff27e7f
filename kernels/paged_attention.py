"""Attention of mixed batches over a paged KV cache: softmax(scale · q·kᵀ, causal) · v with online softmax.

One kernel in two variants (see kernels/attention_workspace.py) covers decode, verification, prefill and chunks of it.
The G query heads of a KV head are packed into one q-tile, row m = token m // G, head m % G, so keys and values are read
once for all of them. Persistent programs walk over their runs of the task map (kernels/attention_tasks.py). A program
that has all KV tiles of a (segment, head) writes its output; where programs share one, each stores its (maximum, sum,
accumulator) and the last to arrive combines them, in the order of the KV tiles: the result does not depend on who came
last.

With scores in units of log2 (scale · log2(e) folded in) and m the running maximum, per KV tile:

    m' = max(m, max_j s_j)    p_j = 2^(s_j - m')    l' = l · 2^(m - m') + sum_j p_j    acc' = acc · 2^(m - m') + p · v

and partials (m, l, acc) combine by the same rule. Sources: online softmax (Milakov and Gimelshein 2018),
FlashAttention-2 (Dao 2023), split KV with a later combine (Flash-Decoding), paged KV (Kwon et al. 2023), stream-K
(Osama et al. 2023). Options: sliding window, soft cap (Gemma 2), ALiBi (Press et al. 2022), attention sinks as one more
logit (gpt-oss).

Traffic: decode reads 2 · seq_len · H · D elements of the cache per sequence and layer and has 2 · G operations per byte
of bf16, far below the 200 or so where Hopper's matrix units become the limit: its roofline is the memory's read
bandwidth. Prefill does 4 · D operations per (query, key) pair and is bound by the matrix units. Measured: see
docs/log.md.

Legend: T = tokens of the step, S = rows, H = KV heads, G = query heads per KV head, D = head_dim (DP padded to a power
of two), B = block_size, M and N = rows and KV tokens of a tile, P = programs.
"""

import torch
import triton
import triton.language as tl

from kernels import hopper_attention
from kernels.attention_combine import LOG2E, add_shared, combine_partials, combine_tile, store_output
from kernels.attention_loop import attend, attend_split
from kernels.attention_workspace import PROGRAM_WORDS, SEGMENT_WORDS, AttentionWorkspace, Variant
from kernels.programmatic import let_dependents_start, may_overlap, wait_for_earlier_kernels


@triton.jit
def _work_on_piece(
    query,
    kv_cache,
    out,
    block_tables,
    partial_acc,
    partial_stats,
    arrivals,
    shared_out,
    shared_lse,
    alibi_slopes,
    sinks,
    stride_query_token,
    stride_query_head,
    stride_block,
    stride_value,
    stride_head,
    stride_table,
    qk_scale,
    soft_cap,
    program,
    first_program,
    last_program,
    segment,
    head,
    piece_begin,
    piece_end,
    num_tiles,
    table_row,
    first_token,
    num_tokens,
    first_position,
    first_tile,
    is_shared,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    FROM_SHARED: tl.constexpr,
    TO_SHARED: tl.constexpr,
    SHARES: tl.constexpr,
    COMBINE_ROWS: tl.constexpr,
    COMBINE_PARTS: tl.constexpr,
):
    """The tiles [piece_begin, piece_end) of a (segment, head), which programs first_program..last_program share."""
    row = tl.arange(0, BLOCK_M)
    dim = tl.arange(0, PADDED_DIM)
    num_rows = num_tokens * GROUP_SIZE
    q_head = head * GROUP_SIZE + row % GROUP_SIZE
    offset = (first_token + row // GROUP_SIZE).to(tl.int64) * stride_query_token + q_head * stride_query_head
    is_query = (row < num_rows)[:, None] & (dim < HEAD_DIM)[None, :]
    q = tl.load(query + (offset[:, None] + dim[None, :]), mask=is_query, other=0.0)
    query_position = first_position + row // GROUP_SIZE
    slope = tl.zeros([BLOCK_M], tl.float32)
    if ALIBI:
        slope = tl.load(alibi_slopes + q_head, mask=row < num_rows, other=0.0) * LOG2E

    table = block_tables + table_row.to(tl.int64) * stride_table
    key_base = kv_cache + head.to(tl.int64) * stride_head
    value_base = key_base + stride_value
    first_key = tl.maximum(first_position - WINDOW + 1, 0) if WINDOW > 0 else 0
    last_key = first_position + num_tokens - 1
    begin_tile = first_tile + piece_begin
    end_tile = first_tile + piece_end
    if SHARES > 0:
        acc, row_max, row_sum = attend_split(
            q, query_position, slope, table, key_base, value_base, begin_tile, end_tile, first_key, last_key,
            stride_block, qk_scale, soft_cap, BLOCK_SIZE, HEAD_DIM, PADDED_DIM, BLOCK_M, BLOCK_N, SHARES, WINDOW,
            SOFT_CAP, ALIBI,
        )  # fmt: skip
    else:
        # Tiles before `full_from` begin outside the last token's window, those from `full_to` on have keys that the
        # first token does not see.
        full_from = begin_tile
        if WINDOW > 0:
            full_from = (tl.maximum(last_key - WINDOW + 1, 0) + BLOCK_N - 1) // BLOCK_N
        acc, row_max, row_sum = attend(
            q, query_position, slope, table, key_base, value_base, begin_tile, full_from,
            (first_position + 1) // BLOCK_N, end_tile, first_key, last_key, stride_block, qk_scale, soft_cap,
            BLOCK_SIZE, HEAD_DIM, PADDED_DIM, BLOCK_M, BLOCK_N, WINDOW, SOFT_CAP, ALIBI,
        )  # fmt: skip

    if FROM_SHARED:
        acc, row_max, row_sum = add_shared(
            shared_out, shared_lse, is_shared & (piece_begin == 0), acc, row_max, row_sum, row, num_rows, first_token,
            head, NUM_KV_HEADS * GROUP_SIZE, GROUP_SIZE, HEAD_DIM, PADDED_DIM,
        )  # fmt: skip
    if piece_end - piece_begin == num_tiles:
        store_output(
            out, shared_out, shared_lse, is_shared, sinks, acc, row_max, row_sum, row, num_rows, first_token, head,
            NUM_KV_HEADS * GROUP_SIZE, GROUP_SIZE, HEAD_DIM, PADDED_DIM, SINKS, TO_SHARED,
        )  # fmt: skip
    else:
        # Slot 0: the piece began in an earlier program; slot 1: it begins here and goes on in the next one.
        slot = program * 2 + tl.where(piece_begin == 0, 1, 0)
        partial = partial_acc + (slot * BLOCK_M + row[:, None]) * PADDED_DIM + dim[None, :]
        tl.store(partial, acc, mask=(row < num_rows)[:, None])
        stats = partial_stats + slot * (2 * BLOCK_M) + row
        tl.store(stats, row_max)
        tl.store(stats + BLOCK_M, row_sum)
        # All threads' stores come before the one thread's release.
        tl.debug_barrier()
        arrival = arrivals + segment * NUM_KV_HEADS + head
        arrived = tl.atomic_add(arrival, 1, sem="acq_rel", scope="gpu") + 1
        if arrived == last_program - first_program + 1:
            combine_partials(
                out, shared_out, shared_lse, is_shared, sinks, partial_acc, partial_stats, first_program, last_program,
                num_rows, first_token, head, NUM_KV_HEADS * GROUP_SIZE, GROUP_SIZE, HEAD_DIM, PADDED_DIM, BLOCK_M,
                SINKS, TO_SHARED, COMBINE_ROWS, COMBINE_PARTS,
            )  # fmt: skip
            tl.store(arrival, 0)


@triton.jit
def _paged_attention_kernel(
    query,  # [T, H·G, D]
    kv_cache,  # one layer's [num_blocks, 2, H, B, D]
    out,  # [T, H·G·D]
    block_tables,  # int32 [S, max_blocks]
    segments,  # int32 [segments, SEGMENT_WORDS]
    programs,  # int32 [P, PROGRAM_WORDS]
    partial_acc,  # float32 [P, 2, BLOCK_M, DP]
    partial_stats,  # float32 [P, 2, 2, BLOCK_M]: maxima, then sums
    arrivals,  # int32 [segments, H], zero before and after
    shared_out,  # float32 [shared tokens, H·G, D]
    shared_lse,  # float32 [shared tokens, H·G]
    alibi_slopes,  # float32 [H·G], or None
    sinks,  # float32 [H·G], or None
    stride_query_token,
    stride_query_head,
    stride_block,  # in units of B·D
    stride_value,  # from a key to its value
    stride_head,
    stride_table,
    qk_scale,  # to units of log2; with a soft cap: to the exponent of its tanh
    soft_cap,  # times log2(e)
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    FROM_SHARED: tl.constexpr,
    TO_SHARED: tl.constexpr,
    OVERHEAD: tl.constexpr,
    SHARES: tl.constexpr,
    COMBINE_ROWS: tl.constexpr,
    COMBINE_PARTS: tl.constexpr,
    SEGMENT_WORDS: tl.constexpr,
    PROGRAM_WORDS: tl.constexpr,
):
    """One persistent program: its run of units, piece by piece. SHARES: of a KV tile in `attend_split`; 0: `attend`."""
    let_dependents_start()
    wait_for_earlier_kernels()
    program = tl.program_id(0)
    record = programs + program * PROGRAM_WORDS
    unit, end_unit, per = tl.load(record), tl.load(record + 1), tl.load(record + 2)
    segment, head, within = tl.load(record + 3), tl.load(record + 4), tl.load(record + 5)
    record += PROGRAM_WORDS - SEGMENT_WORDS
    weight_before, num_tiles, table_row = tl.load(record), tl.load(record + 1), tl.load(record + 2)
    first_token, num_tokens = tl.load(record + 3), tl.load(record + 4)
    first_position, first_tile, is_shared = tl.load(record + 5), tl.load(record + 6), tl.load(record + 7)

    while unit < end_unit:
        # The units of this (segment, head) that belong to this program, and the piece of its tiles that they stand for.
        width = num_tiles + OVERHEAD
        num_units = tl.minimum(width - within, end_unit - unit)
        piece_begin = tl.maximum(within - OVERHEAD, 0)
        piece_end = tl.maximum(within + num_units - OVERHEAD, 0)
        if piece_begin < piece_end:
            first_unit = weight_before * NUM_KV_HEADS + head * width
            _work_on_piece(
                query, kv_cache, out, block_tables, partial_acc, partial_stats, arrivals, shared_out, shared_lse,
                alibi_slopes, sinks, stride_query_token, stride_query_head, stride_block, stride_value, stride_head,
                stride_table, qk_scale, soft_cap, program, (first_unit + OVERHEAD) // per,
                (first_unit + width - 1) // per, segment, head, piece_begin, piece_end, num_tiles, table_row,
                first_token, num_tokens, first_position, first_tile, is_shared != 0, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM,
                PADDED_DIM, BLOCK_SIZE, BLOCK_M, BLOCK_N, WINDOW, SOFT_CAP, ALIBI, SINKS, FROM_SHARED, TO_SHARED,
                SHARES, COMBINE_ROWS, COMBINE_PARTS,
            )  # fmt: skip
        unit += num_units
        within = within * 0
        head += 1
        if head == NUM_KV_HEADS:
            head = head * 0
            segment += 1
            following = segments + segment * SEGMENT_WORDS
            weight_before, num_tiles, table_row = tl.load(following), tl.load(following + 1), tl.load(following + 2)
            first_token, num_tokens = tl.load(following + 3), tl.load(following + 4)
            first_position, first_tile = tl.load(following + 5), tl.load(following + 6)
            is_shared = tl.load(following + 7)


def _launch(
    workspace: AttentionWorkspace,
    variant: Variant,
    query: torch.Tensor,
    layer_cache: torch.Tensor,
    out: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    soft_cap: float,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    has_shared: bool,
) -> None:
    tile = variant.tile
    is_short = variant is workspace.short
    block_size = layer_cache.shape[3]
    # With a soft cap c: c · log2(e) · tanh(s / c), whose exponent 2s / c is taken to base 2; else scores in units of
    # log2.
    qk_scale = scale * LOG2E.value * (2 / soft_cap if soft_cap > 0 else 1)
    combine_rows, combine_parts = combine_tile(workspace.padded_dim, tile, is_short)
    _paged_attention_kernel[(variant.num_programs,)](
        query,
        layer_cache,
        out,
        block_tables,
        variant.segments,
        variant.programs,
        variant.partial_acc,
        variant.partial_stats,
        variant.arrivals,
        workspace.shared_out,
        workspace.shared_lse,
        alibi_slopes,
        sinks,
        query.stride(0),
        query.stride(1),
        layer_cache.stride(0) // (block_size * workspace.head_dim),
        layer_cache.stride(1),
        layer_cache.stride(2),
        block_tables.stride(0),
        qk_scale,
        soft_cap * LOG2E.value,
        NUM_KV_HEADS=workspace.num_kv_heads,
        GROUP_SIZE=workspace.group_size,
        HEAD_DIM=workspace.head_dim,
        PADDED_DIM=workspace.padded_dim,
        BLOCK_SIZE=block_size,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        WINDOW=workspace.sliding_window,
        SOFT_CAP=soft_cap > 0,
        ALIBI=alibi_slopes is not None,
        SINKS=sinks is not None,
        FROM_SHARED=has_shared and is_short,
        TO_SHARED=workspace.max_shared_tokens > 0 and not is_short,
        OVERHEAD=tile.overhead,
        SHARES=tile.shares if is_short else 0,
        COMBINE_ROWS=combine_rows,
        COMBINE_PARTS=combine_parts,
        SEGMENT_WORDS=SEGMENT_WORDS,
        PROGRAM_WORDS=PROGRAM_WORDS,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=tile.max_registers,
        launch_pdl=may_overlap(),
    )


def paged_attention(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    workspace: AttentionWorkspace,
    block_tables: torch.Tensor,
    scale: float,
    out: torch.Tensor | None = None,
    *,
    has_long: bool = True,
    has_shared: bool = False,
    soft_cap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the step that `plan_attention` mapped last: queries [T, H·G, D] to [T, H·G·D], in the queries'
    dtype.

    `kv_cache` [num_blocks, L, 2, H, B, D] with any strides, but each B x D tile contiguous and blocks a multiple of its
    size apart. `block_tables` int32 [S, max_blocks], indexed by row. `has_long=False` saves a launch where the caller
    knows that every sequence is short (one query token always is). `has_shared`: the step was mapped with a
    common beginning apart. Options: `soft_cap` c: c · tanh(s / c);
    `alibi_slopes` and `sinks` float32 [H·G]. Output rows of tokens that belong to no sequence are left as they are.
    """
    num_tokens, num_q_heads, head_dim = query.shape
    num_heads, block_size = kv_cache.shape[3:5]
    assert kv_cache.shape[2:] == (2, workspace.num_kv_heads, block_size, workspace.head_dim)
    assert num_q_heads == num_heads * workspace.group_size
    assert head_dim == workspace.head_dim
    assert num_tokens <= workspace.max_num_tokens
    assert scale > 0
    assert soft_cap >= 0
    assert query.dtype == kv_cache.dtype
    assert query.stride(2) == 1
    assert kv_cache.stride()[-2:] == (head_dim, 1)
    assert kv_cache.stride(0) % (block_size * head_dim) == 0
    assert block_tables.dtype == torch.int32
    assert block_tables.stride(1) == 1
    for option in (alibi_slopes, sinks):
        assert option is None or (option.shape == (num_q_heads,) and option.dtype == torch.float32)
    if out is None:
        out = torch.empty(num_tokens, num_q_heads * head_dim, dtype=query.dtype, device=query.device)
    assert out.shape == (num_tokens, num_q_heads * head_dim)
    assert out.is_contiguous()
    assert out.dtype == query.dtype
    assert not (has_shared and alibi_slopes is not None), "common keys are attended to without positions"
    layer_cache = kv_cache[:, layer]
    options = (soft_cap, alibi_slopes, sinks, has_shared)
    # The short rows' walks end with what the long variant found out about their common keys, so they come last.
    if (has_long or has_shared) and workspace.uses_wgmma:
        assert alibi_slopes is None
        hopper_attention.launch(workspace, query, layer_cache, out, block_tables, scale, soft_cap, sinks)
    elif has_long or has_shared:
        _launch(workspace, workspace.long, query, layer_cache, out, block_tables, scale, *options)
    _launch(workspace, workspace.short, query, layer_cache, out, block_tables, scale, *options)
    return out
