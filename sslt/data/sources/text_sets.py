"""Text data sets in the layouts they are distributed in."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.base import Raw, Source, check_on_error
from sslt.data.sources import disk, tables
from sslt.data.sources.running_text import read_or_refuse
from sslt.data.sources.texts import content_digest
from sslt.errors import UserError

FORMAT = 1


class Imdb(Source):
    """IMDB film reviews (Maas et al., 2011): the original `aclImdb` folder, or `imdb_{train,test,unsup}.tsv[.xz|.gz]`.

    Looked for in `root`, `root/imdb` and `root/aclImdb`. Unlabeled are the reviews meant for it ("unsup") alone.
    """

    modality = "text"
    name = "imdb"

    def __init__(self, root: str, on_error: str, val_fraction: float):
        self.root, self.on_error, self.val_fraction = stored.located(root), check_on_error(on_error), val_fraction

    @property
    def classes(self) -> list[str]:
        return ["negative", "positive"]

    @functools.cached_property
    def files(self) -> dict[str, list[tuple[Path, int]]]:
        """(file, label) of each split; a table has the label -1, for its labels are inside."""
        for folder in (self.root, self.root / "imdb", self.root / "aclImdb"):
            for found in (self._tables(folder), self._folders(folder)):
                if {"train", "test"} <= found.keys():
                    return found
        raise UserError(
            f"no IMDB data in {self.root}, {self.root}/imdb or {self.root}/aclImdb: unpack aclImdb_v1.tar.gz "
            "(https://ai.stanford.edu/~amaas/data/sentiment) there,\n"
            "or put imdb_train.tsv, imdb_test.tsv and imdb_unsup.tsv there (header: label rating id text; .xz, .gz too)"
        )

    def _tables(self, folder: Path) -> dict[str, list[tuple[Path, int]]]:
        found = {}
        for split, part in (("train", "train"), ("test", "test"), ("unlabeled", "unsup")):
            if file := disk.packed_or_not(folder / f"imdb_{part}.tsv"):
                found[split] = [(file, -1)]
        return found

    def _folders(self, folder: Path) -> dict[str, list[tuple[Path, int]]]:
        found = {split: [(folder / split / c, i) for i, c in enumerate(("neg", "pos"))] for split in ("train", "test")}
        found["unlabeled"] = [(folder / "train" / "unsup", 0)]
        files = {s: [(f, i) for c, i in where for f in sorted(c.glob("*.txt"))] for s, where in found.items()}
        return {split: some for split, some in files.items() if some}

    def own_splits(self) -> tuple[str, ...]:
        return tuple(self.files)

    def fingerprint(self) -> str:
        content = [
            (split, content_digest([f for f, _ in some]), cache.digest([label for _, label in some])) for split, some in self.files.items()
        ]
        return cache.digest("Imdb", FORMAT, content, self.on_error)

    def read(self, split: str) -> Raw:
        skipped: list[str] = []
        texts: list[str] = []
        labels: list[int] = []
        for file, label in self.files[split]:
            if label < 0:
                texts, labels, skipped = self._read_table(file, split)
            elif (text := read_or_refuse(file, self.on_error, skipped)) is not None:
                texts.append(text)
                labels.append(label)
        texts = [_BREAKS.sub("\n", text) for text in texts]
        return Raw(texts, None if split == "unlabeled" else self.as_answers(np.array(labels, np.int64)), skipped)

    def _read_table(self, file: Path, split: str) -> tuple[list[str], list[int], list[str]]:
        table = tables.open_table(file, "\t", True)
        text, label = tables.choose_columns(table, "text", None if split == "unlabeled" else "label")
        texts, names, skipped = tables.read_rows(table, text, None if split == "unlabeled" else label, self.on_error)
        codes = {"0": 0, "neg": 0, "negative": 0, "1": 1, "pos": 1, "positive": 1}
        if unknown := set(names or []) - codes.keys():
            raise UserError(f"{file}: label '{min(unknown)}'; expected 0 (negative) or 1 (positive)")
        return texts, [codes[name] for name in names or []], skipped


class AgNews(Source):
    """AG News (Zhang et al., 2015): train and test as CSV (label 1 to 4, title, description) or as Parquet.

    Looked for in `root/ag_news` and `root`. Raises `UserError` saying which files to put where.
    """

    modality = "text"
    name = "ag_news"

    def __init__(self, root: str, val_fraction: float):
        self.root, self.val_fraction = stored.located(root), val_fraction

    @property
    def classes(self) -> list[str]:
        return ["World", "Sports", "Business", "Sci/Tech"]

    @functools.cached_property
    def files(self) -> dict[str, list[Path]]:
        for folder in (self.root / "ag_news", self.root / "ag_news" / "data", self.root):
            found = {s: self._files(folder, s) for s in ("train", "test")}
            if all(found.values()):
                return found
        raise UserError(
            f"no AG News data in {self.root}/ag_news: put train.csv and test.csv there (columns: class 1 to 4, title, "
            "description; .xz, .gz too),\nor the Parquet files of 'ag_news' of the Hugging Face hub"
        )

    @staticmethod
    def _files(folder: Path, split: str) -> list[Path]:
        plain = disk.packed_or_not(folder / f"{split}.csv")
        return [plain] if plain else sorted(folder.glob(f"{split}*.parquet"))

    def own_splits(self) -> tuple[str, ...]:
        return tuple(self.files)

    def fingerprint(self) -> str:
        content = [(s, [disk.suffix(f) for f in fs], content_digest(fs)) for s, fs in self.files.items()]
        return cache.digest("AgNews", FORMAT, content)

    def read(self, split: str) -> Raw:
        texts: list[str] = []
        labels: list[int] = []
        for file in self.files[split]:
            for where, label, text in self._rows(file):
                if label not in range(len(self.classes)) or not text.strip():
                    raise UserError(f"{file}, {where}: expected a class and a text, as AG News has them")
                # The set's authors wrote a backslash for a line break.
                texts.append(text.replace("\\", " "))
                labels.append(label)
        return Raw(texts, self.as_answers(np.array(labels, np.int64)))

    @staticmethod
    def _rows(file: Path) -> Iterator[tuple[str, int, str]]:
        """(place, class index, text) of every row; the index is -1 where the row has no class."""
        if disk.suffix(file) == ".parquet":
            for row in tables.ParquetTable(file).rows(["label", "text"]):
                yield row.where, int(row.values[0]), str(row.values[1])
            return
        table = tables.open_table(file, ",", False)
        for number, row in enumerate(table.rows(table.columns)):
            fields = [str(v).strip() for v in row.values]
            if number == 0 and fields and not fields[0].isdecimal():
                continue  # a header
            label = int(fields[0]) - 1 if fields and fields[0].isdecimal() else -1
            yield row.where, label, " ".join(fields[1:])


class Clinc150(Source):
    """What is asked of an assistant, 150 intents and `oos`, none of them (CLINC150: Larson et al., 2019): `data_full.json[.xz|.gz]`.

    Looked for in `root/clinc150` and `root`. Out of scope is a class like the others: `class/oos/recall` says how much of it is found.
    """

    modality = "text"
    name = "clinc150"

    def __init__(self, root: str):
        self.root = stored.located(root)

    @functools.cached_property
    def file(self) -> Path:
        for folder in (self.root / "clinc150", self.root):
            if found := disk.packed_or_not(folder / "data_full.json"):
                return found
        raise UserError(f"no CLINC150 in {self.root}/clinc150: put data_full.json there (https://github.com/clinc/oos-eval; .xz, .gz too)")

    @functools.cached_property
    def rows(self) -> dict[str, list[tuple[str, str]]]:
        """(text, intent) of each split."""
        try:
            told = json.loads(disk.read_text(self.file))
            return {s: [(str(t), str(intent)) for part in (s, f"oos_{s}") for t, intent in told[part]] for s in ("train", "val", "test")}
        except (ValueError, TypeError, KeyError) as e:
            raise UserError(f"{self.file}: not CLINC150, lists of [text, intent] for train, oos_train, val, … ({e})") from e

    def own_splits(self) -> tuple[str, ...]:
        return ("train", "val", "test")

    @functools.cached_property
    def classes(self) -> list[str]:
        return sorted({intent for _, intent in self.rows["train"]})

    def fingerprint(self) -> str:
        return cache.digest("Clinc150", FORMAT, content_digest([self.file]))

    def read(self, split: str) -> Raw:
        number = {name: i for i, name in enumerate(self.classes)}
        if unknown := {intent for _, intent in self.rows[split]} - number.keys():
            raise UserError(f"{self.file}: intent '{min(unknown)}' of {split} does not occur in train")
        labels = np.array([number[intent] for _, intent in self.rows[split]], np.int64)
        return Raw([text for text, _ in self.rows[split]], self.as_answers(labels))


_BREAKS = re.compile(r"(?:\s*<br\s*/?>)+\s*", re.IGNORECASE)
