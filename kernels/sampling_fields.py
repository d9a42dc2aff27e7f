"""What the sampler's kernels share: how they read a logit and a parameter of a scheduled row (`SampledRows`).

A kernel reads a row's parameters from its record, so that nothing about them is an argument that changes from step to
step. Float fields stand in the int32 matrix as bit patterns.
"""

import triton
import triton.language as tl

LARGEST = tl.constexpr(1e30)
"""What overflowed becomes this large, and NaN its negative (`make_finite` of the references)."""
LOWEST = tl.constexpr(-3.4028234663852886e38)
"""float32's lowest number. Stands for -inf in a logit that was ruled out on purpose: it stays below even what a row
made of NaN becomes, and no difference of it is NaN."""


@triton.jit
def load_float(record_ptr, column):
    """The float field in `column` of a record."""
    return tl.load(record_ptr + column).to(tl.float32, bitcast=True)


@triton.jit
def make_finite(logits):
    """NaN becomes -LARGEST, infinities ±LARGEST; all other numbers stay."""
    logits = tl.where(logits != logits, -LARGEST, logits)
    logits = tl.where(logits == float("inf"), LARGEST, logits)
    return tl.where(logits == float("-inf"), -LARGEST, logits)


@triton.jit
def load_scaled(logits_ptr, offsets, mask, row_max, temperature):
    """Logits as the draw sees them, (logit - row_max) / temperature, at most 0; -inf where masked. Rounded as IEEE
    demands, so that they are the reference's to the last bit and equal logits stay equal."""
    logits = make_finite(tl.load(logits_ptr + offsets, mask=mask, other=0.0))
    return tl.where(mask, tl.div_rn(logits - row_max, temperature), float("-inf"))
