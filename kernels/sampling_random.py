"""The random numbers of `reference_random` for Triton kernels: integers only up to the last step, bit by bit the same.

Key of a row: Philox4x32-10 (Salmon et al., SC 2011) of key = the request's seed, counter = (position, purpose 0, sample
index, 0). Noise of a token: -log(-log1p(-u)), u from a hash ("triple32", Chris Wellons) of the row's key and its id.

About 80 instructions a row, 15 for a token's bits and 40 for its logarithms; 12 for a bound on its noise.
"""

import triton
import triton.language as tl

DEPTH_UNIT = tl.constexpr(8.262958294867817e-08)
"""log(2) / 2^23: what a step of a float32 number's bit pattern means to its logarithm."""
_DEPTH_OF_ONE = tl.constexpr(110.21039881084234)
"""log(2) · (127 + 32): the depth of 2^32, of which u is a fraction."""
_DEPTH_ERROR = tl.constexpr(1e-4)
"""Over 2^-14, what the last round of the hash can change in the logarithm, and the rounding of conversions."""
MOST_NOISE_ABOVE = tl.constexpr(_DEPTH_OF_ONE.value + _DEPTH_ERROR.value)
"""No token's noise is above this minus its `depth` · DEPTH_UNIT."""


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
def _mix_tokens(key0, key1, token_ids):
    """The hash of `token_ids` (int32) but for its last round."""
    x = token_ids.to(tl.uint32, bitcast=True) + key0
    x = (x ^ (x >> 17)) * 0xED5AD4BB
    # ((x ^ (x >> 11)) + key1) * 0xAC4C1B51, multiplied out: the addition costs nothing beside a multiplication.
    x = (x ^ (x >> 11)) * 0xAC4C1B51 + key1 * 0xAC4C1B51
    return (x ^ (x >> 15)) * 0x31848BAB


@triton.jit
def hash_tokens(key0, key1, token_ids):
    """32 random bits, uint32, for each of `token_ids` (int32) under a row's key."""
    x = _mix_tokens(key0, key1, token_ids)
    return x ^ (x >> 14)


@triton.jit
def depth(key0, key1, token_ids):
    """About log2(u) of each token in steps of 2^-23, from the pattern of a float32 number: exponent and fraction side
    by side are a logarithm that is at most 0.0861 too low, and never too high.

    As noise(u) <= -log(u), it bounds the noise from above (`MOST_NOISE_ABOVE`), without a logarithm. The hash's last
    round x ^ (x >> 14) is left out, as it changes x by at most a share of 2^-14; so is the half that is added to u.
    """
    x = _mix_tokens(key0, key1, token_ids)
    return x.to(tl.float32).to(tl.int32, bitcast=True).to(tl.float32)


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
