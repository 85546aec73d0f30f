"""Shoppers who go along the aisles of a shop, made up: histories for a try, and for tests, that need no file."""

from __future__ import annotations

import functools

import numpy as np

from sslt.data import cache
from sslt.data.ragged import Ragged
from sslt.data.sources.interactions import HistorySource, Log
from sslt.ranges import Count, Seed

FORMAT = 1
ALONG, ACROSS = 0.6, 0.2  # chances to take the item beside the last one, and any of the next aisle; else the shelf by the till
LONGEST = 24
TILL = 5  # items that everybody takes


class Aisles(HistorySource):
    """`count` shoppers in a shop of `aisles` aisles with `shelves` items each, and a few items by the till that are popular.

    Of each shopper 4 to 24 items, one after the other: mostly the item beside the last one, else one of the next aisle, else one by the
    till. So what comes next hangs on the order, which counting who took what with what does not see.
    """

    name = "aisles"

    def __init__(self, count: Count, aisles: Count, shelves: Count, seed: Seed):
        self.count, self.aisles, self.shelves, self.seed = count, aisles, shelves, seed

    def fingerprint(self) -> str:
        return cache.digest("Aisles", FORMAT, self.count, self.aisles, self.shelves, self.seed)

    @functools.cached_property
    def log(self) -> Log:
        rng = np.random.default_rng([self.seed, 0xA151E])
        names = [f"aisle {a} shelf {s}" for a in range(self.aisles) for s in range(self.shelves)] + [f"till {i}" for i in range(TILL)]
        return Log(
            [f"shopper {i}" for i in range(self.count)], names, Ragged.of([self._walk(rng) for _ in range(self.count)], np.int64), []
        )

    def _walk(self, rng: np.random.Generator) -> list[int]:
        taken: list[int] = []
        aisle, shelf = int(rng.integers(self.aisles)), int(rng.integers(self.shelves))
        for way in rng.random(int(rng.integers(4, LONGEST + 1))):
            if way < ALONG:
                shelf = (shelf + 1) % self.shelves
            elif way < ALONG + ACROSS:
                aisle, shelf = (aisle + 1) % self.aisles, int(rng.integers(self.shelves))
            till = way >= ALONG + ACROSS
            taken.append(self.aisles * self.shelves + int(rng.integers(TILL)) if till else aisle * self.shelves + shelf)
        return taken
