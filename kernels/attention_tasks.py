"""The task map of paged attention: who computes what, worked out on the GPU once per step and used by every layer.

A *segment* is one q-tile of one sequence. For each KV head it walks over n KV tiles: from the first one that any of its
tokens can see (sliding window) to the one with its last token (causal). Beginning and ending such a walk takes as long
as some more tiles, the variant's overhead o, so a (segment, head) weighs n + o *units*: o virtual ones and then one for
each tile. Units are numbered segment by segment, then by head: a segment with a weight of c before it owns the units
[H·c, H·(c + n + o)). All W units are dealt out evenly, in runs of per = ceil(W / P): program p owns those from p·per on
(the "stream-K" decomposition of Osama et al. 2023). The balance is exact up to one unit whatever the mix of lengths:
there is no threshold to fall off. Where a run has none but virtual units of a (segment, head), there is nothing to do.

Records hold all that the attention kernel needs, so that it begins with one load and not with a chain of them:

    segment: 0 weight before it, 1 its tiles, 2 row, 3 first token (index into the step's tokens), 4 its tokens,
             5 position of the first token, 6 first KV tile, 7 whether keys of a common beginning are apart (below)
    program: 0 first unit, 1 end, 2 per, 3 segment, 4 KV head, 5 unit within (segment, head), 6 and 7 zero,
             8 to 15 the segment's record

Common beginnings. Where the rows that decode begin with the same blocks (one system prompt, many users), each would
read them by itself. Instead the long variant, which comes first, lets q-tiles of all their tokens, whatever the rows,
walk over those keys once; its results go to `shared_out`, and these rows' own walks, which begin behind the common
keys, take them up at their end (cascade attention: Ye et al. 2024; Juravsky et al. 2024).

One launch, one CTA for each variant (short and long rows). It is a matter of latency: some kilobytes are read, but each
load or barrier is waited for. So nothing is searched for that can be counted. A short row is one segment. Segment s
begins before or with program p if ceil(its first unit / per) <= p: the running sum of a histogram of these numbers
tells all programs their segments. Measured: see docs/log.md.

Legend: N = scheduled sequences of the (padded) step, S = max_num_seqs, H = KV heads, P = programs of a variant.
"""

import torch
import triton
import triton.language as tl

from kernels.attention_workspace import PROGRAM_WORDS, SEGMENT_WORDS, AttentionWorkspace
from kernels.programmatic import let_dependents_start

_CHUNK = 256
_NUM_WARPS = 8


@triton.jit
def _store_segments(
    segments,
    index,
    inside,
    weight_before,
    row,
    first_token,
    num_tokens,
    first_position,
    first_tile,
    num_keys,
    is_shared,
    BLOCK_N: tl.constexpr,
    OVERHEAD: tl.constexpr,
    SEGMENT_WORDS: tl.constexpr,
):
    """Writes the records `index` [CHUNK] of segments in ascending order, whose walks end with key `num_keys` - 1;
    returns the weight of all of them."""
    tiles = (num_keys + BLOCK_N - 1) // BLOCK_N - first_tile
    weight = tl.where(inside, tiles + OVERHEAD, 0)
    record = segments + index * SEGMENT_WORDS
    tl.store(record, weight_before + tl.cumsum(weight, 0) - weight, mask=inside)
    tl.store(record + 1, tiles, mask=inside)
    tl.store(record + 2, row, mask=inside)
    tl.store(record + 3, first_token, mask=inside)
    tl.store(record + 4, num_tokens, mask=inside)
    tl.store(record + 5, first_position, mask=inside)
    tl.store(record + 6, first_tile, mask=inside)
    tl.store(record + 7, is_shared, mask=inside)
    return tl.sum(weight, 0)


@triton.jit
def _first_tile(first_position, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr):
    """The first tile with keys that the token at `first_position` sees."""
    first_tile = first_position * 0
    if WINDOW > 0:
        first_tile = tl.maximum(first_position - WINDOW + 1, 0) // BLOCK_N
    return first_tile


