"""The engine core's loop over a real socket, with the fake worker behind it: what a client sees."""

import json
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine_core import clients
from engine_core.ipc.codec import decode_core_message, encode
from engine_core.ipc.control import Drain
from engine_core.ipc.messages import (
    AbortRequest,
    AddRequest,
    Bye,
    Credit,
    Utility,
    UtilityReply,
)
from engine_core.ipc.sampling_params import SamplingParams
from tests.engine_core.core_harness import Harness, Reader, add, move_clock


def test_requests_stand_in_the_timeline_with_their_trace_context(harness: Harness, tmp_path: Path) -> None:
    """However they ended: here by their length, and by an abort before a step could be collected."""
    client = harness.client()
    client.send(encode(add(7, trace_context="00-ab-cd-01")))
    reader = Reader(client)
    reader.read_finals(1)
    harness.executor.gate.clear()
    client.send(encode(add(8)))
    client.send(encode(AbortRequest(handles=[8])))
    reader.read_finals(2)
    harness.core.timeline.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    ended = [event["args"] for event in events if event["name"] == "request" and event["ph"] == "b"]
    assert [(args["request_id"], args["traceparent"]) for args in ended] == [("id-7", "00-ab-cd-01"), ("id-8", None)]


def test_a_request_from_hello_to_its_final_reply(harness: Harness) -> None:
    client = harness.client()
    client.send(encode(add(7)))
    reader = Reader(client)
    reader.read_finals(1)
    assert len(reader.tokens[7]) == 5
    finished = reader.finished[7]
    assert (finished.reason, finished.num_prompt_tokens, finished.num_output_tokens) == ("length", 3, 5)
    assert finished.queue_time >= 0
    assert finished.prefill_time >= 0
    assert finished.decode_time >= 0


@pytest.mark.parametrize(("step_ns", "num_in_flight"), [(0, 2), (2_999_999, 3), (3_000_000, 2)])
def test_a_third_step_is_in_flight_while_steps_are_short(harness: Harness, step_ns: int, num_in_flight: int) -> None:
    harness.executor.step_ns = step_ns
    client = harness.client()
    client.send(encode(add(7, sampling=SamplingParams(max_tokens=20))))
    Reader(client).read_finals(1)
    assert harness.executor.most_pending == num_in_flight


def test_more_requests_than_rows_all_end_and_agree_with_one_alone(harness: Harness) -> None:
    client = harness.client()
    for handle in range(10):
        client.send(encode(add(handle, prompt=[handle, 5, 6], sampling=SamplingParams(max_tokens=6 + handle % 3))))
        if handle == 3:  # the queue holds six
            reader = Reader(client)
            reader.read_finals(4)
    reader.read_finals(10)
    client.send(encode(add(50, prompt=[9, 5, 6], sampling=SamplingParams(max_tokens=6))))
    alone = Reader(client)
    alone.read_finals(1)
    assert not reader.errors
    assert alone.tokens[50] == reader.tokens[9]


def test_without_credit_tokens_wait_and_leave_merged(harness: Harness) -> None:
    client = harness.client(credit=1)
    other = harness.client()
    harness.executor.gate.clear()
    client.send(encode(add(1, sampling=SamplingParams(max_tokens=20))))
    other.send(encode(add(1, request_id="other", sampling=SamplingParams(max_tokens=30))))
    harness.executor.gate.set()
    harness.executor.ring()
    Reader(other).read_finals(1)  # the stalled client delays nobody
    reader = Reader(client)
    reader.read_frame()
    assert not reader.finished
    client.send(encode(Credit(amount=1)))
    reader.read_frame()
    assert reader.num_frames == 2
    assert len(reader.tokens[1]) == 20
    assert reader.finished[1].reason == "length"


def test_abort_ends_with_one_final_and_frees_the_blocks(harness: Harness) -> None:
    client = harness.client()
    harness.executor.gate.clear()
    for handle in range(6):  # four run, two wait
        client.send(encode(add(handle, sampling=SamplingParams(max_tokens=40))))
    client.send(encode(AbortRequest(handles=[*range(6), 99])))
    reader = Reader(client)
    reader.read_finals(6)
    assert {finished.reason for finished in reader.finished.values()} == {"abort"}
    harness.executor.gate.set()
    harness.executor.ring()
    client.send(encode(add(100)))
    reader.read_finals(7)
    assert reader.finished[100].num_output_tokens == 5
    client.send(encode(Utility(call_id=1, method="status")))
    reply = decode_core_message(client.recv())
    assert isinstance(reply, UtilityReply)
    assert reply.result["free_blocks"] == reply.result["total_blocks"]
    assert reply.result["pending"] == 0


