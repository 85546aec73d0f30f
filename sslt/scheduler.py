"""What a run that was saved asks of the scheduler that stops it: to start it again.

SLURM sends TERM before it preempts a job or its time is up, or USR1 or another where `--signal=` asks for it. A job that saves and ends
by itself counts as completed, and is not started again: so it has itself requeued, and waits to be ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator

from sslt import signals
from sslt.errors import AGAIN, INTERRUPTED

log = logging.getLogger("sslt")

_SCHEDULERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name))
_WAIT = 300  # seconds in which a requeued job is ended


def code_of(number: int | None) -> int:
    """The exit code of a run that a signal has stopped and that can be gone on with; under SLURM the job is requeued where it may be."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or number not in _SCHEDULERS:
        return INTERRUPTED
    about = _scontrol("show", "job", "-o", job)
    if about is not None and _cancelled(about):
        return INTERRUPTED
    with _listening() as came:  # requeueing sends a signal, too
        if about is None or _scontrol("requeue", job) is None:
            log.info("SLURM does not requeue job %s: exit code %d says that it is to be started again", job, AGAIN)
            return AGAIN
        log.info("job %s is requeued, and goes on by itself when SLURM starts it again", job)
        until = time.monotonic() + _WAIT
        while not came and time.monotonic() < until:
            time.sleep(0.1)
    return AGAIN


def _cancelled(about: str) -> bool:
    """Whether somebody wants a job to end: it is cancelled, or it ends before its time and was not preempted."""
    said = dict(re.findall(r"(\w+)=(\S+)", about))
    if said.get("JobState") == "COMPLETING":
        spent, limit = (_seconds(said.get(key, "")) for key in ("RunTime", "TimeLimit"))
        return limit is None or spent is None or spent < limit
    return said.get("JobState") == "CANCELLED"


def _seconds(text: str) -> int | None:
    """Of `D-HH:MM:SS`; None of what is none (UNLIMITED)."""
    m = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    return sum(int(x or 0) * unit for x, unit in zip(m.groups(), (86400, 3600, 60, 1), strict=True)) if m else None


def _scontrol(*args: str) -> str | None:
    """What scontrol says; None where it is not there or refuses."""
    try:
        done = subprocess.run(["scontrol", *args], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@contextlib.contextmanager
def _listening() -> Iterator[list[int]]:
    """Signals that come within, which end nothing."""
    came: list[int] = []
    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in signals.ENDING:
            before[number] = signal.signal(number, lambda n, _: came.append(n))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
