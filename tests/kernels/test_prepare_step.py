"""Plans applied and inputs built, from slots as the engine core writes them, by the operations of both devices."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.kernels.device import DEVICE  # isort: skip  # before any kernel is imported

from engine_core.ipc.row_fields import DEFAULT_ROW
from engine_core.ipc.sampling_params import (
    ALLOWED,
    BIAS,
    FILTERS,
    HELD_BACK,
    LOGPROBS,
    MAX_LOGIT_BIAS,
    PENALTIES,
    RANDOM,
    SEQUENCES,
)
from engine_core.ipc.step import MAX_HELD_BACK, NUM_SHARED_KEYS, NUM_SHARING_SEQS, StepPlan, StepShape, plan_layout
from gpu_workers.operations import load_operations
from gpu_workers.running.rows import Rows, plan_places
from kernels.step_tensors import RowTensors, StepTensors

SHAPE = StepShape(max_num_seqs=13, max_num_batched_tokens=1500, max_model_len=1800, block_size=7, num_groups=2)
VOCAB = 1111


MakeRows = Callable[[torch.Generator], Rows]


class Expected:
    """A step's inputs, token by token."""

    def __init__(
        self, tensors: RowTensors, rows: list[int], counts: list[int], given: list[int], token_ids: list[int]
    ) -> None:
        self.computed, self.last_token = tensors.num_computed_tokens.tolist(), tensors.last_token.tolist()
        tables, coming = tensors.block_tables.tolist(), iter(token_ids)
        self.input_ids: list[int] = []
        self.positions: list[int] = []
        self.slots: list[list[int]] = [[], []]
        self.starts, self.seq_lens = [0], []
        for row, count, num_given in zip(rows, counts, given, strict=True):
            for index in range(count):
                self.last_token[row] = next(coming) if index >= count - num_given else self.last_token[row]
                self.input_ids.append(self.last_token[row])
                block, offset = divmod(self.computed[row], SHAPE.block_size)
                self.positions.append(self.computed[row])
                for slots, table in zip(self.slots, tables, strict=True):
                    slots.append(table[row][block] * SHAPE.block_size + offset)
                self.computed[row] += 1
            self.starts.append(len(self.input_ids))
            self.seq_lens.append(self.computed[row])


class Step:
    """A plan under construction, over memory like a ring's slot, and the rows that it is for."""

    def __init__(self) -> None:
        layout = plan_layout(SHAPE)
        buffer = bytearray(layout.num_bytes)
        self.plan = StepPlan.over(layout, buffer)
        self.slot = torch.frombuffer(buffer, dtype=torch.int32)
        self.num_bulk = 0

    def append(self, values: list[int]) -> tuple[int, int]:
        offset = self.num_bulk
        self.plan.bulk[offset : offset + len(values)] = values
        self.num_bulk += len(values)
        return offset, len(values)

    def start(self, index: int, **fields: object) -> None:
        record = np.full(1, DEFAULT_ROW)
        for name, value in fields.items():
            record[name] = value
        self.plan.row_inits[index] = record[0]


@pytest.fixture(params=["cuda", "cpu"])
def rows_of(request: pytest.FixtureRequest) -> MakeRows:
    """Makes rows that hold something from before, for the operations of either device."""
    device = torch.device(DEVICE if request.param == "cuda" else "cpu")
    return lambda generator: make_rows(generator, Rows(SHAPE, VOCAB, 3, load_operations(request.param), device))


def make_rows(generator: torch.Generator, rows: Rows) -> Rows:
    size = rows.rows.block_tables.shape
    blocks = torch.randperm(size.numel(), generator=generator).view(size)
    rows.rows.block_tables.copy_(blocks)
    rows.rows.last_token.copy_(torch.randint(0, VOCAB, (13,), generator=generator))
    rows.rows.num_computed_tokens.copy_(torch.randint(0, 300, (13,), generator=generator))
    return rows


