"""Products of few rows with a large weight, x · weightᵀ + bias, as decoding makes them: streaming of the weight.

    out[m, n] = sum_k x[m, k] · weight[n, k] + bias[n]
    gated:      out[m, n] = act(u[m, n]) · u[m, n + N/2] with u the product above and act as in kernels/activation.py

Sums, bias and activation are in float32, rounded once. Two kernels over the same cut of the weight into tiles of
BLOCK_N rows. With one or two rows of x a product has two or four operations per element of the weight, which the plain
units do while they wait for memory: each thread multiplies the 16-byte pieces that it loads, and sums over threads are
taken once, at the end. More rows go through the matrix units, with the weight as their first operand (which has 64 rows
per instruction) and x as the second (as few as 8 columns), so that hardly any of the instruction is padding.

A tile whose K is split over several programs (stream-K's idea, Osama et al. 2023, with a fixed cut) is summed by the
last of them to arrive, in the order of the parts: the result does not depend on who came last. A gated tile has gate
and up rows in turn, so that one thread soon holds both.

Traffic: N·K elements of weight, M·(K + N) of input and output beside them, 2·M operations per element of the weight:
below 32 rows the read bandwidth is the roofline. To reach it some 40 KB have to be in flight on every SM from the start
to the end: all programs should fit onto the chip at once, and all have the same work. Which tiles do is
kernels/skinny_tiles.py's business. Measured: see docs/log.md.

Weights never change, so a program of the vector kernel that starts early (kernels/programmatic.py) reads its first tile
into registers while it waits. To fetch the rest of its rows into the second-level cache as well took longer: 4,541
instead of 3,966 us for a step of 8B on an H200.

Legend: M = rows of x, N = rows of the weight (output features, twice the result's when gated), K = input features.
"""

import torch
import triton
import triton.language as tl

from kernels.activation import activate
from kernels.checks import check_dense, check_rows
from kernels.programmatic import (
    let_dependents_start,
    may_overlap,
    settings,
    wait_for_earlier_kernels,
)
from kernels.skinny_tiles import SkinnyTile, SkinnyWorkspace


