"""Weights in pieces through staging buffers: every value arrives once, whatever the sizes, strides and dtypes."""

import pytest
import torch

from gpu_workers.weight_copier import DirectCopier, StagedCopier, make_copier, pieces
from tests.kernels.device import DEVICE


@pytest.mark.parametrize(
    ("shape", "max_bytes", "wanted"),
    [
        ((7, 3), 1000, [(7, 3)]),
        ((7, 3), 84, [(7, 3)]),
        ((7, 3), 83, [(6, 3), (1, 3)]),
        ((7, 3), 24, [(2, 3), (2, 3), (2, 3), (1, 3)]),
        ((2, 5), 12, [(3,), (2,), (3,), (2,)]),  # a row that is larger than a buffer is cut as well
        ((3, 2, 2), 20, [(1, 2, 2), (1, 2, 2), (1, 2, 2)]),
        ((9,), 16, [(4,), (4,), (1,)]),
        ((), 4, [()]),
        ((0, 4), 4, []),
        ((4, 0), 4, []),
    ],
)
def test_pieces_cover_a_tensor_in_order(shape: tuple[int, ...], max_bytes: int, wanted: list[tuple[int, ...]]) -> None:
    source = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    target = torch.zeros(shape, dtype=torch.float32)
    got = list(pieces(target, source, max_bytes))
    assert [tuple(piece.shape) for piece, _ in got] == wanted
    assert all(piece.numel() * piece.element_size() <= max_bytes for piece, _ in got)
    values = [value for _, piece in got for value in piece.flatten().tolist()]
    assert values == source.flatten().tolist()
    for target_piece, source_piece in got:
        target_piece.copy_(source_piece)
    assert torch.equal(target, source.float())


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("served", [torch.float32, torch.bfloat16])
def test_staged_weights_are_those_of_a_plain_copy(stored: torch.dtype, served: torch.dtype) -> None:
    """Many more pieces than buffers, into parts of poisoned parameters, from columns of a wider matrix."""
    torch.manual_seed(0)
    copier = StagedCopier(torch.device(DEVICE), piece_bytes=52, num_buffers=3)
    parameters, wanted = [], []
    for rows, columns in ((31, 5), (3, 40), (17, 1), (1, 13), (64, 7)):
        source = torch.randn(rows, columns + 3).to(stored)[:, 2 : 2 + columns]
        parameter = torch.full((rows + 4, columns), torch.nan, dtype=served, device=DEVICE)
        copier.copy(parameter.narrow(0, 3, rows), source)
        parameters.append(parameter)
        wanted.append(source.to(served))
    copier.finish()
    for parameter, source in zip(parameters, wanted, strict=True):
        assert torch.equal(parameter[3:-1].cpu(), source)
        assert parameter[:3].isnan().all()
        assert parameter[-1:].isnan().all()


def test_the_device_decides_how_weights_are_copied() -> None:
    assert isinstance(make_copier(torch.device("cpu")), DirectCopier)
    assert isinstance(make_copier(torch.device(DEVICE)), StagedCopier if DEVICE == "cuda" else DirectCopier)
