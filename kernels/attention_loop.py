"""The loops over KV tiles of paged attention: online softmax of a q-tile's rows.

Device functions of kernels/paged_attention.py, whose docstring has formulas and legend. There are two forms.

`attend`: all keys of a tile at once, rows spread over the warps. For tall q-tiles, whose products keep the matrix units
busy. One loop for all tiles, with or without hidden keys: a second one would have to fill the pipeline again.

`attend_split`: a tile's keys are cut into W shares, one for each warp, and each share has running maxima, sums and an
accumulator of its own; `_merge_shares` unites them after the last tile. For q-tiles of few rows, which are no work for
several warps: a row spread over them would cost exchanges through shared memory, with barriers, for each tile's maxima,
sums and p. Decode waits for latencies, so a tile here has none but its own loads and products, and each key of a share
has a sum of its own until the end. Products are transposed, k · qᵀ and vᵀ · pᵀ: then rows are the side of the matrix
units' instructions that is 8 wide and not 16.

Addresses. Strides of the cache are in units of one B x D tile, so that a block's place takes one 32-bit and one wide
product. Keys past the last one are not read and count as zeros, and so do those before the window of the q-tile's
first token, whose blocks may be another request's by now. The block table is read one tile ahead: loaded in the same
iteration, it would halve the distance at which Triton's pipeliner prefetches keys and values.

Measured: see docs/log.md.
"""

import triton
import triton.language as tl

from kernels.attention_combine import HIDDEN


@triton.jit
def _hide(scores, key_position, query_position, WINDOW: tl.constexpr):
    """HIDDEN for what lies after a row's own token or outside its window."""
    visible = key_position <= query_position
    if WINDOW > 0:
        visible = visible & (key_position > query_position - WINDOW)
    return tl.where(visible, scores, HIDDEN)


