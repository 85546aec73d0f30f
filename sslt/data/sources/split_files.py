"""Sources that are one file for each split."""

from __future__ import annotations

import abc
import functools
from pathlib import Path

from sslt.data.base import SPLITS, Source


class SplitFiles(Source):
    """One file for each split, which subclasses find; their samples are of no classes."""

    @abc.abstractmethod
    def find(self) -> dict[str, Path]:
        """The file of each split."""

    @functools.cached_property
    def files(self) -> dict[str, Path]:
        return self.find()

    def own_splits(self) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if s in self.files)

    @property
    def classes(self) -> None:
        return None