def test_a_full_queue_refuses_and_says_when_to_come_back(harness: Harness) -> None:
    client = harness.client()
    harness.executor.gate.clear()
    for handle in range(4):
        client.send(encode(add(handle)))
    client.send(encode(Utility(call_id=1, method="status")))
    client.recv()
    for handle in range(4, 12):
        client.send(encode(add(handle)))
    reader = Reader(client)
    while len(reader.errors) < 2:
        reader.read_frame()
    assert {error.code for error in reader.errors.values()} == {"overloaded"}
    assert all(error.retry_after for error in reader.errors.values())
    harness.executor.gate.set()
    harness.executor.ring()
    reader.read_finals(12)
    assert len(reader.finished) >= 6  # all that the queue held, beside what ran
    assert {finished.reason for finished in reader.finished.values()} == {"length"}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (add(1, prompt=[]), "invalid_request"),
        (add(1, prompt=[0] * 64), "context_length_exceeded"),
        (add(1, prompt=[0] * 60), "context_length_exceeded"),
        (add(1, prompt=[-1]), "invalid_request"),
        (add(1, prompt=[32000]), "invalid_request"),
        (add(1, sampling=SamplingParams(logit_bias={32000: 1.0})), "invalid_request"),
        (add(1, adapter="nobody"), "invalid_request"),
        (add(1, deadline=1.0), "deadline_exceeded"),
        (add(1, deadline=float("nan")), "invalid_request"),
    ],
)
def test_what_cannot_run_is_refused_with_its_reason(harness: Harness, message: AddRequest, code: str) -> None:
    client = harness.client()
    client.send(encode(message))
    reader = Reader(client)
    reader.read_finals(1)
    assert reader.errors[1].code == code
    assert reader.errors[1].message.endswith(".")


