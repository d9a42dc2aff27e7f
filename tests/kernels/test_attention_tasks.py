"""The task map against one made with plain loops."""

import pytest
import torch

from tests.kernels.attention_steps import make_indices
from tests.kernels.device import DEVICE

from kernels.attention_tasks import plan_attention  # isort: skip  (after the device is known)
from kernels.attention_workspace import AttentionWorkspace, Tile, Variant, make_attention_workspace  # isort: skip

SHORT, LONG = Tile(16, 16, 4, 2, 1, min_units=2, overhead=1), Tile(32, 32, 4, 2, 1, overhead=3)


def wanted_segments(
    batch: list[tuple[int, int]], variant: Variant, is_short: bool, workspace: AttentionWorkspace
) -> list[list[int]]:
    """The records, without their last word."""
    records, weight_before, start = [], 0, 0
    for i, (seq_len, query_len) in enumerate(batch):
        if query_len > 0 and seq_len > 0 and (query_len <= workspace.short.tokens_per_tile) == is_short:
            for first in range(0, query_len, variant.tokens_per_tile):
                position = seq_len - query_len + first
                tokens = min(variant.tokens_per_tile, query_len - first)
                window = workspace.sliding_window
                visible = [
                    tile
                    for tile in range(-(-(position + tokens) // variant.tile.block_n))
                    if window == 0 or (tile + 1) * variant.tile.block_n - 1 > position - window
                ]
                row = len(batch) - i
                records.append([weight_before, len(visible), row, start + first, tokens, position, visible[0]])
                weight_before += len(visible) + variant.tile.overhead
        start += query_len
    return records


def check(workspace: AttentionWorkspace, batch: list[tuple[int, int]]) -> None:
    plan_attention(workspace, *make_indices(batch))
    for variant, is_short in ((workspace.short, True), (workspace.long, False)):
        records = wanted_segments(batch, variant, is_short, workspace)
        assert variant.segments[: len(records), :7].tolist() == records
        units = [
            (segment, head, unit)
            for segment, record in enumerate(records)
            for head in range(workspace.num_kv_heads)
            for unit in range(record[1] + variant.tile.overhead)
        ]
        per = max(-(-len(units) // variant.num_programs), variant.tile.min_units + variant.tile.overhead)
        for program, found in enumerate(variant.programs.tolist()):
            begin, end = min(program * per, len(units)), min((program + 1) * per, len(units))
            assert found[:3] == [begin, end, per]
            if begin < end:
                assert tuple(found[3:6]) == units[begin]
                assert found[8:15] == records[units[begin][0]]


@pytest.mark.slow
@pytest.mark.parametrize("sliding_window", [0, 1, 20, 100])
@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("programs", [1, 7])
def test_mixed_batch(sliding_window: int, group: int, programs: int) -> None:
    workspace = make_attention_workspace(
        20, 300, 3, group, 16, DEVICE, sliding_window=sliding_window, short_tile=SHORT, long_tile=LONG,
        num_programs_short=programs, num_programs_long=programs,
    )  # fmt: skip
    check(workspace, [(1, 1), (90, 7), (33, 33), (16, 1), (150, 1), (40, 16), (17, 17), (200, 64), (5, 4), (64, 1)])
    check(workspace, [(64, 1)])
    check(workspace, [(100, 50)])


def test_lists_longer_than_a_chunk_and_more_programs_than_units() -> None:
    torch.manual_seed(1)
    workspace = make_attention_workspace(
        1100, 3000, 1, 16, 16, DEVICE, short_tile=SHORT, long_tile=LONG, num_programs_short=600, num_programs_long=9
    )
    lens = torch.randint(1, 60, (1000,)).tolist()
    check(workspace, [(n, min(n, 1 + n % 3)) for n in lens])
    check(workspace, [(n, 1) for n in lens[:20]])


def test_nothing_to_do() -> None:
    workspace = make_attention_workspace(4, 8, 2, 4, 16, DEVICE, num_programs_short=3, num_programs_long=2)
    check(workspace, [(9, 1)])
    check(workspace, [])
    for variant in (workspace.short, workspace.long):
        assert (variant.programs[:, 0] == variant.programs[:, 1]).all()


def test_defaults() -> None:
    workspace = make_attention_workspace(7, 100, 2, 5, 80, DEVICE)
    assert workspace.padded_dim == 128
    assert (workspace.short.tile.block_m, workspace.short.tokens_per_tile) == (8, 1)
    assert (workspace.long.tile.block_m, workspace.long.tokens_per_tile) == (128, 25)
    assert make_attention_workspace(7, 100, 2, 5, 80, DEVICE, short_tokens=3).short.tokens_per_tile == 3
    # More heads in a group than rows in the tile: the tile grows.
    assert make_attention_workspace(1, 1, 1, 71, 64, DEVICE).short.tile.block_m == 128
    assert Tile(16, 64, 4, 3, 3).max_registers == 168
    assert Tile(128, 64, 8, 3, 1).max_registers is None
    with pytest.raises(AssertionError, match="powers of two"):
        Tile(24, 64, 4, 3, 1)
    with pytest.raises(AssertionError, match="from 16 on"):
        Tile(8, 8, 4, 3, 1)
