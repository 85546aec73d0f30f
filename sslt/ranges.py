"""Numbers that settings take, written as annotations of a constructor: `def __init__(self, hidden: Count, flip: Share)`.

To Python and to type checkers they are `int` and `float`. `signatures.type_error`, which reads them from the source, refuses a value
out of range when a config is composed, before anything is imported; so it does the verbs' own settings, by `SETTINGS`. What hangs on
other things than the value (the encoder, another setting) is the constructor's to check.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from sslt.errors import UserError

Count = int
Natural = int
Seed = int
Share = float
Fraction = float
Positive = float
NonNegative = float


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` (not itself, where it is `open`) to `high`."""

    whole: bool
    low: float
    high: float
    open: bool
    words: str

    def holds(self, value: Any) -> bool:
        """Whether `value` is a number of this range."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return (self.low < value if self.open else self.low <= value) and value <= self.high


RANGES = {
    "Count": Range(True, 1, math.inf, False, "an int from 1"),
    "Natural": Range(True, 0, math.inf, False, "an int from 0"),
    "Seed": Range(True, 0, 2**32 - 1, False, f"an int from 0 to {2**32 - 1}"),  # scikit-learn's have 32 bits
    "Share": Range(False, 0, 1, False, "a float from 0 to 1"),
    "Fraction": Range(False, 0, 1, True, "a float above 0, at most 1"),
    "Positive": Range(False, 0, math.inf, True, "a float above 0"),
    "NonNegative": Range(False, 0, math.inf, False, "a float from 0"),
}

# Of the verbs' own settings, which no constructor takes: dotted name → annotation. One name means the same in every verb.
SETTINGS = {
    "seed": "Seed",
    "dropout": "Share | None",
    "windows": "Count | str | None",
    "batch_size": "Count",
    "chunk_size": "Count | None",
    "checkpoint.every_minutes": "NonNegative",
    "checkpoint.keep_every_n_epochs": "Natural",
    "default_max_epochs": "Count",
    "most_epochs": "Count | None",
    "online_probe.every_n_epochs": "Natural",
    "online_probe.samples": "Count",
    "default_min_steps": "Natural",
    "interpolate": "list[Share]",
    "ema": "Share | None",
    "val_every_n_epochs": "Natural | None",
    "label_fraction": "Fraction",
    "labels_per_class": "Count | None",
    "knn.k": "Count",
    "knn.temperature": "Positive",
    "shots": "list[Count]",
    "draws": "Count",
    "curve.fractions": "list[Fraction]",
    "tolerance": "Share",
    "batch_sizes": "list[Count]",
    "rounds": "Count",
    "warmup": "Natural",
    "max_seconds": "Positive",
    "threads": "Count | None",
    "max_error": "Positive",
    "port": "Natural",
    "max_batch": "Count",
    "max_wait_ms": "NonNegative",
    "max_queue": "Count",
    "max_queue_bytes": "Count",
    "max_items": "Count",
    "max_bytes": "Count",
    "max_pixels": "Count",
    "max_characters": "Count",
    "timeout": "Positive",
    "hangs": "Positive",
    "restarts": "Natural",
}


def interval(values: Sequence[float], name: str) -> tuple[float, float]:
    """The ends of what `name` is drawn from. Raises `UserError` for what is no interval."""
    if len(values) != 2 or values[0] > values[1]:
        raise UserError(f"{name}={list(values)}: give two numbers, the lower first")
    return float(values[0]), float(values[1])


def is_number(text: str) -> bool:
    """Whether a text is that of a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
