"""Several samples of one prompt in one message: each is a request of its own once they are admitted together."""

from collections.abc import Iterator

import msgpack
import numpy as np
import pytest
import zmq

from engine_core.ipc.codec import decode_core_message, encode
from engine_core.ipc.messages import AbortRequest, AddRequest, Credit, Utility, UtilityReply
from engine_core.ipc.sampling_params import MAX_SAMPLE_INDEX, SamplingParams
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request
from tests.engine_core.core_harness import Harness, Reader, add

PROMPT = [7 * i % 50 + 10 for i in range(40)]
LONG = SamplingParams(max_tokens=40, ignore_eos=True)


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(num_seqs=4, max_model_len=128)
    yield harness
    harness.close()


def release(harness: Harness) -> None:
    """Results come again."""
    harness.executor.gate.set()
    harness.executor.ring()


def num_pending(client: zmq.Socket) -> int:
    """Of a client whose outputs wait for credit: that of the core once it has taken in what the client sent."""
    client.send(encode(Utility(call_id=1, method="status")))
    reply = decode_core_message(client.recv())
    assert isinstance(reply, UtilityReply)
    pending: int = reply.result["pending"]
    return pending


def open_requests(harness: Harness) -> list[Request]:
    return harness.core._open.all()


def test_the_prompt_is_hashed_once_and_each_sample_ends_by_itself(harness: Harness) -> None:
    client = harness.client()
    sampling = SamplingParams(max_tokens=6, ignore_eos=True, sample_index=5, seed=3)
    harness.executor.gate.clear()
    client.send(encode(add(10, PROMPT, num_samples=4, sampling=sampling)))
    harness.executor.has_dispatched.wait()
    samples = open_requests(harness)
    assert [sample.handle for sample in samples] == [10, 11, 12, 13]
    assert [sample.sampling.sample_index for sample in samples] == [5, 6, 7, 8]
    assert {(sample.request_id, sample.sampling.seed) for sample in samples} == {("id-10", 3)}
    assert all(np.shares_memory(sample.tokens, samples[0].tokens) for sample in samples)
    release(harness)
    reader = Reader(client)
    reader.read_finals(4)
    kv = harness.core.scheduler.kv
    assert kv.num_hashed_blocks == (len(PROMPT) - 1) // kv.block_size
    client.send(encode(add(1, PROMPT, sampling=SamplingParams(max_tokens=6, ignore_eos=True))))
    reader.read_finals(5)
    assert len(reader.tokens[1]) == 6
    assert all(reader.tokens[handle] == reader.tokens[1] for handle in range(10, 14))
    assert [reader.finished[handle].reason for handle in range(10, 14)] == ["length"] * 4


def test_one_sample_is_aborted_and_the_others_go_on(harness: Harness) -> None:
    client = harness.client()
    harness.executor.gate.clear()
    client.send(encode(add(10, num_samples=3, sampling=LONG)))
    client.send(encode(AbortRequest(handles=[11])))
    reader = Reader(client)
    reader.read_finals(1)
    assert reader.finished[11].reason == "abort"
    release(harness)
    reader.read_finals(3)
    assert [len(reader.tokens[handle]) for handle in (10, 12)] == [40, 40]


def test_sent_twice_it_changes_nothing_also_when_some_have_ended(harness: Harness) -> None:
    client = harness.client(credit=1)
    message = add(10, num_samples=3, sampling=LONG)
    harness.executor.gate.clear()
    client.send(encode(message))
    client.send(encode(AbortRequest(handles=[10])))
    reader = Reader(client)
    reader.read_finals(1)
    client.send(encode(message))
    assert num_pending(client) == 2
    assert [sample.handle for sample in open_requests(harness)] == [11, 12]
    client.send(encode(Credit(amount=100)))
    release(harness)
    reader.read_finals(3)
    again = Reader(client)
    client.send(encode(message))
    again.read_finals(3)
    assert again.tokens[11] == reader.tokens[11]


