"""The embedding kernel against torch's indexing: a copy, bit for bit."""

from tests.kernels.device import DEVICE  # isort: skip

import pytest
import torch

from kernels.embedding import embed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "size"), [(0, 8), (1, 1), (3, 17), (70, 33), (5, 1000), (2, 2600)])
def test_embed(num_tokens: int, size: int, dtype: torch.dtype) -> None:
    weight = torch.randn(13, size).to(DEVICE, dtype)
    input_ids = torch.randint(13, (num_tokens,), dtype=torch.int32, device=DEVICE)
    memory = torch.full((num_tokens + 2, size), torch.nan, dtype=dtype, device=DEVICE)
    out = memory[1:-1]
    assert embed(weight, input_ids, out=out) is out
    assert torch.equal(out, weight[input_ids])
    assert memory[[0, -1]].isnan().all()
    assert torch.equal(embed(weight, input_ids), out)


def test_ids_outside_the_vocabulary_read_its_first_or_last_row() -> None:
    """The rows beside the matrix, NaN, are never read; its own may lie apart."""
    memory = torch.full((7, 24), torch.nan, device=DEVICE)
    weight = memory[1:-1, 2:22]
    weight.copy_(torch.randn(5, 20))
    input_ids = torch.tensor([-1, 5, -(2**31), 2**31 - 1, 4, 0, 3], dtype=torch.int32, device=DEVICE)
    assert torch.equal(embed(weight, input_ids), weight[[0, 4, 0, 4, 4, 0, 3]])
