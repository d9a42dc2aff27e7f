"""From logits to tokens: the most likely one of greedy rows, a draw for the others, and what follows from the choice.

    greedy    argmax(logits)
    drawn     argmax over tokens with scaled >= threshold of scaled + noise(row key, token id),
              scaled = (logit - row maximum) / temperature                    (Gumbel-max; Maddison et al. 2014)

Rows are greedy where the temperature is 0 or top_k is 1. The lowest id wins among equals. The steps are launches of
their own, over splits of the vocabulary, because each needs all splits of the one before:

    1. row maxima              the only one of an all-greedy step beside 4
    2. filter thresholds       where a row has top-k, top-p or min-p (three launches)
    3. the draw                where a row is not greedy
    4. finish                  one program a row: reduces the splits, writes the token where it is needed

Traffic: 4·V bytes a row in 1, and again in 3: bound by memory, by launches at a few rows. 3 also has some 50
instructions a token; two logarithms more, as many again, only in splits that may have the winner: those where some

    u <= exp(scaled - noise of the row's most likely token),

which follows from scaled + noise(u) >= that token's score, because noise(u) < -log(u). The expected number of such
tokens is about the reciprocal of the largest probability. Measured: see docs/log.md.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary, P = rows of the penalty pool.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.checks import check_dense, check_rows
from kernels.filter_thresholds import FilterWorkspace, filter_thresholds
from kernels.row_maxima import Partials, Splits, choose_best, find_row_maxima
from kernels.sampling_fields import SampledRows, load_float, load_scaled
from kernels.sampling_random import gumbel_noise, hash_tokens, row_key, to_uniform

_MARGIN = tl.constexpr(1.001)
"""Over the rounding errors of noise, sum and exponential, of which none reaches 1e-4."""


@dataclass(frozen=True, slots=True)
class SampleWorkspace:
    """What the launches of a step leave for each other."""

    maxima: Partials
    scores: Partials
    filters: FilterWorkspace


def make_sample_workspace(max_num_seqs: int, vocab_size: int, device: torch.device | str) -> SampleWorkspace:
    """Allocated once, for any step of up to `max_num_seqs` rows."""
    return SampleWorkspace(
        Partials.make(max_num_seqs, vocab_size, device),
        Partials.make(max_num_seqs, vocab_size, device),
        FilterWorkspace.make(max_num_seqs, device),
    )


@triton.jit
def _is_drawn(record_ptr, TEMPERATURE: tl.constexpr, TOP_K: tl.constexpr):
    # The integers come first: a truth value that Triton's interpreter broadcasts takes its first operand's type.
    return (tl.load(record_ptr + TOP_K) != 1) & (load_float(record_ptr, TEMPERATURE) > 0)


@triton.jit
def _reduce_splits(values_ptr, ids_ptr, num_splits, SPLITS_BLOCK: tl.constexpr):
    """(largest value, its token id) of a row's splits."""
    splits = tl.arange(0, SPLITS_BLOCK)
    values = tl.load(values_ptr + splits, mask=splits < num_splits, other=float("-inf"))
    ids = tl.load(ids_ptr + splits, mask=splits < num_splits, other=0)
    return choose_best(values, ids, SPLITS_BLOCK)


