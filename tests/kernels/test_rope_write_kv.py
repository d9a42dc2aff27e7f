"""Norm, rotation and KV write against the reference in float64, at odd shapes, over poisoned memory."""

from tests.kernels.device import DEVICE  # isort: skip

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from kernels import reference
from kernels.cpu.attention import StepAttention
from kernels.cpu.attention_plan import Workspace, plan_attention
from kernels.rope_write_kv import rope_write_kv

MAX_POSITIONS, NUM_BLOCKS, NUM_LAYERS, LAYER, EPS = 40, 6, 3, 1, 1e-5


@dataclass
class Case:
    """A step's tensors on the device. The rows of `qkv` and the heads of `kv_cache` lie in wider tensors of NaN."""

    wide: torch.Tensor
    qkv: torch.Tensor  # [T, (H·G + 2·H)·D]
    cos_sin: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    kv_cache: torch.Tensor  # [NUM_BLOCKS, NUM_LAYERS, 2, H, B, D], all NaN
    between_heads: torch.Tensor  # the cache's memory that is no head's
    norms: tuple[torch.Tensor, torch.Tensor] | tuple[None, None]

    def run(self) -> torch.Tensor:
        return rope_write_kv(
            self.qkv, self.cos_sin, self.positions, self.slot_mapping, self.kv_cache, LAYER, *self.norms, eps=EPS
        )


def make_case(
    num_tokens: int,
    heads: tuple[int, int],
    head_dim: int,
    *,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    with_norms: bool = False,
) -> Case:
    """`heads` are (H, G). A third of the tokens, rounded down, is padding: slot -1."""
    num_kv_heads, group_size = heads
    row = num_kv_heads * (group_size + 2) * head_dim
    wide = torch.full((num_tokens, row + 16), torch.nan, dtype=dtype, device=DEVICE)
    wide[:, 8 : row + 8] = torch.randn(num_tokens, row)
    angles = torch.rand(MAX_POSITIONS, head_dim // 2) * 6.3
    num_slots = NUM_BLOCKS * block_size
    slots = torch.randperm(num_slots)[:num_tokens]
    slots[num_tokens - num_tokens // 3 :] = -1
    shape = (NUM_BLOCKS, NUM_LAYERS, 2, num_kv_heads + 1, block_size, head_dim)
    cache_memory = torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)
    norms = (torch.randn(head_dim).to(DEVICE, dtype), torch.randn(head_dim).to(DEVICE, dtype))
    return Case(
        wide=wide,
        qkv=wide[:, 8 : row + 8],
        cos_sin=torch.cat((angles.cos(), angles.sin()), -1).to(DEVICE),
        positions=torch.randint(MAX_POSITIONS, (num_tokens,), dtype=torch.int32, device=DEVICE),
        slot_mapping=slots.to(DEVICE, torch.int32),
        kv_cache=cache_memory[:, :, :, :-1],
        between_heads=cache_memory[:, :, :, -1],
        norms=norms if with_norms else (None, None),
    )


def expected(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [T, H·G, D] of all tokens, and the cache, from the reference in float64 on the CPU."""
    qkv, slots = case.qkv.double().cpu(), case.slot_mapping.long().cpu()
    rows = reference.gather_rope(case.cos_sin.double().cpu(), case.positions.long().cpu())
    q_norm, k_norm = (None if norm is None else norm.double().cpu() for norm in case.norms)
    nothing = torch.zeros(0, dtype=torch.long)

    def run(tokens: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        plan = plan_attention(cache, nothing.view(0, 1), slots[tokens], torch.tensor([len(tokens)]), nothing)
        of_tokens = rows[0][tokens], rows[1][tokens]
        return StepAttention(cache, plan, Workspace()).write(qkv[tokens], of_tokens, LAYER, q_norm, k_norm, EPS)

    cache = torch.full(case.kv_cache.shape, torch.nan, dtype=torch.float64)
    run((slots >= 0).nonzero().flatten(), cache)
    # The reference knows no padding: for the queries every token may write, into a cache that nobody looks at.
    slots = slots.clamp(min=0)
    return run(torch.arange(len(slots)), cache.clone()), cache


def check(case: Case) -> None:
    dtype = case.qkv.dtype
    # One rounding to the type, of sums in which two products can nearly cancel; float32's own error beside it.
    tolerance = {"rtol": max(torch.finfo(dtype).eps, 16 * torch.finfo(torch.float32).eps), "atol": 1e-5}
    wanted_query, wanted_cache = expected(case)
    before = case.qkv.clone()
    query = case.run()
    num_features = query.shape[1] * query.shape[2]
    assert query.data_ptr() == case.qkv.data_ptr()
    torch.testing.assert_close(query.double().cpu(), wanted_query, **tolerance)
    torch.testing.assert_close(case.kv_cache.double().cpu(), wanted_cache, equal_nan=True, **tolerance)
    assert torch.equal(case.kv_cache[:, :, 1].double().cpu().nan_to_num(), wanted_cache[:, :, 1].nan_to_num())
    # Nothing else was written: keys and values in qkv, what lies between its rows, what lies between the cache's heads.
    assert torch.equal(case.qkv[:, num_features:], before[:, num_features:])
    assert case.wide[:, :8].isnan().all()
    assert case.wide[:, -8:].isnan().all()
    assert case.between_heads.isnan().all()


@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("head_dim", [2, 10, 64, 80, 96, 128])
@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (9, 2)])
def test_head_counts_and_sizes(heads: tuple[int, int], head_dim: int, with_norms: bool) -> None:
    check(make_case(5, heads, head_dim, with_norms=with_norms))


@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types(dtype: torch.dtype, with_norms: bool) -> None:
    check(make_case(7, (2, 4), 64, dtype=dtype, with_norms=with_norms))


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("num_tokens", [1, 6])
def test_block_sizes(num_tokens: int, block_size: int) -> None:
    check(make_case(num_tokens, (2, 2), 16, block_size=block_size))


def test_a_cache_of_another_order() -> None:
    """Layer-major, heads before keys and values, blocks last: no order of the first four dimensions is assumed."""
    case = make_case(6, (3, 2), 16)
    memory = torch.full((NUM_LAYERS, 3, 2, NUM_BLOCKS, 4, 16), torch.nan, device=DEVICE)
    wanted = expected(case)[1]
    case.kv_cache = memory.permute(3, 0, 2, 1, 4, 5)
    case.run()
    torch.testing.assert_close(case.kv_cache.double().cpu(), wanted, equal_nan=True, rtol=2e-6, atol=1e-5)


def test_padding_alone_and_no_tokens() -> None:
    """A graph's dummy step: the cache stays as it is, positions of 0 turn nothing out of range."""
    case = make_case(4, (2, 2), 16)
    case.slot_mapping.fill_(-1)
    case.positions.zero_()
    case.run()
    assert case.kv_cache.isnan().all()
    assert make_case(0, (2, 2), 16).run().shape == (0, 4, 16)


def test_norms_may_be_float32() -> None:
    """The same weights in another type give the same queries, keys and values."""
    torch.manual_seed(4)
    case = make_case(6, (2, 2), 16, dtype=torch.float16, with_norms=True)
    other = dataclasses.replace(
        case,
        qkv=case.qkv.clone(),
        kv_cache=case.kv_cache.clone(),
        norms=tuple(weight.float() for weight in case.norms if weight is not None),
    )
    assert torch.equal(case.run(), other.run())
    assert torch.equal(case.kv_cache.nan_to_num(7.0), other.kv_cache.nan_to_num(7.0))
