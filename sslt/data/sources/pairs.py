"""Pairs of texts and what there is to tell of them: tables of your own, and the STS benchmark."""

from __future__ import annotations

import abc
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.answers import KINDS, Answers, Class, Number, Space
from sslt.data.base import SPLITS, Raw, Source, check_on_error
from sslt.data.sources import disk, tables
from sslt.data.sources.labels import decoded, label_name
from sslt.data.sources.tables import Table
from sslt.data.sources.texts import class_order, content_digest, find_tables, name_of
from sslt.errors import UserError, nearest

FORMAT = 1
SIDES = (  # usual names of the two columns
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"), ("text_a", "text_b"), ("text1", "text2"),
    ("premise", "hypothesis"), ("question1", "question2"), ("question", "answer"), ("query", "document"), ("a", "b"),
)  # fmt: skip
LABELS = ("score", "similarity", "similarity_score", "gold_label", "relatedness_score", *tables.LABEL_NAMES)


class PairTables(Source):
    """Splits that are tables with two columns of text and perhaps one of a number or a class. Subclasses find and open the tables.

    A number's space says from where to where those of the training data go.
    """

    modality = "text"
    parts = ("a", "b")

    def __init__(self, on_error: str):
        self.on_error = check_on_error(on_error)

    @abc.abstractmethod
    def find(self) -> dict[str, list[Table]]:
        """The tables of each split; only their first lines are read."""

    @abc.abstractmethod
    def choose(self, table: Table) -> tuple[str, str, str | None]:
        """The columns of a, of b, and of the label (None: there is none) in the first table of the training data."""

    @functools.cached_property
    def tables(self) -> dict[str, list[Table]]:
        found = self.find()
        if "train" not in found:
            raise UserError(f"{self.name}: there is no table for training, only: {', '.join(found)}")
        return found

    @functools.cached_property
    def columns(self) -> tuple[str, str, str | None]:
        return self.choose(self.tables["train"][0])

    def own_splits(self) -> tuple[str, ...]:
        label = self.columns[2]
        usable = [s for s in self.tables if s != "unlabeled" and (label is None or all(label in t.columns for t in self.tables[s]))]
        return tuple(s for s in SPLITS if s in usable)

    @property
    def classes(self) -> list[str] | None:
        return None if self.space is None else self.space.get("classes")

    @functools.cached_property
    def space(self) -> Space | None:  # type: ignore[override]
        if self.columns[2] is None:
            return None
        entry = cache.get_or_make("spaces", self.fingerprint(), lambda _: {"space": self._space_of(self._rows("train")[1])})
        return entry.meta["space"]

    def _space_of(self, labels: list[Any]) -> Space:
        if self.answer is Number:
            return {"low": min(labels), "high": max(labels)}
        names = self.tables["train"][0].class_names(str(self.columns[2])) or class_order(labels)
        if len(names) > max(20, len(labels) // 2):
            raise UserError(
                f"{self.tables['train'][0].path}: column '{self.columns[2]}' holds {len(names)} different labels in {len(labels)} rows, "
                f"too many for classes: give data.label=, or data.answer=number"
            )
        return {"classes": names}

    def read(self, split: str) -> Raw:
        pairs, labels, skipped = self._rows(split)
        if self.columns[2] is None:
            return Raw(pairs, None, skipped)
        assert self.space is not None
        if self.answer is Number:
            return Raw(pairs, Number(np.array(labels, np.float64), self.space), skipped)
        index = {name: i for i, name in enumerate(self.space["classes"])}
        if unseen := set(labels) - index.keys():
            where = self.tables[split][0].path
            raise UserError(f"{where}: label '{min(unseen)}' does not occur in the training data ({len(index)} classes)")
        return Raw(pairs, self.as_answers(np.array([index[name] for name in labels], np.int64)), skipped)

    def _rows(self, split: str) -> tuple[list[tuple[str, str]], list[Any], list[str]]:
        """The pairs of a split, their labels (numbers, or names; none where there are none), and what was skipped."""
        pairs: list[tuple[str, str]] = []
        labels: list[Any] = []
        skipped: list[str] = []
        wanted = [c for c in self.columns if c is not None]
        for table in self.tables[split]:
            if missing := [c for c in wanted if c not in table.columns]:
                raise UserError(f"{table.path}: no column '{missing[0]}', which the training data have")
            names = None if len(wanted) < 3 else table.class_names(wanted[2])
            for row in table.rows(wanted):
                values = [decoded(v) for v in row.values]
                problem, label = row.problem or _sides_problem(values, wanted), None
                if not problem and len(wanted) == 3:
                    label, problem = self._label(values[2], wanted[2], names)
                if problem:
                    tables.refuse(f"{table.path}, {row.where}: {problem}", self.on_error, skipped)
                    continue
                pairs.append((str(values[0]), str(values[1])))
                labels += [label] if len(wanted) == 3 else []
        if not pairs:
            raise UserError(f"{self.name}: no rows in the {split} data")
        return pairs, labels, skipped

    def _label(self, value: Any, column: str, names: list[str] | None) -> tuple[Any, str]:
        """A label, and what is wrong with it."""
        if self.answer is Class:
            name = label_name(value, names)
            return name, "" if name is not None else tables.label_problem(value, column)
        try:
            number = float(str(value).strip())
        except ValueError:
            number = math.nan
        return number, "" if math.isfinite(number) else f"{str(value)[:40]!r} in column '{column}' is no finite number"


def _sides_problem(values: list[Any], columns: list[str]) -> str:
    for value, column in zip(values[:2], columns[:2], strict=True):
        if problem := tables.text_problem(value):
            return f"{problem} in column '{column}', and a pair has two sides"
    return ""


class TextPairs(PairTables):
    """Your own table of pairs, or a folder (or glob) of tables named for their splits: CSV, TSV, JSON lines, Parquet.

    A single file is the training data. Columns are found by their usual names where they are None; without names they are the first,
    the second and the third. Raises `UserError` naming file, column or row.
    """

    def __init__(
        self, path: str, a: str | int | None, b: str | int | None, label: str | int | None, answer: str, sep: str | None,
        header: bool | None, on_error: str, val_fraction: float, test_fraction: float,
    ):  # fmt: skip
        super().__init__(on_error)
        if answer not in ("number", "class"):
            raise UserError(f"data.answer={answer}: give number or class{nearest(answer, ('number', 'class'))}")
        self.answer: type[Answers] = KINDS[answer]
        self.given = tuple(None if c is None else str(c) for c in (a, b, label))
        self.path, self.sep, self.header = stored.located(path), sep, header
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.name = name_of(self.path)

    @functools.cached_property
    def files(self) -> dict[str, list[Path]]:
        return find_tables(self.path, self.sep)

    def find(self) -> dict[str, list[Table]]:
        return {split: [self._open(f) for f in files] for split, files in self.files.items()}

    def _open(self, file: Path) -> Table:
        wanted, header = [c for c in self.given if c], self.header
        if header is None and not wanted:
            known = {name for sides in SIDES for name in sides}
            header = any(c.lower() in known for c in tables.open_table(file, self.sep, True).columns) or None
        return tables.open_table(file, self.sep, header, wanted)

    def choose(self, table: Table) -> tuple[str, str, str | None]:
        a, b, label = self.given
        for key, column in (("a", a), ("b", b), ("label", label)):
            if column and column not in table.columns:
                raise UserError(f"{table.path}: no column '{column}' (data.{key}){nearest(column, table.columns)}")
        names = {c.lower(): c for c in reversed(table.columns)}
        if not a and not b:
            sides = next((s for s in SIDES if names.keys() >= set(s)), None)
            first = None if table.named or len(table.columns) < 2 else table.columns[:2]
            a, b = first or ((names[sides[0]], names[sides[1]]) if sides else (None, None))
        if not a or not b or a == b:
            raise UserError(f"{table.path}: which two columns are the pair? Give data.a= and data.b=; there is: {', '.join(table.columns)}")
        if label is None:
            rest = [c for c in table.columns if c not in (a, b)]
            label = next((names[n] for n in LABELS if names.get(n) in rest), rest[0] if not table.named and len(rest) == 1 else None)
        return a, b, label or None

    def fingerprint(self) -> str:
        files = [(split, [disk.suffix(f) for f in fs], content_digest(fs)) for split, fs in self.files.items()]
        return cache.digest("TextPairs", FORMAT, files, self.given, self.answer.kind, self.sep, self.header, self.on_error)


class StsBenchmark(PairTables):
    """How much alike two sentences are, 0 to 5: the STS benchmark (Cer et al., 2017), and its translations.

    Looked for in `root/stsb-multi` and `root`, as `stsb-LANGUAGE-{train,dev,test}.csv[.xz|.gz]`: sentence, sentence, score, no header.
    """

    answer = Number
    name = "stsb"
    LANGUAGES = ("en", "de", "zh")

    def __init__(self, root: str, language: str):
        super().__init__("fail")
        if language not in self.LANGUAGES:
            raise UserError(f"data.language={language}: give {', '.join(self.LANGUAGES)}{nearest(language, self.LANGUAGES)}")
        self.root, self.language = stored.located(root), language

    @functools.cached_property
    def files(self) -> dict[str, Path]:
        parts = {"train": "train", "val": "dev", "test": "test"}
        for folder in (self.root / "stsb-multi", self.root):
            found = {s: self._file(folder, part) for s, part in parts.items()}
            if all(found.values()):
                return {s: f for s, f in found.items() if f}
        raise UserError(
            f"no STS benchmark in {self.root}/stsb-multi: put stsb-{self.language}-train.csv, -dev.csv and -test.csv there (sentence, "
            f"sentence, score 0 to 5; .xz, .gz too),\nfrom https://github.com/PhilipMay/stsb-multi-mt"
        )

    def _file(self, folder: Path, part: str) -> Path | None:
        return disk.packed_or_not(folder / f"stsb-{self.language}-{part}.csv")

    @functools.cached_property
    def space(self) -> Space:  # type: ignore[override]
        return {"low": 0.0, "high": 5.0}

    def find(self) -> dict[str, list[Table]]:
        return {split: [tables.open_table(file, ",", False)] for split, file in self.files.items()}

    def choose(self, table: Table) -> tuple[str, str, str | None]:
        if len(table.columns) != 3:
            raise UserError(f"{table.path}: {len(table.columns)} columns; expected sentence, sentence, score")
        return "0", "1", "2"

    def fingerprint(self) -> str:
        return cache.digest("StsBenchmark", FORMAT, [(s, content_digest([f])) for s, f in self.files.items()])
