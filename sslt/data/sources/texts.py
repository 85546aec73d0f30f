"""Sources of text in tables, and what sources share that are files: their digest, their names, their splits."""

from __future__ import annotations

import abc
import functools
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.answers import Class, Labels, Number, Space
from sslt.data.base import SPLITS, Raw, Source, check_on_error
from sslt.data.sources import disk, hub, tables
from sslt.data.sources.answer_columns import AnswerColumns
from sslt.data.sources.tables import Table
from sslt.errors import UserError

log = logging.getLogger("sslt")

FORMAT = 1
SPLIT_WORDS = {
    "train": "train", "training": "train", "dev": "val", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "unlabeled": "unlabeled", "unlabelled": "unlabeled", "unsup": "unlabeled",
    "unsupervised": "unlabeled",
}  # fmt: skip
_SHARD = re.compile(r"\d+-of-\d+")
_MANY = 64  # more files than this are remembered together, not one by one


def content_digest(files: Sequence[Path]) -> str:
    """Digest of the contents of `files` in this order; read once as long as none of them changes.

    What cannot be read has no content here: reading the samples names it, or leaves it out.
    """
    if len(files) <= _MANY:
        return cache.digest([_unless_unreadable(cache.file_digest, f) for f in files])
    stats = [_unless_unreadable(Path.stat, f) for f in files]

    def read(_: Path | None = None) -> dict[str, Any]:
        return {"digest": cache.digest([_unless_unreadable(_blake, f) for f in files])}

    newest = max((s.st_mtime_ns for s in stats if s is not None), default=0)
    if None in stats or time.time_ns() - newest < 2_000_000_000:  # files still being written may change within their timestamps
        return read()["digest"]
    key = cache.digest([(str(f.resolve()), s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True) if s])
    return cache.get_or_make("folders", key, read).meta["digest"]


def _unless_unreadable(read: Callable[[Path], Any], file: Path) -> Any:
    """What `read` says of a file; None of one that is none, or locked."""
    try:
        with disk.reading(file):
            return read(file)
    except UserError:
        return None


def _blake(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=10).hexdigest()


def unpacked_bytes(files: Sequence[Path]) -> int:
    """About how many bytes of text there are in files, packed ones taken for eight times their size."""
    return sum(f.stat().st_size * (8 if disk.is_packed(f) else 1) for f in files if stored.is_file(f))


def split_of(name: str) -> str | None:
    """The split a file's name speaks of: `imdb_train.tsv.xz` -> "train"."""
    return next((SPLIT_WORDS[w] for w in re.split(r"[^a-z]+", name.lower()) if w in SPLIT_WORDS), None)


def name_of(path: Path) -> str:
    """A short name for the data at `path`: `a/books.tsv.xz` -> "books", `a/news/*.csv` -> "news"."""
    name = re.split(r"[.*?\[]", path.name)[0].strip("-_")
    return name or path.resolve().parent.name


def class_order(labels: Sequence[str]) -> list[str]:
    """The distinct labels, in numeric order where all are integers."""
    distinct = set(labels)
    if all(re.fullmatch(r"[+-]?\d+", c, re.ASCII) for c in distinct):
        return sorted(distinct, key=lambda c: (int(c), c))
    return sorted(distinct)


