"""Plain PyTorch versions of the sampler's operations on logits [N, V]; float32, never NaN.

Filters are thresholds on values: top-k keeps what is at least the k-th largest value, so that tokens of equal value are
kept or dropped together and nothing depends on the order in which a sort meets them.

Legend: N = rows, V = vocabulary, P = rows of the penalty pool.
"""

import numpy as np
import torch

from kernels.reference_random import MAX_NOISE, MIN_NOISE, gumbel_noise, hash_tokens

NOISE_RANGE = MAX_NOISE - MIN_NOISE
"""A token whose logit lies further than this below the largest one cannot win a draw."""
_NUM_TOP_P_CANDIDATES = 128
"""Top-p looks at this many largest values first; only rows whose mass lies deeper are searched as a whole."""
_DENSE_SHARE = 5
"""Where more than one in this many tokens is left, it costs less to hash all of them than to pick them out."""


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The most likely token ids [N], the lowest one among equals."""
    return torch.argmax(logits, dim=-1)


def make_finite(logits: torch.Tensor) -> torch.Tensor:
    """Logits that overflowed become large but finite numbers, so that no NaN reaches a reply."""
    # A sum is one cheap pass, and it is finite unless some logit is not (or it overflows, which costs a second pass).
    if not torch.isfinite(logits.sum()):
        logits.nan_to_num_(nan=-1e30, posinf=1e30, neginf=-1e30)
    return logits


def apply_penalties(
    logits: torch.Tensor,
    prompt_mask: torch.Tensor,
    output_counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    """In place: a seen token's logit is divided (positive) or multiplied (negative) by `repetition` [N] (Keskar et al.
    2019); then `frequency` · count and `presence` of the tokens in the output are subtracted (OpenAI's definition).

    `prompt_mask` bool [N, V], `output_counts` int32 [N, V].
    """
    in_output = output_counts > 0
    factor = torch.where(prompt_mask | in_output, repetition[:, None], 1.0)
    logits.copy_(torch.where(logits > 0, logits / factor, logits * factor))
    logits.sub_(frequency[:, None] * output_counts).sub_(presence[:, None] * in_output)


def apply_token_masks(logits: torch.Tensor, index: torch.Tensor, masks: torch.Tensor) -> None:
    """In place: rules out the tokens of rows `index` [n] whose bit in `masks` (int32 [n, W]) is not set: token t has
    bit t % 32 of word t // 32."""
    bits = np.unpackbits(masks.numpy().view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
    logits[index] = logits[index].masked_fill_(torch.from_numpy(bits == 0), -torch.inf)


def keep_top_n_sigma(logits: torch.Tensor, num_sigmas: torch.Tensor) -> None:
    """In place: rules out what lies more than `num_sigmas` [N] standard deviations below a row's largest logit (Tang et
    al. 2024), where that is not 0. Logits of -1e30 and below, which were ruled out before, have no part in it."""
    is_left = logits > -1e30
    number = is_left.sum(dim=-1, keepdim=True)
    mean = torch.where(is_left, logits, 0.0).sum(dim=-1, keepdim=True) / number
    deviations = torch.where(is_left, logits - mean, 0.0).clamp_(-1e15, 1e15)  # no square overflows
    variance = deviations.square_().sum(dim=-1, keepdim=True) / number
    least = logits.amax(dim=-1, keepdim=True) - num_sigmas[:, None] * variance.sqrt_()
    logits.masked_fill_((logits < least) & (num_sigmas > 0)[:, None], -torch.inf)


def filter_thresholds(
    logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """The smallest logit [N, 1] that each row keeps; `logits` are already divided by the temperature.

    In this order, each on what the one before left: min-p (at least `min_p` · the largest probability), top-k (0: all),
    top-p (the smallest set of most likely tokens whose probabilities sum to at least `top_p`).
    """
    vocab_size = logits.shape[1]
    threshold = logits.amax(dim=-1, keepdim=True) + torch.log(min_p)[:, None]  # log(0) = -inf keeps all
    limited = (top_k > 0) & (top_k < vocab_size)
    nucleus = top_p < 1.0
    if not bool((limited | nucleus).any()):
        return threshold
    num_values = int(top_k[limited].max()) if bool(limited.any()) else 1
    if bool(nucleus.any()):
        num_values = max(num_values, _NUM_TOP_P_CANDIDATES)
    values = torch.topk(logits, min(num_values, vocab_size), dim=-1).values  # [N, num_values], falling
    kth = values.gather(1, (torch.where(limited, top_k, 1).long() - 1)[:, None])
    threshold = torch.where(limited[:, None], torch.maximum(threshold, kth), threshold)
    if bool(nucleus.any()):
        rows = nucleus.nonzero().flatten()
        threshold[rows] = _top_p_thresholds(logits[rows], values[rows], threshold[rows], top_p[rows])
    return threshold


def _top_p_thresholds(
    logits: torch.Tensor, values: torch.Tensor, threshold: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Raises `threshold` [N, 1] to the last value of the nucleus; `values` are the largest of `logits`, falling."""
    largest = values[:, :1]
    # Multiplying by a mask is several times as fast as filling or selecting by it.
    mass = torch.exp(logits - largest).mul_(logits >= threshold)
    wanted = mass.sum(dim=-1, keepdim=True) * top_p[:, None]
    sums = torch.exp(values - largest).mul_(values >= threshold).cumsum(dim=-1)
    # The first place where the sum suffices; rounding may leave the sum of all just short of what is wanted.
    index = (sums < wanted).sum(dim=-1, keepdim=True).clamp_(max=values.shape[1] - 1)
    pivot = values.gather(1, index)
    deeper = ((sums[:, -1:] < wanted) & (values[:, -1:] > threshold)).flatten().nonzero().flatten()
    if len(deeper) and values.shape[1] < logits.shape[1]:
        pivot[deeper] = _search_pivot(logits[deeper], mass[deeper], wanted[deeper], values[deeper, -1:])
    return torch.maximum(threshold, pivot)


def _search_pivot(
    logits: torch.Tensor, mass: torch.Tensor, wanted: torch.Tensor, too_high: torch.Tensor
) -> torch.Tensor:
    """The largest number [n, 1] such that the `mass` [n, V] of all logits from it upwards is at least `wanted` [n, 1]:
    halves the interval below `too_high` until no float32 is left in it. Some 25 passes are much cheaper than a sort."""
    # Not below what has mass: halfway to -inf, which tokens that were ruled out have, there is no number.
    low, high = torch.where(mass > 0, logits, too_high).amin(dim=-1, keepdim=True), too_high.clone()
    while True:
        middle = low + (high - low) / 2
        inside = (middle > low) & (middle < high)
        if not bool(inside.any()):
            return low
        enough = (mass * (logits >= middle)).sum(dim=-1, keepdim=True) >= wanted
        low, high = torch.where(inside & enough, middle, low), torch.where(inside & ~enough, middle, high)


def sample_gumbel(logits: torch.Tensor, threshold: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Draws token ids [N] from softmax(logits) over the tokens that reach `threshold` [N, 1]: argmax(logit + noise),
    the noise keyed by `keys` int32 [N, 2] and token id. Only tokens that can win are hashed."""
    num_rows, vocab_size = logits.shape
    largest = logits.amax(dim=-1, keepdim=True)
    kept = logits >= torch.maximum(threshold, largest - NOISE_RANGE)
    if int(kept.sum()) * _DENSE_SHARE > kept.numel():
        noise = gumbel_noise(hash_tokens(keys[:, None], torch.arange(vocab_size, dtype=torch.int32)))
        return greedy(noise.add_(logits).masked_fill_(~kept, -torch.inf))
    row, token = kept.nonzero(as_tuple=True)  # by row, then token id
    noise = gumbel_noise(hash_tokens(keys[row], token.to(torch.int32)))
    scores = logits[row, token].add_(noise)
    best = torch.full((num_rows,), -torch.inf).scatter_reduce_(0, row, scores, "amax")
    # Among equal scores the lowest id; every row has at least its largest logit among the candidates.
    winners = torch.where(scores == best[row], token, vocab_size)
    return torch.full((num_rows,), vocab_size).scatter_reduce_(0, row, winners, "amin")


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of `token_ids` [N] and their ranks (1: none is more likely), and the `num_top` most likely
    token ids and their log-probabilities [N, num_top]. All subtract one and the same normalizer, so equal logits get
    equal values."""
    normalizer = torch.logsumexp(logits, dim=-1, keepdim=True)
    chosen = logits.gather(1, token_ids[:, None])
    ranks = (logits > chosen).sum(dim=-1) + 1
    top_values, top_ids = torch.topk(logits, num_top, dim=-1)
    return (chosen - normalizer).flatten(), ranks, top_ids, top_values - normalizer
