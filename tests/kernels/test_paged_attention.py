"""Paged attention against plain softmax in float64: mixed batches cut into pieces everywhere, every option."""

from dataclasses import replace

import pytest
import torch

from kernels.reference_attention import attention_reference
from tests.kernels.attention_steps import PADDED_TOKENS, Step, make_step, share_beginning
from tests.kernels.device import DEVICE

from kernels.attention_tasks import plan_attention  # isort: skip  (after the device is known)
from kernels.attention_workspace import AttentionWorkspace, Tile, make_attention_workspace  # isort: skip
from kernels.paged_attention import paged_attention  # isort: skip

SHORT, LONG = Tile(8, 32, 4, 2, 1, min_units=1), Tile(64, 32, 4, 2, 1)
MIXED = [(1, 1), (45, 37), (70, 1), (9, 9), (33, 3), (50, 2)]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of outputs of order one: sums of some hundred products in float32, or one rounding of p and of the output."""


def make(
    step: Step,
    programs: int,
    sliding_window: int = 0,
    overhead: int = 1,
    short_tokens: int = 1,
    max_shared_tokens: int = 0,
) -> AttentionWorkspace:
    heads, _, head_dim = step.kv_cache.shape[3:]
    return make_attention_workspace(
        len(step.seq_lens), len(step.query), heads, step.query.shape[1] // heads, head_dim, DEVICE,
        dtype=step.query.dtype, sliding_window=sliding_window, short_tokens=short_tokens,
        short_tile=replace(SHORT, overhead=overhead),
        long_tile=replace(LONG, overhead=overhead),
        max_shared_tokens=max_shared_tokens, num_programs_short=programs, num_programs_long=programs,
    )  # fmt: skip


def run(step: Step, workspace: AttentionWorkspace, has_long: bool = True, **options) -> torch.Tensor:
    """Output of layer 1 for the step's tokens; that of padded tokens must stay as it was."""
    out = torch.full((len(step.query), step.query[0].numel()), torch.nan, dtype=step.query.dtype, device=DEVICE)
    scale = step.query.shape[-1] ** -0.5
    got = paged_attention(
        step.query, step.kv_cache, 1, workspace, step.block_tables, scale, out, has_long=has_long, **options
    )
    assert got is out
    assert torch.isnan(got[-PADDED_TOKENS:]).all()
    for variant in (workspace.short, workspace.long):
        assert not variant.arrivals.any()
    return got[: step.num_tokens]


def check(step: Step, programs: int, sliding_window: int = 0, **options) -> None:
    workspace = make(step, programs, sliding_window)
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)
    compare(step, run(step, workspace, **options), sliding_window, **options)


def compare(step: Step, got: torch.Tensor, sliding_window: int = 0, **options) -> None:
    wanted = attention_reference(
        step.query, step.kv_cache, 1, step.rows, step.block_tables, step.query_start_loc, step.seq_lens,
        step.query.shape[-1] ** -0.5, sliding_window, **options,
    )  # fmt: skip
    tolerance = TOLERANCE[step.query.dtype]
    torch.testing.assert_close(got.double(), wanted[: step.num_tokens], rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("programs", "overhead"), [(1, 0), (3, 5), (8, 0), (8, 2), (70, 0), (31, 3)])
def test_pieces_cut_everywhere(programs: int, overhead: int) -> None:
    """70 programs are more than there is work for; with an overhead some programs have no tile in their runs. A second
    call finds the workspace as the first one did."""
    torch.manual_seed(programs)
    step = make_step(MIXED, heads=2, group=4, head_dim=16, block_size=16)
    workspace = make(step, programs, overhead=overhead)
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)
    got = run(step, workspace)
    compare(step, got)
    assert torch.equal(got, run(step, workspace))


