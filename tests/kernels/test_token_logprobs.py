"""Log-probabilities, ranks and tops against the reference."""

from tests.kernels.device import DEVICE  # isort: skip

import math

import pytest
import torch

from kernels import reference_sampling
from kernels.token_logprobs import token_logprobs


@pytest.mark.parametrize(("vocab_size", "num_top"), [(1, 1), (3, 0), (30, 20), (4096, 5), (9001, 20)])
def test_as_the_reference(vocab_size: int, num_top: int) -> None:
    """Distinct logits; rows may lie apart; the chosen token is the first, the most likely, the last, any."""
    torch.manual_seed(vocab_size)
    logits = torch.randn(4, vocab_size + 1, device=DEVICE)[:, :vocab_size] * 4
    token_ids = torch.tensor(
        [0, int(logits[1].argmax()), vocab_size - 1, vocab_size // 2], dtype=torch.int32, device=DEVICE
    )
    before = logits.clone()
    got = token_logprobs(logits, token_ids, num_top)
    wanted = reference_sampling.token_logprobs(logits, token_ids.long(), num_top)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-6, atol=4e-6)
    torch.testing.assert_close(got[3], wanted[3], rtol=1e-6, atol=4e-6)
    assert got[1].tolist() == wanted[1].tolist()
    assert got[2].tolist() == wanted[2].tolist()
    assert [tensor.dtype for tensor in got] == [torch.float32, torch.int32, torch.int32, torch.float32]
    assert torch.equal(logits, before)
    if num_top:
        assert got[0][1] == got[3][1, 0]  # exactly


def test_equal_logits_share_rank_and_come_by_id() -> None:
    """Across splits as well."""
    logits = torch.full((1, 5000), -3.0, device=DEVICE)
    logits[0, [7, 4096, 4999]] = 2.0
    logits[0, 4500] = 3.0
    logprobs, ranks, top_ids, tops = token_logprobs(logits, torch.tensor([4999], dtype=torch.int32, device=DEVICE), 6)
    assert ranks.tolist() == [2]
    assert top_ids.tolist() == [[4500, 7, 4096, 4999, 0, 1]]
    assert tops[0, 1] == tops[0, 3] == logprobs[0]
    assert tops[0, 4] == tops[0, 5]


def test_what_overflowed() -> None:
    logits = torch.randn(2, 40, device=DEVICE)
    logits[0, 3], logits[0, 4] = math.nan, -math.inf
    logits[1, 5], logits[1, 6] = math.inf, math.nan
    token_ids = torch.tensor([3, 5], dtype=torch.int32, device=DEVICE)
    got = token_logprobs(logits, token_ids, 4)
    wanted = reference_sampling.token_logprobs(reference_sampling.make_finite(logits.clone()), token_ids.long(), 4)
    for ours, reference in zip((got[0], got[3]), (wanted[0], wanted[3]), strict=True):
        torch.testing.assert_close(ours, reference)
    assert got[1].tolist() == wanted[1].tolist()
    assert got[2][0].tolist() == wanted[2][0].tolist()
    assert got[2][1, 0] == 5


def test_ids_of_rows_that_sampled_nothing_mean_nothing() -> None:
    """They may be anything, and their results are; other rows' are not affected."""
    logits = torch.randn(3, 50, device=DEVICE)
    token_ids = torch.tensor([2**31 - 1, 7, -(2**31)], dtype=torch.int32, device=DEVICE)
    wanted = reference_sampling.token_logprobs(logits, token_ids.clamp(0, 49).long(), 2)
    torch.testing.assert_close(token_logprobs(logits, token_ids, 2)[0], wanted[0])


def test_no_rows() -> None:
    empty = torch.empty(0, 100, device=DEVICE)
    assert token_logprobs(empty, torch.empty(0, dtype=torch.int32, device=DEVICE), 3)[2].shape == (0, 3)
