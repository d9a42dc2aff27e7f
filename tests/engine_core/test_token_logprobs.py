"""Log-probabilities from a step's result to a client's streams: columns on the way, each token's own at the end."""

import numpy as np
import pytest

from engine_core.clients import Client, Clients
from engine_core.ipc.step import StepResult, StepShape, of_tokens, result_layout
from engine_core.row_table import RowTable
from engine_core.step_records import StepOutputs
from frontend.client import wire

NUM_ROWS = 8


def make_step(rng: np.random.Generator, rows: np.ndarray, num_drafts: int = 0) -> tuple[StepOutputs, StepResult]:
    """A step of more rows than those whose tokens count; each of these yields 1 to `num_drafts` + 1 of them."""
    layout = result_layout(
        StepShape(
            max_num_seqs=NUM_ROWS,
            max_num_batched_tokens=16,
            max_model_len=32,
            block_size=4,
            num_speculative_tokens=num_drafts,
        )
    )
    result = StepResult.over(layout, bytearray(layout.num_bytes))
    for name in ("logprobs", "top_logprobs"):
        getattr(result, name)[:] = rng.random(getattr(result, name).shape)
    for name in ("ranks", "top_token_ids", "sampled"):
        getattr(result, name)[:] = rng.integers(0, 1000, getattr(result, name).shape)
    indices = np.sort(rng.permutation(NUM_ROWS)[: len(rows)])
    counts = rng.integers(1, num_drafts + 2, len(rows)).astype(np.int32)
    outputs = StepOutputs(
        indices=indices,
        rows=rows,
        counts=counts,
        token_ids=of_tokens(result.sampled, indices, counts),
        intervals=np.zeros(len(rows)),
        is_first=np.zeros(len(rows), np.bool_),
        skipped_rows=np.zeros(0, np.int32),
        scored=[],
        finished=[],
    )
    return outputs, result


@pytest.mark.parametrize("num_drafts", [0, 3])
@pytest.mark.parametrize("num_clients", [1, 2])
@pytest.mark.parametrize("num_tops", [[-1] * 8, [0] * 8, [20] * 8, [-1, 0, 5, 20, -1, 1, 5, 0], [-1, -1, 3, -1] * 2])
def test_every_token_has_its_own(num_tops: list[int], num_clients: int, num_drafts: int) -> None:
    """Of clients whose rows lie between each other, one of which gets several steps in one frame."""
    rng = np.random.default_rng(0)
    table = RowTable(NUM_ROWS, 32, 0)
    table.num_logprobs[:] = num_tops
    table.handle[:] = 100 + np.arange(NUM_ROWS)
    clients = Clients(epoch=1, replica=0)
    mine: list[Client] = [clients.add(b"a", 1), clients.add(b"b", 1)]
    table.client_number[:] = np.arange(NUM_ROWS) % num_clients
    expected: dict[int, list[tuple[int, float, int, list[int], list[float]]]] = {}
    got: dict[int, list[tuple[int, float, int, list[int], list[float]]]] = {}
    for step in range(4):
        rows = rng.permutation(NUM_ROWS)[: rng.integers(1, NUM_ROWS)].astype(np.int32)
        outputs, result = make_step(rng, rows, num_drafts)
        clients.add_step(outputs, result, table)
        for row, index, count in zip(rows.tolist(), outputs.indices.tolist(), outputs.counts.tolist(), strict=True):
            num_top = num_tops[row]
            for place in [(index, number) for number in range(count)]:
                scores = float(result.logprobs[place]), int(result.ranks[place])
                tops = [
                    column[place][: max(0, num_top)].tolist() for column in (result.top_token_ids, result.top_logprobs)
                ]
                own = (int(result.sampled[place]), *(scores if num_top >= 0 else (0.0, 0)), *tops)
                expected.setdefault(100 + row, []).append(own)
        for client in mine if step in (1, 3) else mine[:1]:
            for handle, tokens, columns in wire.new_tokens(wire.unpack(client.take_frame(1, 0, step))):
                for number, token in enumerate(tokens):
                    scores, tops = (0.0, 0), [[], []]
                    if columns is not None:
                        assert columns.num_top == num_tops[handle - 100]
                        scores = columns.logprobs[number], columns.ranks[number]
                        part = slice(number * columns.num_top, (number + 1) * columns.num_top)
                        tops = [list(columns.top_token_ids[part]), list(columns.top_logprobs[part])]
                    got.setdefault(handle, []).append((token, *scores, *tops))
    assert got == expected


def test_nothing_travels_for_who_wants_none() -> None:
    table, clients = RowTable(NUM_ROWS, 32, 0), Clients(epoch=1, replica=0)
    table.num_logprobs[:] = -1
    client = clients.add(b"a", 1)
    clients.add_step(*make_step(np.random.default_rng(1), np.arange(3, dtype=np.int32)), table)
    message = wire.unpack(client.take_frame(1, 0, 1))
    assert set(message) == {"type", "epoch", "replica", "step", "handles", "num_tokens", "token_ids"}


def test_requests_with_several_tokens_in_a_frame() -> None:
    """A core may send more than one token of a request at once."""
    message = {
        "handles": np.array([7, 8, 9], np.uint32).tobytes(),
        "num_tokens": np.array([2, 1, 2], np.int32).tobytes(),
        "token_ids": np.arange(5, dtype=np.int32).tobytes(),
        "num_tops": np.array([2, -1, 0], np.int32).tobytes(),
        "logprobs": np.array([0.5, 1.5, 2.5, 3.5], np.float32).tobytes(),
        "ranks": np.array([1, 2, 3, 4], np.int32).tobytes(),
        "top_token_ids": np.array([10, 11, 12, 13], np.int32).tobytes(),
        "top_logprobs": np.array([0.1, 0.2, 0.3, 0.4], np.float32).tobytes(),
    }
    (_, _, first), (_, _, second), (_, tokens, third) = wire.new_tokens(message)
    assert first is not None
    assert (list(first.logprobs), list(first.ranks), list(first.top_token_ids)) == (
        [0.5, 1.5],
        [1, 2],
        [10, 11, 12, 13],
    )
    assert second is None
    assert third is not None
    assert (list(tokens), list(third.logprobs), list(third.top_token_ids)) == ([3, 4], [2.5, 3.5], [])
