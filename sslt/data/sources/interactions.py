"""Sources of histories: which items users took, one after the other. The last two of each are held out, one to choose by, one to test."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.answers import Item, Space
from sslt.data.base import Raw, Source, check_on_error
from sslt.data.ragged import Ragged
from sslt.data.sources import tables
from sslt.data.sources.disk import packed_or_not
from sslt.data.sources.interaction_files import ATOMIC, Layout, events, in_order
from sslt.data.sources.texts import content_digest, name_of
from sslt.errors import UserError
from sslt.ranges import Count

FORMAT = 1
LEAST = 3  # items of a user that is tested: one to learn from, one to choose by, one to test


class Log(NamedTuple):
    """All users' items in the order of time: ragged int64 numbers in `items`, a row for each of `users`; what was skipped."""

    users: list[str]
    items: list[str]
    rows: Ragged
    skipped: list[str]


class Histories(Sequence):
    """Rows of item numbers as samples: each a tuple of names, made when it is asked for."""

    def __init__(self, rows: Ragged, names: Sequence[str]):
        self.rows, self.names = rows, names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i):  # type: ignore[override]
        return tuple(self.names[j] for j in self.rows[i].tolist())


class HistorySource(Source):
    """Users' histories, of which a subclass has the `log`.

    Leave one out: of each user with at least 3 items the last is that of `test`, the one before that of `val`, whose history is what
    came before; so the history of test holds the item of val. `train` has what is left, its answer the last of that; `unlabeled` the
    same without answers, as whole sequences. Users with fewer items are learned from alone.

    hold_out: False takes all histories whole, as `unlabeled` (what is to be predicted).
    """

    modality = "items"
    answer = Item
    hold_out = True

    @property
    @abc.abstractmethod
    def log(self) -> Log:
        """Who took what."""

    @property
    def classes(self) -> None:
        return None

    @property
    def space(self) -> Space | None:
        return {"items": self.log.items} if self.hold_out else None

    def own_splits(self) -> tuple[str, ...]:
        return ("train", "val", "test") if self.hold_out else ("unlabeled",)

    def row_names(self, split: str) -> list[str]:
        return [self.log.users[i] for i in self._users(split)]

    def get(self, split: str) -> Raw:
        if split != "unlabeled" or not self.hold_out:
            return super().get(split)
        return self._raw(split, np.arange(len(self.log.users)), self._learned(), None)

    def read(self, split: str) -> Raw:
        users, sizes = self._users(split), self.log.rows.sizes
        if split == "unlabeled":
            return self._raw(split, users, sizes, None)
        if not len(users):
            raise UserError(
                f"{self.name}: no user has at least {LEAST} items, so that none can be tested; data.hold_out=false learns from all of them"
            )
        ends = self._learned() - 1 if split == "train" else sizes[users] - (2 if split == "val" else 1)
        answers = self.log.rows.values[self.log.rows.starts[users] + ends]
        raw = self._raw(split, users, ends, Item(answers, {"items": self.log.items}))
        raw.remarks = self._remarks(split, raw, answers)
        return raw

    def _users(self, split: str) -> np.ndarray:
        """Numbers of the users that have a row in a split."""
        every = np.arange(len(self.log.users))
        return every[self.log.rows.sizes >= LEAST] if split in ("val", "test") else every

    def _learned(self) -> np.ndarray:
        """How many items of each user are learned from, int64 [users]: the first ones."""
        sizes = self.log.rows.sizes
        return np.where(sizes >= LEAST, sizes - 2, sizes)

    def _raw(self, split: str, users: np.ndarray, sizes: np.ndarray, answers: Item | None) -> Raw:
        rows = Ragged(self.log.rows.values, self.log.rows.starts[users], sizes)
        contents = np.array([int(cache.digest(split, self.log.users[i])[:15], 16) for i in users], np.uint64)  # users are nobody's copies
        return Raw(Histories(rows, self.log.items), answers, self.log.skipped, contents)

    def _remarks(self, split: str, raw: Raw, answers: np.ndarray) -> list[str]:
        if split == "train":
            few = int((self.log.rows.sizes < LEAST).sum())
            return [f"{self.name}: {few:,} of {len(self.log.users):,} users have fewer than {LEAST} items: not tested"] if few else []
        known = np.zeros(len(self.log.items), bool)
        for row in Ragged(self.log.rows.values, self.log.rows.starts, self._learned()):
            known[row] = True
        found = []
        if new := int((~known[answers]).sum()):
            found.append(f"{self.name}: {new:,} of {len(answers):,} {split} items were never seen in training: they count as missed")
        rows = raw.items.rows  # type: ignore[union-attr]
        if again := sum(int(answer in rows[i]) for i, answer in enumerate(answers.tolist())):
            share = f"{again:,} of {len(answers):,} {split} items"
            found.append(
                f"{self.name}: {share} are ones that the user had before: they are ranked, and written with objective.seen=keep alone"
            )
        return found


