"""Masks of grammars, against the reference and plain indexing."""

from tests.kernels.device import DEVICE  # isort: skip

import pytest
import torch

from kernels import reference_sampling
from kernels.sampling_fields import LOWEST
from kernels.token_masks import apply_token_masks


def random_masks(num_masks: int, vocab_size: int, num_words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits as words with garbage behind the vocabulary, and as booleans."""
    bits = torch.rand(num_masks, 32 * num_words) < 0.3
    weights = torch.tensor([1 << bit for bit in range(31)] + [-(2**31)], dtype=torch.int64)
    words = (bits.view(num_masks, num_words, 32) * weights).sum(-1).to(torch.int32)
    return words.to(DEVICE), bits[:, :vocab_size].to(DEVICE)


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 50, 4097, 9000])
@pytest.mark.parametrize("rows", [[0], [3, 1], [0, 1, 2, 3, 4]])
def test_only_what_is_ruled_out_is_touched(vocab_size: int, rows: list[int]) -> None:
    logits = torch.randn(5, vocab_size + 3, device=DEVICE)[:, :vocab_size]
    logits[0, 0] = torch.nan  # left to whoever reads it, where it is allowed
    masks, allowed = random_masks(len(rows), vocab_size, -(-vocab_size // 32) + 1)
    wanted = logits.clone()
    for mask, row in enumerate(rows):
        wanted[row, ~allowed[mask]] = LOWEST.value
    reference = logits.cpu().clone()
    apply_token_masks(logits, torch.tensor(rows, dtype=torch.int32, device=DEVICE), masks)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=0, equal_nan=True)
    reference_sampling.apply_token_masks(reference, torch.tensor(rows), masks.cpu())
    reference = torch.where(reference == -torch.inf, LOWEST.value, reference)
    torch.testing.assert_close(logits.cpu(), reference, rtol=0, atol=0, equal_nan=True)


def test_a_mask_too_short_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        apply_token_masks(
            torch.zeros(1, 65, device=DEVICE),
            torch.zeros(1, dtype=torch.int32, device=DEVICE),
            torch.zeros(1, 2, dtype=torch.int32, device=DEVICE),
        )
