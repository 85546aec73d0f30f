"""The clock: contenders take turns, round after round, so that a machine that slows down slows all of them alike."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch


class Watch:
    """Times `steps` steps after `warm` unmeasured ones. Whoever trains calls `step()` at the end of each."""

    def __init__(self, warm: int, steps: int):
        self.warm, self.total = warm, warm + steps
        self.seen = 0
        self.seconds = float("nan")
        self._started = 0.0

    def step(self) -> None:
        self.seen += 1
        if self.seen == self.warm:
            self._started = now()
        elif self.seen == self.total:
            self.seconds = now() - self._started

    def drive(self, step: Callable[[], Any]) -> None:
        """Call `step` as often as there is something to time."""
        while self.seen < self.total:
            step()
            self.step()


def now() -> float:
    """Seconds of a monotonic clock, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclasses.dataclass
class Contender:
    """`run(watch)` trains until the watch has seen its steps. target: what ours / this should reach; None: no target set.

    tuned: with the backend settings that sslt makes on a GPU (TF32 matmuls, cuDNN's search) instead of torch's own.
    """

    name: str
    precision: str
    run: Callable[[Watch], None]
    target: float | None = None
    tuned: bool = False


@dataclasses.dataclass
class Comparison:
    """Contenders at one task, ours first; a step of each handles `units` of `unit`. threads: of torch (None: as they are)."""

    title: str
    unit: str
    units: int
    contenders: list[Contender]
    warm: int
    steps: int
    threads: int | None = None


def measure(comparison: Comparison, rounds: int) -> dict[str, Any]:
    """Seconds of every contender in every round; medians, and ours / theirs as the median over rounds of their ratio."""
    seconds: dict[str, list[float]] = {c.name: [] for c in comparison.contenders}
    for r in range(rounds):
        for c in comparison.contenders:
            watch = Watch(comparison.warm, comparison.steps)
            with _threads(comparison.threads), backends(c.tuned):
                c.run(watch)
            seconds[c.name].append(watch.seconds)
            rate = comparison.units * comparison.steps / watch.seconds
            print(f"round {r + 1}/{rounds}  {comparison.title}  {c.name}: {rate:,.0f} {comparison.unit}/s", file=sys.stderr)
            gc.collect()
    ours = seconds[comparison.contenders[0].name]
    rows = []
    for i, c in enumerate(comparison.contenders):
        taken = seconds[c.name]
        row: dict[str, Any] = {"name": c.name, "precision": c.precision, "seconds": taken}
        row["per_second"] = comparison.units * comparison.steps / statistics.median(taken)
        if i > 0:
            ratios = [theirs / mine for theirs, mine in zip(taken, ours, strict=True)]
            row.update(ratio=statistics.median(ratios), ratio_range=[min(ratios), max(ratios)], target=c.target)
        rows.append(row)
    threads = comparison.threads or torch.get_num_threads()
    return {"title": comparison.title, "unit": comparison.unit, "threads": threads, "steps": comparison.steps, "rows": rows}


@contextlib.contextmanager
def _threads(n: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def backends(tuned: bool) -> Iterator[None]:
    """sslt sets these for its process; here several programs share one, and each shall find its own."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    if tuned and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]
