"""From logits to tokens: the most likely one of greedy rows, a draw for the others, and what follows from the choice.

    greedy    argmax(logits)
    drawn     argmax over tokens with scaled >= threshold of scaled + noise(row key, token id),
              scaled = (logit - row maximum) / temperature                    (Gumbel-max; Maddison et al. 2014)

Rows are greedy where the temperature is 0 or top_k is 1. The lowest id wins among equals. Each launch needs all of the
one before:

    1. block maxima or bounds  one pass over the logits; bounds too where a row is not greedy (`block_bounds.py`)
    2. filter thresholds       where a row has top-k, top-p or min-p (three launches); then bounds of what they left
    3. finish                  one program a row: finds the winner, writes the token where it is needed

The finish takes the block with the highest bound, computes its scores exactly, and goes on to the next highest while
that may still beat the best score so far. Bounds are so near that this is one block in most rows: they say -log(u)
where noise is -log(-log1p(-u)), less than 0.1 below for u < 0.17, and winners have small u unless one token has most of
the probability; the bounds' own logarithm adds up to 0.06. Only here are there divisions and logarithms, some 100
instructions a token.

Traffic: 4·V bytes a row in 1, 8 KB or so in 3, which is bound by latency: some four dependent loads. Measured: see
docs/log.md.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary, B = blocks of a row, P = rows of the penalty pool.
"""

import torch
import triton
import triton.language as tl

from kernels.block_bounds import BlockBounds, Blocks, block_start, bound_scores, is_drawn
from kernels.checks import check_dense, check_rows
from kernels.filter_thresholds import FilterThresholds
from kernels.launch import Launch, bind
from kernels.programmatic import let_dependents_start, wait_for_earlier_kernels
from kernels.sampling_fields import load_float, make_finite
from kernels.sampling_random import gumbel_noise, hash_tokens, row_key, to_uniform
from kernels.step_tensors import SampledRows

_NO_TOKEN = tl.constexpr(2**31 - 1)
"""Above every token id."""


@triton.jit
def _exact_scores(logits, row_max, temperature, threshold, key0, key1, token_ids):
    """Scores of a drawn row's tokens, -inf where they are below the threshold. Scaled logits are rounded as IEEE
    demands, so that they are the reference's to the last bit and equal logits stay equal."""
    scaled = tl.div_rn(logits - row_max, temperature)
    noise = gumbel_noise(to_uniform(hash_tokens(key0, key1, token_ids)))
    return tl.where(scaled >= threshold, scaled + noise, float("-inf"))


