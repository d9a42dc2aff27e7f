"""Simulations as a whole: nothing is lost, the same arguments give the same figures, and what should help helps."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from benchmarks import simulate
from benchmarks.environment import ROOT
from benchmarks.simulation.fleet import Simulation, run_all
from benchmarks.simulation.gpus import H200
from benchmarks.simulation.outcome import Curves, Outcome
from benchmarks.simulation.replica import Record
from benchmarks.simulation.trace import LengthRange, PoissonTrace, TraceRequest, work_trace
from benchmarks.works import make_work

SHAPE = "tiny-llama8b"
NUM_BLOCKS = 4096
"""A GPU has room for millions of blocks of such a model."""
ARGUMENTS = ["--shape", SHAPE, "--set", f"num_gpu_blocks_override={NUM_BLOCKS}"]


def drawn(count: int = 300, rate: float = 200.0, **fields: Any) -> list[TraceRequest]:
    return PoissonTrace(count, rate, LengthRange(10, 300), LengthRange(1, 60), **fields).make(seed=3)


def simulation(
    requests: Sequence[TraceRequest], replicas: int = 1, router: str = "round-robin", **settings: Any
) -> Simulation:
    settings = {"shape": SHAPE, "num_gpu_blocks_override": NUM_BLOCKS, **settings}
    engine = simulate.engine_config(settings, H200)
    return Simulation("a test", engine, H200, requests, replicas, router)


def run(simulated: Simulation) -> tuple[list[Record], Outcome]:
    ended: list[int] = []
    [records] = run_all([simulated], ended.append, num_processes=1)
    assert sum(ended) == len(simulated.requests)
    return records, Outcome.of(records)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_gpu_blocks_override": 60, "max_model_len": 512},
        {"num_gpu_blocks_override": 60, "max_model_len": 512, "kv_offload_gib": 0.01},
        {"scheduling_policy": "fair"},
        {"scheduling_policy": "priority", "max_num_batched_tokens": 64, "max_num_seqs": 8},
        {"enable_prefix_caching": False, "block_size": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("replicas", "router"), [(1, "round-robin"), (3, "round-robin"), (3, "least-loaded"), (3, "prefix")]
)
def test_every_request_ends_and_every_token_is_counted(settings: dict[str, Any], replicas: int, router: str) -> None:
    requests = drawn(num_clients=3, num_priorities=3, num_prefixes=2, prefix_length=32)
    records, outcome = run(simulation(requests, replicas, router, **settings))
    assert len(records) == replicas
    assert outcome.num_requests == len(requests)
    assert outcome.num_refused == 0
    assert outcome.num_input_tokens == sum(request.num_input_tokens for request in requests)
    assert outcome.num_output_tokens == sum(request.num_output_tokens for request in requests)
    assert outcome.seconds > requests[-1].arrival
    for record in records:
        assert record.step_ends == sorted(record.step_ends)
        assert record.num_running[-1] == record.num_waiting[-1] == 0
        # Every token but a request's first one has an interval.
        intervals = sum(map(len, record.intervals))
        assert intervals == sum(record.num_output_tokens) - len(record.num_output_tokens)
        assert all(0 < first <= last for first, last in zip(record.first_token, record.last_token, strict=True))
        assert record.busy_seconds <= record.step_ends[-1]


@pytest.mark.slow
def test_a_short_cache_preempts_and_a_host_tier_loads() -> None:
    requests = drawn(rate=float("inf"), num_prefixes=8, prefix_length=128)
    limits: dict[str, Any] = {"num_gpu_blocks_override": 60, "max_model_len": 512}
    _, short = run(simulation(requests, **limits))
    assert short.num_preemptions > 0
    assert short.max_kv_use > 0.9
    _, tiered = run(simulation(requests, **limits, kv_offload_gib=0.05))
    assert tiered.num_loaded_blocks > 0 == short.num_loaded_blocks
    assert tiered.hit_rate > short.hit_rate


def test_requests_of_a_work_that_share_a_prefix_find_it() -> None:
    work = make_work("prefix", 1000, scale=16)
    records, outcome = run(simulation(work_trace(work)))
    shareable = (len(work.requests) - 1) * (work.num_shared_tokens // 16) * 16
    assert records[0].num_hit_tokens == shareable
    assert outcome.num_output_tokens == work.num_output_tokens


def test_a_full_queue_refuses() -> None:
    requests = drawn(count=50, rate=float("inf"))
    _, outcome = run(simulation(requests, max_num_waiting=10))
    assert (outcome.num_requests, outcome.num_refused) == (10, 40)


def test_what_cannot_fit_is_refused_and_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [{"timestamp": 0, "input_length": length, "output_length": 8} for length in (100, 600, 200)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    simulate.main([*ARGUMENTS, "max_model_len=512", "--trace", str(trace)])
    captured = capsys.readouterr()
    assert "1 of 3 requests have more than the 512 tokens" in captured.err
    assert f"the first is {trace}, line 2 (600 + 8)." in captured.err
    assert captured.out.rstrip().endswith("| 1 |")
    with pytest.raises(SystemExit) as exit_info:
        simulate.main([*ARGUMENTS, "max_model_len=64", "--trace", str(trace)])
    assert exit_info.value.code == 2
    assert "3 of 3" in capsys.readouterr().err


def test_a_lone_request_takes_its_steps() -> None:
    records, outcome = run(simulation([TraceRequest(0.0, ((0, 40),), 9)]))
    assert outcome.num_steps == 9
    assert outcome.first_token is not None
    assert outcome.interval is not None
    assert outcome.first_token[0] > H200.launch_seconds
    intervals = sum(float(each.sum()) for each in records[0].intervals)
    assert outcome.seconds == pytest.approx(records[0].first_token[0] + intervals, rel=0.01)
    assert outcome.mean_kv_use < outcome.max_kv_use <= 4 / records[0].num_blocks


@pytest.mark.parametrize("shape", ["gemma3-1b", "gemma2-9b", "mistral7b"])
def test_windows_hold_what_the_engine_would_hold(shape: str) -> None:
    simulated = simulation([TraceRequest(0.0, ((0, 7000),), 100)], shape=shape, num_gpu_blocks_override=5000)
    demand = simulated.engine.block_demand()
    records, _ = run(simulated)
    held = records[0].num_owned
    assert max(held) <= demand.peak(7100)
    assert held[-2] <= demand.at_end(7100)
    assert held[-2] >= demand.num_full * (7000 // 16)


def test_a_slow_core_holds_up_the_gpu() -> None:
    engine, slow_gpu = simulation([]).engine, msgspec.structs.replace(H200, core_step_seconds=5e-3)
    (_, fast), (records, slow) = (run(Simulation("a test", engine, gpu, drawn())) for gpu in (H200, slow_gpu))
    assert slow.num_steps < fast.num_steps
    assert slow.busy_share < fast.busy_share
    assert np.diff(records[0].step_ends).mean() >= 5e-3


@pytest.mark.slow
def test_processes_change_nothing_and_neither_does_another_run() -> None:
    simulations = [simulation(drawn(), 3, "round-robin"), simulation(drawn(), 2, "prefix")]
    here = run_all(simulations, lambda count: None, num_processes=1)
    ended: list[int] = []
    apart = run_all(simulations, ended.append, num_processes=2)
    assert sum(ended) == 2 * 300
    assert list(map(Outcome.of, here)) == list(map(Outcome.of, apart))
    assert [Curves.of(each, 2.0) for each in here] == [Curves.of(each, 2.0) for each in apart]
    assert Outcome.of(here[0]) != Outcome.of(here[1])


@pytest.mark.slow
def test_a_router_that_knows_prefixes_finds_more_of_them() -> None:
    requests = drawn(num_prefixes=16, prefix_length=512)
    outcomes = {router: run(simulation(requests, 4, router))[1] for router in ("round-robin", "least-loaded", "prefix")}
    assert outcomes["prefix"].hit_rate > 1.1 * outcomes["round-robin"].hit_rate
    assert outcomes["prefix"].hit_rate > 1.1 * outcomes["least-loaded"].hit_rate


@pytest.mark.parametrize("router", ["least-loaded", "prefix"])
def test_routers_keep_the_load_even(router: str) -> None:
    records, _ = run(simulation(drawn(count=400, rate=5000.0, num_prefixes=1, prefix_length=64), 4, router))
    counts = [len(record.first_token) for record in records]
    assert min(counts) > 0.5 * np.mean(counts), counts


def test_long_prompts_weigh_more_than_short_ones() -> None:
    lengths = [4000, 10, 10, 10, 10]
    requests = [TraceRequest(0.0, ((number, length),), 1) for number, length in enumerate(lengths)]
    records, _ = run(simulation(requests, 2, "least-loaded"))
    assert [sorted(record.num_input_tokens) for record in records] == [[4000], [10, 10, 10, 10]]


def test_table_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*ARGUMENTS, "--requests", "60", "--rate", "inf", "--input", "10-200", "--output", "5"]
    arguments += ["--compare", "replicas=1,2", "--compare", "scheduling_policy=fcfs,fair", "--processes", "1"]
    simulate.main([*arguments, "--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.svg")])
    table = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in table}) == 1
    titles = [line.split(" | ")[0].removeprefix("| ") for line in table[2:]]
    names = [f"replicas {count}, scheduling_policy {policy}" for count in (1, 2) for policy in ("fcfs", "fair")]
    assert titles == names
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["title"] for row in written["simulations"]] == names
    assert all(row["num_output_tokens"] == 300 for row in written["simulations"])
    assert all(row["curves"]["kv_use"]["times"] for row in written["simulations"])
    plot = ElementTree.parse(tmp_path / "out.svg").getroot()
    texts = [element.text for element in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert set(names) < set(texts)
    assert len(list(plot.iter("{http://www.w3.org/2000/svg}polyline"))) == len(names) * 3 * 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--requests", "0"], "not a whole number from 1 on"),
        (["--prefixes", "-1"], "not a whole number from 0 on"),
        (["--input", "9-3"], "not a length like 128"),
        (["--rate", "0"], "--rate 0: it must be a positive number"),
        (["--rate", "often"], "--rate often: it must be a positive number"),
        (["--replicas", "0"], "--replicas 0: it must be a number"),
        (["--router", "none"], "--router none: it must be one of"),
        (["--gpu", "none"], "there is no such GPU"),
        (["--set", "color=red"], "There is no setting 'color'"),
        (["--set", "color"], "--set color: it must be NAME=VALUE"),
        (["--set", "max_num_seqs=0"], "--max-num-seqs"),
        (["--compare", "max_num_seqs"], "--compare max_num_seqs: it must be NAME=VALUE"),
        (["--compare", "scheduling_policy=fcfs,none"], "--scheduling-policy"),
        (["--model", "/none"], "no model folder /none"),
        (["--work", "none"], "invalid choice"),
        (["--plot", "/none/out.svg"], "--plot /none/out.svg: there is no folder /none"),
        (["--json", "/"], "--json /: that is a folder"),
        (["--set", "seed=1", "seed=2"], "--set seed=2: seed is given twice"),
        (["--compare", "rate=1", "--compare", "rate=2"], "--compare rate=2: rate is given twice"),
        (["--work", "nano", "--compare", "rate=1,2"], "have their times already"),
        (["--check", "--gpu", "h100"], "nothing was measured"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        simulate.main(arguments)
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("simulate: ")
    assert captured.err.count("\n") == 1
    assert reason in captured.err


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_ends_it_with_one_line(processes: str) -> None:
    """As a terminal does it: all processes of the group get the signal, once requests have ended."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    arguments = [*ARGUMENTS, "--requests", "20000", "--replicas", "2", "--processes", processes]
    simulator = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.simulate", *arguments],
        cwd=ROOT,
        stderr=theirs,
        start_new_session=True,
        # A shell that runs the tests in the background has it ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        shown = b""
        while not re.search(rb"[1-9][0-9]*/20000", shown):
            shown += terminal.read(4096)
        os.killpg(simulator.pid, signal.SIGINT)
        rest = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := terminal.read(4096):
                rest += part
    assert simulator.wait(10) == 130
    lines = [line.split(b"\r")[-1] for line in rest.splitlines()]
    assert [line for line in lines if line.startswith(b"simulate: ")] == [
        b"simulate: interrupted, nothing was written."
    ]
    assert b"Traceback" not in rest


def test_no_torch_is_needed() -> None:
    code = "import sys, benchmarks.simulate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
