"""Who comes next: clients take turns, and who gives up leaves no place behind."""

import asyncio

import pytest

from frontend.preparation.turns import TooManyWaiting, Turns


def test_clients_take_turns_and_a_cancelled_one_is_passed_over():
    async def run() -> list[str]:
        turns, order, go = Turns(2), [], asyncio.Event()

        async def ask(client: str, name: str) -> None:
            async with turns.turn(client):
                order.append(name)
                await go.wait()

        tasks = [asyncio.create_task(ask("a", f"a{i}")) for i in range(4)]
        tasks += [asyncio.create_task(ask("b", f"b{i}")) for i in range(2)]
        await asyncio.sleep(0)
        assert order == ["a0", "b0"], "one client never has all places"
        assert turns.num_waiting == 4
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)
        go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (turns.num_running, turns.num_waiting) == (0, 0)
        return order

    assert sorted(asyncio.run(run())) == ["a0", "a2", "a3", "b0", "b1"]


def test_too_many_waiting_are_refused():
    async def run() -> None:
        turns = Turns(2, max_waiting=0)
        async with turns.turn("a"):
            with pytest.raises(TooManyWaiting):
                async with turns.turn("a"):
                    pass
        assert turns.num_running == 0

    asyncio.run(run())
