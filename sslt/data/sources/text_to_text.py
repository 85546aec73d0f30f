"""Texts and what is to be written of each: own tables, and files whose lines belong together."""

from __future__ import annotations

import abc
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sslt import stored
from sslt.data import cache, copies
from sslt.data.answers import Answers, Space, Texts
from sslt.data.base import SPLITS, Raw, Source, check_on_error
from sslt.data.sources import disk, tables
from sslt.data.sources.labels import decoded
from sslt.data.sources.tables import Table
from sslt.data.sources.texts import content_digest, find_tables, name_of, split_of
from sslt.errors import UserError, nearest

FORMAT = 1
SIDES = (  # usual names of the two columns
    ("source", "target"), ("text", "summary"), ("document", "summary"), ("article", "highlights"), ("article", "summary"),
    ("dialogue", "summary"), ("input", "output"), ("input", "target"), ("prompt", "completion"), ("prompt", "response"),
    ("context", "response"), ("instruction", "output"), ("question", "answer"), ("src", "tgt"),
)  # fmt: skip


class Written(NamedTuple):
    """A text and what would do as an answer to it; `problem` says why it cannot be used.

    group: equal where samples belong together; whole: then what they are parts of, by which copies are known: short parts are often alike.
    """

    where: str
    source: str
    targets: list[str]
    problem: str = ""
    group: int | None = None
    whole: str = ""


class ToTexts(Source):
    """Splits whose samples are a text and one or more texts that would do as an answer. Subclasses find and read the files.

    `unlabeled` has both sides, each text once, so that an encoder learns the words of both. language: of the answers, as an ISO code;
    None: not said.
    """

    modality = "text"
    answer: type[Answers] = Texts
    language: str | None = None
    on_error: str | None = None  # None: it is no setting of the data set

    @abc.abstractmethod
    def rows(self, split: str) -> Iterator[Written]:
        """The rows of an own split, in order."""

    @property
    def classes(self) -> None:
        return None

    @property
    def space(self) -> Space | None:
        return {"language": self.language} if self.language else {}

    def read(self, split: str) -> Raw:
        texts: list[str] = []
        targets: list[list[str]] = []
        groups: list[int | None] = []
        contents: list[int] = []
        skipped: list[str] = []
        for row in self.rows(split):
            if row.problem:
                if self.on_error is None:
                    raise UserError(f"{row.where}: {row.problem}")
                tables.refuse(f"{row.where}: {row.problem}", self.on_error, skipped)
                continue
            texts.append(row.source)
            targets.append(row.targets)
            groups.append(row.group)
            contents.append(copies.content_of((row.whole, row.source) if row.whole else row.source))
        if not texts:
            raise UserError(f"{self.name}: no rows in the {split} data")
        space = self.space
        if space is None:
            return Raw(texts, None, skipped)
        together = None if None in groups else np.array(groups, np.int64)
        return Raw(texts, Texts(targets, space, groups=together), skipped, np.array(contents, np.uint64), self.remarks(split))

    def remarks(self, split: str) -> list[str]:
        """What there is to say about the rows of a split, a line each."""
        return []

    def get(self, split: str) -> Raw:
        if split != "unlabeled" or self.space is None or "unlabeled" in self.own_splits():
            return super().get(split)
        raw = super().get("train")
        assert raw.answers is not None
        both = [*(raw.items[i] for i in range(len(raw))), *(text for row in raw.answers.values for text in row)]
        return Raw(list(dict.fromkeys(both)), None, raw.skipped, remarks=raw.remarks)


def aligned(source: Path, target: Path) -> Iterator[Written]:
    """Two files whose lines belong together. Raises `UserError` where they have different numbers of lines."""
    a, b = list(disk.text_lines(source)), list(disk.text_lines(target))
    if len(a) != len(b):
        raise UserError(f"{source} has {len(a):,} lines and {target} has {len(b):,}: line by line they are to say the same")
    for number, (text, answer) in enumerate(zip(a, b, strict=True), 1):
        empty = next((file for file, side in ((source, text), (target, answer)) if not side.strip()), None)
        yield Written(f"{empty or source}, line {number}", text.strip(), [answer.strip()], "" if empty is None else "empty text")


