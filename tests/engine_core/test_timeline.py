"""What a timeline says of requests and steps, read as a viewer would read the file."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine_core.ipc.sampling_params import SamplingParams
from engine_core.request import Request
from engine_core.timeline import Timeline

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def request(name: str, **times: float) -> Request:
    made = Request(
        request_id=name,
        client=b"",
        handle=0,
        prompt_token_ids=[1, 2, 3],
        sampling=SamplingParams(),
        max_total_tokens=10,
        arrival_time=times.pop("arrival_time", 1.0),
        arrival_number=0,
        trace_context=TRACE if name == "traced" else None,
    )
    for field, value in times.items():
        setattr(made, field, value)
    return made


def events_of(timeline: Timeline, file: Path) -> list[dict[str, Any]]:
    timeline.write(file)
    events: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    return events


def spans_of(events: list[dict[str, Any]], request_id: str) -> dict[str, tuple[float, float]]:
    """Begin and end of each asynchronous event of a request, in microseconds."""
    begins = {e["name"]: e for e in events if e["ph"] == "b" and e["args"]["request_id"] == request_id}
    ends = {(e["name"], e["id"]): e["ts"] for e in events if e["ph"] == "e"}
    return {name: (begin["ts"], ends[name, begin["id"]]) for name, begin in begins.items()}


def test_the_phases_of_a_request(tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.ended(request("traced", arrival_time=1.0, scheduled_time=1.5, first_token_time=2.0), now=4.0)
    timeline.ended(request("no token", arrival_time=2.0, scheduled_time=2.5), now=3.0)
    timeline.ended(request("only waited", arrival_time=3.0), now=3.5)
    events = events_of(timeline, tmp_path / "t.json")
    assert spans_of(events, "traced") == {
        "request": (1e6, 4e6),
        "queue": (1e6, 1.5e6),
        "prefill": (1.5e6, 2e6),
        "decode": (2e6, 4e6),
    }
    assert spans_of(events, "no token") == {"request": (2e6, 3e6), "queue": (2e6, 2.5e6), "prefill": (2.5e6, 3e6)}
    assert spans_of(events, "only waited") == {"request": (3e6, 3.5e6), "queue": (3e6, 3.5e6)}
    contexts = {e["args"]["request_id"]: e["args"]["traceparent"] for e in events if e["ph"] == "b"}
    assert contexts == {"traced": TRACE, "no token": None, "only waited": None}


def test_the_oldest_requests_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_core.timeline._MAX_REQUESTS", 3)
    timeline = Timeline()
    for number in range(5):
        timeline.ended(request(str(number)), now=2.0)
    events = events_of(timeline, tmp_path / "t.json")
    assert {e["args"]["request_id"] for e in events if e["ph"] == "b"} == {"2", "3", "4"}


def test_only_steps_that_were_collected_are_written(tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.planned(1, 2, 30, 1000, 2000)
    timeline.planned(2, 2, 2, 3000, 4000)
    timeline.collected(1, 2500, 5000, 6000, 7000)
    steps = [e for e in events_of(timeline, tmp_path / "t.json") if e["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"]) for e in steps] == [
        ("plan", 1.0, 1.0),
        ("run", 2.5, 2.5),
        ("update", 6.0, 1.0),
    ]
    assert all(e["args"] == {"step": 1, "num_seqs": 2, "num_tokens": 30} for e in steps)
