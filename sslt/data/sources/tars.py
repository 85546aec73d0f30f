"""Images in tar files, as webdataset writes them: members named KEY.EXTENSION, those of one sample in succession."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.base import SPLITS, Raw, check_on_error
from sslt.data.sources import disk
from sslt.data.sources.image_files import PROBED, ImageSource, Unreadable, class_names, decode, encoder_shape
from sslt.data.sources.tar_index import Index, Tar, grouped
from sslt.data.sources.texts import class_order, split_of
from sslt.data.store import Store, is_url
from sslt.errors import UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class WebDataset(ImageSource):
    """Tar files of pictures (`KEY.jpg`, `.png`, …) with or without a class each (`KEY.cls`, or what `label` names).

    path: a tar, several as `a-{000..127}.tar`, a folder of them, or a URL of such; on this machine a glob, too. A tar whose name speaks of
    val, test or unlabeled is of that split, all others are train. Nothing is unpacked: an index says where each picture lies.
    Raises `UserError` for a tar that is damaged, and for a label that is none of `cls`, `txt` and `json:KEY`.
    """

    def __init__(self, path: str, label: str | None, on_error: str, size: int | None, val_fraction: float, test_fraction: float):
        if label is not None and not re.fullmatch(r"cls|txt|json:.+", str(label)):
            raise UserError(f"data.label={label}: give cls, txt or json:KEY, the member that holds the class")
        self.path, self.label = str(path), None if label is None else str(label)
        self.on_error, self.size = check_on_error(on_error), size
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.name = re.split(r"[.*?\[{]", self.path.rstrip("/").rsplit("/", 1)[-1])[0].strip("-_") or "tars"

    @functools.cached_property
    def _tars(self) -> dict[str, list[Tar]]:
        found: dict[str, list[Tar]] = {}
        for where in files(self.path):
            found.setdefault(split_of(where.rsplit("/", 1)[-1]) or "train", []).append(Tar(where))
        if not found.keys() & {"train", "unlabeled"}:
            raise UserError(f"{self.path}: there is no tar to train on, only for: {', '.join(found)}")
        return found

    @functools.cached_property
    def _label(self) -> str | None:
        """Which member holds the class, as given or found in the first sample."""
        if self.label is not None or "train" not in self._tars:
            return self.label
        first = next(grouped(self._tars["train"][0]), None)
        return "cls" if first is not None and "cls" in first[1] else None

    @functools.cached_property
    def _indexes(self) -> dict[str, list[Index]]:
        """The indexes of the tars of each own split."""
        named: dict[str, list[Tar]] = {}
        for split, tars in self._tars.items():
            named.setdefault("unlabeled" if split == "train" and self._label is None else split, []).extend(tars)
        found = {s: [Index(tar, None if s == "unlabeled" else self._label) for tar in named[s]] for s in SPLITS if s in named}
        return {s: indexes for s, indexes in found.items() if self._label is not None or s == "unlabeled"}

    def own_splits(self) -> tuple[str, ...]:
        return tuple(self._indexes)

    @functools.cached_property
    def classes(self) -> list[str] | None:  # type: ignore[override]
        if self._label is None:
            return None
        labels = [name for index in self._indexes["train"] for name in index.labels() if name]
        if not labels:
            raise UserError(f"{self.path}: no sample has a class in .{self._label}")
        order = class_order(labels)
        return class_names([np.array(list(map(int, labels)))], None, self.path) if all(map(str.isdecimal, order)) else order

    def read(self, split: str) -> Raw:
        self._check(split)
        indexes = self._indexes[split]
        if split == "unlabeled" or self.classes is None:
            return Raw(TarImages(indexes))
        labels = self._numbers(split)
        images, skipped = TarImages(indexes), list[str]()
        for row in np.flatnonzero(labels < 0).tolist():
            said = f"{images.name(row)}: no class of the training data in .{self._label}"
            if self.on_error != "skip":
                raise UserError(said + "; data.on_error=skip leaves such samples out")
            skipped.append(said)
        raw = Raw(images, self.as_answers(labels), skipped)
        return raw.take(np.flatnonzero(labels >= 0)) if skipped else raw

    def _numbers(self, split: str) -> np.ndarray:
        """The class of every sample, int64 [N]; -1 where it has none of the training data."""
        number = {name: i for i, name in enumerate(self.classes or ())}
        names = [name for index in self._indexes[split] for name in index.labels()]
        return np.array([number.get(name, number.get(_plain(name), -1)) for name in names], np.int64)

    def fingerprint(self) -> str:
        content = [(split, [index.entry.path.name for index in indexes]) for split, indexes in self._indexes.items()]
        return cache.digest("WebDataset", content, self.on_error)

    def row_names(self, split: str) -> list[str]:
        names = [f"{index.tar.name}/{name}" for index in self._indexes[split] for name in index.names()]
        if split == "unlabeled" or self.classes is None:
            return names
        return [names[i] for i in np.flatnonzero(self._numbers(split) >= 0)]  # those that `read` gives

    @functools.cached_property
    def image_shape(self) -> tuple[int, int]:  # type: ignore[override]
        images = TarImages(next(iter(self._indexes.values())))
        shapes = []
        for i in np.unique(np.linspace(0, len(images) - 1, PROBED).astype(int)).tolist():
            try:
                shapes.append(images[i].shape)
            except Unreadable:  # as preparation names it
                continue
        return encoder_shape(self.name, shapes, self.size)


class TarImages(Sequence[np.ndarray]):
    """Pictures of tars, decoded when asked for; 16 bytes each are held of where they lie."""

    def __init__(self, indexes: Sequence[Index]):
        self.indexes = list(indexes)
        self.starts = np.cumsum([0, *map(len, self.indexes)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, i: int) -> str:
        """TAR/MEMBER of a picture."""
        index, row = self._at(i)
        return f"{index.tar.name}/{index.name(row)}"

    def __getitem__(self, i):  # type: ignore[override]
        index, row = self._at(i)
        size = int(index.sizes[row])
        if size < 0:
            raise Unreadable(self.name(i), "there is no picture of this name in the tar")
        content = index.tar.read(int(index.offsets[row]), size)
        if len(content) != size:
            raise Unreadable(self.name(i), "the tar is cut short")
        try:
            return decode(content, "")
        except Unreadable as e:
            raise Unreadable(self.name(i), str(e).split(": ", 1)[-1]) from e  # the name is looked up where it is needed

    def _at(self, i: int) -> tuple[Index, int]:
        t = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.indexes[t], int(i - self.starts[t])


def files(path: str) -> list[str]:
    """The tars that a path stands for: braces written out, a glob or a folder listed. Raises `UserError` where there is none."""
    found: list[str] = []
    for one in braces(path):
        if is_url(one):
            found += [one] if one.endswith(".tar") else [f"{one.rstrip('/')}/{n}" for n in Store(one).names("") if n.endswith(".tar")]
            continue
        place = stored.located(one)
        if place.is_dir():
            found += [str(p) for p in sorted(place.glob("*.tar"))]
        else:
            found += [str(p) for p in disk.matching(place)] if disk.is_pattern(place) and not place.exists() else [str(place)]
    if not found:
        raise UserError(f"{path}: there is no .tar file")
    for where in found:
        if not is_url(where) and not Path(where).is_file():
            raise UserError(f"{where}: no such file")
    return found


def braces(path: str) -> list[str]:
    """`a{0..2}` and `a{x,y}` written out, as a shell does it."""
    match = _BRACES.search(path)
    if match is None:
        return [path]
    inner = _RANGE.fullmatch(match[1])
    if inner:
        first, last = int(inner[1]), int(inner[2])
        if last < first:
            raise UserError(f"data.path={path}: {{{match[1]}}} counts backwards")
        width = len(inner[1]) if inner[1].startswith("0") or len(inner[1]) == len(inner[2]) else 0
        parts = [f"{n:0{width}}" for n in range(first, last + 1)]
    else:
        parts = match[1].split(",")
    return list(itertools.chain.from_iterable(braces(path[: match.start()] + part + path[match.end() :]) for part in parts))


def _plain(label: str) -> str:
    return str(int(label)) if label.isdecimal() else label
