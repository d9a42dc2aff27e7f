"""The client against the stub core's real socket."""

import asyncio
from array import array

import pytest

from benchmarks.stub_core import EPOCH, Reply
from engine_core.ipc import messages
from engine_core.ipc.codec import decode_client_message
from frontend.client import EngineClient, EngineError, StreamGroup, errors, wire
from tests.frontend.client_harness import drive, in_thread, stub


def test_streams_tokens_and_the_end(tmp_path):
    async def work(client: EngineClient) -> None:
        assert client.info is not None
        assert client.info.epoch == EPOCH
        deltas = [delta async for delta in client.generate([1, 2, 3], {"max_tokens": 4})]
        assert [token for delta in deltas for token in delta.token_ids] == [10, 11, 12, 13]
        assert [delta.finished is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
        finished = deltas[-1].finished
        assert finished is not None
        assert (finished.reason, finished.num_prompt_tokens, finished.num_output_tokens) == ("length", 3, 4)
        assert client.num_open_requests == 0

    with stub(tmp_path, lambda add: Reply(token_ids=[10, 11, 12, 13])) as core:
        drive(core, work)


def test_fields_arrive_typed_and_a_seed_is_always_sent(tmp_path):
    async def work(client: EngineClient) -> None:
        stream = client.generate(
            array("i", [7, 8]),
            {"temperature": 0.5, "logit_bias": {3: -1.0}, "stop_token_ids": [4]},
            request_id="mine",
            output_token_ids=[9],
            priority=-2,
            deadline=12.5,
            cache_salt="salt",
            adapter="lora",
            trace_context="00-ab-cd-01",
        )
        async for _ in stream:
            pass
        async for _ in client.generate(b"\x01\x00\x00\x00", {"seed": 5}):
            pass

    with stub(tmp_path, lambda add: Reply(token_ids=[1])) as core:
        drive(core, work)
        first, second = core.received(messages.AddRequest)
    assert first.request_id == "mine"
    assert first.prompt_token_ids == array("i", [7, 8]).tobytes()
    assert first.output_token_ids == array("i", [9]).tobytes()
    assert (first.priority, first.deadline, first.cache_salt, first.adapter) == (-2, 12.5, "salt", "lora")
    assert first.trace_context == "00-ab-cd-01"
    assert first.sampling.logit_bias == {3: -1.0}
    assert first.sampling.seed is not None
    assert second.sampling.seed == 5
    assert 0 <= first.handle < 2**16


def test_every_frame_of_the_client_is_a_typed_message():
    frames = [
        wire.hello(3),
        wire.credit(2),
        wire.credit(0, num_replies=1),
        wire.abort([1, 2]),
        wire.bye(),
        wire.utility(4, "metrics", {"a": 1}),
        wire.add_request(
            "id", 1, 1, b"\0\0\0\0", {"seed": 1, "max_tokens": 3}, {"priority": 0, "output_token_ids": b""}
        ),
    ]
    kinds = [type(decode_client_message(frame)) for frame in frames]
    assert kinds == [
        messages.Hello,
        messages.Credit,
        messages.Credit,
        messages.AbortRequest,
        messages.Bye,
        messages.Utility,
        messages.AddRequest,
    ]


def test_the_clients_own_constants_are_the_cores():
    assert wire.PROTOCOL_VERSION == messages.PROTOCOL_VERSION
    assert wire.MAX_FRAME_BYTES == messages.MAX_CLIENT_FRAME_BYTES
    assert errors.ENGINE_DEAD == messages.ERROR_ENGINE_DEAD
    assert errors.INVALID_REQUEST == messages.ERROR_INVALID
    assert errors.SHUTTING_DOWN == messages.ERROR_SHUTTING_DOWN


def test_rows_of_a_newer_core_may_be_longer():
    column = b"\0\0\0\0"
    handle, columns = wire.prompt_logprobs([3, 1, 1, column, column, column, column, "new"])
    assert (handle, columns.num_top, list(columns.ranks)) == (3, 1, [0])
    handle, finished = wire.finished([4, "stop", None, 1, 0, 2, 0, 0.1, 0.2, 0.3, "new"])
    assert (handle, finished.reason, finished.decode_time) == (4, "stop", 0.3)


def test_logprobs_keep_step_with_tokens(tmp_path):
    async def work(client: EngineClient) -> None:
        tokens, logprobs, tops = [], [], []
        async for delta in client.generate([1], {"logprobs": 2}):
            if delta.token_ids:
                assert delta.logprobs is not None
                assert len(delta.logprobs.logprobs) == len(delta.token_ids)
                tokens += delta.token_ids
                logprobs += delta.logprobs.logprobs
                tops += delta.logprobs.top_token_ids
        assert tokens == [5, 6, 7]
        assert logprobs == [-0.5] * 3
        assert tops == [5, 0, 6, 0, 7, 0]

    with stub(tmp_path, lambda add: Reply(token_ids=[5, 6, 7])) as core:
        drive(core, work)


def test_credit_is_granted_back(tmp_path):
    """With a credit of four frames a hundred steps come through only if credit comes back."""

    async def work(client: EngineClient) -> None:
        tokens = [token async for delta in client.generate([1], {}) for token in delta.token_ids]
        assert tokens == list(range(100))

    with stub(tmp_path, lambda add: Reply(token_ids=range(100)), step_seconds=0.001) as core:
        drive(core, work, credit=4)
        assert core.received(messages.Credit)


def test_tokens_for_a_slow_reader_are_merged_and_stall_nobody(tmp_path):
    async def work(client: EngineClient) -> None:
        slow = client.generate([1], {})
        fast = [token async for delta in client.generate([2], {}) for token in delta.token_ids]
        assert fast == list(range(200))
        first = await anext(slow)
        assert len(first.token_ids) > 1
        rest = [token async for delta in slow for token in delta.token_ids]
        assert [*first.token_ids, *rest] == list(range(200))

    with stub(tmp_path, lambda add: Reply(token_ids=range(200))) as core:
        drive(core, work, credit=4)


@pytest.mark.parametrize("leave", ["break", "aclose", "cancel", "drop"])
def test_leaving_early_aborts(tmp_path, leave):
    async def work(client: EngineClient) -> None:
        stream = client.generate([1], {})
        if leave == "break":
            async for _ in stream:
                break
            del stream
        elif leave == "aclose":
            await anext(stream)
            await stream.aclose()
            assert [delta async for delta in stream] == []
        elif leave == "cancel":
            await in_thread(core.pause)

            async def read() -> None:
                async for _ in stream:
                    pass

            task = asyncio.create_task(read())
            await in_thread(lambda: core.wait_for(lambda core: core.num_running == 1))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            del stream
        await in_thread(lambda: core.wait_for(lambda core: core.received(messages.AbortRequest)))
        assert client.num_open_requests == 0

    with stub(tmp_path, lambda add: Reply(token_ids=[1, 2], endless=True), step_seconds=0.001) as core:
        drive(core, work)


def test_abort_by_id_ends_the_stream(tmp_path):
    async def work(client: EngineClient) -> None:
        stream = client.generate([1], {}, request_id="x")
        await anext(stream)
        client.abort("x")
        client.abort("unknown")
        deltas = [delta async for delta in stream]
        assert deltas[-1].finished is not None
        assert deltas[-1].finished.reason == "abort"

    with stub(tmp_path, lambda add: Reply(token_ids=[1], endless=True), step_seconds=0.001) as core:
        drive(core, work)


def test_an_error_comes_after_the_tokens(tmp_path):
    async def work(client: EngineClient) -> None:
        with pytest.raises(EngineError) as caught:
            async for _ in client.generate([1], {}):
                pass
        assert (caught.value.code, caught.value.message, caught.value.retry_after) == ("overloaded", "Full.", 2.0)
        assert client.num_open_requests == 0

    with stub(tmp_path, lambda add: Reply(error=("overloaded", "Full.", 2.0))) as core:
        drive(core, work)


def test_a_frame_that_the_core_would_hang_up_on_is_not_sent(tmp_path):
    async def work(client: EngineClient) -> None:
        with pytest.raises(EngineError, match="at most 33554432 bytes"):
            client.generate(bytes(wire.MAX_FRAME_BYTES), {})
        assert [delta async for delta in client.generate([1], {})]

    with stub(tmp_path, lambda add: Reply(token_ids=[1])) as core:
        drive(core, work)


def test_utilities(tmp_path):
    async def work(client: EngineClient) -> None:
        for number in range(10):
            assert await client.utility("double", number=number) == 2 * number
        with pytest.raises(EngineError, match="no utility 'nothing'"):
            await client.utility("nothing")

    utilities = {"double": lambda arguments: arguments["number"] * 2}
    with stub(tmp_path, lambda add: Reply(), utilities=utilities) as core:
        drive(core, work, credit=4)
        core.wait_for(lambda core: len(core.received(messages.Credit)) == 11)
        granted = core.received(messages.Credit)
    assert {(credit.amount, credit.num_replies) for credit in granted} == {(0, 1)}, "no frame was read but replies"


def test_samples_are_sent_once_and_read_apart(tmp_path):
    async def work(client: EngineClient) -> None:
        streams = client.generate_samples([1, 2], {"seed": 5, "sample_index": 2}, 3, request_id="x", priority=4)
        assert {stream.request_id for stream in streams} == {"x"}
        tokens: dict[int, list[int]] = {}
        async for index, delta in StreamGroup(streams):
            tokens.setdefault(index, []).extend(delta.token_ids)
        assert tokens == {0: [2, 2], 1: [3, 3], 2: [4, 4]}
        with pytest.raises(ValueError, match="num_samples must be from 1 to 1024, not 1025"):
            client.generate_samples([1], {}, 1025)

    with stub(tmp_path, lambda add: Reply(token_ids=[add.sampling.sample_index] * 2)) as core:
        drive(core, work)
        (add,) = core.received(messages.AddRequest)
    assert (add.num_samples, add.sampling.sample_index, add.sampling.seed, add.priority) == (3, 2, 5, 4)


def test_numbers_begin_anew_beside_those_in_use(tmp_path):
    """The handles of a group follow each other, also at the end of the numbers that there are."""

    async def work(client: EngineClient) -> None:
        client._next_number = 1
        long = client.generate([1], {}, request_id="long")
        assert long.handle == 2
        client._next_number = 2**32 - 4
        handles = [[stream.handle for stream in client.generate_samples([2], {}, count)] for count in (2, 3, 1)]
        assert handles == [[2**32 - 3, 2**32 - 2], [3, 4, 5], [6]]
        client.abort("long")

    with stub(tmp_path, lambda add: Reply(token_ids=[1], endless=add.prompt_token_ids[0] == 1)) as core:
        drive(core, work)


def test_a_group_yields_all_and_ends(tmp_path):
    async def work(client: EngineClient) -> None:
        group = StreamGroup([client.generate([number], {}) for number in range(1, 5)])
        tokens: dict[int, list[int]] = {}
        async for index, delta in group:
            tokens.setdefault(index, []).extend(delta.token_ids)
            if index == 3:
                group.close_one(3)
        assert {index: tokens[index] for index in range(3)} == {index: list(range(index + 2)) for index in range(3)}

    def script(add: messages.AddRequest) -> Reply:
        return Reply(token_ids=range(array("i", add.prompt_token_ids)[0] + 1))

    with stub(tmp_path, script, step_seconds=0.002) as core:
        drive(core, work)