def test_a_sample_resumes_by_itself(harness: Harness) -> None:
    """As a client does whose core has died: with what each sample has, under its own index."""
    client = harness.client()
    client.send(encode(add(10, PROMPT, num_samples=2, sampling=LONG)))
    reader = Reader(client)
    reader.read_finals(2)
    for handle, count in ((20, 0), (21, 17)):
        tokens = np.array(reader.tokens[10][:count], np.int32).tobytes()
        sampling = SamplingParams(max_tokens=40, ignore_eos=True, sample_index=handle - 20)
        client.send(encode(add(handle, PROMPT, output_token_ids=tokens, sampling=sampling)))
    reader.read_finals(4)
    assert [reader.tokens[20], reader.tokens[10][:17] + reader.tokens[21]] == [reader.tokens[10]] * 2
    assert [reader.finished[handle].num_output_tokens for handle in (20, 21)] == [40, 40]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (add(5, num_samples=3, request_id="other"), "or its handle is running already"),
        (add(20, num_samples=3, request_id="id-6"), "'id-6' or its handle is running already"),
        (add(20, num_samples=3, output_token_ids=b"\1\0\0\0"), "num_samples must be 1 with output_token_ids"),
        (add(20, num_samples=3, sampling=SamplingParams(sample_index=MAX_SAMPLE_INDEX - 1)), "must be at most 65535"),
        (add(2**32 - 2, num_samples=3), "must be below"),
        (add(20, num_samples=65), "Too many requests are waiting"),
    ],
)
def test_all_are_refused_or_none(harness: Harness, message: AddRequest, reason: str) -> None:
    client = harness.client()
    harness.executor.gate.clear()
    client.send(encode(add(6, sampling=LONG)))
    client.send(encode(message))
    reader = Reader(client)
    new = [handle for handle in range(message.handle, message.handle + message.num_samples) if handle != 6]
    while set(new) - set(reader.errors):
        reader.read_frame()
    assert all(reason in error.message for error in reader.errors.values())
    assert [request.handle for request in open_requests(harness)] == [6]


def test_a_malformed_message_is_answered_by_all_its_handles(harness: Harness) -> None:
    client = harness.client()
    frame = {"type": "add", "request_id": "x", "handle": 3, "num_samples": 2, "prompt_token_ids": "text"}
    client.send(msgpack.packb(frame))
    reader = Reader(client)
    reader.read_finals(2)
    assert set(reader.errors) == {3, 4}


def test_all_outputs_wait_for_one_credit(harness: Harness) -> None:
    client = harness.client(credit=1)
    client.send(encode(add(10, num_samples=3)))
    reader = Reader(client)
    reader.read_frame()
    while num_pending(client):
        pass
    client.send(encode(Credit(amount=1)))
    reader.read_frame()
    assert set(reader.finished) == {10, 11, 12}
    assert [len(reader.tokens[handle]) for handle in (10, 11, 12)] == [5, 5, 5]


def test_hashes_of_a_sibling_end_with_the_prompt() -> None:
    """What follows it in the same block is each sample's own."""
    kv = KVCacheManager(8, 4)
    samples: list[Request] = []
    for number in range(2):
        sample = Request(
            request_id="x",
            client=b"",
            handle=number,
            first_sample=samples[0] if samples else None,
            prompt_token_ids=[1, 2, 1, 2, 1, 2],
            sampling=SamplingParams(),
            max_total_tokens=32,
            arrival_time=0.0,
            arrival_number=number,
        )
        samples.append(sample)
    for sample, output in zip(samples, ([3, 4, 5], [6, 7, 8]), strict=True):
        sample.tokens = np.append(sample.tokens, np.array(output, np.int32))  # as it comes back from a preemption
        assert kv.hash_prefix(sample, 8)
    first, second = (sample.block_hashes for sample in samples)
    assert first[0] == second[0]
    assert first[1] != second[1]
