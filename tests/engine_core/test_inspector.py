"""What the core says of itself: counters that add up, lists that are cut, rates that forget."""

import msgspec
import numpy as np
import pytest
import zmq

from engine_core.config.engine_config import SchedulerConfig
from engine_core.inspector import Inspector, block_page
from engine_core.ipc.codec import decode_core_message, encode
from engine_core.ipc.inspection import PAGE_BLOCKS, BlockPage, Inspection
from engine_core.ipc.messages import Utility, UtilityReply
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.scheduler import Scheduler
from tests.engine_core.core_harness import Harness, Reader, add
from tests.engine_core.test_kv_cache_manager import make_request, serve

PROMPT = list(range(1, 41))


def ask(client: zmq.Socket, method: str, **arguments: object) -> UtilityReply:
    client.send(encode(Utility(call_id=9, method=method, arguments=arguments)))
    reply = decode_core_message(client.recv())
    assert isinstance(reply, UtilityReply)
    return reply


def inspect(client: zmq.Socket, **arguments: object) -> Inspection:
    return msgspec.convert(ask(client, "inspect", **arguments).result, Inspection)


def test_running_and_waiting_requests_and_their_blocks(harness: Harness) -> None:
    client = harness.client()
    harness.executor.gate.clear()
    for handle in range(6):  # four rows
        client.send(encode(add(handle, prompt=PROMPT, sampling=SamplingParams(max_tokens=4))))
    # How many of them came in time for the two steps in flight is a matter of chance; none runs in the turn they came.
    while (seen := inspect(client)).num_running == 0:
        pass
    running, waiting = seen.num_running, seen.num_waiting
    assert running + waiting == 6
    assert 1 <= running <= 4
    assert seen.blocks.free + seen.blocks.owned + seen.blocks.cached == seen.blocks.total
    assert seen.blocks.shared == (2 if running > 1 else 0)  # 40 tokens are two full blocks of 16 and a part
    assert [request.status for request in seen.requests] == ["running"] * running + ["waiting"] * waiting
    assert [request.num_blocks for request in seen.requests] == [3] * running + [0] * waiting
    assert [request.num_cached_tokens for request in seen.requests] == [0] + [32] * (running - 1) + [0] * waiting
    assert {request.request_id for request in seen.requests} == {f"id-{handle}" for handle in range(6)}
    assert [request.num_tokens for request in seen.requests] == [40] * 6
    assert (seen.since_start.num_query_tokens, seen.since_start.num_hit_tokens) == (40 * running, 32 * (running - 1))
    assert seen.since_start == seen.last_minute
    assert [(chain.num_blocks, chain.num_owners) for chain in seen.chains] == [(2, running)]
    few = inspect(client, limit=2)
    assert (len(few.requests), len(few.chains)) == (2, 1)
    assert inspect(client, limit=0).requests == []
    harness.executor.gate.set()
    harness.executor.ring()
    Reader(client).read_finals(6)
    ended = inspect(client)
    assert ended.requests == []
    assert (ended.blocks.owned, ended.blocks.shared, ended.chains[0].num_owners) == (0, 0, 0)
    assert ended.blocks.cached == 2
    assert ended.num_steps > 0


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("inspect", {"limit": -1}),
        ("inspect", {"limit": "many"}),
        ("inspect", {"limit": 1001}),
        ("inspect", {"who": 1}),
        ("block_snapshot", {"cursor": -1}),
        ("block_snapshot", {"cursor": 1.5}),
    ],
)
def test_wrong_arguments_are_answered_with_an_error(
    harness: Harness, method: str, arguments: dict[str, object]
) -> None:
    client = harness.client()
    reply = ask(client, method, **arguments)
    assert reply.result is None
    assert reply.error is not None
    assert reply.error.startswith(f"{method}: ")
    assert inspect(client).num_running == 0


def test_pages_have_every_block_once() -> None:
    core_blocks = 2 * PAGE_BLOCKS + 5
    kv = KVCacheManager(core_blocks, 1)
    request = make_request(list(range(core_blocks - 3)))
    kv.start_table(request, kv.find_prefix(request, request.tokens), core_blocks - 3)
    kv.append([request], [core_blocks - 3])
    kv.register_full([request], [request.tokens])
    pages, cursor = [], 0
    while True:
        page: BlockPage = block_page(kv, cursor, epoch=1)
        pages.append(page)
        if page.cursor is None:
            break
        cursor = page.cursor
    assert len(pages) == 3
    digests, parents = (b"".join(getattr(page, name) for page in pages) for name in ("digests", "parents"))
    assert len(digests) == len(parents) == 16 * (core_blocks - 3)
    split = [digests[start : start + 16] for start in range(0, len(digests), 16)]
    assert set(split) == set(request.block_hashes)
    assert len(set(split)) == len(split)
    assert block_page(kv, core_blocks + 7, epoch=1).digests == b""


def test_the_last_minute_forgets_what_is_older() -> None:
    kv = KVCacheManager(100, 4)
    config = SchedulerConfig(
        max_num_seqs=1, max_num_batched_tokens=8, max_model_len=64, max_num_waiting=1, max_num_penalty_rows=0
    )
    inspector = Inspector(Scheduler(config, kv, ()), replica=0, now=100.0)

    def serve_at(now: float) -> None:
        serve(kv, make_request(list(range(9))))
        inspector.step(now)

    def last_minute(now: float) -> tuple[int, int]:
        use = inspector.inspect(5, 0, now).last_minute
        return use.num_query_tokens, use.num_hit_tokens

    serve_at(110.0)
    assert last_minute(111.0) == (9, 0)
    serve_at(150.0)
    assert last_minute(151.0) == (18, 8)
    assert last_minute(171.0) == (9, 8)
    assert last_minute(400.0) == (0, 0)
    serve_at(500.0)  # after a long silence
    assert last_minute(501.0) == (9, 8)
    whole = inspector.inspect(5, 0, 501.0).since_start
    assert (whole.num_query_tokens, whole.hit_rate) == (27, 16 / 27)


def test_samples_are_bounded() -> None:
    kv = KVCacheManager(4, 4)
    config = SchedulerConfig(
        max_num_seqs=1, max_num_batched_tokens=8, max_model_len=64, max_num_waiting=1, max_num_penalty_rows=0
    )
    inspector = Inspector(Scheduler(config, kv, ()), replica=0, now=0.0)
    for now in np.arange(0.0, 300.0, 0.1):
        inspector.step(float(now))
    assert len(inspector._samples) <= 62
