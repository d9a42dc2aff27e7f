"""The long variant on wgmma against plain softmax in float64; there is no interpreter for what it is written in."""

from typing import Any

import pytest
import torch

from tests.kernels.attention_steps import Step, make_step, share_beginning
from tests.kernels.device import DEVICE
from tests.kernels.test_paged_attention import compare, run

from kernels import hopper_attention  # isort: skip  (after the device is known)
from kernels.attention_tasks import plan_attention  # isort: skip
from kernels.attention_workspace import AttentionWorkspace, make_attention_workspace  # isort: skip

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" or torch.cuda.get_device_capability()[0] != 9, reason="wgmma is in Hopper GPUs alone"
)
BATCH = [(1, 1), (700, 300), (70, 1), (300, 300), (33, 3), (1000, 130), (129, 129), (260, 2)]


def make(step: Step, programs: int | None, sliding_window: int = 0, max_shared_tokens: int = 0) -> AttentionWorkspace:
    heads, block_size, head_dim = step.kv_cache.shape[3:]
    group = step.query.shape[1] // heads
    assert hopper_attention.supports(step.query.device, step.query.dtype, head_dim, group, block_size)
    return make_attention_workspace(
        len(step.seq_lens), len(step.query), heads, group, head_dim, DEVICE, dtype=step.query.dtype,
        sliding_window=sliding_window, use_wgmma=True, max_shared_tokens=max_shared_tokens,
        num_programs_long=programs,
    )  # fmt: skip


def check(step: Step, programs: int | None, sliding_window: int = 0, **options: Any) -> None:
    """Twice: a second call finds the workspace as the first one did, and computes the same bits."""
    workspace = make(step, programs, sliding_window)
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)
    got = run(step, workspace, **options)
    compare(step, got, sliding_window, **options)
    assert torch.equal(got, run(step, workspace, **options))


@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("programs", [1, 3, 7, 40, None])
def test_pieces_cut_everywhere(programs: int | None, head_dim: int) -> None:
    torch.manual_seed(1)
    check(make_step(BATCH, 2, 4, head_dim, 16, torch.bfloat16), programs)


SHAPES = [(1, 8), (2, 16), (4, 32), (8, 64), (64, 16)]


@pytest.mark.parametrize(
    ("group", "block_size", "head_dim"),
    [(*shape, dim) for dim in (64, 128, 256) for shape in SHAPES] + [(16, 128, 64), (16, 128, 128)],
)
def test_shapes(group: int, block_size: int, head_dim: int) -> None:
    torch.manual_seed(group)
    check(make_step(BATCH, 2, group, head_dim, block_size, torch.float16), 9)


def test_a_layer_major_cache() -> None:
    torch.manual_seed(2)
    check(make_step(BATCH, 2, 4, 128, 16, torch.bfloat16, layer_major=True), 9)


@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("window", [1, 100, 128, 300, 5000])
def test_sliding_window(window: int, head_dim: int) -> None:
    torch.manual_seed(window)
    check(make_step(BATCH, 1, 2, head_dim, 16, torch.bfloat16), 9, sliding_window=window)


@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("window", [2, 100, 300])
@pytest.mark.parametrize("block_size", [8, 16, 64])
def test_no_block_behind_the_window_is_fetched(window: int, block_size: int, head_dim: int) -> None:
    """It may be another request's by now: its values are hidden, but 0 · NaN would not be."""
    torch.manual_seed(window)
    step = make_step(BATCH, 1, 2, head_dim, block_size, torch.bfloat16)
    workspace = make(step, 9, window)
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)
    wanted = run(step, workspace)
    foreign = min(set(range(len(step.kv_cache))) - set(step.block_tables.flatten().tolist()))  # full of NaN
    for row, (seq_len, query_len) in zip(step.rows.tolist(), BATCH, strict=False):
        step.block_tables[row, : max(0, seq_len - query_len - window + 1) // block_size] = foreign
    assert torch.equal(run(step, workspace), wanted)


def test_sinks() -> None:
    torch.manual_seed(3)
    step = make_step(BATCH, 2, 4, 64, 16, torch.bfloat16)
    check(step, 5, sinks=torch.linspace(-2, 3, 8, device=DEVICE))


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(
    ("num_seqs", "num_blocks", "programs"), [(5, 8, 3), (70, 37, 7), (70, 64, None), (300, 17, 132)]
)
def test_a_common_beginning(num_seqs: int, num_blocks: int, programs: int | None, sinks: bool) -> None:
    torch.manual_seed(num_seqs)
    batch = [(16 * num_blocks + 1 + 7 * i % 90, 1) for i in range(num_seqs)]
    step = make_step([*batch, *BATCH[1:]], 2, 4, 128, 16, torch.bfloat16)
    shared = share_beginning(step, num_blocks)
    workspace = make(step, programs, max_shared_tokens=len(step.seq_lens))
    options = {"sinks": torch.linspace(-2, 3, 8, device=DEVICE)} if sinks else {}
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens, shared)
    assert workspace.long.segments[0, 1] == num_blocks // 8
    got = run(step, workspace, has_shared=True, **options)
    compare(step, got, **options)
    assert torch.equal(got, run(step, workspace, has_shared=True, **options))


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("window", [0, 100])
def test_soft_cap(window: int, head_dim: int) -> None:
    torch.manual_seed(head_dim)
    step = make_step(BATCH, 2, 2, head_dim, 16, torch.bfloat16)
    step.query.mul_(3)  # far into the cap
    check(step, 9, window, soft_cap=2.5)


@pytest.mark.parametrize("soft_cap", [0.0, 30.0])
def test_large_scores_stay_finite(soft_cap: float) -> None:
    torch.manual_seed(4)
    step = make_step(BATCH, 1, 2, 128, 16, torch.bfloat16)
    step.query.mul_(1000)
    check(step, 4, soft_cap=soft_cap)


def test_many_steps_in_a_row() -> None:
    """Of one workspace, at full size: whatever one leaves behind (counters, partials) is what the next one finds."""
    torch.manual_seed(5)
    batch = [(4096, 4096), (3000, 1500), (900, 1), (2047, 2047)]
    step = make_step(batch, 2, 4, 128, 16, torch.bfloat16)
    workspace = make(step, None)
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)
    first = run(step, workspace)
    compare(step, first)
    for _ in range(50):
        assert torch.equal(run(step, workspace), first)
