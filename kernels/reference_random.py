"""Counter-based random numbers in plain PyTorch and numpy: integers only up to the last step, so that a GPU kernel
repeats them bit by bit.

A row's key comes from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with

    key = the request's 64-bit seed, counter = (position, purpose, sample index, 0)

and a token's noise from hashing (row key, token id). Nothing else enters: not the batch, not the row, not the process.
"""

import numpy as np
import torch

SAMPLE = 0
"""Purposes keep streams apart that share seed and position. This one: the noise that picks the next token."""

_PHILOX_M = (0xD2511F53, 0xCD9E8D57)
_PHILOX_W = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)

MAX_NOISE = 22.19
"""Above every value of `gumbel_noise`: -log(-log1p(-2^-32))."""
MIN_NOISE = -2.82
"""Below every value of `gumbel_noise`: -log(-log1p(-(1 - 2^-24)))."""


def philox4x32(counter: np.ndarray, key: np.ndarray, rounds: int = 10) -> np.ndarray:
    """Philox4x32 of uint32 `counter` [N, 4] under uint32 `key` [N, 2]: uint32 [N, 4]."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k = [key[:, i].astype(np.uint64) for i in range(2)]
    for _ in range(rounds):
        product0, product1 = c[0] * np.uint64(_PHILOX_M[0]), c[2] * np.uint64(_PHILOX_M[1])
        c = [
            (product1 >> np.uint64(32)) ^ c[1] ^ k[0],
            product1 & _LOW,
            (product0 >> np.uint64(32)) ^ c[3] ^ k[1],
            product0 & _LOW,
        ]
        k = [(k[i] + np.uint64(_PHILOX_W[i])) & _LOW for i in range(2)]
    return np.stack(c, axis=1).astype(np.uint32)


def row_keys(
    seed_low: np.ndarray, seed_high: np.ndarray, sample_index: np.ndarray, positions: np.ndarray, purpose: int = SAMPLE
) -> torch.Tensor:
    """Two words per row, int32 [N, 2] (bit patterns), from arrays [N]. A position is the number of tokens before the
    one to be drawn."""
    counter = np.zeros((len(positions), 4), np.uint32)
    counter[:, 0] = positions
    counter[:, 1] = purpose
    counter[:, 2] = sample_index
    key = np.stack((seed_low, seed_high), axis=1).astype(np.uint32)
    return torch.from_numpy(philox4x32(counter, key)[:, :2].view(np.int32))


def hash_tokens(keys: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """32 random bits as int32 for each of `token_ids` (int32, any shape) under `keys` [..., 2] that broadcast.

    "triple32" of Chris Wellons' hash prospector, with the second key word added after its first round so that two rows
    never draw the same numbers in another order. int32 multiplication wraps as uint32 does; shifts are made logical.
    """
    x = token_ids + keys[..., 0]
    x.bitwise_xor_(_shift(x, 17)).mul_(-312814405)  # 0xED5AD4BB
    x.bitwise_xor_(_shift(x, 11)).add_(keys[..., 1]).mul_(-1404298415)  # 0xAC4C1B51
    x.bitwise_xor_(_shift(x, 15)).mul_(830770091)  # 0x31848BAB
    return x.bitwise_xor_(_shift(x, 14))


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x >> bits as for unsigned numbers."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def gumbel_noise(bits: torch.Tensor) -> torch.Tensor:
    """Gumbel-distributed float32 noise from int32 random bits: -log(-log1p(-u)) with u in steps of 2^-31.

    The largest values, which decide who wins, come from the smallest u, where float32 is finest; -log(-log(u)) would
    draw them from u near 1, where it is coarsest.
    """
    u = _shift(bits, 1).to(torch.float32).add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return u.neg_().log1p_().neg_().log_().neg_()
