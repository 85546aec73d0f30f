"""Summaries and translations in the layouts they are distributed in."""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator
from pathlib import Path

from sslt import stored
from sslt.data import cache
from sslt.data.base import SPLITS
from sslt.data.sources import disk, tables
from sslt.data.sources.text_to_text import FORMAT, ToTexts, Written, aligned, table_rows
from sslt.data.sources.texts import content_digest
from sslt.errors import UserError


class _Distributed(ToTexts):
    """A data set of files with known names, in `root` or a folder of its own in it, packed or not."""

    folders: tuple[str, ...]
    needs: str

    def __init__(self, root: str):
        self.root = stored.located(root)

    @abc.abstractmethod
    def names(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """For each split the names that its files may have, a tuple for each file."""

    @functools.cached_property
    def files(self) -> dict[str, list[Path]]:
        for folder in (*(self.root / name for name in self.folders), self.root):
            found: dict[str, list[Path]] = {}
            for split, wanted in self.names().items():
                there = [next((f for n in several if (f := disk.packed_or_not(folder / n))), None) for several in wanted]
                if all(there):
                    found[split] = [f for f in there if f is not None]
            if self.enough(found):
                return found
        wanted_files = ", ".join(several[0] for each in self.names().values() for several in each)
        raise UserError(f"no {self.name} data in {self.root / self.folders[0]}: put {wanted_files} there ({self.needs}; .xz, .gz too)")

    def enough(self, found: dict[str, list[Path]]) -> bool:
        return {"train", "test"} <= found.keys()

    def own_splits(self) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if s in self.files)

    def fingerprint(self) -> str:
        return cache.digest(type(self).__name__, FORMAT, self.language, [(s, content_digest(fs)) for s, fs in self.files.items()])


class SciTldr(_Distributed):
    """Abstracts of papers and sentences that sum them up, one to four each (SciTLDR-A: Cachola et al., 2020). A line is a sentence."""

    name, language = "scitldr", "en"
    folders = ("scitldr", "SciTLDR-A")
    needs = "https://github.com/allenai/scitldr, SciTLDR-A"

    def names(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        return {"train": (("train.jsonl",),), "val": (("dev.jsonl",),), "test": (("test.jsonl",),)}

    def rows(self, split: str) -> Iterator[Written]:
        return table_rows(tables.JsonTable(self.files[split][0]), "source", ["target"])


class DialogSum(_Distributed):
    """Dialogues of everyday life and their summaries; three references in test (DialogSum: Chen et al., 2021).

    Where there is no train file, dev is the training data, of which validation is then drawn.
    """

    name, language = "dialogsum", "en"
    folders = ("dialogsum-devtest", "dialogsum", "DialogSum_Data")
    needs = "https://github.com/cylnlp/dialogsum, DialogSum_Data"

    def __init__(self, root: str, val_fraction: float):
        super().__init__(root)
        self.val_fraction = val_fraction

    def names(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        return {split: ((f"dialogsum.{part}.jsonl", f"{part}.jsonl"),) for split, part in
                (("train", "train"), ("val", "dev"), ("test", "test"))}  # fmt: skip

    def enough(self, found: dict[str, list[Path]]) -> bool:
        if "train" not in found and {"val", "test"} <= found.keys():
            found["train"] = found.pop("val")
        return super().enough(found)

    def rows(self, split: str) -> Iterator[Written]:
        table = tables.JsonTable(self.files[split][0])
        return table_rows(table, "dialogue", [c for c in ("summary", "summary1", "summary2", "summary3") if c in table.columns])

    def remarks(self, split: str) -> list[str]:
        file = self.files["train"][0]
        if split != "train" or "dev" not in file.name:
            return []
        return [f"dialogsum: there is no train file, so that {file.name} is learned from, and validation is a part of it"]


class Multi30k(_Distributed):
    """Captions of pictures and their translations (Multi30k, task 1: Elliott et al., 2016), test of 2016; pair: FROM-TO, as en-de."""

    name = "multi30k"
    folders = ("multi30k", "multi30k/data/task1/raw", "dataset/data/task1/raw")
    needs = "https://github.com/multi30k/dataset, data/task1/raw"
    LANGUAGES = ("en", "de", "fr", "cs")

    def __init__(self, root: str, pair: str):
        super().__init__(root)
        self.pair = tuple(str(pair).split("-"))
        if len(self.pair) != 2 or self.pair[0] == self.pair[1] or any(side not in self.LANGUAGES for side in self.pair):
            raise UserError(f"data.pair={pair}: give two of {', '.join(self.LANGUAGES)}, as en-de")
        self.language = self.pair[1]

    def names(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        parts = (("train", ("train",)), ("val", ("val",)), ("test", ("test_2016_flickr", "test2016")))
        return {split: tuple(tuple(f"{part}.{side}" for part in some) for side in self.pair) for split, some in parts}

    def rows(self, split: str) -> Iterator[Written]:
        return aligned(*self.files[split])

    def fingerprint(self) -> str:
        return cache.digest(super().fingerprint(), self.pair)
