"""What launchers ask of their tensors, as assertions: a kernel takes an address on trust."""

import torch


def check_dense(tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """`tensor` has this shape and type and no gaps."""
    assert tensor.shape == shape, (tensor.shape, shape)
    assert tensor.dtype == dtype, (tensor.dtype, dtype)
    assert tensor.is_contiguous(), tensor.stride()


def check_rows(tensor: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """`tensor` has this shape and type; there may be gaps between its rows, but not within one."""
    assert tensor.shape == shape, (tensor.shape, shape)
    assert tensor.dtype == dtype, (tensor.dtype, dtype)
    assert tensor.stride(1) == 1, tensor.stride()
