"""The task map of paged attention: who computes what, worked out on the GPU once per step and used by every layer.

A *segment* is one q-tile of one sequence. For each KV head it walks over n KV tiles: from the first one that any of its
tokens can see (sliding window) to the one with its last token (causal). A *unit* is (segment, KV head, KV tile); units
are numbered segment by segment, then by head, then by tile, so a segment with c tiles of others before it owns the
units [H·c, H·(c + n)). All W units are dealt out evenly, in runs of per = ceil(W / P): program p owns those from p·per
on (the "stream-K" decomposition of Osama et al. 2023). The balance is exact up to one unit whatever the mix of lengths:
there is nothing to tune and no threshold to fall off.

Records hold all that the attention kernel needs, so that it begins with one load and not with a chain of them:

    segment: 0 tiles before it, 1 its tiles, 2 row, 3 first token (index into the step's tokens), 4 its tokens,
             5 position of the first token, 6 first KV tile, 7 unused
    program: 0 first unit, 1 end, 2 per, 3 segment, 4 KV head, 5 tile within the segment, 6 and 7 unused,
             8 to 15 the segment's record

One launch, one CTA for each variant (short and long rows). It is a matter of latency, not of bandwidth: some kilobytes
are read, and lists are searched by all threads at once. Measured: see docs/log.md.

Legend: N = scheduled sequences of the (padded) step, S = max_num_seqs, H = KV heads, P = programs of a variant.
"""

import torch
import triton
import triton.language as tl

from kernels.attention_workspace import PROGRAM_WORDS, SEGMENT_WORDS, AttentionWorkspace

_CHUNK = 512
_NUM_WARPS = 4


@triton.jit
def _last_at_most(values, length, stride, wanted, inside, first_step):
    """The last index below `length` whose value is <= wanted [CHUNK], in ascending values; 0 where there is none."""
    found = wanted * 0
    step = first_step
    while step > 0:
        candidate = found + step
        is_valid = inside & (candidate < length)
        value = tl.load(values + candidate * stride, mask=is_valid, other=0)
        found = tl.where(is_valid & (value <= wanted), candidate, found)
        step = step // 2
    return found


@triton.jit
def _half_of_power_of_two(length):
    """The first step of a binary search: the largest power of two below `length`."""
    step = length * 0 + 1
    while step < length:
        step = step * 2
    return step // 2


