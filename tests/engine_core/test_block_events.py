"""Block events over a real socket: what a subscriber gets, when, and what it is told when it lags."""

import asyncio
import hashlib
import struct
from collections.abc import Iterator

import pytest
import zmq

from engine_core import block_events
from engine_core.block_events import BlockEventFeed, BlockEventRecorder
from engine_core.clients import Client
from engine_core.ipc.codec import decode_core_message, encode
from engine_core.ipc.messages import (
    BlockEvents,
    BlocksRemoved,
    BlocksStored,
    Bye,
    Credit,
    SubscribeBlockEvents,
    Utility,
)
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.ipc.sockets import bind_router
from engine_core.kv_cache_manager import KVCacheManager
from frontend.client import BlockBatch, CachedBlocks, EngineClient, EngineError, Removed, Stored
from frontend.client.block_events import MAX_UNREAD_BATCHES, BlockEventStream
from tests.engine_core.core_harness import TIMEOUT_MS, Harness, Reader, add
from tests.engine_core.test_kv_cache_manager import make_request
from tests.engine_core.test_kv_cache_manager import serve as serve_prompt


def subscribe(harness: Harness, credit: int = 100) -> zmq.Socket:
    """A subscriber that has had its first frame."""
    client = harness.client(credit)
    client.send(encode(SubscribeBlockEvents()))
    first = read(client)
    assert (first.gap, first.events) == (True, [])
    return client


def read(client: zmq.Socket) -> BlockEvents:
    message = decode_core_message(client.recv())
    assert isinstance(message, BlockEvents)
    return message


def serve(harness: Harness, client: zmq.Socket, handle: int, prompt: list[int]) -> None:
    client.send(encode(add(handle, prompt=prompt, sampling=SamplingParams(max_tokens=1))))
    Reader(client).read_finals(1)


def test_a_subscriber_hears_of_each_prompts_blocks_once(harness: Harness) -> None:
    subscriber, client = subscribe(harness), harness.client()
    serve(harness, client, 1, list(range(1, 40)))
    first = read(subscriber)
    (stored,) = first.events
    assert isinstance(stored, BlocksStored)
    assert (len(stored.digests), stored.num_tokens, stored.group) == (2 * 16, 16, 0)
    assert first.sequence == 0
    assert first.epoch == harness.core.epoch
    serve(harness, client, 2, list(range(1, 40)))  # nothing new
    serve(harness, client, 3, [*range(1, 40), *range(50, 60)])
    second = read(subscriber)
    (longer,) = second.events
    assert isinstance(longer, BlocksStored)
    assert second.sequence == 1
    assert longer.parent == stored.digests[16:]
    assert len(longer.digests) == 16


def test_evicted_blocks_are_removed(harness: Harness) -> None:
    subscriber, client = subscribe(harness), harness.client()
    known: set[bytes] = set()
    removed = 0
    for handle in range(harness.config.cache.num_blocks):
        serve(harness, client, handle, [handle + 1] * 33)
        while subscriber.poll(0):
            for event in read(subscriber).events:
                assert isinstance(event, BlocksStored | BlocksRemoved)
                digests = {event.digests[start : start + 16] for start in range(0, len(event.digests), 16)}
                removed += isinstance(event, BlocksRemoved)
                known = known | digests if isinstance(event, BlocksStored) else known - digests
    assert removed
    assert len(known) <= harness.config.cache.num_blocks


def test_without_credit_nothing_comes_and_then_all_of_it(harness: Harness) -> None:
    subscriber, client = subscribe(harness, credit=1), harness.client()
    for handle in range(3):
        serve(harness, client, handle, [handle + 1] * 20)
    assert not subscriber.poll(0)
    subscriber.send(encode(Credit(amount=2)))
    assert [read(subscriber).sequence for _ in range(2)] == [0, 1]
    assert not subscriber.poll(0)
    subscriber.send(encode(Credit(amount=9)))
    assert read(subscriber).sequence == 2


