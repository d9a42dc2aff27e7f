"""Where simulated requests come from: traces line by line, drawn ones, and those of works."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import simulate
from benchmarks.simulation.trace import LengthRange, PoissonTrace, TraceError, read_trace, work_trace
from benchmarks.works import make_work

GOOD: dict[str, Any] = {"timestamp": 27482, "input_length": 1200, "output_length": 52, "hash_ids": [46, 47, 2353]}


def write(path: Path, lines: list[dict[str, Any] | str]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def common_length(left: np.ndarray, right: np.ndarray) -> int:
    length = min(len(left), len(right))
    differ = np.flatnonzero(left[:length] != right[:length])
    return int(differ[0]) if len(differ) else length


def test_prompts_are_alike_as_far_as_their_hashes(tmp_path: Path) -> None:
    other = {**GOOD, "hash_ids": [46, 47, 9]}
    shorter = {**GOOD, "input_length": 600, "hash_ids": [46, 47]}
    different = {**GOOD, "hash_ids": [9, 47, 2353]}
    alone = {name: value for name, value in GOOD.items() if name != "hash_ids"}
    requests = read_trace(write(tmp_path / "trace.jsonl", [GOOD, GOOD, other, shorter, different, alone, alone]))
    prompts = [request.prompt() for request in requests]
    assert [len(prompt) for prompt in prompts] == [1200, 1200, 1200, 600, 1200, 1200, 1200]
    assert [common_length(prompts[0], prompt) for prompt in prompts] == [1200, 1200, 1024, 600, 0, 0, 0]
    assert common_length(prompts[5], prompts[6]) == 0
    assert all(prompt.dtype == np.int32 for prompt in prompts)


def test_requests_come_in_order_of_arrival_from_the_first(tmp_path: Path) -> None:
    lines = [{**GOOD, "timestamp": timestamp, "output_length": timestamp} for timestamp in (1500, 500, 1000)]
    requests = read_trace(write(tmp_path / "trace.jsonl", [lines[0], "", *lines[1:]]))
    assert [(request.arrival, request.num_output_tokens) for request in requests] == [
        (0.0, 500),
        (0.5, 1000),
        (1.0, 1500),
    ]
    assert [request.origin.rsplit(" ", 1)[1] for request in requests] == ["3", "4", "1"]


def test_priority_share_and_unknown_fields(tmp_path: Path) -> None:
    line = {**GOOD, "priority": -2, "share_key": "a", "session": 7}
    [request] = read_trace(write(tmp_path / "trace.jsonl", [line]))
    assert (request.priority, request.share_key) == (-2, "a")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ("\ufeff{}", "malformed"),
        ({"input_length": 1, "output_length": 1}, "missing required field `timestamp`"),
        ({"timestamp": 0, "output_length": 1}, "`input_length`"),
        ({"timestamp": 0, "input_length": 1}, "`output_length`"),
        ({**GOOD, "timestamp": -1}, "$.timestamp"),
        ({**GOOD, "timestamp": "0"}, "$.timestamp"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', "malformed"),
        ({**GOOD, "timestamp": 1e300}, "$.timestamp"),
        ({**GOOD, "input_length": 0}, "$.input_length"),
        ({**GOOD, "input_length": 1.5}, "$.input_length"),
        ({**GOOD, "input_length": True}, "$.input_length"),
        ({**GOOD, "input_length": 2**40}, "$.input_length"),
        ({**GOOD, "output_length": 0}, "$.output_length"),
        ({**GOOD, "output_length": None}, "$.output_length"),
        ({**GOOD, "hash_ids": [1, 2]}, "2 entries and 1200 tokens need 3"),
        ({**GOOD, "hash_ids": [1, 2, 3, 4]}, "4 entries and 1200 tokens need 3"),
        ({**GOOD, "hash_ids": [1, "2", 3]}, "$.hash_ids[1]"),
        ({**GOOD, "hash_ids": 7}, "$.hash_ids"),
        ({**GOOD, "priority": 2**40}, "$.priority"),
        ({**GOOD, "share_key": 5}, "$.share_key"),
    ],
)
def test_a_wrong_line_is_named(
    line: dict[str, Any] | str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "trace.jsonl", [GOOD, line, GOOD])
    with pytest.raises(SystemExit) as exit_info:
        simulate.main(["--shape", "tiny-qwen06b", "--trace", str(path)])
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"simulate: {path}, line 2: ")
    assert captured.err.count("\n") == 1
    assert reason in captured.err


def test_a_line_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"timestamp": 0, "share_key": "\xff"}\n')
    with pytest.raises(TraceError, match="line 2"):
        read_trace(path)


def test_a_trace_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(TraceError, match="has no requests"):
        read_trace(write(tmp_path / "empty.jsonl", [""]))


def test_drawn_requests_are_those_that_were_asked_for() -> None:
    drawn = PoissonTrace(2000, 50.0, LengthRange(10, 20), LengthRange(5, 5), num_prefixes=3, prefix_length=64)
    requests = drawn.make(seed=1)
    assert requests == drawn.make(seed=1)
    assert requests != drawn.make(seed=2)
    assert {request.num_input_tokens for request in requests} == set(range(74, 85))
    assert {request.num_output_tokens for request in requests} == {5}
    arrivals = [request.arrival for request in requests]
    assert arrivals[0] == 0.0
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(2000 / 50.0, rel=0.1)
    prompts = {request.segments[0][0]: request.prompt()[:64].tolist() for request in requests}
    assert len(prompts) == len({tuple(prompt) for prompt in prompts.values()}) == 3
    own = {tuple(request.prompt()[64:].tolist()) for request in requests}
    assert len(own) == 2000


def test_clients_and_priorities_are_drawn_too() -> None:
    drawn = PoissonTrace(2000, float("inf"), LengthRange(1, 1), LengthRange(1, 1), num_clients=2, num_priorities=3)
    requests = drawn.make(seed=0)
    assert {request.arrival for request in requests} == {0.0}
    assert {request.priority for request in requests} == {0, 1, 2}
    first = sum(request.share_key == "1" for request in requests)
    assert first / 2000 == pytest.approx(2 / 3, abs=0.05)


@pytest.mark.parametrize("text", ["", "0", "5-2", "-3", "1-", "x", "1.5", "0-4", str(2**30)])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a length"):
        LengthRange.parse(text)


def test_a_work_has_its_lengths_and_what_it_shares() -> None:
    work = make_work("prefix", 1000, scale=8)
    requests = work_trace(work)
    assert sum(request.num_input_tokens for request in requests) == work.num_input_tokens
    assert sum(request.num_output_tokens for request in requests) == work.num_output_tokens
    assert common_length(requests[0].prompt(), requests[1].prompt()) == work.num_shared_tokens > 0
