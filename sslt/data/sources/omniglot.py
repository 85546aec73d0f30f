"""Omniglot: characters of fifty alphabets, twenty drawings of each (Lake et al., 2015)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.base import Raw
from sslt.data.sources import image_files
from sslt.data.sources.image_files import FolderImages, ImageSource
from sslt.data.sources.image_tables import ParquetTable
from sslt.errors import UserError

# Lake's names of the two halves → the split; in Vinyals' order of use: learn from the background, test on the rest
HALVES = {"train": "background", "test": "evaluation"}


class Omniglot(ImageSource):
    """964 background characters as `train`, 659 others as `test`: grey 105×105 drawings, black on white; encoders get 28×28.

    Looked for in `root` and in `omniglot` and `omniglot-py` below it: `background.parquet` and `evaluation.parquet` (columns
    image, label), or torchvision's folders `images_background/ALPHABET/CHARACTER/*.png` and `images_evaluation/…`.
    Test classes are others than those of train: made for episodes. A turned character is a new one.
    """

    name = "omniglot"
    image_shape = (28, 1)
    new_classes_in_test = True
    turned_is_another_class = True

    def __init__(self, root: str):
        self.root = stored.located(root)

    @cached_property
    def _place(self) -> Path:
        for folder in (self.root / "omniglot", self.root / "omniglot-py", self.root):
            if any(self._half(folder, half) for half in HALVES.values()):
                for half in HALVES.values():
                    if not self._half(folder, half):
                        raise UserError(f"omniglot: {folder} lacks {half}.parquet (or the folder images_{half})")
                return folder
        raise UserError(
            f"omniglot is not in {self.root}: put background.parquet and evaluation.parquet (columns image, label), or the folders "
            f"images_background and images_evaluation, into {self.root / 'omniglot'}"
        )

    @staticmethod
    def _half(folder: Path, half: str) -> Path | None:
        found = (folder / f"{half}.parquet", folder / f"images_{half}")
        return next((place for place in found if place.exists()), None)

    def _where(self, split: str) -> Path:
        place = self._half(self._place, HALVES[split])
        assert place is not None
        return place

    def own_splits(self) -> tuple[str, ...]:
        return tuple(HALVES)

    @cached_property
    def _tables(self) -> dict[str, ParquetTable]:
        return {s: ParquetTable([self._where(s)]) for s in HALVES if self._where(s).suffix == ".parquet"}

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        return {s: image_files.pictures(self._where(s)) for s in HALVES if s not in self._tables}

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Characters of each split, in label order."""
        named = {}
        for split in HALVES:
            if split in self._tables:
                table = self._tables[split]
                for column in ("image", "label"):
                    if column not in table.kinds:
                        raise UserError(f"{self._where(split)} has no column '{column}': it has {', '.join(table.kinds)}")
                named[split] = image_files.class_names([table.values("label")], table.names("label"), str(self._where(split)))
            else:
                named[split] = sorted({self._character(split, file) for file in self._files[split]})
        return named

    def _character(self, split: str, file: Path) -> str:
        return file.parent.relative_to(self._where(split)).as_posix()

    @cached_property
    def classes(self) -> list[str] | None:  # type: ignore[override]
        return [*self._names["train"], *self._names["test"]]

    def read(self, split: str) -> Raw:
        self._check(split)
        names = self._names[split]
        first = 0 if split == "train" else len(self._names["train"])
        if split in self._tables:
            table = self._tables[split]
            labels = image_files.label_indices(table.values("label"), names, f"{self._where(split)}, column 'label'")
            return Raw(table.images("image"), self.as_answers(None if labels is None else labels + first))
        index = {name: first + i for i, name in enumerate(names)}
        files = self._files[split]
        labels = np.array([index[self._character(split, file)] for file in files], np.int64)
        return Raw(FolderImages(files, self._where(split)), self.as_answers(labels))

    def fingerprint(self) -> str:
        return cache.digest("omniglot", [self._digest(split) for split in HALVES])

    def _digest(self, split: str) -> str:
        if split in self._tables:
            return self._tables[split].digest()
        return image_files.folder_digest(self._where(split), self._files[split])