def test_who_lags_too_much_is_told_of_the_gap(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_events, "MAX_KEPT_BATCHES", 2)
    subscriber, other, client = subscribe(harness, credit=1), subscribe(harness), harness.client()
    for handle in range(4):
        serve(harness, client, handle, [handle + 1] * 20)
    assert [read(other).sequence for _ in range(4)] == [0, 1, 2, 3]  # another one's lag costs it nothing
    subscriber.send(encode(Credit(amount=9)))
    gap = read(subscriber)
    assert (gap.gap, gap.sequence, gap.events) == (True, 4, [])
    serve(harness, client, 9, [9] * 20)
    after = read(subscriber)
    assert (after.gap, after.sequence) == (False, 4)


def test_nothing_is_recorded_for_who_has_lost_it_anyway(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most who never give a credit again are gone, and nobody would notice."""
    monkeypatch.setattr(block_events, "MAX_KEPT_BATCHES", 2)
    events, feed = harness.core.scheduler.kv.events, harness.core._block_events
    subscriber, client = subscribe(harness, credit=1), harness.client()
    for handle in range(2):
        serve(harness, client, handle, [handle + 1] * 20)
    assert events.is_recording
    for handle in range(2, 5):
        serve(harness, client, handle, [handle + 1] * 20)
    assert not events.is_recording
    assert not feed._frames
    subscriber.send(encode(Credit(amount=9)))
    assert read(subscriber).gap
    serve(harness, client, 9, [9] * 20)
    (stored,) = read(subscriber).events
    assert isinstance(stored, BlocksStored)


def test_recording_ends_with_the_last_subscriber(harness: Harness) -> None:
    events = harness.core.scheduler.kv.events
    client = harness.client()
    serve(harness, client, 1, [1] * 20)
    assert not events.is_recording
    first, second = subscribe(harness), subscribe(harness)
    assert events.is_recording
    for subscriber, num_left in ((first, 2), (second, 1)):
        subscriber.send(encode(Bye()))
        while len(harness.core._clients) > num_left:
            client.send(encode(Utility(call_id=1, method="status")))
            client.recv()
        assert events.is_recording == (num_left > 1)


class Ends:
    """A feed with one real client behind a socket, without a core."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.router = bind_router(self.context, f"inproc://feed-{id(self)}", 2**20)
        self.dealer = self.context.socket(zmq.DEALER)
        self.dealer.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        self.dealer.connect(f"inproc://feed-{id(self)}")
        self.dealer.send(b"")
        self.client = Client(self.router.recv_multipart()[0], 0, credit=1)
        self.recorder = BlockEventRecorder(4)
        self.feed = BlockEventFeed(self.recorder, epoch=1, replica=0)

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_what_is_kept_is_bounded_by_bytes(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_events, "MAX_KEPT_BYTES", 10_000)
    ends.feed.subscribe(ends.client)
    ends.feed.send(ends.router)  # takes its only credit
    for _ in range(50):
        ends.recorder.removed(bytes(16 * 64), 0)
        assert ends.feed.send(ends.router) == []
        assert ends.feed._num_bytes == sum(map(len, ends.feed._frames)) <= 10_000
    ends.feed.unsubscribe(ends.client)
    assert ends.feed._num_bytes == len(ends.feed._frames) == 0


def test_neighbours_in_a_chain_are_one_event() -> None:
    recorder = BlockEventRecorder(4)
    a, b, c, d = (bytes([letter]) * 16 for letter in b"abcd")
    recorder.stored([a, b], b"root", 0)
    recorder.stored([c], b, 0)
    recorder.stored([d], a, 0)
    recorder.removed(d, 0)
    recorder.removed(c, 0)
    recorder.stored([d], c, 0)
    assert recorder.take() == [
        BlocksStored(digests=a + b + c, parent=b"root", num_tokens=4),
        BlocksStored(digests=d, parent=a, num_tokens=4),
        BlocksRemoved(digests=d + c),
        BlocksStored(digests=d, parent=c, num_tokens=4),
    ]
    assert recorder.take() == []


def documented_digests(tokens: list[int], block_size: int, key: bytes, salt: str | None) -> list[bytes]:
    """As docs/protocol.md tells routers, without any code of the core."""
    framed = b""
    for text in (salt, None):
        data = (text or "").encode()
        framed += bytes([text is not None]) + len(data).to_bytes(4, "little") + data
    digest = hashlib.blake2b(framed, digest_size=16, key=key).digest()
    digests = []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        block = struct.pack(f"<{block_size}i", *tokens[start : start + block_size])
        digest = hashlib.blake2b(digest + block, digest_size=16, key=key).digest()
        digests.append(digest)
    return digests


@pytest.mark.parametrize("salt", [None, "", "tenant"])
def test_digests_are_those_that_a_router_computes(salt: str | None) -> None:
    key, tokens = b"k" * 32, list(range(70000, 70011))
    kv = KVCacheManager(8, 4, hash_key=key)
    kv.events.is_recording = True
    serve_prompt(kv, make_request(tokens, cache_salt=salt))
    (stored,) = kv.events.take()
    assert isinstance(stored, BlocksStored)
    assert stored.digests == b"".join(documented_digests(tokens, 4, key, salt))


# The thin client


def pool_digests(harness: Harness) -> set[bytes]:
    pool = harness.core.scheduler.kv.pool
    return {digest for block in range(pool.num_blocks) if (digest := pool.digest_of(block)) is not None}


def test_the_clients_set_follows_the_pool(harness: Harness) -> None:
    async def work() -> None:
        async with EngineClient(harness.endpoint, credit=4) as client, asyncio.timeout(30):
            await generate(client, [7] * 40)  # there before anybody follows
            cached = CachedBlocks(client)
            following = asyncio.create_task(cached.follow())
            for number in range(30):
                await generate(client, [number % 9 + 1] * (17 + number))
            # The last prompt's events were sent before this answer to a later question.
            await client.utility("status")
            while cached.digests != pool_digests(harness):
                await asyncio.sleep(0)
            assert cached.is_complete
            order = sorted(cached.digests)
            assert cached.num_leading([*order[:2], bytes(16), *order[2:]]) == 2
            following.cancel()

    asyncio.run(work())


async def generate(client: EngineClient, prompt: list[int]) -> None:
    async for _ in client.generate(prompt, {"max_tokens": 2}):
        pass


def test_a_second_stream_of_a_client_begins_with_a_gap_too(harness: Harness) -> None:
    async def work() -> None:
        async with EngineClient(harness.endpoint) as client, asyncio.timeout(30):
            first = client.block_events()
            assert (await anext(first)).gap
            await generate(client, [7] * 40)
            second = client.block_events()
            assert (await anext(second)).gap
            await generate(client, [8] * 40)
            batches = [await anext(first) for _ in range(2)]
            assert [type(batch.changes[0]) for batch in batches] == [Stored, Stored]
            assert (await anext(second)).sequence == batches[1].sequence

    asyncio.run(work())


def test_streams_end_with_their_client(harness: Harness) -> None:
    async def work() -> None:
        client = EngineClient(harness.endpoint)
        await client.connect()
        stream = client.block_events()
        assert (await anext(stream)).gap
        await client.close()
        with pytest.raises(EngineError):
            await anext(stream)
        with pytest.raises(EngineError):
            client.block_events()

    asyncio.run(work())


def test_a_reader_that_is_too_slow_gets_a_gap() -> None:
    async def work() -> None:
        stream = BlockEventStream()
        for sequence in range(MAX_UNREAD_BATCHES + 3):
            stream.push(BlockBatch(sequence, changes=[Removed([bytes(16)])]))
        batches = [await anext(stream) for _ in range(4)]
        assert [(batch.sequence, batch.gap) for batch in batches] == [
            (MAX_UNREAD_BATCHES, True),
            (MAX_UNREAD_BATCHES, False),
            (MAX_UNREAD_BATCHES + 1, False),
            (MAX_UNREAD_BATCHES + 2, False),
        ]

    asyncio.run(work())