@triton.jit
def _draw_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    seq_lens_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    thresholds_ptr,  # [N], or None: all tokens may be drawn
    maxima_ptr,  # [S, most splits], row stride partials_stride
    maxima_ids_ptr,  # int32, like maxima_ptr
    scores_ptr,  # like maxima_ptr
    score_ids_ptr,  # int32, like maxima_ptr
    logits_stride,
    fields_stride,
    partials_stride,
    vocab_size,
    num_splits,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    SEED_LOW: tl.constexpr,
    SEED_HIGH: tl.constexpr,
    SAMPLE_INDEX: tl.constexpr,
    SPLITS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    split, i = tl.program_id(0), tl.program_id(1)
    if tl.load(samples_ptr + i) == 0:
        return
    record_ptr = fields_ptr + tl.load(rows_ptr + i) * fields_stride
    if not _is_drawn(record_ptr, TEMPERATURE, TOP_K):
        return
    row_max, likeliest = _reduce_splits(
        maxima_ptr + i * partials_stride, maxima_ids_ptr + i * partials_stride, num_splits, SPLITS_BLOCK
    )
    token_ids = split * BLOCK + tl.arange(0, BLOCK)
    mask = token_ids < vocab_size
    temperature = load_float(record_ptr, TEMPERATURE)
    scores = load_scaled(logits_ptr, i.to(tl.int64) * logits_stride + token_ids, mask, row_max, temperature)
    if thresholds_ptr is not None:
        scores = tl.where(scores >= tl.load(thresholds_ptr + i), scores, float("-inf"))
    key0, key1 = row_key(
        tl.load(record_ptr + SEED_LOW),
        tl.load(record_ptr + SEED_HIGH),
        tl.load(record_ptr + SAMPLE_INDEX),
        tl.load(seq_lens_ptr + i),
    )
    u = to_uniform(hash_tokens(key0, key1, token_ids))
    score_to_beat = gumbel_noise(to_uniform(hash_tokens(key0, key1, likeliest)))  # its scaled logit is 0
    may_win = u <= tl.exp(scores - score_to_beat) * _MARGIN
    if tl.max(may_win.to(tl.int32), axis=0) > 0:
        best, index = tl.max(scores + gumbel_noise(u), axis=0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(scores_ptr + i * partials_stride + split, best)
        tl.store(score_ids_ptr + i * partials_stride + split, split * BLOCK + index)
    else:
        tl.store(scores_ptr + i * partials_stride + split, float("-inf"))


@triton.jit
def _finish_kernel(
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    maxima_ptr,  # [S, most splits], row stride partials_stride
    maxima_ids_ptr,  # int32, like maxima_ptr
    scores_ptr,  # like maxima_ptr, or None: nothing was drawn
    score_ids_ptr,  # int32, like maxima_ptr
    last_token_ptr,  # int32 [S]
    sampled_ptr,  # int32 [N]
    num_sampled_ptr,  # int32 [N]
    output_counts_ptr,  # int32 [P, vocab_size], row stride counts_stride, or None: no row has penalties
    fields_stride,
    partials_stride,
    counts_stride,
    num_splits,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    PENALTY_SLOT: tl.constexpr,
    SPLITS_BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    if tl.load(samples_ptr + i) == 0:
        tl.store(num_sampled_ptr + i, 0)
        return
    row = tl.load(rows_ptr + i)
    record_ptr = fields_ptr + row * fields_stride
    lanes = tl.arange(0, SPLITS_BLOCK)
    at = i * partials_stride + lanes
    mask = lanes < num_splits
    values = tl.load(maxima_ptr + at, mask=mask, other=float("-inf"))
    ids = tl.load(maxima_ids_ptr + at, mask=mask, other=0)
    if scores_ptr is not None:
        drawn = mask & _is_drawn(record_ptr, TEMPERATURE, TOP_K)
        values = tl.where(drawn, tl.load(scores_ptr + at, mask=drawn, other=float("-inf")), values)
        ids = tl.where(drawn, tl.load(score_ids_ptr + at, mask=drawn, other=0), ids)
    _, token_id = choose_best(values, ids, SPLITS_BLOCK)
    tl.store(sampled_ptr + i, token_id)
    tl.store(num_sampled_ptr + i, 1)
    tl.store(last_token_ptr + row, token_id)
    if output_counts_ptr is not None:
        slot = tl.load(record_ptr + PENALTY_SLOT)
        if slot >= 0:
            count_ptr = output_counts_ptr + slot.to(tl.int64) * counts_stride + token_id
            tl.store(count_ptr, tl.load(count_ptr) + 1)


def sample(
    logits: torch.Tensor,
    step: SampledRows,
    workspace: SampleWorkspace,
    last_token: torch.Tensor,
    sampled: torch.Tensor,
    num_sampled: torch.Tensor,
    output_counts: torch.Tensor | None,
    any_drawn: bool,
    any_filtered: bool,
) -> None:
    """Chooses a token for each of the N rows of `step` that samples, from `logits` [N, V], which stay as they are.

    The token goes to `sampled` (int32 [N] or longer, like `num_sampled`), to the row's `last_token` (int32 [S]) and
    into the counts of its penalty slot in `output_counts` (int32 [P, V]; None: no row has one); `num_sampled` becomes
    1, or 0 for rows that do not sample. `any_drawn`: a row may be other than greedy; `any_filtered`: such a row has a
    filter. Both may be true without need.
    """
    step.check_logits(logits)
    check_dense(last_token, (len(step.fields),), torch.int32)
    for tensor in (sampled, num_sampled):
        check_dense(tensor[: len(step)], (len(step),), torch.int32)
    find_row_maxima(logits, step, workspace.maxima)
    if any_drawn:
        if any_filtered:
            filter_thresholds(logits, step, workspace.maxima, workspace.filters)
        _draw(logits, step, workspace, workspace.filters.thresholds if any_filtered else None)
    if output_counts is not None:
        check_rows(output_counts, (len(output_counts), logits.shape[1]), torch.int32)
    splits = Splits.of(len(step), logits.shape[1])
    _finish_kernel[(len(step),)](
        step.rows,
        step.samples,
        step.fields,
        workspace.maxima.values,
        workspace.maxima.ids,
        workspace.scores.values if any_drawn else None,
        workspace.scores.ids if any_drawn else None,
        last_token,
        sampled,
        num_sampled,
        output_counts,
        step.fields.stride(0),
        workspace.maxima.stride,
        0 if output_counts is None else output_counts.stride(0),
        splits.count,
        TEMPERATURE=step.columns.temperature,
        TOP_K=step.columns.top_k,
        PENALTY_SLOT=step.columns.penalty_slot,
        SPLITS_BLOCK=splits.count_block,
        num_warps=1,
    )


def _draw(logits: torch.Tensor, step: SampledRows, workspace: SampleWorkspace, thresholds: torch.Tensor | None) -> None:
    splits = Splits.of(len(step), logits.shape[1])
    _draw_kernel[(splits.count, len(step))](
        logits,
        step.rows,
        step.samples,
        step.seq_lens,
        step.fields,
        thresholds,
        workspace.maxima.values,
        workspace.maxima.ids,
        workspace.scores.values,
        workspace.scores.ids,
        logits.stride(0),
        step.fields.stride(0),
        workspace.maxima.stride,
        logits.shape[1],
        splits.count,
        TEMPERATURE=step.columns.temperature,
        TOP_K=step.columns.top_k,
        SEED_LOW=step.columns.seed_low,
        SEED_HIGH=step.columns.seed_high,
        SAMPLE_INDEX=step.columns.sample_index,
        SPLITS_BLOCK=splits.count_block,
        BLOCK=splits.block,
        num_warps=splits.num_warps,
    )