class TableSource(Source):
    """Splits that are tables with a column of text and perhaps some of answers (`AnswerColumns`). Subclasses find the tables."""

    modality = "text"

    def __init__(self, text: str | int | None, told: AnswerColumns, label: str | list[str] | None, on_error: str):
        self.told, self.answer = told, told.kind
        first = told.several[0] if told.several is not None else label
        self.text, self.label = (None if c is None else str(c) for c in (text, first))
        self.on_error = check_on_error(on_error)
        self._classes: list[str] | None = None

    @abc.abstractmethod
    def find(self) -> dict[str, list[Table]]:
        """The tables of each split; only their first lines are read."""

    @functools.cached_property
    def tables(self) -> dict[str, list[Table]]:
        found = self.find()
        if not found.keys() & {"train", "unlabeled"}:
            raise UserError(f"{self.name}: there is no table for training, only: {', '.join(found)}")
        return found

    @functools.cached_property
    def columns(self) -> tuple[str, str | None]:
        """The names of the text's and the label's column, decided on the first table of the training data."""
        first = (self.tables.get("train") or self.tables["unlabeled"])[0]
        text, label = tables.choose_columns(first, self.text, self.label, self.told.several or ())
        if self.text is None or self.label is None:
            labels = f"labels from column '{', '.join(self.told.several or [label])}'" if label else "no column of labels"
            log.info("%s: text from column '%s', %s", self.name, text, labels)
        return text, label

    def own_splits(self) -> tuple[str, ...]:
        label = self.columns[1]
        if label is None or "train" not in self.tables:
            return ("unlabeled",)
        columns = set(self.told.several or [label])
        usable = [s for s in self.tables if s == "unlabeled" or all(columns <= set(t.columns) for t in self.tables[s])]
        return tuple(s for s in SPLITS if s in usable)

    def read(self, split: str) -> Raw:
        texts, labels, skipped = self._read(split)
        if labels is None:
            return Raw(texts, None, skipped)
        if self.answer is not Class:
            if split == "train" and self.answer is Labels:
                self._classes = self._order(labels)
            classes = self.classes
            return Raw(texts, self.told.answers(labels, classes, str(self.tables[split][0].path)), skipped)
        if split == "train":
            self._classes = self._order(labels)
        index = {name: i for i, name in enumerate(self.classes or [])}
        if unseen := set(labels) - index.keys():
            raise UserError(
                f"{self.tables[split][0].path}: label '{min(unseen)}' does not occur in the training data ({len(index)} classes)"
            )
        return Raw(texts, self.as_answers(np.array([index[name] for name in labels], np.int64)), skipped)

    def text_bytes(self, split: str) -> int | None:
        return unpacked_bytes([f for table in self._parts(split) for f in table.files]) if split == "unlabeled" else None

    def stream(self, split: str, skipped: list[str]) -> Iterator[str]:
        text = self.columns[0]
        for table in self._parts(split):
            if text not in table.columns:
                raise UserError(f"{table.path}: no column '{text}', which the training data have")
            yield from tables.iter_texts(table, text, self.on_error, skipped)

    @property
    def classes(self) -> list[str] | None:
        if self.own_splits() == ("unlabeled",) or self.answer is Number:
            return None
        if self._classes is None:
            # Finding the classes means reading all of the training data: once for all.
            entry = cache.get_or_make("classes", self.fingerprint(), self._find_classes)
            self._classes = entry.meta["classes"]
        return self._classes

    @property
    def space(self) -> Space | None:
        return super().space if self.answer is not Number else None if self.own_splits() == ("unlabeled",) else {}

    def truth(self, split: str, column: str | None) -> list[str | None] | None:
        text = self.columns[0]
        first = (self.tables.get("train") or self.tables["unlabeled"])[0]
        label = column if column in first.columns else tables.choose_columns(first, text, None)[1]
        if label is None or label == text:
            return None
        found: list[str | None] = []
        for table in self._parts(split):
            found += tables.read_labels(table, text, label if label in table.columns else None, self.on_error, every=False)[1]
        return found

    def _told(self) -> list[Any]:
        """What tells the answers apart of sources with the same files; nothing of classes, whose entries of the cache stay valid."""
        return [] if self.told.settings is None else [self.told.settings]

    def _parts(self, split: str) -> list[Table]:
        """The tables of a split; without labels, all that there is to train on is one."""
        parts = self.tables.get(split, [])
        return [*self.tables.get("train", []), *parts] if split == "unlabeled" and self.own_splits() == ("unlabeled",) else parts

    def _find_classes(self, _: Path) -> dict[str, Any]:
        return {"classes": self._order(self._read("train")[1] or [])}

    def _order(self, labels: list[Any]) -> list[str]:
        text, label = self.columns
        if self.answer is Labels:
            return self.told.classes(labels, f"{self.tables['train'][0].path}, column '{label}'")
        named = self.tables["train"][0].class_names(label) if label else None
        if named:
            return named
        classes = class_order(labels)
        if len(classes) > max(20, len(labels) // 2):
            raise UserError(
                f"{self.tables['train'][0].path}: column '{label}' holds {len(classes)} different labels in "
                f"{len(labels)} rows, too many for classes; give text= and label= (the text is taken from '{text}')"
            )
        return classes

    def _read(self, split: str) -> tuple[list[str], list[Any] | None, list[str]]:
        text, label = self.columns
        if split == "unlabeled":
            label = None
        parts = self._parts(split)
        texts: list[str] = []
        labels: list[Any] = []
        skipped: list[str] = []
        for table in parts:
            if text not in table.columns:
                raise UserError(f"{table.path}: no column '{text}', which the training data have")
            some_labels: list[Any] | None
            if label is None or self.answer is Class:
                some_texts, some_labels, some_skipped = tables.read_rows(table, text, label, self.on_error)
            else:
                columns = self.told.several or [label]
                some_texts, some_labels, some_skipped = tables.read_answers(table, text, columns, self.told.cell, self.on_error)
            texts += some_texts
            labels += some_labels or []
            skipped += some_skipped
        if not texts:
            raise UserError(f"{self.name}: no rows in the {split} data")
        return texts, labels if label else None, skipped


class TextTable(TableSource):
    """A table, or a folder (or glob) of tables named for their splits: CSV, TSV, JSON lines, Parquet, `LABEL text`.

    A single file is the training data. Columns, separator and header are found where they are None. Without labels
    it is unlabeled data. Raises `UserError` naming file, column or row.
    """

    def __init__(
        self,
        path: str,
        text: str | int | None,
        label: str | int | list[str] | None,
        sep: str | None,
        header: bool | None,
        answer: str,
        separator: str | None,
        on_error: str,
        val_fraction: float,
        test_fraction: float,
    ):
        label = str(label) if isinstance(label, int) else label  # of a table without a header
        super().__init__(text, AnswerColumns(answer, label, separator), label, on_error)
        self.path, self.sep, self.header = stored.located(path), sep, header
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.name = name_of(self.path)

    @functools.cached_property
    def files(self) -> dict[str, list[Path]]:
        return find_tables(self.path, self.sep)

    def find(self) -> dict[str, list[Table]]:
        wanted = [c for c in (self.text, self.label, *(self.told.several or ())) if c is not None]
        return {split: [tables.open_table(f, self.sep, self.header, wanted) for f in files] for split, files in self.files.items()}

    def fingerprint(self) -> str:
        files = [(split, [disk.suffix(f) for f in files], content_digest(files)) for split, files in self.files.items()]
        return cache.digest("TextTable", FORMAT, files, self.text, self.label, self.sep, self.header, self.on_error, *self._told())


def find_tables(path: Path, sep: str | None, kind: str | None = None) -> dict[str, list[Path]]:
    """The files of each split under `path` (a file, a folder or a glob), of one kind if `kind` is given.

    Raises `UserError` where that is not clear.
    """
    if path.exists() and not path.is_dir():
        return {"train": [path]}
    if path.is_dir():
        files = _table_files(path, kind) or _table_files(path / "data", kind)
    elif disk.is_pattern(path):
        files = disk.matching(path)
    else:
        raise UserError(f"{path}: no such file or folder")
    found: dict[str, list[Path]] = {}
    for file in files:
        if split := split_of(file.name):
            found.setdefault(split, []).append(file)
    if not found:
        files = [f for f in files if sep is not None or disk.suffix(f) != ".txt"]
        if len(files) != 1:
            names = ", ".join(f.name for f in files[:8]) or "none"
            raise UserError(f"{path}: no train file (such as train.csv) among the tables there ({names}); give a file")
        return {"train": files}
    for split, several in found.items():
        if len(several) > 1 and not all(_SHARD.search(f.name) for f in several):
            names = ", ".join(f.name for f in several[:4])
            raise UserError(f"{path}: several files for {split} ({names}); give a narrower pattern, such as {path}/a.*")
    return {split: found[split] for split in SPLITS if split in found}


def _table_files(folder: Path, kind: str | None) -> list[Path]:
    kinds = {s for s, k in tables.KINDS.items() if kind in (None, k)}
    return sorted(f for f in folder.glob("*") if not f.is_dir() and disk.suffix(f) in kinds)


class HuggingFaceText(TableSource):
    """A local folder of Parquet files or of `save_to_disk`, or a data set of the Hugging Face hub.

    Raises `UserError` where `name` is neither a folder nor can be had from the hub.
    """

    def __init__(
        self,
        name: str,
        config: str | None,
        text: str | None,
        label: str | list[str] | None,
        answer: str,
        separator: str | None,
        on_error: str,
        val_fraction: float,
        test_fraction: float,
    ):
        super().__init__(text, AnswerColumns(answer, label, separator), label, on_error)
        self.location, self.config = name, config
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.name = Path(name).name

    def find(self) -> dict[str, list[Table]]:
        folder = stored.located(self.location)
        if folder.is_dir() and not hub.is_saved_dataset(folder):
            return {s: [tables.ParquetTable(f) for f in fs] for s, fs in find_tables(folder, None, "parquet").items()}
        found: dict[str, list[Table]] = {}
        for name, table in hub.load_datasets(self.location, self.config).items():
            if split := split_of(name):
                found.setdefault(split, []).append(table)
        return found

    def fingerprint(self) -> str:
        content = [(s, [content_digest(t.files) for t in ts]) for s, ts in self.tables.items()]
        return cache.digest("HuggingFaceText", FORMAT, content, self.text, self.label, self.on_error, *self._told())
