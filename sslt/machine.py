"""What a process takes of the machine it is on, and what others leave it."""

from __future__ import annotations

import atexit
import gc
import os
import re
import statistics
import sys
import time
from pathlib import Path

_USUAL = gc.get_threshold()
_RARELY = (200_000, *_USUAL[1:])  # objects more than there were


def collect_rarely() -> None:
    """Have the collector of garbage look at what is new only, and seldom, until `collect_as_usual`: for a process that begins.

    What it imports are half a million objects that stay; going over them again and again takes a seventh of a start.
    """
    gc.set_threshold(*_RARELY)


def collect_as_usual() -> None:
    """Undo `collect_rarely`, leaving what is there by now alone for good; without it, as in a notebook, nothing is changed."""
    if gc.get_threshold() == _RARELY:
        gc.freeze()
        atexit.register(gc.unfreeze)  # extensions (triton) look at the end for what nobody has collected, and complain
        gc.set_threshold(*_USUAL)


def most_resident() -> int:
    """The most bytes that this process has had resident.

    Of Linux by its own status: what `getrusage` says there counts the process that started this one, too.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        return int(found[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def crowded(threads: int, load: Path = Path("/proc/loadavg")) -> str:
    """What there is to say where others keep cores busy that `threads` of this process count on; "" otherwise, and where nobody tells.

    Threads that share a loop wait for the last of them: two on a machine of two cores, one of which somebody else has, were a third to an
    eighteenth as fast as one (SimCLR on CIFAR-10).
    """
    cores = os.cpu_count() or 1
    if threads < 2 or not load.exists():
        return ""
    looks = []
    for _ in range(5):  # what runs or waits for a core at this moment: an average over a minute knows the command before this one
        looks.append(int(load.read_text().split()[3].partition("/")[0]) - 1)
        time.sleep(0.004)
    busy = round(statistics.median(looks))
    if busy < 1 or threads + busy <= cores:
        return ""
    return (
        f"other work keeps {busy} of {cores} cores busy: {threads} threads here wait for one another, and "
        f"OMP_NUM_THREADS={max(1, cores - busy)} may be several times as fast"
    )
