"""The random numbers of `reference_random` for Triton kernels: integers only up to the last step, bit by bit the same.

Key of a row: Philox4x32-10 (Salmon et al., SC 2011) of key = the request's seed, counter = (position, purpose 0, sample
index, 0). Noise of a token: -log(-log1p(-u)), u from a hash ("triple32", Chris Wellons) of the row's key and its id.

About 80 instructions a row, 15 for a token's bits and 40 for its logarithms.
"""

import triton
import triton.language as tl


@triton.jit
def row_key(seed_low, seed_high, sample_index, position):
    """The two words of a row's key, uint32, from int32 scalars (bit patterns)."""
    seed = (seed_high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | seed_low.to(tl.uint32, bitcast=True).to(
        tl.uint64
    )
    zero = position * 0
    key0, key1, _, _ = tl.philox(seed, position, zero, sample_index, zero)
    return key0, key1


@triton.jit
def hash_tokens(key0, key1, token_ids):
    """32 random bits, uint32, for each of `token_ids` (int32) under a row's key."""
    x = token_ids.to(tl.uint32, bitcast=True) + key0
    x = (x ^ (x >> 17)) * 0xED5AD4BB
    x = ((x ^ (x >> 11)) + key1) * 0xAC4C1B51
    x = (x ^ (x >> 15)) * 0x31848BAB
    return x ^ (x >> 14)


@triton.jit
def to_uniform(bits):
    """Numbers between 0 and 1, both exclusive, from uint32 random bits, in steps of 2^-31."""
    return tl.minimum(((bits >> 1).to(tl.float32) + 0.5) * 4.656612873077393e-10, 1.0 - 5.960464477539063e-8)


@triton.jit
def gumbel_noise(u):
    """Gumbel-distributed noise -log(-log1p(-u)) from `to_uniform`; it falls as u grows, and stays below -log(u).

    log1p(-u) = log(w) + log(1 + e/w) with w = 1 - u rounded and e = (1 - w) - u, what rounding lost, which is exact.
    |e| is at most 2^-25, so (1 + u)·e stands for the second logarithm: where u is small it is exact enough, and
    where u is large e does not matter.
    """
    w = 1.0 - u
    return -tl.log(-(tl.log(w) + ((1.0 - w) - u) * (1.0 + u)))
