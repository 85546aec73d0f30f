"""Protects the queue of a server, without a network: who is answered with whom, how many wait, and who fails alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sslt.deploy.serving.batches import BatchQueue, Full, Lost


class Asked:
    """Answers each item by itself when `go` says so, and keeps the batches it was asked."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[Any]]] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, kind: str, items: list[Any]) -> list[dict[str, Any]]:
        self.batches.append((kind, items))
        await self.go.wait()
        return [{"said": item} for item in items]


def with_queue(test: Callable[[BatchQueue, Asked], Awaitable[None]], **settings: Any) -> None:
    async def whole() -> None:
        asked = Asked()
        queue = BatchQueue(asked, **{"max_batch": 4, "max_wait": 0.02, "max_queue": 10, **settings})
        running = asyncio.create_task(queue.run())
        try:
            await asyncio.wait_for(test(queue, asked), 20)
        finally:
            running.cancel()

    asyncio.run(whole())


def ask(queue: BatchQueue, *items: Any, kind: str = "predict", timeout: float = 10.0, size: int = 0) -> asyncio.Task[Any]:
    sizes = [item if isinstance(item, int) else 0 for item in items]
    return asyncio.create_task(queue.answers(kind, items, sizes, timeout, size))


def test_each_request_gets_its_own_answers_in_order():
    async def test(queue, asked):
        tasks = [ask(queue, *range(i, i + 3)) for i in range(3)]
        for i, task in enumerate(tasks):
            assert await task == [{"said": n} for n in range(i, i + 3)]
        assert [len(items) for _, items in asked.batches] == [4, 4, 1]

    with_queue(test)


def test_a_batch_is_the_oldest_and_those_nearest_to_it():
    async def test(queue, asked):
        asked.go.clear()
        blocking = ask(queue, 0)
        while not asked.batches:
            await asyncio.sleep(0.001)
        rest = ask(queue, 50, 900, 51, 52, 49, 901)
        await asyncio.sleep(0.03)
        asked.go.set()
        await asyncio.gather(blocking, rest)
        assert asked.batches[1][1] == [50, 51, 49, 52] and sorted(asked.batches[2][1]) == [900, 901]

    with_queue(test)


def test_kinds_are_not_mixed():
    async def test(queue, asked):
        await asyncio.gather(ask(queue, 1, 2), ask(queue, 3, kind="features"), ask(queue, 4))
        assert asked.batches == [("predict", [1, 2, 4]), ("features", [3])]

    with_queue(test)


def test_a_full_queue_says_so_and_takes_more_later():
    async def test(queue, asked):
        asked.go.clear()
        first = ask(queue, 0)
        while not asked.batches:
            await asyncio.sleep(0.001)
        waiting = ask(queue, *range(10))
        await asyncio.sleep(0)
        with pytest.raises(Full) as e:
            await ask(queue, 1)
        assert e.value.after >= 1 and len(queue) == 10
        asked.go.set()
        await asyncio.gather(first, waiting)
        assert await ask(queue, 1) == [{"said": 1}]

    with_queue(test)


def test_requests_that_wait_have_so_many_bytes_together():
    """Those that are being answered among them; what is answered, or given up, makes room."""

    async def test(queue, asked):
        asked.go.clear()
        first = ask(queue, 0, size=60)
        while not asked.batches:
            await asyncio.sleep(0.001)
        with pytest.raises(Full):
            await ask(queue, 1, size=41)
        with pytest.raises(asyncio.TimeoutError):
            await ask(queue, 1, size=40, timeout=0.01)
        second = ask(queue, 2, size=40)
        asked.go.set()
        assert await first == [{"said": 0}] and await second == [{"said": 2}] and queue.held == 0
        assert await ask(queue, 3, size=100) == [{"said": 3}]

    with_queue(test, max_bytes=100)


@pytest.mark.parametrize(("waits", "refused"), [(16, True), (15, False)])
def test_what_would_wait_for_too_long_is_refused_at_once(waits, refused):
    """Four batches of four wait, a tenth of a second an item: the next would not be answered within a second, but perhaps within three."""

    async def test(queue, asked):
        asked.go.clear()
        tasks = [ask(queue, 0)]
        while not asked.batches:
            await asyncio.sleep(0.001)
        tasks.append(ask(queue, *range(waits)))
        await asyncio.sleep(0)
        queue._rate = 0.1
        queue.admit(1, 0, timeout=3.0)
        if refused:
            with pytest.raises(Full) as e:
                queue.admit(1, 0, timeout=1.0)
            assert e.value.after == 2
        else:
            queue.admit(1, 0, timeout=1.0)
        asked.go.set()
        await asyncio.gather(*tasks)

    with_queue(test, max_queue=100)


def test_what_nobody_waits_for_is_not_answered():
    async def test(queue, asked):
        asked.go.clear()
        first = ask(queue, 0)
        while not asked.batches:
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.TimeoutError):
            await ask(queue, 1, timeout=0.01)
        asked.go.set()
        assert await first == [{"said": 0}] and await ask(queue, 2) == [{"said": 2}]
        assert [items for _, items in asked.batches] == [[0], [2]]

    with_queue(test)


def test_a_lost_batch_fails_alone():
    async def test(queue, asked):
        answer = queue.ask

        async def fails_once(kind: str, items: list[Any]) -> Any:
            queue.ask = answer
            raise Lost("gone")

        queue.ask = fails_once
        with pytest.raises(Lost, match="gone"):
            await ask(queue, 1, 2)
        assert await ask(queue, 3) == [{"said": 3}]

    with_queue(test)


def test_answers_that_are_too_few_are_given_to_nobody():
    async def test(queue, asked):
        async def short(kind: str, items: list[Any]) -> Any:
            return [{"said": 1}]

        queue.ask = short
        with pytest.raises(Lost):
            await ask(queue, 1, 2)

    with_queue(test)
