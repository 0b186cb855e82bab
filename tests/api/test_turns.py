"""Turns at the threads that tokenise."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tgi.api.turns import SHORT, THREADS, Turns
from tgi.errors import Overloaded

LONG = 100 * SHORT


class Desk:
    """Turns that end when they are told to, in the order in which they began."""

    def __init__(self, nursery: trio.Nursery, limit: int = 100) -> None:
        self.turns, self.nursery = Turns(limit), nursery
        self.begun: list[tuple[str, int]] = []
        self.ends: dict[tuple[str, int], list[trio.Event]] = {}

    async def ask(self, client: str, size: int) -> None:
        async def work() -> None:
            async with self.turns.turn(client, size):
                self.begun.append((client, size))
                self.ends.setdefault((client, size), []).append(trio.Event())
                await self.ends[client, size][-1].wait()

        self.nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()

    async def end(self, client: str, size: int) -> None:
        self.ends[client, size].pop(0).set()
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.autojump
async def test_short_texts_pass_long_ones_of_the_same_client() -> None:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        for size in (LONG, LONG + 1, LONG + 2):
            await desk.ask("a", size)
        assert desk.begun == [("a", LONG)], "a long text takes one thread only"
        await desk.ask("a", 600)
        await desk.ask("a", 500)
        assert desk.begun[1:] == [("a", 600)]
        await desk.end("a", 600)
        assert desk.begun[2:] == [("a", 500)]
        await desk.end("a", LONG)
        assert desk.begun[3:] == [("a", LONG + 1)], "the shorter first"
        nursery.cancel_scope.cancel()


@pytest.mark.autojump
async def test_a_client_waits_for_its_own_long_texts_and_not_for_those_of_others() -> None:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        for _ in range(3):
            await desk.ask("a", LONG)
        await desk.ask("b", LONG)
        await desk.end("a", LONG)
        assert desk.begun == [("a", LONG), ("b", LONG)]
        await desk.end("b", LONG)
        await desk.ask("b", LONG)
        await desk.end("a", LONG)
        assert desk.begun[2:] == [("a", LONG), ("b", LONG)]
        nursery.cancel_scope.cancel()


@pytest.mark.autojump
async def test_who_comes_later_gets_no_more_than_who_has_least() -> None:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        for _ in range(4):
            await desk.ask("a", LONG)
        await desk.end("a", LONG)
        for _ in range(2):
            await desk.ask("late", LONG)
        await desk.end("a", LONG)
        await desk.end("late", LONG)
        assert desk.begun == [("a", LONG), ("a", LONG), ("late", LONG), ("a", LONG)]
        nursery.cancel_scope.cancel()


@pytest.mark.autojump
async def test_more_than_the_limit_do_not_wait() -> None:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery, limit=2)
        for _ in range(3):
            await desk.ask("a", LONG)
        with pytest.raises(Overloaded):
            async with desk.turns.turn("b", 600):
                pass
        nursery.cancel_scope.cancel()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3 * SHORT), st.booleans()), max_size=40))
def test_every_turn_comes_and_ends_whoever_leaves(texts: list[tuple[str, int, bool]]) -> None:
    async def main() -> None:
        turns, done, most = Turns(100), [], 0

        async def ask(client: str, size: int, leaves: bool) -> None:
            nonlocal most
            with trio.move_on_after(0.5 if leaves else 1e6):
                async with turns.turn(client, size):
                    most = max(most, turns.taken)
                    await trio.sleep(size / SHORT)
                    done.append(size)

        async with trio.open_nursery() as nursery:
            for text in texts:
                nursery.start_soon(ask, *text)
        assert len(done) >= sum(not leaves for *_, leaves in texts)
        assert most <= THREADS
        assert (turns.taken, turns._long, turns.waiting, turns._clients) == (0, 0, 0, {})

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
