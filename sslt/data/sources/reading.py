"""Sources of questions about texts: own files in the formats of SQuAD and CoQA, and data sets in the layouts they are distributed in."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.base import Raw, check_on_error
from sslt.data.ragged import Ragged
from sslt.data.sources import tables
from sslt.data.sources.reading_files import DIALOGUE_WORDS, Asked, articles_of, is_dialogues, questions_of
from sslt.data.sources.split_files import SplitFiles
from sslt.data.sources.texts import content_digest, find_tables, name_of
from sslt.data.spans import Spans
from sslt.errors import UserError, nearest

FORMAT = 1
SCORERS = ("squad", "cmrc", "coqa")


class ReadingSource(SplitFiles):
    """Questions about texts; subclasses find the files. A sample is a question and its context, with history > 0 also what was asked
    and answered before it in a dialogue: `question_1` and `answer_1` the last time, `question_2` and `answer_2` before that, "" where
    nothing was. Questions about one article (story) are never divided by a drawn split.

    Raises `UserError` naming file and question for an answer that is not in its context.
    """

    modality = "text"
    answer = Spans
    names_drawn = True
    parts: tuple[str, ...] = ("question", "context")
    scorer: str = "squad"  # by whose rules an answer is right

    history = 0  # earlier turns that a question is read with

    def __init__(self, on_error: str):
        self.on_error = check_on_error(on_error)

    def read_before(self, history: int) -> None:
        """Have so many earlier turns among the parts of a sample."""
        if isinstance(history, bool) or not isinstance(history, int) or history < 0:
            raise UserError(f"data.history={history}: give how many earlier turns a question is read with, 0 or more")
        before = [f"{what}_{i + 1}" for i in range(history) for what in ("question", "answer")]
        self.history, self.parts = history, ("question", "context", *before)

    @functools.cached_property
    def content(self) -> dict[str, list[Any]]:
        """The articles of each split."""
        return {split: articles_of(file) for split, file in self.files.items()}

    @functools.cached_property
    def _rows(self) -> dict[str, tuple[list[Asked], list[str]]]:
        return {split: self._usable(split) for split in self.own_splits()}

    def _usable(self, split: str) -> tuple[list[Asked], list[str]]:
        rows: list[Asked] = []
        skipped: list[str] = []
        for asked in questions_of(self.content[split]):
            if asked.problem:
                tables.refuse(f"{self.files[split]}, question {asked.name}: {asked.problem}", self.on_error, skipped)
            else:
                rows.append(asked)
        if not rows:
            raise UserError(f"{self.files[split]}: there is no question in it")
        return rows, skipped

    @functools.cached_property
    def space(self) -> dict[str, Any]:  # type: ignore[override]
        if any(is_dialogues(articles) for articles in self.content.values()):
            domains = sorted({row.domain for rows, _ in self._rows.values() for row in rows})
            return {"scorer": "coqa", "words": list(DIALOGUE_WORDS), "domains": domains}
        impossible = any(row.kind == 1 for rows, _ in self._rows.values() for row in rows)
        return {"scorer": self.scorer, "words": [""] if impossible else []}

    def fingerprint(self) -> str:
        content = [(split, content_digest([file])) for split, file in self.files.items()]
        return cache.digest("ReadingSource", FORMAT, content, self.scorer, self.history, self.on_error)

    def row_names(self, split: str) -> list[str] | None:
        """The questions' ids, by which official scripts know them; of samples of `unlabeled`, each a part of one, there are none."""
        own = self.own_splits()
        if split in own and not (split == "train" and self.drawn(own)):
            return [row.name for row in self._rows[split][0]]
        if split != "train" and split not in self.drawn(own):
            return None
        names = [row.name for row in self._rows["train"][0]]
        return [names[i] for i in self._carve(self.read("train"), own)[split].tolist()]

    def read(self, split: str) -> Raw:
        rows, skipped = self._rows[split]
        items = [(row.question, row.context, *self._before(row)) for row in rows]
        if split == "unlabeled":
            return Raw(items, None, skipped)
        more: dict[str, Any] = {}
        if "domains" in self.space:
            more["turns"] = np.array([(row.article, row.turn) for row in rows], np.int64)
            more["domains"] = np.array([self.space["domains"].index(row.domain) for row in rows], np.int64)
        answers = Spans(
            Ragged.of([row.places for row in rows], np.int64, 2), self.space,
            kinds=np.array([row.kind for row in rows], np.int64), texts=[row.texts for row in rows],
            contexts=[row.context for row in rows], groups=np.array([row.article for row in rows], np.int64), **more,
        )  # fmt: skip
        return Raw(items, answers, skipped, remarks=self._remarks(split, rows))

    def _before(self, row: Asked) -> list[str]:
        turns = [*row.history, *[("", "")] * self.history][: self.history]
        return [text for turn in turns for text in turn]

    def _remarks(self, split: str, rows: list[Asked]) -> list[str]:
        found = []
        if moved := sum(row.moved for row in rows):
            found.append(f"{self.files[split]}: {moved} answers stand a few characters beside their answer_start, and were found there")
        if same := len(rows) - len({row.name for row in rows}):
            found.append(f"{self.files[split]}: {same} questions have the id of another one, by which answers cannot be told apart")
        if lost := sum(row.kind == 0 and not row.places for row in rows):
            found.append(
                f"{self.files[split]}: {lost} of {len(rows)} questions have no certain place of an answer: they count, none learns"
            )
        return found

    def get(self, split: str) -> Raw:
        raw = super().get(split)
        if split == "unlabeled":  # a question without a history has an empty one
            raw.items = [text for text in raw.items if text.strip()]
        return raw


