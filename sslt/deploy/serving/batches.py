"""Items of many requests, answered together: what waits, who goes with whom, and what happens to who cannot be answered."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

# `asyncio.wait_for` would start a task each time
if sys.version_info >= (3, 11):
    from asyncio import timeout as within
else:
    from async_timeout import timeout as within

KNOWN = 4  # batches that wait before anything follows from how long others took
Answer = dict[str, Any]
Ask = Callable[[str, list[Any]], Awaitable[list[Answer]]]


class Full(Exception):
    """There is no room for more; after: seconds after which there may be."""

    def __init__(self, after: int):
        super().__init__("too much waits to be answered")
        self.after = after


class Lost(Exception):
    """Nobody answers these items: what answered them is gone."""


class Watcher(Protocol):
    """Who is told of batches."""

    def batch(self, items: int) -> None: ...


@dataclasses.dataclass(eq=False)
class Job:
    """One item. kind: what is asked about it; size: by which items are alike; arrived: on the queue's clock, in seconds."""

    kind: str
    item: Any
    size: int
    arrived: float
    answer: asyncio.Future[Answer]


class BatchQueue:
    """Gathers items into batches and has them answered, one batch at a time.

    A batch is the oldest item and those of its kind that are nearest to it in size, at most `max_batch`. While nothing else is being
    answered it waits for more until its oldest item has waited `max_wait` seconds; what waits behind a batch that is being answered has
    waited long enough.

    At most `max_queue` items wait, of requests that have at most `max_bytes` together, and not where they would wait for longer than their
    request may take: what a short halt leaves is answered, and what is more than the machine can do is refused at once.

    ask: (kind, items) → an answer each, in their order; an exception is that of all of them. What nobody waits for any more is left out.
    """

    def __init__(
        self, ask: Ask, max_batch: int, max_wait: float, max_queue: int, max_bytes: float = math.inf, watcher: Watcher | None = None
    ):
        self.ask, self.max_batch, self.max_wait, self.max_queue, self.max_bytes = ask, max_batch, max_wait, max_queue, max_bytes
        self.watcher = watcher
        self.waiting: list[Job] = []
        self.answering = 0  # items in the batch that is being answered
        self.held = 0  # bytes of the requests that are not answered
        self._news = asyncio.Event()
        self._rate = 0.0  # seconds that an item took lately

    def __len__(self) -> int:
        return len(self.waiting)

    def admit(self, items: int, size: int, timeout: float) -> None:
        """Raises `Full` where so many more items, of a request of so many bytes, do not fit or would not be answered in `timeout` seconds.

        How long they would wait is taken from how long others did, once these are enough (`KNOWN` batches).
        """
        late = len(self.waiting) >= KNOWN * self.max_batch and self._left() > timeout
        if late or len(self.waiting) + items > self.max_queue or self.held + size > self.max_bytes:
            raise Full(self.seconds_left())

    async def answers(self, kind: str, items: Sequence[Any], sizes: Sequence[int], timeout: float, size: int = 0) -> list[Answer]:
        """The answers to the items of one request of `size` bytes, in their order.

        Raises `Full` where they do not fit, `asyncio.TimeoutError` after `timeout` seconds, and what `ask` raises.
        """
        self.admit(len(items), size, timeout)
        now, loop = time.monotonic(), asyncio.get_running_loop()
        jobs = [Job(kind, item, size, now, loop.create_future()) for item, size in zip(items, sizes, strict=True)]
        self.waiting += jobs
        self.held += size
        self._news.set()
        try:
            async with within(timeout):
                return [await job.answer for job in jobs]
        finally:  # those that are not answered are wanted by nobody
            self.held -= size
            for job in jobs:
                job.answer.cancel()

    def seconds_left(self) -> int:
        """About how long all that waits will take, in whole seconds, at least 1."""
        return max(1, math.ceil(self._left()))

    def _left(self) -> float:
        return self._rate * (len(self.waiting) + self.answering)

    # ---------------------------------------------------------------- who goes with whom
    async def run(self) -> None:
        """Answer what comes, for ever."""
        while True:
            batch = await self.next_batch()
            if batch:
                await self._answer(batch)

    async def next_batch(self) -> list[Job]:
        """Wait for a batch and take it; [] where nobody wants it any more."""
        while not self._wanted():
            self._news.clear()
            await self._news.wait()
        while (first := self._oldest()) is not None:
            alike = [job for job in self.waiting if job.kind == first.kind]
            left = first.arrived + self.max_wait - time.monotonic()
            if len(alike) >= self.max_batch or left <= 0:
                alike.sort(key=lambda job: (job is not first, abs(job.size - first.size)))  # stable: of equal ones the older
                batch = alike[: self.max_batch]
                taken = set(map(id, batch))
                self.waiting = [job for job in self.waiting if id(job) not in taken]
                return batch
            self._news.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                async with within(left):
                    await self._news.wait()
        return []

    def _wanted(self) -> list[Job]:
        self.waiting = [job for job in self.waiting if not job.answer.done()]
        return self.waiting

    def _oldest(self) -> Job | None:
        return next(iter(self._wanted()), None)

    async def _answer(self, batch: list[Job]) -> None:
        began, self.answering = time.monotonic(), len(batch)
        if self.watcher is not None:
            self.watcher.batch(len(batch))
        try:
            found = await self.ask(batch[0].kind, [job.item for job in batch])
            if len(found) != len(batch):
                raise Lost(f"{len(found)} answers to {len(batch)} items")
            for job, answer in zip(batch, found, strict=True):
                if not job.answer.done():
                    job.answer.set_result(answer)
        except Exception as e:
            for job in batch:
                if not job.answer.done():
                    job.answer.set_exception(e)
                    job.answer.exception()  # its request may have another's already
        finally:
            took = (time.monotonic() - began) / len(batch)
            self._rate = took if not self._rate else 0.8 * self._rate + 0.2 * took
            self.answering = 0
