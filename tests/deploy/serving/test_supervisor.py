"""Protects a server from its worker: one that is killed, hangs or cannot be started shows, and is started again, not for ever."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sslt.deploy.serving import supervisor
from sslt.deploy.serving.batches import Lost
from sslt.deploy.serving.supervisor import Supervisor
from sslt.deploy.serving.worker import Worker
from sslt.errors import UserError

# A model that dies of "die", sleeps at "sleep", and otherwise repeats what it is asked.
MODEL = """
import os, time
from pathlib import Path
from sslt.deploy.serving.worker import attend
from sslt.errors import UserError

class Model:
    def info(self):
        return {"pid": os.getpid(), "secret": os.environ.get("SSLT_API_KEY"), "waits": os.environ.get("OMP_WAIT_POLICY")}

    def answers(self, kind, items):
        if "die" in items:
            os._exit(7)
        if "sleep" in items:
            time.sleep(60)
        return [{"said": item} for item in items]

def work(pipe, folder):
    def opened():
        if (Path(folder) / "broken").exists():
            raise UserError("the folder is broken")
        return Model()

    return attend(pipe, opened)
"""


@pytest.fixture
def worker(own_code: Path, monkeypatch: pytest.MonkeyPatch):
    (own_code / "echoing.py").write_text(MODEL)
    monkeypatch.setenv("SSLT_API_KEY", "a-key")
    monkeypatch.setattr(supervisor, "IDLE", 0.2)
    assert str(own_code) in sys.path
    made = Worker("echoing:work", [str(own_code)], hidden=("SSLT_API_KEY",))
    yield made
    made.kill()


def watched(worker: Worker, test: Callable[[Supervisor], Awaitable[None]], restarts: int = 3, hangs: float = 20.0) -> None:
    worker.start()

    async def whole() -> None:
        watcher = Supervisor(worker, restarts, hangs)
        watching = asyncio.create_task(watcher.watch())
        try:
            await asyncio.wait_for(test(watcher), 60)
        finally:
            watching.cancel()
            await watcher.stop()

    asyncio.run(whole())
    assert not worker.alive


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def test_a_worker_answers_knows_no_key_and_waits_asleep(worker, monkeypatch):
    """Unless the user has its threads wait otherwise."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    told = worker.start()
    assert told == {"pid": worker.pid, "secret": None, "waits": "PASSIVE"}
    assert worker.ask("predict", [1, b"2"]) == [{"said": 1}, {"said": b"2"}]
    worker.stop()
    assert not worker.alive
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert worker.start()["waits"] == "ACTIVE"


def test_a_mistake_of_its_start_is_told(worker, own_code):
    (own_code / "broken").touch()
    with pytest.raises(UserError, match="the folder is broken"):
        worker.start()
    assert not worker.alive


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_idly_is_noticed_and_replaced(worker, number):
    async def test(watcher):
        pid = worker.pid
        os.kill(pid, number)
        await until(lambda: not watcher.healthy)
        await until(lambda: watcher.healthy)
        assert worker.pid != pid and await watcher.ask("predict", ["x"]) == [{"said": "x"}]

    watched(worker, test, hangs=1.0)


@pytest.mark.parametrize("item", ["die", "sleep"])
def test_what_kills_a_worker_fails_and_the_next_is_answered(worker, item):
    async def test(watcher):
        with pytest.raises(Lost, match=r"code 7|within 1 seconds"):
            await watcher.ask("predict", [item])
        assert not watcher.healthy
        assert await watcher.ask("predict", ["x"]) == [{"said": "x"}]  # waits for the new one

    watched(worker, test, hangs=1.0)


def test_restarts_have_an_end(worker):
    async def test(watcher):
        for _ in range(2):
            with pytest.raises(Lost):
                await watcher.ask("predict", ["die"])
        await until(lambda: watcher.state == supervisor.DEAD)
        began = time.monotonic()
        with pytest.raises(Lost, match="code 7"):
            await watcher.ask("predict", ["x"])
        assert time.monotonic() - began < 5 and not watcher.healthy

    watched(worker, test, restarts=1)


def test_a_worker_that_cannot_be_started_again_stays_dead(worker, own_code):
    async def test(watcher):
        (own_code / "broken").touch()
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: watcher.state == supervisor.DEAD)
        assert watcher.reason == "the folder is broken"

    watched(worker, test, restarts=2)
