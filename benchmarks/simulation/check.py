"""Predictions beside what was measured on a GPU: how far the cost model can be trusted."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import markdown, number
from benchmarks.simulation.cost_model import CostModel
from benchmarks.simulation.fleet import Simulation, run_all
from benchmarks.simulation.gpus import Gpu
from benchmarks.simulation.outcome import Outcome
from benchmarks.simulation.trace import work_trace
from benchmarks.works import make_work
from engine_core.config.engine_config import EngineConfig
from engine_core.config.errors import ConfigError

MEASURED: dict[str, dict[str, dict[str, Any]]] = json.loads(
    Path(__file__).with_name("measured.json").read_text(encoding="utf-8")
)
"""By GPU and shape: microseconds of steps (`profile_step`), seconds of works (`bench_offline`)."""


@dataclass(frozen=True)
class Comparison:
    """One measured time and its prediction, in seconds."""

    shape: str
    name: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def compare(gpu_name: str, gpu: Gpu, engine_of: Callable[[str], EngineConfig]) -> list[Comparison]:
    """All that was measured on this GPU; `engine_of` gives the configuration of a shape. Raises `ConfigError`."""
    if gpu_name not in MEASURED:
        raise ConfigError(f"--check --gpu {gpu_name}: nothing was measured there; {', '.join(MEASURED)} would do.")
    comparisons = []
    for shape, measured in MEASURED[gpu_name].items():
        engine = engine_of(shape)
        costs = CostModel(engine.model, engine.dtype, engine.scheduler, gpu)
        for name, microseconds in measured["steps_us"].items():
            comparisons.append(Comparison(shape, name, microseconds / 1e6, _step_seconds(costs, name)))
        for name, seconds in measured["works_s"].items():
            requests = work_trace(make_work(name, engine.model.vocab_size))
            [records] = run_all([Simulation(name, engine, gpu, requests)], lambda count: None)
            comparisons.append(Comparison(shape, name, seconds, Outcome.of(records).seconds))
    return comparisons


def _step_seconds(costs: CostModel, name: str) -> float:
    """Of a step in the words of `benchmarks/profile_step.py`: kind, sequences, tokens of each."""
    kind, num_seqs, context = name.split(":")[:3]
    ends = np.full(int(num_seqs), int(context))
    counts = np.ones_like(ends) if kind == "decode" else ends
    return costs.step_seconds(ends, counts, len(ends))


def table(comparisons: list[Comparison]) -> str:
    rows = [["shape", "step or work", "measured, ms", "predicted, ms", "off by"]]
    for each in comparisons:
        times = [number(each.measured * 1e3), number(each.predicted * 1e3)]
        rows.append([each.shape, each.name, *times, f"{each.error:+.1%}"])
    return markdown(rows)
