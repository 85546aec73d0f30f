"""Learning-rate factors as functions of progress, so that one schedule serves epochs, steps and wall-clock alike."""

from __future__ import annotations

import abc
import math

from sslt.errors import UserError
from sslt.ranges import Share


class Schedule(abc.ABC):
    """progress in [0, 1] → factor of the base learning rate. warmup: the share of the run that rises linearly from 0."""

    def __init__(self, warmup: Share):
        if not 0 <= warmup <= 1:
            raise UserError(
                f"schedule.warmup={warmup}: it is a share of the run, 0 to 1 (0.05: the first twentieth), not a number of steps"
            )
        self.warmup = warmup

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return max(progress, 1e-3 * self.warmup) / self.warmup
        return self.after((progress - self.warmup) / max(1 - self.warmup, 1e-9))

    @abc.abstractmethod
    def after(self, p: float) -> float:
        """The factor after warm-up, p in [0, 1]."""


class Cosine(Schedule):
    """Half a cosine from 1 to `final` (Loshchilov & Hutter, 2017, eq. 5, without restarts)."""

    def __init__(self, warmup: Share, final: Share):
        super().__init__(warmup)
        self.final = final

    def after(self, p: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(p, 1.0)))


class Linear(Schedule):
    """A straight line from 1 to `final`."""

    def __init__(self, warmup: Share, final: Share):
        super().__init__(warmup)
        self.final = final

    def after(self, p: float) -> float:
        return 1 + (self.final - 1) * min(p, 1.0)


class Constant(Schedule):
    """1 after warm-up."""

    def after(self, p: float) -> float:
        return 1.0
