"""Signals that would end a run: at once where nothing is lost by it, or at the next step, where a checkpoint is written first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

# All that end a process unless they are caught and that somebody sends: a terminal that closes, Ctrl-C and Ctrl-\, kill, schedulers
# (USR1 and USR2 before the time is up, XCPU), timers, a power supply. Those that tell of a defect (SEGV, ABRT, …) are left alone.
_NAMES = "SIGHUP SIGINT SIGQUIT SIGTERM SIGUSR1 SIGUSR2 SIGALRM SIGVTALRM SIGPROF SIGXCPU SIGIO SIGPWR"
ENDING = tuple(getattr(signal, name) for name in _NAMES.split() if hasattr(signal, name))


class Stopped(BaseException):
    """A signal ended the run where it was. No `Exception`, so that nobody on the way takes it for a mistake."""

    def __init__(self, number: int):
        super().__init__(name(number))
        self.number = number


class Interrupted(Exception):
    """The user or the scheduler stopped a run at a step; its checkpoint is written. number: of the signal, where it is known."""

    def __init__(self, step: int, number: int | None = None):
        super().__init__(f"{f'{name(number)} came: ' if number else ''}stopped at step {step}")
        self.number = number


class Ended(Interrupted):
    """Ranks of this command were interrupted, which said so: the text is theirs."""

    def __init__(self, said: str, number: int | None):
        Exception.__init__(self, said)
        self.number = number


class Left(Exception):
    """Measuring was left because a signal came: the run is saved as it is, and owes it to whoever goes on."""


def name(number: int) -> str:
    """ "SIGTERM", say."""
    return signal.Signals(number).name


def ended_by(number: int) -> str:
    """How a process was ended that a signal has ended, in words."""
    return f"ended by signal {number}{', perhaps because memory ran out' if number == signal.SIGKILL else ''}"


_waiting: Watch | None = None  # the last that was started and waits
_leavable = False


@contextlib.contextmanager
def leavable() -> Iterator[None]:
    """Within, what measures for long looks at `leave()` now and then, and raises `Left` once it is true on some rank."""
    global _leavable
    _leavable = True
    try:
        yield
    finally:
        _leavable = False


def may_leave() -> bool:
    """Whether measuring may be left where the program is; the same on every rank."""
    return _leavable


def leave() -> bool:
    """Whether it may, and a signal that ends the run came to this process."""
    return _leavable and _waiting is not None and _waiting.came is not None


class Watch:
    """Takes over the signals of `ENDING` from `start` to `stop`, or within a `with`; `came` is the first that arrived.

    waits: remember it only, for whoever looks at `came`; otherwise `Stopped` is raised where the program is. More signals change
    nothing (a closing terminal sends several), except that a second Ctrl-C raises even while one waits; not while `writing`, though.
    What is ignored stays so (nohup), and so does what somebody else has a handler for. In another thread than the main one it does
    nothing.
    """

    def __init__(self, waits: bool = False):
        self.waits = waits
        self.came: int | None = None
        self.writing = False
        self._before: dict[int, Any] = {}

    def start(self) -> None:
        global _waiting
        if self.waits:
            _waiting = self
        with contextlib.suppress(ValueError):  # not in the main thread
            for number in ENDING:
                handler = signal.getsignal(number)
                if handler in (signal.SIG_DFL, signal.default_int_handler) or isinstance(getattr(handler, "__self__", None), Watch):
                    signal.signal(number, self._arrived)
                    self._before[number] = handler

    def stop(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def _arrived(self, number: int, frame: Any) -> None:
        first = self.came is None
        if first:
            self.came = number
        if not self.writing and (not self.waits if first else number == signal.SIGINT):
            raise Stopped(number)
