"""What ranks agree on between steps, every few of them: whether somebody stops the run, whether to save, and what time it is."""

from __future__ import annotations

import time
from collections.abc import Callable

from sslt import distributed

ANSWERED = 0.5  # seconds, about, after which all ranks know what one of them wants
MOST = 64  # steps from one agreement to the next


class Agreement:
    """Ranks speak with each other after steps that all of them know to be due: as many apart as take `within` seconds.

    Between two agreements each reckons the time from what was agreed, so that the learning rate of a run that is bounded by time is the
    same on all. With one process the time is the clock's, and every step is one of agreement.
    """

    def __init__(self) -> None:
        self.within = ANSWERED
        self.asked: Callable[[], list[bool]] = list  # this rank's flags
        self.told: list[bool] = []  # those that are true on some rank; empty after a step without agreement
        self._every, self._since, self._began = 1, 0, 0.0
        self._elapsed = self._a_step = 0.0  # seconds: rank 0's, at the last agreement; of a step of the slowest rank

    def start(self, elapsed: float) -> None:
        """Begin to count steps; elapsed: seconds trained so far, by this rank's clock."""
        self._every, self._since, self._began = 1, 0, time.monotonic()
        self._elapsed, self._a_step = distributed.broadcast_object(elapsed), 0.0

    def elapsed(self, own: float) -> float:
        """Seconds trained, the same on every rank; own: by this rank's clock."""
        return self._elapsed + self._since * self._a_step if distributed.active() else own

    def meet(self, elapsed: float, due: bool) -> None:
        """After every step. due: agree now in any case; the same on every rank."""
        self._since += 1
        if not (due or self._since >= self._every or not distributed.active()):
            self.told = []
            return
        clock = elapsed if distributed.rank() == 0 else 0.0
        a_step = (time.monotonic() - self._began) / self._since
        *flags, self._elapsed, self._a_step = distributed.largest([*map(float, self.asked()), clock, a_step])
        self.told = [bool(flag) for flag in flags]
        self._every = max(min(int(self.within / max(self._a_step, 1e-9)), 2 * self._every, MOST), 1)
        self._since, self._began = 0, time.monotonic()
