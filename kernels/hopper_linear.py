"""Products of many rows on Hopper, x · weightᵀ, on wgmma fed by TMA, with the activation in the same launch.

    out[m, n] = sum_k x[m, k] · weight[n, k]
    gated:      out[m, n] = act(u[m, n]) · u[m, n + N/2] with u the product above and act SiLU or GELU by tanh as in
                kernels/activation.py

Sums and activation are in float32, rounded once. One persistent program per SM takes tiles of 128 rows and 256 output
features, of a gated product 128 of the gate and the 128 of up that belong to them. It is specialized by warps: a
producer has the copy engine fetch 64 columns of x and weight at a time into a ring of stages, running ahead into the
next tile; two consumers of four warps multiply 64 rows each and keep one k-step's products in flight, so that the
matrix units never wait for an instruction. A stage's memory is free once the product after its own has been started and
its own has ended. The second consumer starts `lead` k-steps behind the first, and the stages between keep it there:
one's activation and store run beside the other's products (CUTLASS's "ping-pong" has this by two output tiles at a
time, for twice the reads of the L2 cache).

Traffic: without clusters, which Gluon of Triton 3.6 has no multicast for, a k-step of 4.2 MFLOP reads 48 KB from the L2
cache: 7.5 TB/s at 660 TFLOP/s. Tiles are visited in groups of some row tiles by all column tiles, so that programs that
run at a time share their operands there.

Measured at 8,192 rows of an 8B model's gate-up: 685 to 690 TFLOP/s with the activation, cuBLAS and a second launch 634
to 659 (the power limit holds both; benchmarks/sweep_large_linear.py).

Legend: M = rows of x, N = rows of the weight (output features, twice the result's when gated), K = input features.
"""

import functools
from dataclasses import dataclass

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.checks import check_dense, check_rows
from kernels.hopper_combine import barrier
from kernels.programmatic import let_dependents_start, may_overlap, wait_for_earlier_kernels

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
_HALF_N = BLOCK_N // 2
"""Output features that are stored at a time, all of a gated tile."""
_WORKER_REGISTERS = (240, 24)
"""Of the second consumer and the producer; the first consumer gets what is left, which is as much as the second's."""
_SWIZZLED = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@gluon.jit
def _tile_place(tile, num_row_tiles, num_column_tiles, group):
    """(row tile, column tile): `group` row tiles at a time, column by column."""
    first = tile // (group * num_column_tiles) * group
    size = gl.minimum(num_row_tiles - first, group)
    within = tile % (group * num_column_tiles)
    return first + within % size, within // size