@pytest.mark.parametrize(
    ("group", "head_dim", "block_size"),
    [(1, 16, 1), (2, 64, 4), (3, 16, 24), (4, 80, 16), (8, 128, 16), (5, 24, 3), (16, 16, 64), (20, 16, 16)],
)
def test_shapes(group: int, head_dim: int, block_size: int) -> None:
    torch.manual_seed(group)
    check(make_step(MIXED, 1, group, head_dim, block_size), programs=4)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        pytest.param(
            torch.bfloat16,
            marks=pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter multiplies bf16 wrongly"),
        ),
    ],
)
def test_half_precision_and_a_layer_major_cache(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    check(make_step(MIXED, 2, 4, 64, 16, dtype, layer_major=True), programs=5)


@pytest.mark.slow
@pytest.mark.parametrize("programs", [1, 6])
@pytest.mark.parametrize("window", [1, 7, 40, 1000])
def test_sliding_window(window: int, programs: int) -> None:
    torch.manual_seed(window)
    batch = [(100, 1), (90, 40), (1, 1), (130, 2), (35, 35)]
    check(make_step(batch, 1, 2, 16, 16), programs, sliding_window=window)


@pytest.mark.slow
@pytest.mark.parametrize("window", [2, 20, 50])
@pytest.mark.parametrize("block_size", [4, 16])
def test_nothing_behind_the_window_is_read(window: int, block_size: int) -> None:
    """Blocks that no token of the step sees may be another request's by now, and their table entries anything."""
    torch.manual_seed(window)
    batch = [(100, 1), (90, 40), (1, 1), (131, 2), (35, 35), (70, 1)]
    step = make_step(batch, 2, 2, 16, block_size)
    workspace = make(step, 5, window)
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)
    wanted = run(step, workspace)
    for row, (seq_len, query_len) in zip(step.rows.tolist(), batch, strict=False):
        first_seen = max(0, seq_len - query_len - window + 1)
        for index in range(seq_len):
            if index < first_seen:
                block = step.block_tables[row, index // block_size]
                step.kv_cache[block, ..., index % block_size, :] = torch.nan
    for row, (seq_len, query_len) in zip(step.rows.tolist(), batch, strict=False):
        step.block_tables[row, : max(0, seq_len - query_len - window + 1) // block_size] = -(2**30)
    assert torch.equal(run(step, workspace), wanted)


DECODE = [(70, 1), (65, 1), (200, 1), (130, 1), (97, 1), (129, 1)]


PROMPTS = [(90, 40), (66, 1), (131, 2), (35, 35), (50, 3)]
"""Among them rows that are short, and begin otherwise than those that decode."""


@pytest.mark.slow
@pytest.mark.parametrize(("num_blocks", "programs"), [(0, 3), (1, 4), (2, 1), (3, 5), (4, 2), (4, 31)])
@pytest.mark.parametrize("batch", [DECODE, DECODE + PROMPTS], ids=["decode", "mixed"])
@pytest.mark.parametrize("names", [(), ("soft_cap", "sinks")])
def test_a_common_beginning_is_read_once(
    num_blocks: int, programs: int, batch: list[tuple[int, int]], names: tuple[str, ...]
) -> None:
    """Blocks of 16, tiles of 32: an odd block stays with the rows, and one alone is nothing to have in common."""
    torch.manual_seed(num_blocks)
    step = make_step(batch, 2, 4, 24, 16)
    shared = share_beginning(step, num_blocks)
    workspace = make(step, programs, max_shared_tokens=len(step.seq_lens))
    values = {"soft_cap": 1.5, "sinks": torch.linspace(-2, 3, 8, device=DEVICE)}
    options = {name: values[name] for name in names}
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens, shared)
    num_tiles = num_blocks // 2
    assert workspace.long.segments[0, 7] == (num_tiles > 0)
    assert workspace.short.segments[: len(DECODE), 6].tolist() == [num_tiles] * len(DECODE)
    got = run(step, workspace, has_shared=True, **options)
    compare(step, got, **options)
    assert torch.equal(got, run(step, workspace, has_shared=True, **options))
    # The same workspace serves steps without a common beginning.
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)
    compare(step, run(step, workspace, **options), **options)


def test_rows_do_not_read_what_they_have_in_common() -> None:
    """But for the first, whose table the walk over it follows."""
    torch.manual_seed(11)
    step = make_step(DECODE, 1, 2, 16, 16)
    shared = share_beginning(step, 4)
    workspace = make(step, 5, max_shared_tokens=len(step.seq_lens))
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens, shared)
    wanted = run(step, workspace, False, has_shared=True)
    step.block_tables[step.rows[1 : len(DECODE)].long(), :4] = -(2**30)
    assert torch.equal(run(step, workspace, False, has_shared=True), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("soft_cap",), ("alibi_slopes",), ("sinks",), ("soft_cap", "alibi_slopes", "sinks")])
def test_options(names: tuple[str, ...]) -> None:
    torch.manual_seed(7)
    step = make_step(MIXED, 2, 3, 16, 16)
    values = {
        "soft_cap": 1.5,
        "alibi_slopes": torch.linspace(0.01, 0.3, 6, device=DEVICE),
        "sinks": torch.linspace(-2, 3, 6, device=DEVICE),
    }
    check(step, 5, sliding_window=30 if len(names) > 1 else 0, **{name: values[name] for name in names})


def test_steps_of_short_rows_alone_need_one_launch() -> None:
    torch.manual_seed(8)
    step = make_step([(40, 1), (77, 1), (3, 2), (18, 4)], 2, 4, 16, 16)
    workspace = make(step, 3, short_tokens=4)
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)
    assert torch.equal(run(step, workspace), run(step, workspace, has_long=False))


def test_many_programs_share_one_sequence() -> None:
    """More partials than the combining program takes at a time."""
    torch.manual_seed(9)
    step = make_step([(500, 1), (5, 1)], 1, 6, 128, 16)
    check(step, programs=40)


def test_large_scores_stay_finite() -> None:
    torch.manual_seed(10)
    step = make_step(MIXED, 1, 2, 16, 16)
    step.query.mul_(1000)
    check(step, 4)
    check(step, 4, soft_cap=30.0)


def test_the_tiles_of_the_tables() -> None:
    torch.manual_seed(11)
    step = make_step([(120, 70), (150, 1)], 1, 4, 64, 16)
    workspace = make_attention_workspace(4, len(step.query), 1, 4, 64, DEVICE, dtype=torch.float32)
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)
    got = run(step, workspace)
    compare(step, got)
