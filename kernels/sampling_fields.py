"""What the sampler's kernels share: the scheduled rows with their records, and how a logit is read.

A kernel reads a row's parameters from its record, so that nothing about them is an argument that changes from step to
step. Float fields stand in the int32 matrix as bit patterns.

Legend: N = scheduled rows of the step, S = max_num_seqs, F = fields of a record, V = vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.checks import check_dense, check_rows

LARGEST = tl.constexpr(1e30)
"""What overflowed becomes this large, and NaN its negative (`make_finite` of the references)."""
LOWEST = tl.constexpr(-3.4028234663852886e38)
"""float32's lowest number. Stands for -inf in a logit that was ruled out on purpose: it stays below even what a row
made of NaN becomes, and no difference of it is NaN."""


@dataclass(frozen=True, slots=True)
class SampledRows:
    """The scheduled rows of a step as the sampler sees them; padded entries have row 0 and sample nothing."""

    rows: torch.Tensor
    """int32 [N]: which row each one is."""
    samples: torch.Tensor
    """int32 [N]: 0 where no token is sampled in this step; nothing of such a row is touched."""
    seq_lens: torch.Tensor
    """int32 [N]: the number of tokens before the sampled one."""
    fields: torch.Tensor
    """int32 [S, F]: the records."""
    columns: Mapping[str, int]
    """In which column of the records each field stands."""

    def __post_init__(self) -> None:
        for name in ("rows", "samples", "seq_lens"):
            check_dense(getattr(self, name), (len(self.rows),), torch.int32)
        check_dense(self.fields, (len(self.fields), self.fields.shape[1]), torch.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, num_rows: int) -> "SampledRows":
        """The first `num_rows` of them."""
        return SampledRows(
            self.rows[:num_rows], self.samples[:num_rows], self.seq_lens[:num_rows], self.fields, self.columns
        )

    def constants(self, *names: str) -> dict[str, int]:
        """The columns of the fields `names` as a kernel's constants, whose names are in capitals."""
        return {name.upper(): self.columns[name] for name in names}

    def check_logits(self, logits: torch.Tensor) -> None:
        """Logits are float32 [N, V], whose rows may lie apart."""
        check_rows(logits, (len(self.rows), logits.shape[1]), torch.float32)


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