@gluon.jit
def _produce(
    x_desc, weight_desc, x_smem, weight_smem, full, empty, num_row_tiles, num_column_tiles, num_steps, group,
    tile_columns, second_row, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Fetches the operands of all tiles in the order in which the consumers take them."""
    HALF_N: gl.constexpr = BLOCK_N // 2
    num_fetched = gl.program_id(0) * 0
    for tile in range(gl.program_id(0), num_row_tiles * num_column_tiles, gl.num_programs(0)):
        row_tile, column_tile = _tile_place(tile, num_row_tiles, num_column_tiles, group)
        row = row_tile * BLOCK_M
        first_half = column_tile * tile_columns
        second_half = first_half + second_row
        for step in range(num_steps):
            stage = num_fetched % STAGES
            mbarrier.wait(empty.index(stage), (num_fetched // STAGES & 1) ^ 1)
            ready = full.index(stage)
            mbarrier.expect(ready, (BLOCK_M + BLOCK_N) * BLOCK_K * 2)
            weight = weight_smem.index(stage)
            tma.async_copy_global_to_shared(x_desc, [row, step * BLOCK_K], ready, x_smem.index(stage))
            tma.async_copy_global_to_shared(weight_desc, [first_half, step * BLOCK_K], ready, weight.slice(0, HALF_N))
            tma.async_copy_global_to_shared(
                weight_desc, [second_half, step * BLOCK_K], ready, weight.slice(HALF_N, HALF_N)
            )
            num_fetched += 1


@gluon.jit
def _store(out_desc, out_smem, row, column, result):
    """Rounded, from shared memory by the copy engine, which the next call waits for."""
    tma.store_wait(0)
    barrier()
    out_smem.store(result.to(out_smem.dtype))
    fence_async_shared()
    barrier()
    tma.async_copy_shared_to_global(out_desc, [row, column], out_smem)


@gluon.jit
def _activate(x, ACTIVATION: gl.constexpr):
    """As `kernels.activation.activate`."""
    if ACTIVATION == "gelu_tanh":
        exponent = -1.5957691216057308 * (x + 0.044715 * x * x * x)
    else:
        gl.static_assert(ACTIVATION == "silu")
        exponent = -x
    return x / (1.0 + gl.exp(exponent))


@gluon.jit
def _consume(
    out_desc, x_smem, weight_smem, out_smem, full, empty, start, num_row_tiles, num_column_tiles,
    num_steps, group, lead, HALF: gl.constexpr, ACTIVATION: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Rows HALF·64 to HALF·64 + 63 of every tile."""
    HALF_M: gl.constexpr = BLOCK_M // 2
    HALF_N: gl.constexpr = BLOCK_N // 2
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    num_taken = gl.program_id(0) * 0
    if HALF == 1:
        mbarrier.wait(start, 0)
    for tile in range(gl.program_id(0), num_row_tiles * num_column_tiles, gl.num_programs(0)):
        row_tile, column_tile = _tile_place(tile, num_row_tiles, num_column_tiles, group)
        stage = num_taken % STAGES
        mbarrier.wait(full.index(stage), num_taken // STAGES & 1)
        acc = warpgroup_mma(
            x_smem.index(stage).slice(HALF * HALF_M, HALF_M),
            weight_smem.index(stage).permute((1, 0)),
            gl.zeros([HALF_M, BLOCK_N], gl.float32, ACC),
            use_acc=False,
            is_async=True,
        )
        acc = warpgroup_mma_wait(1, deps=(acc,))  # for nothing: a loop carries tensors
        num_taken += 1
        for _ in range(1, num_steps):
            last_stage = stage
            stage = num_taken % STAGES
            mbarrier.wait(full.index(stage), num_taken // STAGES & 1)
            acc = warpgroup_mma(
                x_smem.index(stage).slice(HALF * HALF_M, HALF_M),
                weight_smem.index(stage).permute((1, 0)),
                acc,
                is_async=True,
            )
            acc = warpgroup_mma_wait(1, deps=(acc,))
            mbarrier.arrive(empty.index(last_stage))
            num_taken += 1
            if HALF == 0:
                mbarrier.arrive(start, pred=num_taken == lead + 1)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty.index(stage))

        row = row_tile * BLOCK_M + HALF * HALF_M
        # Both halves of a row are in one thread's registers.
        first, second = gl.split(gl.permute(gl.reshape(acc, [HALF_M, 2, HALF_N]), (0, 2, 1)))
        if ACTIVATION is not None:
            _store(out_desc, out_smem.index(HALF), row, column_tile * HALF_N, _activate(first, ACTIVATION) * second)
        else:
            _store(out_desc, out_smem.index(HALF), row, column_tile * BLOCK_N, first)
            _store(out_desc, out_smem.index(HALF), row, column_tile * BLOCK_N + HALF_N, second)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["num_row_tiles", "num_column_tiles", "num_steps", "group", "lead", "second_row"])
def _hopper_linear_kernel(
    x_desc,  # [M, K], boxes of BLOCK_M rows and BLOCK_K elements
    weight_desc,  # [N, K], boxes of BLOCK_N / 2 rows and BLOCK_K elements
    out_desc,  # [M, N], or [M, N / 2] when gated, boxes of BLOCK_M / 2 rows and BLOCK_N / 2 elements
    num_row_tiles,
    num_column_tiles,
    num_steps,
    group,
    lead,
    second_row,  # of the weight, from a tile's first half of columns to its second
    ACTIVATION: gl.constexpr,
    STAGES: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    SWIZZLED: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """One persistent program: every P-th tile of P programs."""
    let_dependents_start()
    TILE_COLUMNS: gl.constexpr = BLOCK_N // 2 if ACTIVATION is not None else BLOCK_N
    dtype: gl.constexpr = x_desc.dtype
    x_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_M, BLOCK_K], SWIZZLED)
    weight_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, BLOCK_K], SWIZZLED)
    out_smem = gl.allocate_shared_memory(dtype, [2, BLOCK_M // 2, BLOCK_N // 2], SWIZZLED)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    start = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(start, count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    wait_for_earlier_kernels()
    gl.warp_specialize(
        [
            (_consume, (
                out_desc, x_smem, weight_smem, out_smem, full, empty, start, num_row_tiles, num_column_tiles,
                num_steps, group, lead, 0, ACTIVATION, BLOCK_M, BLOCK_N, STAGES,
            )),
            (_consume, (
                out_desc, x_smem, weight_smem, out_smem, full, empty, start, num_row_tiles, num_column_tiles,
                num_steps, group, lead, 1, ACTIVATION, BLOCK_M, BLOCK_N, STAGES,
            )),
            (_produce, (
                x_desc, weight_desc, x_smem, weight_smem, full, empty, num_row_tiles, num_column_tiles, num_steps,
                group, TILE_COLUMNS, second_row, BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LargeTiling:
    """How programs go through a product; what benchmarks vary."""

    group: int = 16  # row tiles
    num_stages: int = 4
    lead: int = 2  # k-steps

    def __post_init__(self) -> None:
        # The second consumer is let go after the first one's second k-step at the earliest, and the first takes
        # lead + 1 stages before the second gives one back.
        assert 0 < self.lead < self.num_stages <= 4, self


DEFAULT_TILING = LargeTiling()
_MIN_IN = 4 * BLOCK_K
"""The first consumer gets its lead within a tile."""


@functools.cache
def num_programs(device: torch.device) -> int:
    """What a GPU runs at a time."""
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def supports(device: torch.device, dtype: torch.dtype, num_out: int, num_in: int, *, gated: bool = False) -> bool:
    """Whether this kernel can multiply by a weight [num_out, num_in]; rows of the result start at 16 bytes."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device)[0] == 9  # wgmma is in no other architecture
        and dtype in (torch.float16, torch.bfloat16)
        and num_in % BLOCK_K == 0
        and num_in >= _MIN_IN
        and num_out % (16 if gated else 8) == 0
    )


def is_faster_gated(num_rows: int, num_out: int, num_in: int, num_programs: int) -> bool:
    """Whether a gated product takes less time here than cuBLAS and a second launch for the activation, on a GPU that
    runs `num_programs`. All programs work equally long on a tile, so what counts is the share of the last wave of tiles
    that is filled. Measured on an H200 (benchmarks/sweep_large_linear.py): with K of 4,096 it has to be nearly all of
    it, and rows enough for the power limit to slow cuBLAS down; with K of 1,024 a second launch costs more."""
    num_tiles = num_rows / BLOCK_M * (num_out / BLOCK_N)
    num_waves = triton.cdiv(triton.cdiv(num_rows, BLOCK_M) * triton.cdiv(num_out, BLOCK_N), num_programs)
    least_rows, least_fill = (2048, 0.96) if num_in >= 2048 else (1024, 0.8)
    return num_rows >= least_rows and num_tiles >= least_fill * num_waves * num_programs


def hopper_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    activation: str | None = None,
    out: torch.Tensor | None = None,
    tiling: LargeTiling = DEFAULT_TILING,
) -> torch.Tensor:
    """x [M, K], whose rows may lie apart by multiples of 16 bytes, times weight [N, K] transposed: [M, N], or
    with an `activation` [M, N / 2]. One dtype; see `supports`."""
    num_rows, num_in = x.shape
    num_out = len(weight)
    check_rows(x, (num_rows, num_in), weight.dtype)
    check_dense(weight, (num_out, num_in), weight.dtype)
    assert supports(x.device, x.dtype, num_out, num_in, gated=activation is not None), (weight.shape, weight.dtype)
    assert activation in (None, "silu", "gelu_tanh"), activation
    assert num_rows > 0
    shape = (num_rows, num_out // 2 if activation else num_out)
    if out is None:
        out = torch.empty(shape, dtype=x.dtype, device=x.device)
    check_dense(out, shape, x.dtype)
    num_row_tiles = -(-num_rows // BLOCK_M)
    num_column_tiles = -(-num_out // BLOCK_N)
    _hopper_linear_kernel[(min(num_row_tiles * num_column_tiles, num_programs(x.device)),)](
        TensorDescriptor(x, list(x.shape), list(x.stride()), [BLOCK_M, BLOCK_K], _SWIZZLED),
        TensorDescriptor(weight, list(weight.shape), list(weight.stride()), [_HALF_N, BLOCK_K], _SWIZZLED),
        TensorDescriptor(out, list(out.shape), list(out.stride()), [BLOCK_M // 2, _HALF_N], _SWIZZLED),
        num_row_tiles,
        num_column_tiles,
        num_in // BLOCK_K,
        tiling.group,
        tiling.lead,
        num_out // 2 if activation else _HALF_N,
        ACTIVATION=activation,
        STAGES=tiling.num_stages,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        SWIZZLED=_SWIZZLED,
        CONSUMER_REGISTERS=_WORKER_REGISTERS[0],
        PRODUCER_REGISTERS=_WORKER_REGISTERS[1],
        num_warps=4,
        launch_pdl=may_overlap(),
    )
    return out
