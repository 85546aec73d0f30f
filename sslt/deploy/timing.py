"""How long calls take: side by side in one process, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

PERCENTILES = (50, 95, 99)
RESAMPLED = 500  # draws of an interval
LEAST = 3  # rounds, however long they take

# The number of a round → what is timed in it; what it needs is made before the clock starts.
Work = Callable[[int], Callable[[], Any]]


def interleaved(
    works: Sequence[Work],
    rounds: int,
    warmup: int,
    max_seconds: float,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[np.ndarray]:
    """Seconds of every call, float64 [rounds] for each of `works`.

    Each round calls each of them once, in a random order, so that none always follows the same other (which leaves its data in the
    caches) and a slow minute is nobody's own. warmup: rounds before that count for nothing, in which memory is allocated and kernels are
    chosen. After `max_seconds` of timed calls for each there are no more rounds, but at least `LEAST`.
    """
    rng = np.random.default_rng(seed)
    found: list[list[float]] = [[] for _ in works]
    spent, allowed = 0.0, max_seconds * len(works)
    for i in range(warmup + rounds):
        for w in rng.permutation(len(works)):
            call = works[w](i)
            start = clock()
            call()
            took = clock() - start
            spent += took
            if i >= warmup:
                found[w].append(took)
        if i < warmup and spent > allowed / 4:  # of slow calls these were warm-up enough
            warmup = i + 1
        if i + 1 - warmup >= min(LEAST, rounds) and spent > allowed:
            break
        if i + 1 - warmup >= rounds:
            break
    return [np.array(seconds) for seconds in found]


def summary(seconds: np.ndarray, batch_size: int) -> dict[str, float]:
    """Percentiles of a call in milliseconds, and samples a second over all of them."""
    found = {f"p{p}_ms": float(1e3 * np.percentile(seconds, p)) for p in PERCENTILES}
    return {**found, "per_second": float(batch_size * len(seconds) / seconds.sum())}


class Speed(NamedTuple):
    """How many times as fast one is as another, with the 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """What that comes to, measured here."""
        told = f"{self.ratio:.2f} times the speed, 95 %: {self.low:.2f} to {self.high:.2f}"
        return f"faster ({told})" if self.low > 1 else f"not faster on this machine ({told})"


def speed(before: np.ndarray, after: np.ndarray) -> Speed:
    """Of `after` against `before`, seconds of the same rounds: the median of their ratios, its interval by a seeded bootstrap."""
    ratios = before / after
    rng = np.random.default_rng(0)
    drawn = np.median(ratios[rng.integers(0, len(ratios), (RESAMPLED, len(ratios)))], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Speed(float(np.median(ratios)), float(low), float(high))
