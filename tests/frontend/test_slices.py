"""Work in slices: others have their turns, and who gives up in between leaves nothing behind."""

import asyncio
from array import array
from types import SimpleNamespace
from typing import Any

import pytest

from frontend import slices
from frontend.client import EngineError
from frontend.errors import ApiError
from frontend.generation import Generation, Order
from frontend.input_processor import Prompt
from frontend.output_processor import OutputOptions
from frontend.tokenizer import TextTokenizer
from tests.frontend.support import train_tokenizer

TOKENIZER = TextTokenizer(train_tokenizer(), {"type": "ByteLevel"}, {})


def test_others_have_a_turn_at_the_end_of_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    now, turns = 0.0, 0
    monkeypatch.setattr(slices, "time", SimpleNamespace(monotonic=lambda: now))

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> list[int]:
        nonlocal now
        task = asyncio.create_task(other())
        work, seen = slices.Slices(), []
        for _ in range(8):
            now += slices.SLICE_SECONDS / 4
            await work.pause()
            seen.append(turns)
        task.cancel()
        return seen

    assert asyncio.run(run()) == [0, 0, 0, 1, 1, 1, 1, 2]


class Client:
    """Notes the streams that it starts."""

    def __init__(self, most: int) -> None:
        self.streams: list[Any] = []
        self._most = most

    def generate(self, *_: Any, **__: Any) -> Any:
        if len(self.streams) == self._most:
            raise EngineError("overloaded", "Full.")
        stream = SimpleNamespace(handle=len(self.streams), closed=False)
        stream.close = lambda reason="abort": setattr(stream, "closed", True)
        self.streams.append(stream)
        return stream


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_generation_that_does_not_begin_leaves_no_request(
    monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    monkeypatch.setattr(slices, "SLICE_SECONDS", 0.0)
    prompts = [Prompt(array("i", [1]), None)] * 9
    order = Order("id", prompts, [{}] * 9, 1, OutputOptions())
    client: Any = Client(most=9 if is_cancelled else 6)

    async def run() -> None:
        task = asyncio.create_task(Generation.begin(order, TOKENIZER, client))
        while len(client.streams) < 4:
            await asyncio.sleep(0)
        if is_cancelled:
            task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError if is_cancelled else ApiError):
        asyncio.run(run())
    assert 4 <= len(client.streams) <= 6
    assert all(stream.closed for stream in client.streams)