def test_what_a_client_does_not_read_is_bounded(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests end with an error each, the one that had ended unread too; what comes later is served."""
    monkeypatch.setattr(clients, "MAX_UNREAD_BYTES", 200)
    stalled, other = harness.client(credit=1), harness.client()
    stalled.send(encode(add(1, sampling=SamplingParams(max_tokens=2))))
    for handle in (2, 3):
        stalled.send(encode(add(handle, sampling=SamplingParams(max_tokens=60))))
    other.send(encode(add(1, request_id="other", sampling=SamplingParams(max_tokens=60))))
    reader = Reader(other)
    reader.read_finals(1)
    assert reader.finished[1].reason == "length"
    assert harness.core.scheduler.num_running == 0, "requests that nobody reads go on"
    reader = Reader(stalled)
    reader.read_frame()
    stalled.send(encode(Credit(amount=10)))
    reader.read_finals(3)
    assert {error.code for error in reader.errors.values()} == {"reader_too_slow"}
    assert sum(map(len, reader.tokens.values())) <= 3 + 200 // 8
    stalled.send(encode(add(4, sampling=SamplingParams(max_tokens=2))))
    reader.read_finals(4)
    assert reader.finished[4].reason == "length"


def test_a_long_prompt_is_hashed_while_the_worker_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes from the worker, nobody sends anything, and yet the waiting prompt's blocks get hashed."""
    monkeypatch.setattr("engine_core.prompt_hashing.MAX_HASHED_BLOCKS", 2)
    harness = Harness(num_seqs=1, max_model_len=2048)
    try:
        client = harness.client()
        harness.executor.gate.clear()
        client.send(encode(add(1)))
        client.send(encode(add(2, prompt=[1] * 2000)))
        hashed = 0
        while hashed < 124:  # of the first 1,999 tokens
            hashed = harness.core.scheduler.kv.num_hashed_blocks
        harness.executor.gate.set()
        harness.executor.ring()
        reader = Reader(client)
        reader.read_finals(2)
        assert set(reader.finished) == {1, 2}
    finally:
        harness.close()


def test_sent_twice_runs_once_and_foreign_ids_are_refused(harness: Harness) -> None:
    client, other = harness.client(), harness.client()
    harness.executor.gate.clear()
    client.send(encode(add(1)))
    client.send(encode(add(1)))
    client.send(encode(Utility(call_id=1, method="status")))
    status = decode_core_message(client.recv())
    assert isinstance(status, UtilityReply)
    assert status.result["pending"] == 1
    other.send(encode(add(1)))
    refused = Reader(other)
    refused.read_finals(1)
    assert refused.errors[1].code == "invalid_request"
    harness.executor.gate.set()
    harness.executor.ring()
    reader = Reader(client)
    reader.read_finals(1)
    assert len(reader.tokens[1]) == 5


def test_a_deadline_ends_a_running_request(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    client = harness.client()
    harness.executor.gate.clear()
    client.send(encode(add(1, deadline=time.time() + 100)))
    client.send(encode(Utility(call_id=1, method="status")))
    client.recv()
    move_clock(monkeypatch, 100)
    reader = Reader(client)
    reader.read_finals(1)  # comes with the loop's own idle turn; nothing else wakes it
    assert reader.errors[1].code == "deadline_exceeded"


def test_a_vanished_client_frees_its_requests(harness: Harness) -> None:
    client, other = harness.client(), harness.client()
    harness.executor.gate.clear()
    client.send(encode(add(1, sampling=SamplingParams(max_tokens=60))))
    client.send(encode(Utility(call_id=1, method="status")))
    client.recv()
    client.close(linger=0)
    harness.executor.gate.set()
    harness.executor.ring()
    pending = 1
    while pending:
        other.send(encode(Utility(call_id=1, method="status")))
        reply = decode_core_message(other.recv())
        assert isinstance(reply, UtilityReply)
        pending = reply.result["pending"]
    assert "request_success" in harness.core.metrics.text()


def test_a_client_that_says_bye_frees_its_requests(harness: Harness) -> None:
    client, other = harness.client(), harness.client()
    harness.executor.gate.clear()
    client.send(encode(add(1, sampling=SamplingParams(max_tokens=60))))
    client.send(encode(Utility(call_id=1, method="status")))
    client.recv()
    client.send(encode(Bye()))
    client.send(encode(add(2)))  # it would have to say hello again
    pending = 1
    while pending:
        other.send(encode(Utility(call_id=1, method="status")))
        reply = decode_core_message(other.recv())
        assert isinstance(reply, UtilityReply)
        pending = reply.result["pending"]


def test_clients_that_vanished_while_idle_are_forgotten(harness: Harness) -> None:
    most = 0
    for _ in range(100):
        harness.client().close(linger=0)
        most = max(most, len(harness.core._clients))
    assert 32 <= most < 90  # a closed socket takes a moment to be noticed, and longer on a busy machine


def test_a_resume_that_has_all_its_tokens_ends_at_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    client = harness.client()
    output = np.arange(5, dtype=np.int32).tobytes()
    client.send(encode(add(1, output_token_ids=output, deadline=time.time() + 100)))
    reader = Reader(client)
    reader.read_finals(1)
    assert reader.finished[1].reason == "length"
    move_clock(monkeypatch, 100)  # a deadline of what has ended is nobody's
    client.send(encode(add(1, output_token_ids=output[:8])))
    reader = Reader(client)
    reader.read_finals(1)
    assert (reader.finished[1].num_output_tokens, len(reader.tokens[1])) == (5, 3)


def test_a_dead_worker_ends_every_request_with_one_error(harness: Harness) -> None:
    client = harness.client()
    harness.executor.gate.clear()
    for handle in range(6):
        client.send(encode(add(handle)))
    client.send(encode(Utility(call_id=1, method="status")))
    client.recv()
    harness.executor.dead = True
    harness.executor.ring()
    reader = Reader(client)
    reader.read_finals(6)
    assert {(error.code, error.message) for error in reader.errors.values()} == {("engine_dead", "Worker 0 died.")}
    harness.thread.join(10)
    assert harness.exit_code == 1


def test_malformed_frames_disturb_nobody(harness: Harness) -> None:
    client = harness.client()
    stranger = harness.stranger()
    stranger.send(b"\xc1 no msgpack")
    stranger.send(encode(add(1, request_id="before hello")))
    stranger.send_multipart([b"two", b"frames"])
    client.send(b"\x93")
    client.send(encode(add(7)))
    reader = Reader(client)
    reader.read_finals(1)
    assert list(reader.finished) == [7]


def test_a_malformed_request_is_answered_by_its_handle(harness: Harness) -> None:
    client = harness.client()
    frame = {"type": "add", "request_id": "a", "handle": 9, "prompt_token_ids": b"1234", "sampling": {"top_p": 7.0}}
    client.send(msgspec.msgpack.encode(frame))
    reader = Reader(client)
    reader.read_finals(1)
    assert reader.errors[9].code == "invalid_request"
    assert "top_p" in reader.errors[9].message


def test_draining_finishes_what_runs_and_refuses_what_comes(harness: Harness) -> None:
    client = harness.client()
    harness.executor.gate.clear()
    client.send(encode(add(1)))
    client.send(encode(Utility(call_id=1, method="status")))
    client.recv()  # the request has arrived
    harness.link.send(Drain(timeout=30.0))
    draining = 0
    while not draining:
        client.send(encode(Utility(call_id=1, method="status")))
        reply = decode_core_message(client.recv())
        assert isinstance(reply, UtilityReply)
        draining = reply.result["draining"]
    client.send(encode(add(2)))
    reader = Reader(client)
    reader.read_finals(1)
    assert reader.errors[2].code == "shutting_down"
    harness.executor.gate.set()
    harness.executor.ring()
    reader.read_finals(2)
    assert reader.finished[1].num_output_tokens == 5
    harness.thread.join(10)
    assert not harness.thread.is_alive()
