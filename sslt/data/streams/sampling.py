"""Which streams give a batch in a step, where a run has several, and what an epoch of them is."""

from __future__ import annotations

import abc

import numpy as np

from sslt.errors import UserError
from sslt.ranges import Positive


class Sampling(abc.ABC):
    """Step of the run → the streams that give a batch in it, each with its own step.

    A function of the step alone, so that a resumed run goes on in the middle of an epoch. `lengths`: batches per epoch of
    every stream, in order, the task's own first.
    """

    alone = False  # whether a step has one stream only

    @abc.abstractmethod
    def epoch(self, lengths: dict[str, int]) -> int:
        """Steps that make an epoch."""

    @abc.abstractmethod
    def at(self, step: int, lengths: dict[str, int], seed: int) -> dict[str, int]:
        """The streams of global step `step` → the step each is at."""

    @abc.abstractmethod
    def describe(self, lengths: dict[str, int]) -> str:
        """What an epoch is, in words."""


class Together(Sampling):
    """Every stream gives a batch in every step; the first one's end is the epoch's, the others go round."""

    def epoch(self, lengths: dict[str, int]) -> int:
        return next(iter(lengths.values()))

    def at(self, step: int, lengths: dict[str, int], seed: int) -> dict[str, int]:
        return dict.fromkeys(lengths, step)

    def describe(self, lengths: dict[str, int]) -> str:
        first, *others = lengths
        passes = ", ".join(f"{lengths[first] / lengths[k]:.2g} of '{k}'" for k in others)
        return f"an epoch is one pass of '{first}'" + (f" ({passes})" if passes else "")


class Alternating(Sampling):
    """One stream a step, each as often as its quota of an epoch says, in an order drawn by (seed, epoch)."""

    alone = True

    def __init__(self) -> None:
        self._drawn: tuple[tuple[int, int], np.ndarray] | None = None

    @abc.abstractmethod
    def quotas(self, lengths: dict[str, int]) -> np.ndarray:
        """Steps of an epoch that each stream gets."""

    def epoch(self, lengths: dict[str, int]) -> int:
        return int(self.quotas(lengths).sum())

    def at(self, step: int, lengths: dict[str, int], seed: int) -> dict[str, int]:
        quotas = self.quotas(lengths)
        epoch, position = divmod(step, int(quotas.sum()))
        if self._drawn is None or self._drawn[0] != (seed, epoch):
            self._drawn = (seed, epoch), self._order(quotas, seed, epoch)
        order = self._drawn[1]
        which = order[position]
        before = epoch * int(quotas[which]) + int((order[:position] == which).sum())
        return {list(lengths)[which]: before}

    def _order(self, quotas: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch, 0x51EA]).permutation(np.repeat(np.arange(len(quotas)), quotas))

    def describe(self, lengths: dict[str, int]) -> str:
        parts = ", ".join(f"{q} of '{name}'" for name, q in zip(lengths, self.quotas(lengths), strict=True))
        return f"an epoch is {self.epoch(lengths)} steps of one stream each: {parts}"


class RoundRobin(Alternating):
    """The streams in turn; an epoch is one pass of the first, with as many batches of every other."""

    def quotas(self, lengths: dict[str, int]) -> np.ndarray:
        return np.full(len(lengths), next(iter(lengths.values())))

    def _order(self, quotas: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        return np.tile(np.arange(len(quotas)), int(quotas[0]))


class Proportional(Alternating):
    """Streams in proportion to (batches)^(1/temperature): 1 is their size, larger evens it out (Devlin et al., multilingual
    BERT; Arivazhagan et al., 2019, section 4.2). An epoch has as many steps as the streams have batches.
    """

    def __init__(self, temperature: Positive):
        super().__init__()
        if temperature <= 0:
            raise UserError(f"sampling.temperature={temperature}: give more than 0 (1: by size; larger: more even)")
        self.temperature = temperature

    def quotas(self, lengths: dict[str, int]) -> np.ndarray:
        n = np.array(list(lengths.values()), dtype=float)
        share = n ** (1 / self.temperature)
        exact = share / share.sum() * n.sum()
        quotas = np.maximum(np.floor(exact).astype(int), 1)
        for i in np.argsort(np.floor(exact) - exact, kind="stable")[: max(int(n.sum()) - int(quotas.sum()), 0)]:
            quotas[i] += 1
        return quotas