@triton.jit
def _list_segments(
    rows,
    query_start_loc,
    seq_lens,
    first_segment,
    segments,
    num_seqs,
    IS_SHORT: tl.constexpr,
    MAX_SHORT_TOKENS: tl.constexpr,
    TOKENS_PER_TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SEGMENT_WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Writes the records of one variant's segments; returns their number and the number of their tiles."""
    lane = tl.arange(0, CHUNK)
    num_segments = num_seqs * 0
    for first in range(0, num_seqs, CHUNK):
        seq = first + lane
        inside = seq < num_seqs
        start = tl.load(query_start_loc + seq, mask=inside, other=0)
        query_len = tl.load(query_start_loc + seq + 1, mask=inside, other=0) - start
        seq_len = tl.load(seq_lens + seq, mask=inside, other=0)
        mine = (query_len > 0) & (seq_len > 0) & ((query_len <= MAX_SHORT_TOKENS) == IS_SHORT)
        count = tl.where(mine, (query_len + TOKENS_PER_TILE - 1) // TOKENS_PER_TILE, 0)
        tl.store(first_segment + seq, num_segments + tl.cumsum(count, 0) - count, mask=inside)
        num_segments += tl.sum(count, 0)
    tl.debug_barrier()  # the list is read by other threads than those that wrote it

    num_tiles = num_seqs * 0
    seq_step = _half_of_power_of_two(num_seqs)
    for first in range(0, num_segments, CHUNK):
        index = first + lane
        inside = index < num_segments
        seq = _last_at_most(first_segment, num_seqs, 1, index, inside, seq_step)
        start = tl.load(query_start_loc + seq, mask=inside, other=0)
        query_len = tl.load(query_start_loc + seq + 1, mask=inside, other=0) - start
        seq_len = tl.load(seq_lens + seq, mask=inside, other=0)
        row = tl.load(rows + seq, mask=inside, other=0)
        first_token = (index - tl.load(first_segment + seq, mask=inside, other=0)) * TOKENS_PER_TILE
        num_tokens = tl.minimum(query_len - first_token, TOKENS_PER_TILE)
        first_position = seq_len - query_len + first_token
        first_tile = first_token * 0
        if WINDOW > 0:
            first_tile = tl.maximum(first_position - WINDOW + 1, 0) // BLOCK_N
        tiles = (first_position + num_tokens + BLOCK_N - 1) // BLOCK_N - first_tile
        tiles = tl.where(inside, tiles, 0)
        record = segments + index * SEGMENT_WORDS
        tl.store(record, num_tiles + tl.cumsum(tiles, 0) - tiles, mask=inside)
        tl.store(record + 1, tiles, mask=inside)
        tl.store(record + 2, row, mask=inside)
        tl.store(record + 3, start + first_token, mask=inside)
        tl.store(record + 4, num_tokens, mask=inside)
        tl.store(record + 5, first_position, mask=inside)
        tl.store(record + 6, first_tile, mask=inside)
        num_tiles += tl.sum(tiles, 0)
    tl.debug_barrier()
    return num_segments, num_tiles


@triton.jit
def _deal_out(
    segments,
    programs,
    num_segments,
    num_tiles,
    NUM_KV_HEADS: tl.constexpr,
    NUM_PROGRAMS: tl.constexpr,
    MIN_UNITS: tl.constexpr,
    SEGMENT_WORDS: tl.constexpr,
    PROGRAM_WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Writes every program's record: its run of units and where in the list of segments the run begins."""
    num_units = num_tiles * NUM_KV_HEADS
    per = tl.maximum((num_units + NUM_PROGRAMS - 1) // NUM_PROGRAMS, MIN_UNITS)
    segment_step = _half_of_power_of_two(num_segments)
    for first in range(0, NUM_PROGRAMS, CHUNK):
        program = first + tl.arange(0, CHUNK)
        inside = program < NUM_PROGRAMS
        begin = tl.minimum(program * per, num_units)
        # Units of a segment begin at NUM_KV_HEADS times the tiles before it.
        tile_count = begin // NUM_KV_HEADS
        is_busy = inside & (begin < num_units)
        segment = _last_at_most(segments, num_segments, SEGMENT_WORDS, tile_count, is_busy, segment_step)
        source = segments + segment * SEGMENT_WORDS
        within = begin - tl.load(source, mask=is_busy, other=0) * NUM_KV_HEADS
        tiles = tl.load(source + 1, mask=is_busy, other=1)
        target = programs + program * PROGRAM_WORDS
        tl.store(target, begin, mask=inside)
        tl.store(target + 1, tl.minimum(begin + per, num_units), mask=inside)
        tl.store(target + 2, program * 0 + per, mask=inside)
        tl.store(target + 3, segment, mask=inside)
        tl.store(target + 4, within // tiles, mask=inside)
        tl.store(target + 5, within % tiles, mask=inside)
        for word in tl.static_range(SEGMENT_WORDS - 1):
            value = tl.load(source + word, mask=is_busy, other=0)
            tl.store(target + PROGRAM_WORDS - SEGMENT_WORDS + word, value, mask=inside)


@triton.jit(do_not_specialize=["num_seqs"])
def _task_map_kernel(
    rows,
    query_start_loc,
    seq_lens,
    short_first_segment,
    short_segments,
    short_programs,
    long_first_segment,
    long_segments,
    long_programs,
    num_seqs,
    SHORT_TOKENS: tl.constexpr,
    LONG_TOKENS: tl.constexpr,
    SHORT_BLOCK_N: tl.constexpr,
    LONG_BLOCK_N: tl.constexpr,
    SHORT_PROGRAMS: tl.constexpr,
    LONG_PROGRAMS: tl.constexpr,
    SHORT_MIN_UNITS: tl.constexpr,
    LONG_MIN_UNITS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    SEGMENT_WORDS: tl.constexpr,
    PROGRAM_WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program 0 maps the short rows, program 1 the long ones."""
    if tl.program_id(0) == 0:
        num_segments, num_tiles = _list_segments(
            rows, query_start_loc, seq_lens, short_first_segment, short_segments, num_seqs,
            True, SHORT_TOKENS, SHORT_TOKENS, SHORT_BLOCK_N, WINDOW, SEGMENT_WORDS, CHUNK,
        )  # fmt: skip
        _deal_out(
            short_segments, short_programs, num_segments, num_tiles,
            NUM_KV_HEADS, SHORT_PROGRAMS, SHORT_MIN_UNITS, SEGMENT_WORDS, PROGRAM_WORDS, CHUNK,
        )  # fmt: skip
    else:
        num_segments, num_tiles = _list_segments(
            rows, query_start_loc, seq_lens, long_first_segment, long_segments, num_seqs,
            False, SHORT_TOKENS, LONG_TOKENS, LONG_BLOCK_N, WINDOW, SEGMENT_WORDS, CHUNK,
        )  # fmt: skip
        _deal_out(
            long_segments, long_programs, num_segments, num_tiles,
            NUM_KV_HEADS, LONG_PROGRAMS, LONG_MIN_UNITS, SEGMENT_WORDS, PROGRAM_WORDS, CHUNK,
        )  # fmt: skip


def plan_attention(
    workspace: AttentionWorkspace, rows: torch.Tensor, query_start_loc: torch.Tensor, seq_lens: torch.Tensor
) -> None:
    """Writes the step's task map into the workspace; all `paged_attention` calls with it that follow are this step's.

    `rows` int32 [N], `query_start_loc` int32 [N + 1], `seq_lens` int32 [N] (this step's tokens included). A sequence
    without tokens (seq_len 0 or an empty token range: padding) has no segment. N may differ from call to call.
    """
    num_seqs = len(seq_lens)
    assert num_seqs <= workspace.max_num_seqs
    assert rows.shape == seq_lens.shape
    assert query_start_loc.shape == (num_seqs + 1,)
    for tensor in (rows, query_start_loc, seq_lens):
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()
    short, long = workspace.short, workspace.long
    _task_map_kernel[(2,)](
        rows,
        query_start_loc,
        seq_lens,
        short.first_segment,
        short.segments,
        short.programs,
        long.first_segment,
        long.segments,
        long.programs,
        num_seqs,
        SHORT_TOKENS=short.tokens_per_tile,
        LONG_TOKENS=long.tokens_per_tile,
        SHORT_BLOCK_N=short.tile.block_n,
        LONG_BLOCK_N=long.tile.block_n,
        SHORT_PROGRAMS=short.num_programs,
        LONG_PROGRAMS=long.num_programs,
        SHORT_MIN_UNITS=short.tile.min_units,
        LONG_MIN_UNITS=long.tile.min_units,
        NUM_KV_HEADS=workspace.num_kv_heads,
        WINDOW=workspace.sliding_window,
        SEGMENT_WORDS=SEGMENT_WORDS,
        PROGRAM_WORDS=PROGRAM_WORDS,
        CHUNK=_CHUNK,
        num_warps=_NUM_WARPS,
    )
