"""A step's inputs from plan and rows, on a case small enough to write down."""

import torch

from kernels.reference_inputs import apply_block_deltas, prepare_inputs


def test_block_deltas_touch_only_what_they_name() -> None:
    tables = torch.zeros(2, 3, 4, dtype=torch.int32)
    apply_block_deltas(tables, torch.tensor([[0, 2, 1, 9], [1, 0, 3, 5], [0, 2, 0, 7]], dtype=torch.int32))
    assert tables[0, 2].tolist() == [7, 9, 0, 0]
    assert tables[1, 0].tolist() == [0, 0, 0, 5]
    assert int(tables.count_nonzero()) == 3


def test_given_and_fed_back_tokens() -> None:
    """Row 3 runs a chunk, row 0 its last token alone, row 2 its last token and two given ones (speculation)."""
    tables = torch.tensor([[10, 11, 12], [0, 0, 0], [20, 21, 22], [30, 31, 32]], dtype=torch.int32)
    computed = torch.tensor([5, 0, 7, 2])
    inputs = prepare_inputs(
        rows=torch.tensor([3, 0, 2]),
        num_query_tokens=torch.tensor([3, 1, 3]),
        num_given=torch.tensor([3, 0, 2]),
        token_ids=torch.tensor([100, 101, 102, 200, 201]),
        last_token=torch.tensor([50, 51, 52, 53]),
        num_computed_tokens=computed,
        block_tables=torch.stack((tables, tables + 100)),
        block_size=4,
    )
    assert inputs.input_ids.tolist() == [100, 101, 102, 50, 52, 200, 201]
    assert inputs.positions.tolist() == [2, 3, 4, 5, 7, 8, 9]
    slots = [122, 123, 124, 45, 87, 88, 89]
    assert inputs.slot_mapping.tolist() == [slots, [slot + 100 * 4 for slot in slots]]
    assert inputs.query_start_loc.tolist() == [0, 3, 4, 7]
    assert inputs.seq_lens.tolist() == [5, 6, 10]
    assert inputs.block_tables[0].tolist() == [[30, 31, 32], [10, 11, 12], [20, 21, 22]]
    assert inputs.block_tables[1].tolist() == [[130, 131, 132], [110, 111, 112], [120, 121, 122]]
    assert computed.tolist() == [6, 0, 10, 5]