class Reading(ReadingSource):
    """Your own questions: a JSON file in the format of SQuAD or CoQA, or a folder (or glob) of such named for their splits.

    A single file is the training data. Where no question has an answer, they can be predicted.
    """

    def __init__(
        self, path: str, scorer: Literal["squad", "cmrc", "coqa"], history: int, on_error: str, val_fraction: float, test_fraction: float
    ):
        if scorer not in SCORERS:
            raise UserError(f"data.scorer={scorer}: give {', '.join(SCORERS)}{nearest(scorer, SCORERS)}")
        self.path, self.scorer = stored.located(path), scorer
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.name = name_of(self.path)
        super().__init__(on_error)
        self.read_before(history)
        if not is_dialogues(next(iter(self.content.values()))):
            self.read_before(0)

    def find(self) -> dict[str, Path]:
        found = find_tables(self.path, "", "json")
        for split, files in found.items():
            if len(files) > 1:
                raise UserError(f"{self.path}: {len(files)} files for {split}, where questions are read of one")
        return {split: files[0] for split, files in found.items()}


class _Distributed(ReadingSource):
    """A data set of files with known names in `root` or one of `folders` in it, packed or not.

    Where there is a training file, validation questions are drawn from it and `held` are the test questions. Otherwise train, val and
    test are all drawn, article by article, from the first of `held` that is there, unless another one is left to test on.
    """

    folders: ClassVar[tuple[str, ...]]
    train: str
    held: tuple[str, ...]
    needs: str

    def __init__(self, root: str, on_error: str, val_fraction: float, test_fraction: float):
        super().__init__(on_error)
        self.root, self.val_fraction, self.test_fraction = stored.located(root), val_fraction, test_fraction

    def find(self) -> dict[str, Path]:
        for folder in (*(self.root / name for name in self.folders), self.root):
            train, *held = (_there(folder, stem) for stem in (self.train, *self.held))
            files = [file for file in held if file is not None]
            if train is not None and files:
                return {"train": train, "test": files[0]}
            if files:
                return dict(zip(("train", "test"), files, strict=False))
        raise UserError(
            f"no {self.name} data in {self.root / self.folders[0]}: put {self.train}.json, {self.held[0]}.json there ({self.needs})"
        )


def _there(folder: Path, stem: str) -> Path | None:
    """STEM.json, or STEM.….json, of which other data sets have other questions, packed or not."""
    return next((f for end in ("", ".xz", ".gz") for f in sorted(folder.glob(f"{stem}*.json{end}")) if f.is_file()), None)


class Squad(_Distributed):
    """SQuAD (Rajpurkar et al., 2016), and version 2.0 with questions that have no answer (Rajpurkar et al., 2018)."""

    name = "squad"
    folders: ClassVar[tuple[str, ...]] = ("squad",)
    needs = "https://rajpurkar.github.io/SQuAD-explorer; .xz, .gz too"

    def __init__(self, root: str, version: Literal["1.1", "2.0"], on_error: str, val_fraction: float, test_fraction: float):
        if str(version) not in ("1.1", "2.0"):
            raise UserError(f"data.version={version}: give 1.1 or 2.0")
        self.train, self.held = f"train-v{version}", (f"dev-v{version}",)
        super().__init__(root, on_error, val_fraction, test_fraction)


class Cmrc2018(_Distributed):
    """CMRC 2018 (Cui et al., 2019): questions about articles of the Chinese Wikipedia.

    With its training file the dev questions are the test split, as in the literature; without, one learns from them and is tested on the
    trial questions. Its test questions were never published.
    """

    name, scorer = "cmrc2018", "cmrc"
    folders: ClassVar[tuple[str, ...]] = ("zh-cmrc2018", "cmrc2018")
    train, held = "cmrc2018_train", ("cmrc2018_dev", "cmrc2018_trial")
    needs = "https://github.com/ymcui/cmrc2018, squad-style-data; .xz, .gz too"


class Coqa(_Distributed):
    """CoQA (Reddy et al., 2019): dialogues about stories; answers in free words, most of them near a place in the story.

    history: how many earlier turns a question is read with. The dev questions are the test split, since the test's were never published.
    """

    name, scorer = "coqa", "coqa"
    folders: ClassVar[tuple[str, ...]] = ("coqa",)
    train, held = "coqa-train", ("coqa-dev",)
    needs = "https://stanfordnlp.github.io/coqa; .xz, .gz too"

    def __init__(self, root: str, history: int, on_error: str, val_fraction: float, test_fraction: float):
        super().__init__(root, on_error, val_fraction, test_fraction)
        self.read_before(history)