class Interactions(HistorySource):
    """Your own log of users and items: a table (CSV, TSV, JSON lines, Parquet, RecBole's .inter), lines `user item`, or sequences.

    Leave one out, as every `HistorySource`. Every row counts, whatever its rating.

    min_user, min_item: leave out users and items of fewer rows, again and again until none is left (k-core), counted over all rows, as
    it defines the data set.
    Raises `UserError` naming file and line.
    """

    def __init__(
        self,
        path: str,
        layout: str,
        user: str | int | None,
        item: str | int | None,
        time: str | int | None,
        min_user: Count | None,
        min_item: Count | None,
        hold_out: bool,
        on_error: str,
    ):
        columns = (None if c is None else str(c) for c in (user, item, time))  # numbers, where there is no header
        self.path, self.layout, self.on_error = stored.located(path), Layout(layout, *columns), check_on_error(on_error)
        self.layout.check()
        self.min_user, self.min_item, self.hold_out = min_user or 1, min_item or 1, hold_out
        self.name = name_of(self.path)

    @functools.cached_property
    def file(self) -> Path:
        if not self.path.is_dir():
            return self.path
        found = sorted(self.path.glob(f"*{ATOMIC}*")) or sorted(p for p in self.path.iterdir() if p.is_file())
        if len(found) != 1:
            raise UserError(f"{self.path}: a folder of {len(found)} files that could be meant; give the file that says who took what")
        return found[0]

    @functools.cached_property
    def log(self) -> Log:
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        skipped: list[str] = []
        who, what, when = [], [], []
        for event in events(self.file, self.layout):
            if event.problem:
                tables.refuse(f"{self.file}, {event.where}: {event.problem}", self.on_error, skipped)
                continue
            who.append(users.setdefault(event.user, len(users)))
            what.append(items.setdefault(event.item, len(items)))
            when.append(event.time)
        if not who:
            raise UserError(f"{self.file}: nobody takes anything in it")
        order = in_order(np.array(who), np.array(when))
        return self._core(list(users), list(items), np.array(who)[order], np.array(what)[order], skipped)

    def _core(self, users: list[str], items: list[str], who: np.ndarray, what: np.ndarray, skipped: list[str]) -> Log:
        """The rows that `min_user` and `min_item` leave, users and items numbered anew: users in the file's order, items by their names."""
        kept = np.ones(len(who), bool)
        while True:
            enough = (np.bincount(who[kept], minlength=len(users)) >= self.min_user)[who]
            enough &= (np.bincount(what[kept], minlength=len(items)) >= self.min_item)[what]
            if not (kept & ~enough).any():
                break
            kept &= enough
        if not kept.any():
            raise UserError(f"{self.file}: data.min_user={self.min_user} and data.min_item={self.min_item} leave nothing: lower them")
        left, row = np.unique(who[kept], return_inverse=True)
        names = sorted({items[i] for i in np.unique(what[kept])}, key=lambda name: (len(name), name))  # numbers in their order
        number = {name: i for i, name in enumerate(names)}
        to = np.array([number.get(name, -1) for name in items], np.int64)
        rows = Ragged.from_flat(to[what[kept]], np.bincount(row.reshape(-1), minlength=len(left)).astype(np.int64))
        return Log([users[i] for i in left], names, rows, skipped)

    def fingerprint(self) -> str:
        settings = [self.layout.kind, self.layout.user, self.layout.item, self.layout.time]
        return cache.digest(
            "Interactions", FORMAT, content_digest([self.file]), settings, self.min_user, self.min_item, self.hold_out, self.on_error
        )


class Video(Interactions):
    """Amazon's video games as the authors of SASRec distribute them (Kang & McAuley, 2018): lines `user item` in time order.

    Looked for in `root/recsys-sasrec-video` and `root`, as Video.txt, packed or not.
    """

    name = "video"

    def __init__(self, root: str, min_user: Count | None, min_item: Count | None):
        file = _first(root, "recsys-sasrec-video", "Video.txt", "https://github.com/kang205/SASRec")
        super().__init__(str(file), "pairs", None, None, None, min_user, min_item, True, "fail")
        self.name = "video"


class MovieLens(Interactions):
    """MovieLens (Harper & Konstan, 2015) in RecBole's files: ml-100k.inter in `root/movielens-100k`, `root/ml-100k` or `root`."""

    def __init__(self, root: str, min_user: Count | None, min_item: Count | None):
        file = _first(root, "movielens-100k", "ml-100k.inter", "https://github.com/RUCAIBox/RecSysDatasets", "ml-100k")
        super().__init__(str(file), "table", None, None, None, min_user, min_item, True, "fail")
        self.name = "movielens"


def _first(root: str, folder: str, name: str, where: str, *others: str) -> Path:
    base = stored.located(root)
    places = [base / folder, *(base / other for other in others), base]
    for place in places:
        if found := packed_or_not(place / name):
            return found
    raise UserError(f"no {name} in {', '.join(map(str, places))}: get it from {where} (.xz, .gz too), or set data.root=")
