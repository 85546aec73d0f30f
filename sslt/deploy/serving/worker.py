"""The process that has the model, and the end of the pipe to it.

A process of its own: what kills it (memory, a fault in a library) does not take the server along, whose event loop it never makes wait.
Its threads sleep while they wait for one another (`OMP_WAIT_POLICY`, unless the user has set it): those that look round and round for
work keep the event loop from its core (a bag of words on two cores: 980 requests a second at a p99 of 250 ms, and 1,512 so).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

from sslt import signals
from sslt.deploy.serving.batches import Lost
from sslt.errors import UserError

START = 900.0  # seconds that opening a model may take
PING = "ping"
# Modules are looked for where the server finds them, as in `processes`.
_CODE = "import sys; sys.path[:] = {!r}; from {} import {}; raise SystemExit({}({}, *{!r}))"


class Worker:
    """A process that answers. All methods block.

    entry: "module:function", which is called there with the number of the pipe and `args`, and calls `attend`. hidden: names of environment
    variables that it does not get.
    """

    def __init__(self, entry: str, args: Sequence[str], hidden: Sequence[str] = ()):
        self.entry, self.args, self.hidden = entry, list(args), hidden
        self.process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def start(self) -> dict[str, Any]:
        """Start it and wait until its model is open; returns what that says of itself. Raises `UserError` with what the worker raised."""
        self.kill()
        ours, theirs = Pipe()
        module, _, function = self.entry.partition(":")
        code = _CODE.format(sys.path, module, function, function, theirs.fileno(), self.args)
        env = {"OMP_WAIT_POLICY": "PASSIVE", **{k: v for k, v in os.environ.items() if k not in self.hidden}}
        with contextlib.closing(theirs):
            # a session of its own: Ctrl-C in the terminal is the server's to answer
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._pipe = ours
        ready, told = self._receive(START)
        if not ready:
            self.kill()
            raise UserError(told)
        return told

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def ask(self, kind: str, items: list[Any]) -> list[dict[str, Any]]:
        """The answers to the items. Raises `Lost` where the process is gone."""
        try:
            assert self._pipe is not None
            self._pipe.send((kind, items))
        except (OSError, AssertionError) as e:
            raise Lost(self._how()) from e
        return self._receive(None)[1]

    def _receive(self, timeout: float | None) -> Any:
        assert self._pipe is not None
        try:
            if not self._pipe.poll(timeout):
                raise Lost(f"the worker did not answer within {timeout} seconds")
            return self._pipe.recv()
        except (EOFError, OSError) as e:
            raise Lost(self._how()) from e

    def _how(self) -> str:
        """How it ended."""
        if self.process is None:
            return "there is no worker"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        code = self.process.poll()
        if code is None:
            return "the worker does not answer"
        return f"the worker was {signals.ended_by(-code)}" if code < 0 else f"the worker ended with code {code}"

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def stop(self) -> None:
        """End it when it is done with what it has."""
        if self._pipe is not None and self.process is not None:
            self._pipe.close()
            self._pipe = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        self.kill()


def attend(number: int, open_model: Callable[[], Any]) -> int:
    """In the worker: open the model and answer what comes through the pipe `number`, until its other end is closed.

    open_model: gives what has `info` and `answers`. Returns the exit code.
    """
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the server lets it finish, and closes the pipe then
        signal.signal(name, signal.SIG_IGN)
    pipe = Connection(number)
    try:
        model = open_model()
        pipe.send((True, model.info()))
    except UserError as e:
        pipe.send((False, str(e)))
        return 2
    with contextlib.suppress(EOFError, OSError):
        while True:
            kind, items = pipe.recv()
            pipe.send((True, [] if kind == PING else model.answers(kind, items)))
    return 0
