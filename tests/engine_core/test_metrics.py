"""What the metrics count of a request, by how it ends."""

import time
from collections.abc import Callable, Iterator

import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from engine_core.ipc.codec import decode_core_message, encode
from engine_core.ipc.messages import AbortRequest, Bye, RequestOutputs, Utility, UtilityReply
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.ipc.step import StepResult
from tests.engine_core.core_harness import Harness, Reader, add, move_clock

LONG = SamplingParams(max_tokens=40, ignore_eos=True)


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(num_seqs=1)
    yield harness
    harness.close()


def figures(client: zmq.Socket) -> dict[str, float]:
    """The metrics by name; ended requests by reason, where there are any."""
    client.send(encode(Utility(call_id=1, method="metrics")))
    while not isinstance(reply := decode_core_message(client.recv()), UtilityReply):
        pass
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(reply.result):
        for sample in family.samples:
            name = sample.name.removeprefix("vllm:")
            if name != "request_success_total":
                found[name] = sample.value
            elif sample.value:
                found[sample.labels["finished_reason"]] = sample.value
    return found


def counted(client: zmq.Socket) -> tuple[dict[str, float], float, float, float]:
    """Ended requests by reason, first tokens, complete answers, prompt tokens."""
    found = figures(client)
    reasons = {name: found[name] for name in ("stop", "length", "abort", "error") if name in found}
    first, whole = (found[f"{name}_seconds_count"] for name in ("time_to_first_token", "e2e_request_latency"))
    return reasons, first, whole, found["prompt_tokens_total"]


def hold_after_a_step(harness: Harness) -> None:
    """From the first result on no other one comes."""
    run_next = harness.executor.worker.run_next

    def run_one(is_late: Callable[[int], bool]) -> StepResult:
        harness.executor.gate.clear()
        return run_next(is_late)

    harness.executor.worker.run_next = run_one  # type: ignore[method-assign]


def first_tokens(client: zmq.Socket) -> RequestOutputs:
    """Waits for the first frame with a token."""
    while True:
        message = decode_core_message(client.recv())
        assert isinstance(message, RequestOutputs)
        if message.handles:
            return message


def test_an_answer_that_ends_by_itself(harness: Harness) -> None:
    client = harness.client()
    client.send(encode(add(1)))
    Reader(client).read_finals(1)
    assert counted(client) == ({"length": 1}, 1, 1, 3)
    assert figures(client)["generation_tokens_total"] == 5


@pytest.mark.parametrize(("reason", "num_complete"), [("stop", 1), ("abort", 0)])
def test_a_client_says_why_it_ends_a_request(harness: Harness, reason: str, num_complete: int) -> None:
    client = harness.client()
    hold_after_a_step(harness)
    client.send(encode(add(1, sampling=LONG)))
    first_tokens(client)
    client.send(encode(AbortRequest(handles=[1, 7], reason=reason)))
    reader = Reader(client)
    reader.read_finals(1)
    assert reader.finished[1].reason == reason
    assert counted(client) == ({reason: 1}, 1, num_complete, 3)


def test_what_was_never_computed_does_not_count(harness: Harness) -> None:
    """One that waits behind another is no answer, and nothing of its prompt was computed."""
    client = harness.client()
    harness.executor.gate.clear()
    client.send(encode(add(1, sampling=LONG)))
    client.send(encode(add(2, prompt=range(1, 41))))
    client.send(encode(AbortRequest(handles=[2])))
    reader = Reader(client)
    reader.read_finals(1)
    assert reader.finished[2].reason == "abort"
    assert counted(client) == ({"abort": 1}, 0, 0, 0)
    harness.executor.gate.set()
    harness.executor.ring()
    reader.read_finals(2)
    assert counted(client) == ({"abort": 1, "length": 1}, 1, 1, 3)
    assert figures(client)["prefix_cache_queries_total"] == 3


def test_a_deadline_and_a_client_that_left(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    client, other = harness.client(), harness.client()
    hold_after_a_step(harness)
    client.send(encode(add(1, sampling=LONG)))
    first_tokens(client)
    other.send(encode(add(1, request_id="waits", deadline=time.time() + 100)))
    figures(other)
    move_clock(monkeypatch, 100)
    reader = Reader(other)
    reader.read_finals(1)
    assert reader.errors[1].code == "deadline_exceeded"
    client.send(encode(Bye()))
    while counted(other)[0] != {"abort": 1, "error": 1}:
        pass
    assert counted(other)[1:] == (1, 0, 3)


def test_tokens_that_the_cache_had_are_not_computed_again(harness: Harness) -> None:
    """A first token tells how many there were, while the request goes on."""
    client = harness.client()
    prompt, block_size = range(1, 41), harness.config.cache.block_size
    num_cached = (len(prompt) - 1) // block_size * block_size
    for handle, cached in ((1, 0), (2, num_cached)):
        client.send(encode(add(handle, prompt=prompt)))
        started = first_tokens(client).started
        assert [(one.handle, one.num_cached_tokens) for one in started] == [(handle, cached)]
        reader = Reader(client)
        reader.read_finals(1)
        assert reader.finished[handle].num_cached_tokens == cached
    found = figures(client)
    assert found["prompt_tokens_total"] == 2 * len(prompt) - num_cached
    assert (found["prefix_cache_queries_total"], found["prefix_cache_hits_total"]) == (2 * len(prompt), num_cached)


def test_a_first_token_that_is_the_last(harness: Harness) -> None:
    client = harness.client()
    client.send(encode(add(1, sampling=SamplingParams(max_tokens=1))))
    Reader(client).read_finals(1)
    assert counted(client) == ({"length": 1}, 1, 1, 3)


def test_a_resume_counts_what_it_makes_here(harness: Harness) -> None:
    """One that had all its tokens ends, but it had no first token here and no latency."""
    client = harness.client()
    tokens = bytes(4 * 5)
    client.send(encode(add(1, output_token_ids=tokens)))
    Reader(client).read_finals(1)
    assert counted(client) == ({"length": 1}, 0, 0, 0)
    client.send(encode(add(2, output_token_ids=tokens[:8])))
    Reader(client).read_finals(1)
    assert counted(client) == ({"length": 2}, 1, 1, 3)
    assert figures(client)["generation_tokens_total"] == 3