@triton.jit
def _list_short(
    rows,
    query_start_loc,
    seq_lens,
    segments,
    num_seqs,
    num_shared,
    num_sharing,
    MAX_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    OVERHEAD: tl.constexpr,
    SEGMENT_WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Writes the records of the short rows, each one segment, that of the first `num_sharing` sequences behind the
    first `num_shared` keys; returns their number and weight."""
    num_segments = num_seqs * 0
    weight = num_seqs * 0
    for first in range(0, num_seqs, CHUNK):
        seq = first + tl.arange(0, CHUNK)
        inside = seq < num_seqs
        start = tl.load(query_start_loc + seq, mask=inside, other=0)
        query_len = tl.load(query_start_loc + seq + 1, mask=inside, other=0) - start
        seq_len = tl.load(seq_lens + seq, mask=inside, other=0)
        row = tl.load(rows + seq, mask=inside, other=0)
        mine = ((query_len > 0) & (query_len <= MAX_TOKENS) & (seq_len > 0)).to(tl.int32)
        index = num_segments + tl.cumsum(mine, 0) - mine
        is_shared = ((seq < num_sharing) & (num_shared > 0)).to(tl.int32)
        first_tile = tl.maximum(_first_tile(seq_len - query_len, BLOCK_N, WINDOW), is_shared * (num_shared // BLOCK_N))
        weight += _store_segments(
            segments, index, mine > 0, weight, row, start, query_len, seq_len - query_len, first_tile, seq_len,
            is_shared, BLOCK_N, OVERHEAD, SEGMENT_WORDS,
        )  # fmt: skip
        num_segments += tl.sum(mine, 0)
    return num_segments, weight


@triton.jit
def _last_at_most(values, length, wanted, inside):
    """The last index below `length` whose value is <= wanted [CHUNK], in ascending values from 0 on."""
    step = length * 0 + 1
    while step < length:
        step = step * 2
    found = wanted * 0
    while step > 0:
        candidate = found + step
        is_valid = inside & (candidate < length)
        value = tl.load(values + candidate, mask=is_valid, other=0)
        found = tl.where(is_valid & (value <= wanted), candidate, found)
        step = step // 2
    return found


@triton.jit
def _list_long(
    rows,
    query_start_loc,
    seq_lens,
    long_seqs,
    first_segment,
    segments,
    num_seqs,
    num_before,
    weight,
    MAX_SHORT_TOKENS: tl.constexpr,
    TOKENS_PER_TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    OVERHEAD: tl.constexpr,
    SEGMENT_WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Writes the records of the long rows' segments behind `num_before` others that weigh `weight`; returns the number
    and the weight of all."""
    lane = tl.arange(0, CHUNK)
    num_long = num_seqs * 0
    num_segments = num_seqs * 0
    for first in range(0, num_seqs, CHUNK):
        seq = first + lane
        inside = seq < num_seqs
        start = tl.load(query_start_loc + seq, mask=inside, other=0)
        query_len = tl.load(query_start_loc + seq + 1, mask=inside, other=0) - start
        seq_len = tl.load(seq_lens + seq, mask=inside, other=0)
        mine = ((query_len > MAX_SHORT_TOKENS) & (seq_len > 0)).to(tl.int32)
        count = mine * ((query_len + TOKENS_PER_TILE - 1) // TOKENS_PER_TILE)
        index = num_long + tl.cumsum(mine, 0) - mine
        tl.store(long_seqs + index, seq, mask=mine > 0)
        tl.store(first_segment + index, num_segments + tl.cumsum(count, 0) - count, mask=mine > 0)
        num_long += tl.sum(mine, 0)
        num_segments += tl.sum(count, 0)
    tl.debug_barrier()  # the list is read by other threads than those that wrote it

    for first in range(0, num_segments, CHUNK):
        index = first + lane
        inside = index < num_segments
        at = _last_at_most(first_segment, num_long, index, inside)  # few rows are long: few steps
        seq = tl.load(long_seqs + at, mask=inside, other=0)
        skipped = (index - tl.load(first_segment + at, mask=inside, other=0)) * TOKENS_PER_TILE
        start = tl.load(query_start_loc + seq, mask=inside, other=0)
        query_len = tl.load(query_start_loc + seq + 1, mask=inside, other=0) - start
        seq_len = tl.load(seq_lens + seq, mask=inside, other=0)
        row = tl.load(rows + seq, mask=inside, other=0)
        num_tokens = tl.minimum(query_len - skipped, TOKENS_PER_TILE)
        position = seq_len - query_len + skipped
        weight += _store_segments(
            segments, num_before + index, inside, weight, row, start + skipped, num_tokens, position,
            _first_tile(position, BLOCK_N, WINDOW), position + num_tokens, 0, BLOCK_N, OVERHEAD, SEGMENT_WORDS,
        )  # fmt: skip
    return num_before + num_segments, weight


@triton.jit
def _list_shared(
    rows,
    segments,
    num_shared,
    num_sharing,
    TOKENS_PER_TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERHEAD: tl.constexpr,
    SEGMENT_WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Writes the records of the walks of the first `num_sharing` sequences, of one token each, over their first
    `num_shared` keys, which the first row's table names; returns their number and weight. To the attention kernel their
    tokens come after these keys and hide none."""
    row = tl.load(rows)
    num_segments = tl.where(num_shared > 0, (num_sharing + TOKENS_PER_TILE - 1) // TOKENS_PER_TILE, 0)
    weight = num_sharing * 0
    for first in range(0, num_segments, CHUNK):
        index = first + tl.arange(0, CHUNK)
        first_token = index * TOKENS_PER_TILE
        weight += _store_segments(
            segments, index, index < num_segments, weight, row, first_token,
            tl.minimum(num_sharing - first_token, TOKENS_PER_TILE), num_shared - 1, index * 0, num_shared, 1,
            BLOCK_N, OVERHEAD, SEGMENT_WORDS,
        )  # fmt: skip
    return num_segments, weight


@triton.jit
def _deal_out(
    segments,
    programs,
    num_segments,
    weight,
    NUM_KV_HEADS: tl.constexpr,
    NUM_PROGRAMS: tl.constexpr,
    PADDED_PROGRAMS: tl.constexpr,
    MIN_UNITS: tl.constexpr,
    OVERHEAD: tl.constexpr,
    SEGMENT_WORDS: tl.constexpr,
    PROGRAM_WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Writes every program's record: its run of units and where in the list of segments the run begins."""
    num_units = weight * NUM_KV_HEADS
    per = tl.maximum((num_units + NUM_PROGRAMS - 1) // NUM_PROGRAMS, MIN_UNITS + OVERHEAD)
    tl.debug_barrier()  # records are read by other threads than those that wrote them
    begun = tl.zeros([PADDED_PROGRAMS], tl.int32)
    for first in range(0, num_segments, CHUNK):
        index = first + tl.arange(0, CHUNK)
        inside = index < num_segments
        first_unit = tl.load(segments + index * SEGMENT_WORDS, mask=inside, other=0) * NUM_KV_HEADS
        first_program = (first_unit + per - 1) // per
        begun += tl.histogram(first_program, PADDED_PROGRAMS, mask=inside & (first_program < NUM_PROGRAMS))
    program = tl.arange(0, PADDED_PROGRAMS)
    inside = program < NUM_PROGRAMS
    begin = tl.minimum(program * per, num_units)
    is_busy = inside & (begin < num_units)
    segment = tl.cumsum(begun, 0) - 1
    source = segments + segment * SEGMENT_WORDS
    within = begin - tl.load(source, mask=is_busy, other=0) * NUM_KV_HEADS
    width = tl.load(source + 1, mask=is_busy, other=1) + OVERHEAD
    target = programs + program * PROGRAM_WORDS
    tl.store(target, begin, mask=inside)
    tl.store(target + 1, tl.minimum(begin + per, num_units), mask=inside)
    tl.store(target + 2, program * 0 + per, mask=inside)
    tl.store(target + 3, segment, mask=is_busy)
    tl.store(target + 4, within // width, mask=is_busy)
    tl.store(target + 5, within % width, mask=is_busy)
    word = tl.arange(0, SEGMENT_WORDS)[None, :]
    record = tl.load(source[:, None] + word, mask=is_busy[:, None], other=0)  # [PADDED_PROGRAMS, SEGMENT_WORDS]
    tl.store(target[:, None] + (PROGRAM_WORDS - SEGMENT_WORDS + word), record, mask=is_busy[:, None])


@triton.jit(do_not_specialize=["num_seqs"])
def _task_map_kernel(
    rows,
    query_start_loc,
    seq_lens,
    short_segments,
    short_programs,
    long_seqs,
    first_segment,
    long_segments,
    long_programs,
    shared,
    num_seqs,
    SHORT_TOKENS: tl.constexpr,
    LONG_TOKENS: tl.constexpr,
    SHORT_BLOCK_N: tl.constexpr,
    LONG_BLOCK_N: tl.constexpr,
    SHORT_PROGRAMS: tl.constexpr,
    LONG_PROGRAMS: tl.constexpr,
    PADDED_SHORT: tl.constexpr,
    PADDED_LONG: tl.constexpr,
    SHORT_MIN_UNITS: tl.constexpr,
    LONG_MIN_UNITS: tl.constexpr,
    SHORT_OVERHEAD: tl.constexpr,
    LONG_OVERHEAD: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    SHARED: tl.constexpr,
    SEGMENT_WORDS: tl.constexpr,
    PROGRAM_WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program 0 maps the short rows, program 1 what they have in common and the long ones."""
    let_dependents_start()
    num_shared = num_seqs * 0
    num_sharing = num_seqs * 0
    if SHARED:
        ALIGNMENT: tl.constexpr = max(SHORT_BLOCK_N, LONG_BLOCK_N)
        num_shared = tl.load(shared) // ALIGNMENT * ALIGNMENT
        num_sharing = tl.load(shared + 1)
    if tl.program_id(0) == 0:
        num_short, short_weight = _list_short(
            rows, query_start_loc, seq_lens, short_segments, num_seqs, num_shared, num_sharing,
            SHORT_TOKENS, SHORT_BLOCK_N, WINDOW, SHORT_OVERHEAD, SEGMENT_WORDS, CHUNK,
        )  # fmt: skip
        _deal_out(
            short_segments, short_programs, num_short, short_weight, NUM_KV_HEADS, SHORT_PROGRAMS, PADDED_SHORT,
            SHORT_MIN_UNITS, SHORT_OVERHEAD, SEGMENT_WORDS, PROGRAM_WORDS, CHUNK,
        )  # fmt: skip
    else:
        num_long = num_seqs * 0
        long_weight = num_seqs * 0
        if SHARED:
            num_long, long_weight = _list_shared(
                rows, long_segments, num_shared, num_sharing, LONG_TOKENS, LONG_BLOCK_N, LONG_OVERHEAD, SEGMENT_WORDS,
                CHUNK,
            )  # fmt: skip
        num_long, long_weight = _list_long(
            rows, query_start_loc, seq_lens, long_seqs, first_segment, long_segments, num_seqs, num_long, long_weight,
            SHORT_TOKENS, LONG_TOKENS, LONG_BLOCK_N, WINDOW, LONG_OVERHEAD, SEGMENT_WORDS, CHUNK,
        )  # fmt: skip
        _deal_out(
            long_segments, long_programs, num_long, long_weight, NUM_KV_HEADS, LONG_PROGRAMS, PADDED_LONG,
            LONG_MIN_UNITS, LONG_OVERHEAD, SEGMENT_WORDS, PROGRAM_WORDS, CHUNK,
        )  # fmt: skip


def plan_attention(
    workspace: AttentionWorkspace,
    rows: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    shared: torch.Tensor | None = None,
) -> None:
    """Writes the step's task map into the workspace; all `paged_attention` calls with it that follow are this step's.

    `rows` int32 [N], `query_start_loc` int32 [N + 1], `seq_lens` int32 [N] (this step's tokens included). A sequence
    without tokens (seq_len 0 or an empty token range: padding) has no segment. N may differ from call to call.
    `shared` int32 [2], (keys, sequences): so many of the first keys, all before any of the step's tokens, lie in the
    same blocks in the tables of so many of the first sequences, which have one token each.
    """
    num_seqs = len(seq_lens)
    assert num_seqs <= workspace.max_num_seqs
    assert rows.shape == seq_lens.shape
    assert query_start_loc.shape == (num_seqs + 1,)
    assert shared is None or num_seqs <= workspace.max_shared_tokens
    assert shared is None or (shared.shape == (2,) and shared.dtype == torch.int32)
    for tensor in (rows, query_start_loc, seq_lens):
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()
    short, long = workspace.short, workspace.long
    _task_map_kernel[(2,)](
        rows,
        query_start_loc,
        seq_lens,
        short.segments,
        short.programs,
        workspace.long_seqs,
        workspace.first_segment,
        long.segments,
        long.programs,
        shared,
        num_seqs,
        SHORT_TOKENS=short.tokens_per_tile,
        LONG_TOKENS=long.tokens_per_tile,
        SHORT_BLOCK_N=short.tile.block_n,
        LONG_BLOCK_N=long.tile.block_n,
        SHORT_PROGRAMS=short.num_programs,
        LONG_PROGRAMS=long.num_programs,
        PADDED_SHORT=max(_CHUNK, triton.next_power_of_2(short.num_programs)),
        PADDED_LONG=max(_CHUNK, triton.next_power_of_2(long.num_programs)),
        SHORT_MIN_UNITS=short.tile.min_units,
        LONG_MIN_UNITS=long.tile.min_units,
        SHORT_OVERHEAD=short.tile.overhead,
        LONG_OVERHEAD=long.tile.overhead,
        NUM_KV_HEADS=workspace.num_kv_heads,
        WINDOW=workspace.sliding_window,
        SHARED=shared is not None,
        SEGMENT_WORDS=SEGMENT_WORDS,
        PROGRAM_WORDS=PROGRAM_WORDS,
        CHUNK=_CHUNK,
        num_warps=_NUM_WARPS,
    )
