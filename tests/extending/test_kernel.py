"""The recipe "a kernel" of docs/extending.md, followed for an invented one: rows times a vector of factors."""

from tests.kernels.device import DEVICE  # isort: skip

from types import ModuleType

import pytest
import torch
import triton
import triton.language as tl

from engine_core.config.layer_groups import LayerGroup, LayerGroups
from engine_core.config.stages import Stage
from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.norm import RMSNorm
from gpu_workers.operations import Operations, load_operations
from gpu_workers.quantization import load_linear_method
from kernels import cpu, cuda
from kernels.checks import check_dense, check_rows
from kernels.programmatic import let_dependents_start, may_overlap, wait_for_earlier_kernels
from kernels.row_tiles import split_rows


@triton.jit(do_not_specialize=["num_rows"])
def _scale_kernel(
    x_ptr,  # [num_rows, SIZE], row stride x_stride
    factors_ptr,  # [SIZE]
    out_ptr,  # [num_rows, SIZE] contiguous
    num_rows,
    x_stride,
    SIZE: tl.constexpr,
    BLOCKS_PER_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    let_dependents_start()
    wait_for_earlier_kernels()
    pid = tl.program_id(0)
    rows = (pid // BLOCKS_PER_ROW) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = (pid % BLOCKS_PER_ROW) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (rows < num_rows) & (cols < SIZE)
    x = tl.load(x_ptr + rows.to(tl.int64) * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    factors = tl.load(factors_ptr + cols, mask=cols < SIZE, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows.to(tl.int64) * SIZE + cols, (x * factors).to(out_ptr.dtype.element_ty), mask=mask)


def scale(x: torch.Tensor, factors: torch.Tensor, eps: float = 0.0, out: torch.Tensor | None = None) -> torch.Tensor:
    """x · factors for `x` [T, n], whose rows may lie apart, and `factors` [n]; in `out` where given. No use of `eps`:
    the arguments are those of `rms_norm`, whose place it takes below."""
    num_rows, size = x.shape
    check_rows(x, (num_rows, size), x.dtype)
    check_dense(factors, (size,), factors.dtype)
    out = torch.empty(num_rows, size, dtype=x.dtype, device=x.device) if out is None else out
    check_dense(out, (num_rows, size), x.dtype)
    rows, block, blocks_per_row, num_warps = split_rows(size)
    _scale_kernel[(triton.cdiv(num_rows, rows) * blocks_per_row,)](
        x,
        factors,
        out,
        num_rows,
        x.stride(0),
        SIZE=size,
        BLOCKS_PER_ROW=blocks_per_row,
        ROWS=rows,
        BLOCK=block,
        num_warps=num_warps,
        launch_pdl=may_overlap(),
    )
    return out


@pytest.mark.parametrize(("num_rows", "size"), [(0, 8), (1, 1), (3, 17), (70, 33), (2, 2600)])
def test_the_kernel_computes_what_the_reference_computes(num_rows: int, size: int) -> None:
    """Nothing before or behind the result is written."""
    x, factors = torch.randn(num_rows, size, device=DEVICE), torch.randn(size, device=DEVICE)
    memory = torch.full((num_rows + 2, size), torch.nan, device=DEVICE)
    assert torch.equal(scale(x, factors, out=memory[1:-1]), x * factors)
    assert memory[[0, -1]].isnan().all()


def test_layers_call_the_operation_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name that the device's module gives it."""
    monkeypatch.setattr(cuda, "rms_norm", scale)
    build = BuildContext(
        dtype=torch.float32,
        device=torch.device(DEVICE),
        operations=load_operations("cuda"),
        linear_method=load_linear_method(None),
        layer_groups=LayerGroups((LayerGroup((0,), 0),), 1),
        stage=Stage.whole(1),
    )
    norm = RMSNorm(24, 1e-6, build)
    norm.weight.data.copy_(torch.randn(24))
    x = torch.randn(5, 24, device=DEVICE)
    assert torch.equal(norm(x), x * norm.weight)


@pytest.mark.parametrize("module", [cpu, cuda], ids=["cpu", "cuda"])
def test_each_device_has_every_operation(module: ModuleType) -> None:
    only_compiled = {"product_kind"}  # kernels that are compiled before they can serve
    wanted = {name for name in vars(Operations) if not name.startswith("_")}
    missing = {name for name in wanted if not hasattr(module, name)}
    assert "rms_norm" in wanted
    assert missing == (only_compiled if module is cpu else set())