@triton.jit
def _tile_rows(tile, N: tl.constexpr, BLOCK_N: tl.constexpr, ACTIVATION: tl.constexpr):
    """The weight's rows of a tile, int32 [BLOCK_N]; past the end the last one again, which is a valid address."""
    lane = tl.arange(0, BLOCK_N)
    if ACTIVATION is not None:
        row = tl.minimum(tile * (BLOCK_N // 2) + lane // 2, N // 2 - 1) + (lane % 2) * (N // 2)
    else:
        row = tl.minimum(tile * BLOCK_N + lane, N - 1)
    return row


@triton.jit
def _store_tile(
    acc,  # float32 [BLOCK_N, BLOCK_M]
    bias,
    out,
    tile,
    num_rows,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Bias and activation, and the finished tile to `out` [num_rows, N or N / 2]."""
    NUM_OUT: tl.constexpr = N // 2 if ACTIVATION is not None else N
    BLOCK_OUT: tl.constexpr = BLOCK_N // 2 if ACTIVATION is not None else BLOCK_N
    if bias is not None:
        acc += tl.load(bias + _tile_rows(tile, N, BLOCK_N, ACTIVATION)).to(tl.float32)[:, None]
    if ACTIVATION is not None:
        gate, up = tl.split(tl.permute(tl.reshape(acc, [BLOCK_OUT, 2, BLOCK_M]), (0, 2, 1)))
        result = activate(gate, ACTIVATION) * up
    else:
        result = acc
    n = tile * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    m = tl.arange(0, BLOCK_M)
    mask = (n < NUM_OUT)[:, None] & (m < num_rows)[None, :]
    tl.store(out + (m[None, :] * NUM_OUT + n[:, None]), result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _load_columns(rows, first, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """BLOCK_K columns from `first` on of the weight's rows at `rows` [BLOCK_N]; zeros past the last one."""
    k = first + tl.arange(0, BLOCK_K)
    pointers = rows[:, None] + k[None, :]
    if K % BLOCK_K == 0:
        w = tl.load(pointers, eviction_policy="evict_first")
    else:
        w = tl.load(pointers, mask=(k < K)[None, :], other=0.0, eviction_policy="evict_first")
    return w


@triton.jit
def _multiply_columns(acc, w, x, first, K: tl.constexpr, BLOCK_K: tl.constexpr, VECTOR: tl.constexpr):
    """acc + w · x of columns from `first` on; sums are taken within a thread only."""
    k = first + tl.arange(0, BLOCK_K)
    if K % BLOCK_K == 0:
        v = tl.load(x + k)
    else:
        v = tl.load(x + k, mask=k < K, other=0.0)
    product = w.to(tl.float32) * v.to(tl.float32)[None, :]
    return acc + tl.sum(tl.reshape(product, [w.shape[0], BLOCK_K // VECTOR, VECTOR]), 2)


@triton.jit(do_not_specialize=["num_rows"])
def _vector_kernel(
    x,  # [num_rows, K], row stride stride_x
    weight,  # [N, K] contiguous
    bias,  # [N], or None
    out,  # [num_rows, N], or [num_rows, N / 2] when gated
    num_rows,
    stride_x,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,  # 1 or 2
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HOLD: tl.constexpr,  # the first tile while waiting
):
    """Up to BLOCK_M rows of x: a program multiplies BLOCK_N whole rows of the weight."""
    let_dependents_start()
    VECTOR: tl.constexpr = 16 // (weight.dtype.element_ty.primitive_bitwidth // 8)  # elements of a thread's load
    tile = tl.program_id(0)
    rows = weight + _tile_rows(tile, N, BLOCK_N, ACTIVATION).to(tl.int64) * K
    second = x + tl.minimum(1, num_rows - 1).to(tl.int64) * stride_x
    acc = tl.zeros([BLOCK_N, BLOCK_K // VECTOR], tl.float32)
    second_acc = acc
    HELD: tl.constexpr = BLOCK_K if HOLD else 0
    if HOLD:
        held = _load_columns(rows, 0, K, BLOCK_K)
    wait_for_earlier_kernels()
    if HOLD:
        acc = _multiply_columns(acc, held, x, 0, K, BLOCK_K, VECTOR)
        if BLOCK_M == 2:
            second_acc = _multiply_columns(second_acc, held, second, 0, K, BLOCK_K, VECTOR)
    for first in tl.range(HELD, K, BLOCK_K, num_stages=STAGES):
        w = _load_columns(rows, first, K, BLOCK_K)
        acc = _multiply_columns(acc, w, x, first, K, BLOCK_K, VECTOR)
        if BLOCK_M == 2:
            second_acc = _multiply_columns(second_acc, w, second, first, K, BLOCK_K, VECTOR)
    if BLOCK_M == 2:
        total = tl.join(tl.sum(acc, 1), tl.sum(second_acc, 1))
    else:
        total = tl.sum(acc, 1)[:, None]
    _store_tile(total, bias, out, tile, num_rows, N, BLOCK_M, BLOCK_N, ACTIVATION)


@triton.jit(do_not_specialize=["num_rows"])
def _matrix_kernel(
    x,  # [num_rows, K], row stride stride_x
    weight,  # [N, K] contiguous
    bias,  # [N], or None
    out,  # [num_rows, N], or [num_rows, N / 2] when gated
    partials,  # float32 [tiles, SPLIT, BLOCK_N, BLOCK_M]
    arrivals,  # int32 [tiles], zero before and after
    num_rows,
    stride_x,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Up to BLOCK_M rows of x: a program multiplies BLOCK_N rows of the weight within one of SPLIT parts of K."""
    let_dependents_start()
    NUM_STEPS: tl.constexpr = ((K + BLOCK_K - 1) // BLOCK_K + SPLIT - 1) // SPLIT
    EVEN: tl.constexpr = K == NUM_STEPS * SPLIT * BLOCK_K
    program = tl.program_id(0)
    tile = program // SPLIT
    part = program % SPLIT
    m = tl.arange(0, BLOCK_M)
    k = part * (NUM_STEPS * BLOCK_K) + tl.arange(0, BLOCK_K)
    is_row = m < num_rows
    rows = weight + _tile_rows(tile, N, BLOCK_N, ACTIVATION).to(tl.int64) * K
    wait_for_earlier_kernels()
    w_pointer = rows[:, None] + k[None, :]
    x_pointer = x + m.to(tl.int64)[:, None] * stride_x + k[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(NUM_STEPS):
        if EVEN:
            w = tl.load(w_pointer + step * BLOCK_K)
            v = tl.load(x_pointer + step * BLOCK_K, mask=is_row[:, None], other=0.0)
        else:
            inside = k + step * BLOCK_K < K
            w = tl.load(w_pointer + step * BLOCK_K, mask=inside[None, :], other=0.0)
            v = tl.load(x_pointer + step * BLOCK_K, mask=is_row[:, None] & inside[None, :], other=0.0)
        acc = tl.dot(w, tl.trans(v), acc, input_precision="ieee")

    if SPLIT == 1:
        _store_tile(acc, bias, out, tile, num_rows, N, BLOCK_M, BLOCK_N, ACTIVATION)
    else:
        element = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + m[None, :]
        first_part = partials + tile.to(tl.int64) * (SPLIT * BLOCK_N * BLOCK_M)
        tl.store(first_part + part * (BLOCK_N * BLOCK_M) + element, acc, mask=is_row[None, :])
        # All threads' stores come before the one thread's release.
        tl.debug_barrier()
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu") == SPLIT - 1:
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for other in tl.static_range(SPLIT):
                # Past the first-level cache, which knows nothing of other SMs' stores.
                total += tl.load(
                    first_part + other * (BLOCK_N * BLOCK_M) + element,
                    mask=is_row[None, :],
                    other=0.0,
                    cache_modifier=".cg",
                )
            _store_tile(total, bias, out, tile, num_rows, N, BLOCK_M, BLOCK_N, ACTIVATION)
            tl.store(arrivals + tile, 0)


def skinny_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    workspace: SkinnyWorkspace,
    tile: SkinnyTile,
    *,
    activation: str | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [M, K], whose rows may lie apart, times weight [N, K] transposed: [M, N], or with an `activation` [M, N / 2].

    One dtype for x, weight and bias; `out`, where given, has it too, or is float32. `tile` comes from
    `skinny_tiles.choose`; M is at most its `block_m`. Products that share a workspace run one after the other.
    """
    num_rows, num_in = x.shape
    num_out = len(weight)
    check_rows(x, (num_rows, num_in), weight.dtype)
    check_dense(weight, (num_out, num_in), weight.dtype)
    if bias is not None:
        check_dense(bias, (num_out,), weight.dtype)
    assert 0 < num_rows <= tile.block_m, (num_rows, tile)
    assert activation is None or num_out % 2 == 0
    shape = (num_rows, num_out // 2 if activation else num_out)
    if out is None:
        out = torch.empty(shape, dtype=x.dtype, device=x.device)
    check_dense(out, shape, out.dtype)
    assert out.dtype in (x.dtype, torch.float32)
    num_tiles = tile.num_tiles(num_out)
    if tile.is_vector:
        assert tile.split == 1
        holds_tile = may_overlap() and _can_hold_tile(tile, num_in)
        _vector_kernel[(num_tiles,)](
            x,
            weight,
            bias,
            out,
            num_rows,
            x.stride(0),
            N=num_out,
            K=num_in,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            STAGES=tile.num_stages,
            ACTIVATION=activation,
            HOLD=holds_tile,
            num_warps=tile.num_warps,
            launch_pdl=may_overlap(),
        )
        return out
    assert tile.num_partials(num_out) <= workspace.partials.numel()
    assert tile.split == 1 or num_tiles <= workspace.arrivals.numel()
    _matrix_kernel[(num_tiles * tile.split,)](
        x,
        weight,
        bias,
        out,
        workspace.partials,
        workspace.arrivals,
        num_rows,
        x.stride(0),
        N=num_out,
        K=num_in,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        SPLIT=tile.split,
        ACTIVATION=activation,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        launch_pdl=may_overlap(),
    )
    return out


def _can_hold_tile(tile: SkinnyTile, num_in: int) -> bool:
    """Whether a program of the vector kernel holds its first tile in registers while it waits. Not one of two: the
    compiler makes no loop of the other, holds both, and the registers cost a third of the programs that run at once."""
    return settings.holds_first_tile and triton.cdiv(num_in, tile.block_k) != 2