@pytest.mark.parametrize(
    ("counts", "given"),
    [
        ([1], [0]),
        ([1, 1, 1], [0, 1, 0]),
        ([1], [1]),
        ([1300, 1, 3, 4, 2], [1300, 0, 2, 4, 1]),
        ([5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 30], [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 29]),
    ],
)
@pytest.mark.parametrize("padding", [(0, 0), (2, 60), (8, 180)])
def test_inputs_token_by_token(
    rows_of: MakeRows, counts: list[int], given: list[int], padding: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(len(counts))
    device_rows, step = rows_of(generator), Step()
    num_seqs, num_tokens = len(counts), sum(counts)
    chosen = torch.randperm(13, generator=generator)[:num_seqs].to(torch.int32)
    token_ids = torch.randint(0, VOCAB, (sum(given),), generator=generator, dtype=torch.int32)
    step.plan.rows[:num_seqs], step.plan.samples[:num_seqs] = chosen.numpy(), [i % 2 for i in range(num_seqs)]
    step.plan.num_query_tokens[:num_seqs], step.plan.num_given[:num_seqs] = counts, given
    step.plan.token_ids[: sum(given)] = token_ids.numpy()
    rows = device_rows.rows
    expected = Expected(rows, chosen.tolist(), counts, given, token_ids.tolist())
    poison(device_rows.step)
    num_padded_seqs = min(num_seqs + padding[0], SHAPE.max_num_seqs)
    num_padded_tokens = min(num_tokens + padding[1], SHAPE.max_num_batched_tokens)
    step.plan.header[1], step.plan.header[2] = num_seqs, num_tokens
    step.plan.header[NUM_SHARED_KEYS], step.plan.header[NUM_SHARING_SEQS] = 4711, 23
    device_rows.prepare(step.plan, step.slot.to(rows.fields.device), num_padded_seqs, num_padded_tokens)

    made, extra_seqs = device_rows.step, num_padded_seqs - num_seqs
    extra_tokens = num_padded_tokens - num_tokens
    check(made.input_ids, expected.input_ids + [0] * extra_tokens)
    check(made.positions, expected.positions + [0] * extra_tokens)
    for group in range(SHAPE.num_groups):
        check(made.slot_mapping[group], expected.slots[group] + [-1] * extra_tokens)
    check(made.shared, [4711, 23])
    check(made.rows, chosen.tolist() + [0] * extra_seqs)
    check(made.samples, [i % 2 for i in range(num_seqs)] + [0] * extra_seqs)
    check(made.query_start_loc, expected.starts + [num_tokens] * extra_seqs)
    check(made.seq_lens, expected.seq_lens + [0] * extra_seqs)
    check(made.logits_indices, [end - 1 for end in expected.starts[1:]] + [0] * extra_seqs)
    assert rows.num_computed_tokens.tolist() == expected.computed
    assert rows.last_token.tolist() == expected.last_token


def poison(step: StepTensors) -> None:
    for name in StepTensors.__slots__:
        getattr(step, name).fill_(-77)


def check(made: torch.Tensor, expected: list[int]) -> None:
    """As expected, and nothing written behind it."""
    assert made.tolist() == expected + [-77] * (len(made) - len(expected))


def test_a_plan_starts_rows_and_extends_tables(rows_of: MakeRows) -> None:
    generator = torch.Generator().manual_seed(7)
    device_rows, step = rows_of(generator), Step()
    rows = device_rows.rows
    rows.prompt_mask.fill_(9)
    rows.output_counts.fill_(9)
    before = {name: getattr(rows, name).clone() for name in ("fields", "block_tables", "bias_ids", "stop_ids")}

    history = torch.randint(0, VOCAB, (1700,), generator=generator).tolist()
    step.append([5, 5])  # something of another row before
    offset, length = step.append(history)
    bias_offset, _ = step.append([3, VOCAB + 5, 8])
    step.append(np.array([1.5, -2.0, 0.25], np.float32).view(np.int32).tolist())
    stop_offset, stop_length = step.append([11, 12])
    allowed = torch.randperm(VOCAB, generator=generator)[:1024].tolist()
    allowed_offset, _ = step.append(allowed)
    sequences_offset, _ = step.append(list(range(90 * 16)))
    step.append(list(range(500, 516)))
    step.start(0, row=4, num_computed_tokens=21, num_prompt_tokens=1200, penalty_slot=1)
    step.plan.row_inits[0]["history_offset"], step.plan.row_inits[0]["history_length"] = offset, length
    step.start(1, row=9, num_computed_tokens=0, temperature=0.5, top_k=3, num_logprobs=2)
    record = step.plan.row_inits[1]
    record["bias_offset"], record["bias_length"] = bias_offset, 3
    record["stop_offset"], record["stop_length"] = stop_offset, stop_length
    record["allowed_offset"], record["allowed_length"] = allowed_offset, 1024
    record["sequences_offset"], record["num_sequences"], record["thinking_begin"] = sequences_offset, 90, -2
    deltas = torch.stack(
        [
            torch.arange(300) // 13 % 2,
            torch.arange(300) % 13,
            torch.arange(300) // 13,
            torch.randint(0, 10**6, (300,), generator=generator),
        ],
        dim=1,
    ).to(torch.int32)
    step.plan.block_deltas[:300] = deltas.numpy()
    step.plan.header[1], step.plan.header[4], step.plan.header[5] = 1, 2, 300
    step.plan.rows[0], step.plan.num_query_tokens[0], step.plan.num_given[0] = 9, 1, 1
    step.plan.header[2] = 1

    assert device_rows.note(step.plan) == RANDOM | FILTERS | BIAS | HELD_BACK | LOGPROBS | ALLOWED | SEQUENCES
    device_rows.prepare(step.plan, step.slot.to(rows.fields.device), 1, 1)

    for group, row, index, block in deltas.tolist():
        before["block_tables"][group, row, index] = block
    torch.testing.assert_close(rows.block_tables, before["block_tables"])
    expected = before["fields"]
    expected[4], expected[9] = (torch.from_numpy(step.plan.row_inits[i : i + 1].view(np.int32).copy()) for i in (0, 1))
    torch.testing.assert_close(rows.fields, expected)
    assert rows.num_computed_tokens[[4, 9]].tolist() == [21, 1]  # row 9 has run its one token
    assert rows.bias_ids[9, :3].tolist() == [3, VOCAB + 5, 8]
    assert rows.bias_values[9, :3].tolist() == [1.5, -2.0, 0.25]
    assert rows.stop_ids[9, :2].tolist() == [11, 12]
    assert rows.allowed_ids[9].tolist() == allowed
    assert rows.sequences[9].flatten()[: 90 * 16].tolist() == list(range(90 * 16))
    assert not rows.sequences[9, 90:].any()
    assert rows.latest_tokens[9].tolist() == list(range(500, 516))
    assert rows.thinking_begin[[4, 9]].tolist() == [0, -2]
    assert rows.bias_ids.shape[1] == MAX_LOGIT_BIAS
    assert rows.stop_ids.shape[1] == MAX_HELD_BACK
    seen = torch.zeros(VOCAB, dtype=torch.uint8)
    seen[history[:1200]] = 1
    assert rows.prompt_mask[1].tolist() == seen.tolist()
    assert rows.output_counts[1].tolist() == torch.bincount(torch.tensor(history[1200:]), minlength=VOCAB).tolist()
    assert (rows.prompt_mask[[0, 2]] == 9).all()
    assert (rows.output_counts[[0, 2]] == 9).all()


def test_what_rows_need_of_the_sampler(rows_of: MakeRows) -> None:
    """The bits of all rows of a step together, of those that started earlier too; greedy rows need nothing."""
    device_rows, step = rows_of(torch.Generator().manual_seed(0)), Step()
    step.start(0, row=0, temperature=0.0, top_k=5, top_p=0.5)
    step.start(1, row=1, temperature=0.7)
    step.start(2, row=2, temperature=0.7, top_k=1)
    step.start(3, row=3, temperature=1.0, min_p=0.1, penalty_slot=0)
    step.plan.header[4] = 4
    for index, rows, expected in [
        (0, [0, 2], 0),
        (1, [0, 1], RANDOM),
        (2, [3], RANDOM | FILTERS | PENALTIES),
        (3, [2, 1, 0, 3], RANDOM | FILTERS | PENALTIES),
    ]:
        step.plan.header[1], step.plan.rows[: len(rows)] = len(rows), rows
        if index:
            step.plan.header[4] = 0
        assert device_rows.note(step.plan) == expected
    assert plan_places(SHAPE).arrays["header"] == 0