@triton.jit
def _prepare_scores(
    scores,
    key_position,
    query_position,
    slope,
    qk_scale,
    soft_cap,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Scores with options and masks, of positions that broadcast to them; not yet scaled where there is no option."""
    if SOFT_CAP:
        # tanh(x) = 1 - 2 / (1 + e^2x), 1 in float32 from far below x = 100 on; qk_scale and soft_cap hold log2(e).
        scores = soft_cap * (1.0 - 2.0 / (1.0 + tl.exp2(tl.minimum(scores * qk_scale, 100.0))))
    elif ALIBI:
        scores = scores * qk_scale
    if ALIBI:
        scores += slope * (key_position - query_position).to(tl.float32)
    if MASKED:
        scores = _hide(scores, key_position, query_position, WINDOW)
    return scores


@triton.jit
def _load_blocks(
    table, tile, lane, first_key, last_key, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr
):
    """Block ids of a tile's keys `lane`, 0 for those past the last key or before the first."""
    if BLOCK_N % BLOCK_SIZE == 0:
        blocks = (table + lane // BLOCK_SIZE) + tile * (BLOCK_N // BLOCK_SIZE)
    else:
        blocks = table + (tile * BLOCK_N + lane) // BLOCK_SIZE
    is_seen = lane <= last_key - tile * BLOCK_N
    if WINDOW > 0:
        is_seen = is_seen & (lane >= first_key - tile * BLOCK_N)
    return tl.load(blocks, mask=is_seen, other=0)


@triton.jit
def _place(blocks, tile, lane, stride_block, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr):
    """Offsets of a tile's keys `lane` in the cache, in elements."""
    if BLOCK_N % BLOCK_SIZE == 0:
        within = lane % BLOCK_SIZE
    else:
        within = (tile * BLOCK_N + lane) % BLOCK_SIZE
    return (blocks * stride_block).to(tl.int64) * (BLOCK_SIZE * HEAD_DIM) + within * HEAD_DIM


@triton.jit
def attend(
    query,  # [M, DP]
    query_position,  # [M]
    slope,  # [M]
    table,
    key_base,
    value_base,
    first_tile,
    full_from,
    full_to,
    end_tile,
    first_key,
    last_key,
    stride_block,
    qk_scale,
    soft_cap,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ALIBI: tl.constexpr,
):
    """(acc [M, DP], maximum [M], sum [M]) over the KV tiles [first_tile, end_tile). Only those outside [full_from,
    full_to) have keys that are hidden from some rows."""
    lane = tl.arange(0, BLOCK_N)
    dim = tl.arange(0, PADDED_DIM)
    unit = qk_scale
    if SOFT_CAP or ALIBI:
        unit = 1.0
    acc = tl.zeros([BLOCK_M, PADDED_DIM], tl.float32)
    row_max = tl.full([BLOCK_M], HIDDEN, tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    blocks = _load_blocks(table, first_tile, lane, first_key, last_key, BLOCK_SIZE, BLOCK_N, WINDOW)
    for tile in range(first_tile, end_tile):
        offset = _place(blocks, tile, lane, stride_block, BLOCK_SIZE, HEAD_DIM, BLOCK_N)[:, None]
        is_seen = lane <= last_key - tile * BLOCK_N
        if WINDOW > 0:
            is_seen = is_seen & (lane >= first_key - tile * BLOCK_N)
        is_key = is_seen[:, None] & (dim < HEAD_DIM)[None, :]
        key = tl.load(key_base + offset + dim[None, :], mask=is_key, other=0.0)
        value = tl.load(value_base + offset + dim[None, :], mask=is_key, other=0.0)
        blocks = _load_blocks(table, tile + 1, lane, first_key, last_key, BLOCK_SIZE, BLOCK_N, WINDOW)

        scores = tl.dot(query, tl.trans(key), input_precision="ieee")  # [M, N]
        scores = _prepare_scores(
            scores, (tile * BLOCK_N + lane)[None, :], query_position[:, None], slope[:, None], qk_scale, soft_cap,
            WINDOW, SOFT_CAP, ALIBI, False,
        )  # fmt: skip
        if (tile < full_from) | (tile >= full_to):
            scores = _hide(scores, (tile * BLOCK_N + lane)[None, :], query_position[:, None], WINDOW)
        new_max = tl.maximum(row_max, tl.max(scores, 1) * unit)  # the scale is positive
        p = tl.exp2(scores * unit - new_max[:, None])
        shrink = tl.exp2(row_max - new_max)
        row_sum = row_sum * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(value.dtype), value, acc, input_precision="ieee")
        row_max = new_max
    return acc, row_max, row_sum


@triton.jit
def attend_split(
    query,  # [M, DP]
    query_position,  # [M]
    slope,  # [M]
    table,
    key_base,
    value_base,
    first_tile,
    end_tile,
    first_key,
    last_key,
    stride_block,
    qk_scale,
    soft_cap,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SHARES: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ALIBI: tl.constexpr,
):
    """The same over W = SHARES shares of each tile, K = N / W keys in each; returns what the shares unite to."""
    SHARE_N: tl.constexpr = BLOCK_N // SHARES
    share = tl.arange(0, SHARES)[:, None] * SHARE_N  # [W, 1]
    key = tl.arange(0, SHARE_N)
    dim = tl.arange(0, PADDED_DIM)
    lane = share + key[None, :]  # [W, K]
    # Keys that are known to share a block share one look into the table and one address.
    if BLOCK_SIZE % SHARE_N == 0:
        lead = share
        within = key * HEAD_DIM
    else:
        lead = lane
        within = key * 0
    unit = qk_scale
    if SOFT_CAP or ALIBI:
        unit = 1.0
    query = tl.broadcast_to(tl.trans(query)[None, :, :], [SHARES, PADDED_DIM, BLOCK_M])
    acc = tl.zeros([SHARES, PADDED_DIM, BLOCK_M], tl.float32)
    row_max = tl.full([SHARES, BLOCK_M], HIDDEN, tl.float32)
    key_sum = tl.zeros([SHARES, SHARE_N, BLOCK_M], tl.float32)
    first_lead = first_key - SHARE_N + 1  # the window may begin behind a share's first key
    blocks = _load_blocks(table, first_tile, lead, first_lead, last_key, BLOCK_SIZE, BLOCK_N, WINDOW)
    for tile in range(first_tile, end_tile):
        offset = _place(blocks, tile, lead, stride_block, BLOCK_SIZE, HEAD_DIM, BLOCK_N)
        is_key = lane <= last_key - tile * BLOCK_N
        if WINDOW > 0:
            is_key = is_key & (lane >= first_key - tile * BLOCK_N)
        keys = tl.load(
            key_base + offset[:, :, None] + (within[None, :, None] + dim[None, None, :]),
            mask=is_key[:, :, None] & (dim < HEAD_DIM)[None, None, :],
            other=0.0,
        )  # [W, K, DP]
        values = tl.load(
            value_base + offset[:, None, :] + (within[None, None, :] + dim[None, :, None]),
            mask=is_key[:, None, :] & (dim < HEAD_DIM)[None, :, None],
            other=0.0,
        )  # [W, DP, K]
        blocks = _load_blocks(table, tile + 1, lead, first_lead, last_key, BLOCK_SIZE, BLOCK_N, WINDOW)

        scores = tl.dot(keys, query, input_precision="ieee")  # [W, K, M]
        scores = _prepare_scores(
            scores, (tile * BLOCK_N + lane)[:, :, None], query_position[None, None, :], slope[None, None, :],
            qk_scale, soft_cap, WINDOW, SOFT_CAP, ALIBI, True,
        )  # fmt: skip
        new_max = tl.maximum(row_max, tl.max(scores, 1) * unit)
        p = tl.exp2(scores * unit - new_max[:, None, :])
        shrink = tl.exp2(row_max - new_max)
        key_sum = key_sum * shrink[:, None, :] + p
        acc = acc * shrink[:, None, :]
        acc = tl.dot(values, p.to(values.dtype), acc, input_precision="ieee")
        row_max = new_max
    return _merge_shares(acc, row_max, tl.sum(key_sum, 1), SHARES, BLOCK_M, PADDED_DIM)


@triton.jit
def _merge_shares(acc, row_max, row_sum, SHARES: tl.constexpr, BLOCK_M: tl.constexpr, PADDED_DIM: tl.constexpr):
    """(acc [M, DP], maximum [M], sum [M]) of all shares, from [W, DP, M], [W, M], [W, M]."""
    new_max = tl.max(row_max, 0)
    shrink = tl.exp2(row_max - new_max[None, :])
    row_sum = tl.sum(row_sum * shrink, 0)
    # Added up in halves, and not by a reduction: that would exchange every single element between warps by itself.
    part = tl.permute(acc * shrink[:, None, :], (2, 1, 0))  # [M, DP, W]
    if SHARES == 8:
        even, odd = tl.split(tl.reshape(part, [BLOCK_M, PADDED_DIM, 4, 2]))
        part = even + odd
    if SHARES >= 4:
        even, odd = tl.split(tl.reshape(part, [BLOCK_M, PADDED_DIM, 2, 2]))
        part = even + odd
    if SHARES >= 2:
        even, odd = tl.split(part)
        total = even + odd
    else:
        total = tl.reshape(part, [BLOCK_M, PADDED_DIM])
    return total, new_max, row_sum
