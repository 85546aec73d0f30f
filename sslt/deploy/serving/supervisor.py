"""Keeps a worker: notices that it is dead or hangs, and starts another one, not for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sslt.deploy.serving.batches import Lost
from sslt.deploy.serving.worker import PING, Worker
from sslt.errors import UserError

log = logging.getLogger("sslt")
LOOKED = 0.25  # seconds between two looks at the worker
IDLE = 2.0  # seconds without a batch after which it is asked whether it is there
SILENT = 10.0  # seconds after which one that is idle and does not answer is taken to hang
FORGIVEN = 600.0  # seconds after which a restart does not count any more
READY, STARTING, DEAD, STOPPED = "ready", "starting", "dead", "stopped"


class Supervisor:
    """A worker that is started again when it is gone.

    restarts: how often within `FORGIVEN` seconds; then it stays dead. hangs: seconds of one batch after which it is killed. told: called
    with each restart.
    """

    def __init__(self, worker: Worker, restarts: int, hangs: float, told: Callable[[], None] = lambda: None):
        self.worker, self.restarts, self.hangs, self.told = worker, restarts, hangs, told
        self.state, self.reason = READY, ""  # the worker was started by whoever made it
        self._past: deque[float] = deque()
        self._one = asyncio.Lock()  # one question at a time is in the pipe
        self._heard = time.monotonic()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="worker")  # where a worker is waited for, and where one is started

    @property
    def healthy(self) -> bool:
        return self.state == READY and self.worker.alive

    async def ask(self, kind: str, items: list[Any]) -> list[dict[str, Any]]:
        """Answers of the worker, which is waited for while it starts. Raises `Lost` where it is gone, or goes."""
        while self.state == STARTING:
            await asyncio.sleep(LOOKED / 5)
        if self.state != READY:
            raise Lost(self.reason)
        async with self._one:
            return await self._asked(kind, items, self.hangs)

    async def _asked(self, kind: str, items: list[Any], timeout: float) -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        try:
            found = await asyncio.wait_for(loop.run_in_executor(self._pool, self.worker.ask, kind, items), timeout)
        except asyncio.TimeoutError:
            self._gone(f"the worker did not answer within {timeout:g} seconds")
            raise Lost(self.reason) from None
        except Lost as e:
            self._gone(str(e))
            raise
        self._heard = time.monotonic()
        return found

    def _gone(self, reason: str) -> None:
        if self.state == READY:
            self.state, self.reason = STARTING, reason

    async def watch(self) -> None:
        """Look after it, for ever."""
        while True:
            await asyncio.sleep(LOOKED)
            if self.state == READY and not self.worker.alive:
                self._gone("the worker is dead")
            if self.state == READY and not self._one.locked() and time.monotonic() - self._heard > IDLE:
                with contextlib.suppress(Lost):
                    async with self._one:
                        await self._asked(PING, [], min(SILENT, self.hangs))
            if self.state == STARTING:
                await self._again()

    async def _again(self) -> None:
        """Start another worker, if it may be; there is none as long as `state` is not ready."""
        log.warning("%s", self.reason)
        loop, now = asyncio.get_running_loop(), time.monotonic()
        await loop.run_in_executor(self._pool, self.worker.kill)
        while self._past and now - self._past[0] > FORGIVEN:
            self._past.popleft()
        if len(self._past) >= self.restarts:
            self.state = DEAD
            log.error("the worker is not started again (restarts=%d within %d minutes)", self.restarts, FORGIVEN / 60)
            return
        self._past.append(now)
        self.told()
        try:
            await loop.run_in_executor(self._pool, self.worker.start)
        except (Lost, UserError) as e:
            self.reason = str(e)
            return  # and once more
        self._heard, self.state, self.reason = time.monotonic(), READY, ""
        log.info("a new worker is ready (process %s)", self.worker.pid)

    async def stop(self) -> None:
        """End the worker; nothing is asked after this."""
        self.state, self.reason = STOPPED, "the server stops"
        await asyncio.get_running_loop().run_in_executor(None, self.worker.stop)
        self._pool.shutdown(wait=False)
