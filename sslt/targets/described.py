"""Linear models on descriptions of images: cheap methods are held against them, and late fusion has them beside an encoder.

Solving them is most of what either costs, and is done once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sslt.data.base import Samples
from sslt.encoders.descriptions import DESCRIPTIONS, Description
from sslt.targets.kept import kept

L2 = (1e-1, 1e-2, 1e-3, 1e-4)  # of linear models on standardised features
MOST_IMAGES = 60_000  # that methods learn from: their descriptions stand in memory


Truths = tuple[Tensor, Tensor | None]  # of train and val


class Solver(NamedTuple):
    """How weights are found: (features [N, D], truth, val or None, strengths) → weights, bias and the strength that is best on `val`.

    name: told apart by it on disk, so with the number of answers.
    """

    name: str
    solve: Callable[[Tensor, Tensor, tuple[Tensor, Tensor] | None, tuple[float, ...]], tuple[Tensor, Tensor, float]]


class DescribedRows:
    """Images to learn from, and those of validation, where there are some, by one description."""

    def __init__(self, describe: Description, train: Samples, val: Samples | None):
        self.describe, self._train, self._val = describe, train, val
        self._knows = False  # what `describe` learns from images

    @cached_property
    def train(self) -> Tensor:
        """Features [N, D]."""
        return self._of(self._train)

    @cached_property
    def val(self) -> Tensor | None:
        """Features [M, D]."""
        return None if self._val is None else self._of(self._val)

    def linear(self, solver: Solver, truths: Truths) -> tuple[Tensor, Tensor]:
        """Weights [C, D] and bias [C] (for numbers [D] and one) for the truths of train and val.

        Of the strengths `L2` that which is best on val; without, a middle one. Kept on disk by the content of the rows, with what the
        description learned.
        """
        rows = [None if samples is None else samples.fingerprint for samples in (self._train, self._val)]
        told = [None if truth is None else truth.double() for truth in truths]  # of labels, bool to some
        found = kept("described", [self.describe.name, solver.name, rows, *told], lambda: self._solve(solver, truths))
        weight, bias = found.pop("weight"), found.pop("bias")
        self.describe.load_state_dict(found)
        self._knows = True
        return weight, bias

    def _of(self, samples: Samples) -> Tensor:
        if not self._knows:
            self.describe.learn(self._train)
            self._knows = True
        return self.describe.of(samples)

    def _solve(self, solver: Solver, truths: Truths) -> dict[str, Tensor]:
        x, (y, truth) = self.train, truths
        held = None if self.val is None or truth is None else (self.val, truth)
        weight, bias, _ = solver.solve(x, y, held, L2 if held is not None else L2[1:2])
        return {**self.describe.state_dict(), "weight": weight, "bias": bias}


def by_each_description(train: Samples, val: Samples | None) -> Iterator[DescribedRows]:
    """The rows by every description of images of this size."""
    channels, *sides = train.batch(np.arange(1))["image"].shape[1:]
    for kind in DESCRIPTIONS.values():
        yield DescribedRows(kind(channels, min(sides)), train, val)