@triton.jit(do_not_specialize=["sampled_ptr", "num_sampled_ptr", "num_blocks"])
def _finish_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    seq_lens_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    maxima_ptr,  # [S, num_blocks]
    bounds_ptr,  # like maxima_ptr, or None: no row is drawn
    thresholds_ptr,  # [N], or None: all tokens may be drawn
    last_token_ptr,  # int32 [S]
    sampled_ptr,  # int32 [N]
    num_sampled_ptr,  # int32 [N]
    output_counts_ptr,  # int32 [P, vocab_size], row stride counts_stride
    logits_stride,
    fields_stride,
    counts_stride,
    vocab_size,
    num_blocks,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    SEED_LOW: tl.constexpr,
    SEED_HIGH: tl.constexpr,
    SAMPLE_INDEX: tl.constexpr,
    PENALTY_SLOT: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    let_dependents_start()
    wait_for_earlier_kernels()
    i = tl.program_id(0)
    if tl.load(samples_ptr + i) == 0:
        tl.store(num_sampled_ptr + i, 0)
        return
    row = tl.load(rows_ptr + i)
    record_ptr = fields_ptr + row * fields_stride
    lanes = tl.arange(0, LANES)
    at = i * num_blocks + lanes
    maxima = tl.load(maxima_ptr + at, mask=lanes < num_blocks, other=float("-inf"))
    row_max = tl.max(maxima, axis=0)
    upper = maxima  # of greedy rows, whose scores are the logits
    if bounds_ptr is not None:
        drawn = is_drawn(record_ptr, TEMPERATURE, TOP_K)
        temperature = load_float(record_ptr, TEMPERATURE)
        threshold = tl.full((), float("-inf"), tl.float32)
        if thresholds_ptr is not None:
            threshold = tl.load(thresholds_ptr + i)
        key0, key1 = row_key(
            tl.load(record_ptr + SEED_LOW),
            tl.load(record_ptr + SEED_HIGH),
            tl.load(record_ptr + SAMPLE_INDEX),
            tl.load(seq_lens_ptr + i),
        )
        if drawn:
            bounds = tl.load(bounds_ptr + at, mask=lanes < num_blocks, other=0.0)
            bounds = bound_scores(bounds, row_max, temperature)
            upper = tl.where(lanes < num_blocks, bounds, float("-inf"))
    best_score = tl.full((), float("-inf"), tl.float32)
    best_id = tl.full((), _NO_TOKEN, tl.int32)
    highest, block = tl.max(upper, axis=0, return_indices=True, return_indices_tie_break_left=True)
    while highest > best_score:
        token_ids = block_start(block, vocab_size, BLOCK) + tl.arange(0, BLOCK)
        scores = make_finite(tl.load(logits_ptr + i.to(tl.int64) * logits_stride + token_ids))
        if bounds_ptr is not None:  # noqa: SIM102 (this is known when the kernel is compiled, the other when it runs)
            if drawn:
                scores = _exact_scores(scores, row_max, temperature, threshold, key0, key1, token_ids)
        score = tl.max(scores, axis=0)
        token_id = tl.min(tl.where(scores == score, token_ids, _NO_TOKEN), axis=0)
        is_better = (score > best_score) | ((score == best_score) & (token_id < best_id))
        best_id = tl.where(is_better, token_id, best_id)
        best_score = tl.where(is_better, score, best_score)
        upper = tl.where(lanes == block, float("-inf"), upper)
        highest, block = tl.max(upper, axis=0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(sampled_ptr + i, best_id)
    tl.store(num_sampled_ptr + i, 1)
    tl.store(last_token_ptr + row, best_id)
    slot = tl.load(record_ptr + PENALTY_SLOT)
    if slot >= 0:
        count_ptr = output_counts_ptr + slot.to(tl.int64) * counts_stride + best_id
        tl.store(count_ptr, tl.load(count_ptr) + 1)


class TokenSampler:
    """Chooses the tokens of steps whose inputs always lie in the same tensors."""

    def __init__(
        self, logits: torch.Tensor, step: SampledRows, last_token: torch.Tensor, output_counts: torch.Tensor
    ) -> None:
        """All at full capacity: `logits` float32 [S, V], rows may lie apart; `step` of S rows; `last_token` int32 [S];
        `output_counts` int32 [P, V] of the penalty pool. Compiles every kernel."""
        capacity, vocab_size = logits.shape
        check_dense(last_token, (len(step.fields),), torch.int32)
        check_rows(output_counts, (len(output_counts), vocab_size), torch.int32)
        self._capacity = capacity
        self._thresholds = torch.zeros(capacity, dtype=torch.float32, device=logits.device)
        self._bounds = BlockBounds(logits, step, self._thresholds)
        self._filters = FilterThresholds(logits, step, self._bounds.maxima, self._thresholds)
        arguments = {
            "logits_ptr": logits,
            "rows_ptr": step.rows,
            "samples_ptr": step.samples,
            "seq_lens_ptr": step.seq_lens,
            "fields_ptr": step.fields,
            "maxima_ptr": self._bounds.maxima,
            "last_token_ptr": last_token,
            "output_counts_ptr": output_counts,
            "logits_stride": logits.stride(0),
            "fields_stride": step.fields.stride(0),
            "counts_stride": output_counts.stride(0),
            "vocab_size": vocab_size,
            **step.constants("temperature", "top_k", "seed_low", "seed_high", "sample_index", "penalty_slot"),
            **Blocks.of(vocab_size).constants(),
        }
        self._finish_greedy = _bind_finish(arguments, last_token, None, None)
        self._finish_drawn = _bind_finish(arguments, last_token, self._bounds.bounds, None)
        self._finish_filtered = _bind_finish(arguments, last_token, self._bounds.bounds, self._thresholds)

    def sample(
        self, num_rows: int, sampled: torch.Tensor, num_sampled: torch.Tensor, any_drawn: bool, any_filtered: bool
    ) -> None:
        """Chooses a token for each of the step's first `num_rows` rows that samples; its logits stay as they are.

        The token goes to `sampled` (int32 [num_rows] or longer, like `num_sampled`), to the row's last token and into
        the counts of its penalty slot, if it has one; `num_sampled` becomes 1, or 0 for rows that do not sample.
        `any_drawn`: a row may be other than greedy; `any_filtered`: such a row has a filter. Both may be true without
        need.
        """
        assert 0 < num_rows <= self._capacity, (num_rows, self._capacity)
        if not any_drawn:
            self._bounds.find_maxima(num_rows)
            finish = self._finish_greedy
        elif not any_filtered:
            self._bounds.find(num_rows)
            finish = self._finish_drawn
        else:
            self._bounds.find_maxima(num_rows)
            self._filters.find(num_rows)
            self._bounds.find_filtered(num_rows)
            finish = self._finish_filtered
        finish(num_rows, 1, sampled, num_sampled)


def _bind_finish(
    arguments: dict[str, object], output: torch.Tensor, bounds: torch.Tensor | None, thresholds: torch.Tensor | None
) -> Launch:
    """`output`: any int32 tensor, an example of where results go."""
    varying = {"sampled_ptr": output, "num_sampled_ptr": output}
    arguments = {**arguments, **varying, "bounds_ptr": bounds, "thresholds_ptr": thresholds}
    return bind(_finish_kernel, arguments, tuple(varying), num_warps=4, overlaps=True)