def references(values: Sequence[Any], listed: bool) -> tuple[list[str], str]:
    """The texts of the cells of a row's target columns, a list in a cell being several; and what is wrong with them.

    listed: whether a list may be written as JSON, as in a table whose cells are text.
    """
    found: list[str] = []
    for value in values:
        value = value.tolist() if isinstance(value, np.ndarray) else decoded(value)
        if listed and isinstance(value, str) and value.startswith('["') and value.endswith('"]'):
            value = _strings(value)
        several = value if isinstance(value, list) else [value]
        if problem := next((p for text in several if (p := tables.text_problem(text))), "" if several else "empty list"):
            return [], f"{problem} in what is to be written"
        found += [str(text).strip() for text in several]
    return found, ""


def _strings(text: str) -> Any:
    """The list of strings that a text is in JSON; the text itself where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, list) and all(isinstance(part, str) for part in found) else text


def one_text(value: Any) -> tuple[str, str]:
    """A source cell as one text, a list of sentences as its lines; and what is wrong with it."""
    value = value.tolist() if isinstance(value, np.ndarray) else decoded(value)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = "\n".join(part.strip() for part in value)
    problem = tables.text_problem(value)
    return ("", problem) if problem else (str(value).strip(), "")


def table_rows(table: Table, source: str, targets: Sequence[str]) -> Iterator[Written]:
    """The rows of a table; without targets their texts alone."""
    for row in table.rows([source, *targets]):
        where = f"{table.path}, {row.where}"
        if row.problem:
            yield Written(where, "", [], row.problem)
            continue
        text, problem = one_text(row.values[0])
        found: list[str] = []
        if not problem and targets:
            found, problem = references(row.values[1:], isinstance(table, tables.DelimitedTable))
        yield Written(where, text, found, problem)


class TextToText(ToTexts):
    """Your own texts and what is to be written of each: a table, two aligned files, or a folder (or glob) of either, named for splits.

    source, target: columns of a table, found by their usual names where they are None; several columns of targets, or lists in a column,
    are several references. target "": nothing, the texts alone. With target_path the lines of the file `path` belong to those of the file
    `target_path`; in a folder source and target may be what the names of aligned files end in (train.en, train.de). A single file, or
    pair of files, is the training data. Raises `UserError` naming file, column or row.
    """

    def __init__(
        self, path: str, target_path: str | None, source: str | int | None, target: str | int | list[str] | None, language: str | None,
        sep: str | None, header: bool | None, on_error: str, val_fraction: float, test_fraction: float,
    ):  # fmt: skip
        self.path, self.on_error, self.language = stored.located(path), check_on_error(on_error), language
        self.target_path = None if target_path is None else stored.located(target_path)
        self.source = None if source is None else str(source)
        self.target = None if target is None else [str(target)] if isinstance(target, (str, int)) else [str(c) for c in target]
        self.sep, self.header = sep, header
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.name = name_of(self.path)

    @functools.cached_property
    def pairs(self) -> dict[str, tuple[Path, Path]]:
        """The aligned files of each split; {} where the data are tables."""
        if self.target_path is not None:
            for file in (self.path, self.target_path):
                if file.is_dir() or not file.exists():
                    what = "a folder" if file.is_dir() else "no such file"
                    raise UserError(f"{file}: {what}; data.target_path= is for two files whose lines belong together")
            return {"train": (self.path, self.target_path)}
        if not self.path.is_dir() or self.source is None or self.target is None or len(self.target) != 1:
            return {}
        sides = [self._ending_in(end) for end in (self.source, self.target[0])]
        if not sides[0] or not sides[1]:
            return {}
        if lonely := next((s for s in SPLITS if (s in sides[0]) != (s in sides[1])), None):
            there, lacks = (self.source, self.target[0]) if lonely in sides[0] else (self.target[0], self.source)
            raise UserError(f"{self.path}: there is a {lonely} file of '{there}' and none of '{lacks}'")
        return {split: (sides[0][split], sides[1][split]) for split in SPLITS if split in sides[0]}

    def _ending_in(self, end: str) -> dict[str, Path]:
        """The file of each split whose name ends in `.end`, packed or not. Raises `UserError` where there are several."""
        found: dict[str, Path] = {}
        for file in sorted(self.path.glob("*")):
            split = split_of(file.name)
            if split is None or not file.is_file() or disk.suffix(file) != f".{end.lower()}":
                continue
            if split in found:
                raise UserError(f"{self.path}: several {split} files of '{end}' ({found[split].name}, {file.name}): name two by "
                                f"data.path= and data.target_path=")  # fmt: skip
            found[split] = file
        return found

    @functools.cached_property
    def files(self) -> dict[str, list[Path]]:
        return {s: list(both) for s, both in self.pairs.items()} or find_tables(self.path, self.sep)

    @functools.cached_property
    def tables(self) -> dict[str, list[Table]]:
        return {split: [self._open(f) for f in fs] for split, fs in self.files.items()}

    def _open(self, file: Path) -> Table:
        wanted, header = [c for c in (self.source, *(self.target or ())) if c], self.header
        if header is None and not wanted:
            names = {c.lower() for c in tables.open_table(file, self.sep, True).columns}
            header = any(names >= set(sides) for sides in SIDES) or None
        return tables.open_table(file, self.sep, header, wanted)

    @functools.cached_property
    def columns(self) -> tuple[str, list[str]]:
        """The column of the texts and those of what is to be written, in the first table of the training data."""
        table = next(iter(self.tables.values()))[0]
        for key, column in (("source", self.source), *(("target", c) for c in self.target or () if c)):
            if column and column not in table.columns:
                raise UserError(f"{table.path}: no column '{column}' (data.{key}){nearest(column, table.columns)}")
        source, target, names = self.source, self.target, {c.lower(): c for c in reversed(table.columns)}
        unwritten = target == [""]
        if source is None and target is None:
            sides = next((s for s in SIDES if names.keys() >= set(s)), None)
            if sides is not None:
                return names[sides[0]], [names[sides[1]]]
            if not table.named and len(table.columns) == 2:
                return table.columns[0], [table.columns[1]]
            if len(table.columns) == 1:
                return table.columns[0], []
        if source is None:
            firsts = [names[a] for a, _ in SIDES if a in names and names[a] not in (target or ())]
            rest = [c for c in table.columns if c not in (target or ())]
            source = firsts[0] if firsts else rest[0] if len(rest) == 1 else None
        if target is None and source is not None:
            target = next(([names[b]] for a, b in SIDES if a == source.lower() and b in names), None)
            target = target or next(([names[b]] for _, b in SIDES if b in names and names[b] != source), None)
        if source is None or (not target and not unwritten) or source in (target or ()):
            raise UserError(
                f"{table.path}: which columns are the text and what is to be written of it? Give data.source= and data.target=; there is: "
                f"{', '.join(table.columns)}"
            )
        return source, [] if unwritten else list(target or ())

    @property
    def written(self) -> bool:
        """Whether there is anything to write: texts to predict need nothing."""
        return bool(self.pairs) or bool(self.columns[1])

    @property
    def space(self) -> Space | None:
        return super().space if self.written else None

    def own_splits(self) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if s in self.files) if self.written else ("unlabeled",)

    def rows(self, split: str) -> Iterator[Written]:
        if self.pairs:
            yield from aligned(*self.pairs[split])
            return
        source, targets = self.columns
        for table in self.tables.get(split) or next(iter(self.tables.values())):
            if missing := [c for c in (source, *targets) if c not in table.columns]:
                raise UserError(f"{table.path}: no column '{missing[0]}', which the training data have")
            yield from table_rows(table, source, targets)

    def fingerprint(self) -> str:
        files = [(split, [disk.suffix(f) for f in fs], content_digest(fs)) for split, fs in self.files.items()]
        settings = (self.source, self.target, self.sep, self.header, self.language, self.on_error)
        return cache.digest("TextToText", FORMAT, bool(self.pairs), files, settings)
