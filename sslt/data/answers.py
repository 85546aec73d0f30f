"""What there is to tell of samples, as a closed set of kinds. Truth and predictions of a target are of the same kind.

A kind is a column of answers, one for each of N samples. It knows how it is kept beside the samples (plain arrays, or rows of different
length in one array: `Ragged`), how rows of it are taken and joined, what of a batch is seen of it, by what it is divided in proportion,
and its `space`: the names of classes and the like, plain data that go with a classifier into its folder.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sslt.data import frames
from sslt.data.ragged import Ragged, objects

IGNORE = 255  # of a map: pixels that are neither learned from nor counted
Space = dict[str, Any]


KINDS: dict[str, type[Answers]] = {}  # by name; a kind of one's own is among them once its module is imported


class Answers(abc.ABC):
    """Answers of N samples: `values`, a row each. `space`: plain data that says what they can be.

    scores: of predictions, how sure they are, as the kind says; None: not known. groups: int64 [N], equal where samples belong
    together (of an article, a dialogue) and are never divided; None: nowhere. Further columns as a kind names them in `columns`.
    """

    kind: ClassVar[str]  # its name in folders and messages
    words: ClassVar[str]  # what a sample has, in words
    learned_by: ClassVar[tuple[str, ...]]  # options of `objective=`; the first is taken where none is chosen
    columns: ClassVar[tuple[str, ...]] = ("values",)
    fills: ClassVar[dict[str, int]]  # what `batch` gives, by name, and what fills up its shorter rows
    read_by: ClassVar[str | None] = None  # the option of `data=` that reads files of such samples, where only one does
    in_text = False  # whether they are places in a text, for which tokens have to know theirs
    in_image = False  # whether they are places in an image, of which nothing may be cut away unnoticed

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        KINDS[cls.kind] = cls

    def __init__(self, values: Any, space: Space, *, scores: Any = None, groups: np.ndarray | None = None, **more: Any):
        self.values, self.space, self.scores, self.groups = values, space, scores, groups
        for name, column in more.items():
            if name not in self.columns:
                raise TypeError(f"{type(self).__name__} has no column {name}")
            setattr(self, name, column)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, of kinds that have such."""
        return self.space["classes"]

    @property
    def known(self) -> np.ndarray:
        """Which rows have an answer, bool [N]: all, but of kinds whose samples have more to tell than that."""
        return np.ones(len(self), bool)

    def present(self) -> list[str]:
        """Names of the columns that there are."""
        return [n for n in (*self.columns, "scores", "groups") if getattr(self, n) is not None]

    # ---------------------------------------------------------------- rows
    def take(self, index: np.ndarray) -> Any:
        """The rows `index`, in that order."""
        part = copy.copy(self)
        for name in self.present():
            column = getattr(self, name)
            setattr(part, name, column.take(index) if isinstance(column, Ragged) else column[index])
        return part

    @classmethod
    def join(cls, parts: Sequence[Answers]) -> Any:
        """Rows of several, one after the other. Raises `ValueError` where they are not of one kind and space."""
        first = parts[0]
        if any(type(p) is not type(first) or p.space != first.space for p in parts):
            raise ValueError("answers of different kinds or spaces do not join")
        joined = copy.copy(first)
        for name in ("groups", "scores"):
            if any(getattr(p, name) is None for p in parts):
                setattr(joined, name, None)
        for name in joined.present():
            setattr(joined, name, _joined([getattr(p, name) for p in parts]))
        return joined

    # ---------------------------------------------------------------- on disk
    def save(self, folder: Path, prefix: str = "answer") -> dict[str, Any]:
        """Write the columns into a folder as PREFIX_NAME.npy; returns what `load` needs beside them."""
        for name in self.present():
            column = getattr(self, name)
            if isinstance(column, Ragged):
                np.save(folder / f"{prefix}_{name}.npy", column.flat())
                np.save(folder / f"{prefix}_{name}_sizes.npy", column.sizes)
            else:
                np.save(folder / f"{prefix}_{name}.npy", np.asarray(column))
        return {"kind": self.kind, "space": self.space, "columns": self.present()}

    @staticmethod
    def load(entry: Any, about: Mapping[str, Any], prefix: str = "answer") -> Any:
        """What `save` wrote. entry: name → array, as a cache entry has them; `about`: what it returned."""
        return KINDS[about["kind"]]._read(entry, about, prefix)

    @classmethod
    def _read(cls, entry: Any, about: Mapping[str, Any], prefix: str) -> Any:
        found = cls._columns(entry, about, prefix)
        return cls(found.pop("values"), about["space"], **found)

    @staticmethod
    def _columns(entry: Any, about: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in about["columns"]:
            values = entry[f"{prefix}_{name}"]
            sizes = f"{prefix}_{name}_sizes"
            found[name] = Ragged.from_flat(values, np.array(entry[sizes])) if sizes in entry else np.array(values)
        return found

    # ---------------------------------------------------------------- in training
    @abc.abstractmethod
    def batch(self, index: np.ndarray, frame: np.ndarray | None = None, size: int | None = None) -> dict[str, Tensor]:
        """What an objective reads of the rows `index`. Of images frame [B, 4] and size: what of each is seen, at how many pixels."""

    @classmethod
    def moved(cls, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What `batch` gave, for each of the V views, [V · B, ...]; places in an image as `batch["frame"]` [V, B, 4] moves them."""
        return {name: _repeated(batch[name], batch) for name in cls.fills}

    @classmethod
    def fits(cls, space: Space, other: Space | None) -> bool:
        """Whether predictions of one space can be measured by answers of another."""
        return space == other

    @property
    def strata(self) -> np.ndarray:
        """A number for each row, int64 [N], whose shares a part of the rows keeps."""
        return np.zeros(len(self), np.int64)


def _joined(columns: Sequence[Any]) -> Any:
    if isinstance(columns[0], Ragged):
        return Ragged.from_flat(np.concatenate([c.flat() for c in columns]), np.concatenate([c.sizes for c in columns]))
    return np.concatenate(columns)


def _rarest(present: np.ndarray) -> np.ndarray:
    """Of what each row has, bool [N, C], the rarest; C for a row that has nothing."""
    counts = present.sum(0)
    order = np.argsort(counts, kind="stable")
    rank = np.where(present[:, order].any(1), present[:, order].argmax(1), -1)
    return np.where(rank < 0, present.shape[1], order[rank]).astype(np.int64)


def _repeated(x: Tensor, batch: dict[str, Any]) -> Tensor:
    """Once for each view."""
    views = len(next(iter(batch["views"].values())))
    return x.repeat(views, *[1] * (x.dim() - 1))


class Class(Answers):
    """One of several classes. values int64 [N]: index into space["classes"]. scores float [N, C]: logits."""

    kind, words, learned_by = "class", "a class", ("classification",)
    fills: ClassVar = {"label": 0}

    def batch(self, index: np.ndarray, frame: np.ndarray | None = None, size: int | None = None) -> dict[str, Tensor]:
        return {"label": torch.from_numpy(np.asarray(self.values)[index]).long()}

    @property
    def strata(self) -> np.ndarray:
        return np.asarray(self.values)


class Labels(Answers):
    """Any number of several classes. values bool [N, C]. scores float [N, C]: logits."""

    kind, words, learned_by = "labels", "several labels", ("multilabel",)
    fills: ClassVar = {"labels": 0}

    def batch(self, index: np.ndarray, frame: np.ndarray | None = None, size: int | None = None) -> dict[str, Tensor]:
        return {"labels": torch.from_numpy(np.asarray(self.values)[index]).float()}

    @property
    def strata(self) -> np.ndarray:
        return _rarest(np.asarray(self.values))


class Number(Answers):
    """A number. values float64 [N]."""

    kind, words, learned_by = "number", "a number", ("regression", "pairs")
    fills: ClassVar = {"number": 0}
    PARTS = 10  # of the range, whose shares a part of the rows keeps

    def batch(self, index: np.ndarray, frame: np.ndarray | None = None, size: int | None = None) -> dict[str, Tensor]:
        return {"number": torch.from_numpy(np.asarray(self.values)[index]).float()}

    @classmethod
    def fits(cls, space: Space, other: Space | None) -> bool:
        return True  # numbers are numbers, from wherever to wherever they go

    @property
    def strata(self) -> np.ndarray:
        x = np.asarray(self.values)
        edges = np.quantile(x, np.linspace(0, 1, self.PARTS + 1)[1:-1]) if len(x) else x
        return np.searchsorted(edges, x, side="right").astype(np.int64)


class Tags(Answers):
    """Typed spans of a text that do not overlap. values: ragged int64 [n, 3] of (start, end, type), in characters, end exclusive.

    space["types"]: their names.
    """

    kind, words, learned_by, in_text = "tags", "tagged spans", ("tagging",), True
    fills: ClassVar = {"tags": -1}

    @property
    def types(self) -> list[str]:
        return self.space["types"]

    def batch(self, index: np.ndarray, frame: np.ndarray | None = None, size: int | None = None) -> dict[str, Tensor]:
        """`tags` int64 [B, M, 3], filled up with -1."""
        return {"tags": torch.from_numpy(self.values.padded(np.asarray(index), -1))}

    @property
    def strata(self) -> np.ndarray:
        return _strata_of([row[:, 2] for row in self.values], len(self.types))


class Texts(Answers):
    """One or more texts that would do. values: a list of N lists of strings, kept as one array of objects."""

    kind, words = "texts", "a text to write"
    learned_by: ClassVar[tuple[str, ...]] = ("summarization", "response", "translation")
    fills: ClassVar = {}

    def __init__(self, values: Sequence[Sequence[str]], space: Space, **more: Any):
        super().__init__(objects([list(row) for row in values]), space, **more)

    def save(self, folder: Path, prefix: str = "answer") -> dict[str, Any]:
        stored = copy.copy(self)
        stored.values = Ragged.of_texts([text for row in self.values for text in row])
        np.save(folder / f"{prefix}_counts.npy", np.array([len(row) for row in self.values], np.int64))
        return super(Texts, stored).save(folder, prefix)

    @classmethod
    def _read(cls, entry: Any, about: Mapping[str, Any], prefix: str) -> Any:
        found = cls._columns(entry, about, prefix)
        texts = iter(found.pop("values").texts())
        rows = [[next(texts) for _ in range(n)] for n in np.array(entry[f"{prefix}_counts"]).tolist()]
        return cls(rows, about["space"], **found)

    def batch(self, index: np.ndarray, frame: np.ndarray | None = None, size: int | None = None) -> dict[str, Tensor]:
        return {}  # words belong to whoever has a tokenizer

    @classmethod
    def fits(cls, space: Space, other: Space | None) -> bool:
        return True  # texts are texts, whatever is said of their language


class Boxes(Answers):
    """Rectangles with a class. values: ragged float64 [n, 5] of (left, top, right, bottom, class) in pixels of the image.

    shapes int64 [N, 2]: height and width of each image. space["classes"]. scores: ragged float [n, 1], of predictions.
    """

    kind, words, learned_by, in_image = "boxes", "boxes", (), True
    fills: ClassVar = {"boxes": -1, "box_class": -1}
    columns = ("values", "shapes")
    shapes: np.ndarray

    def batch(self, index: np.ndarray, frame: np.ndarray | None = None, size: int | None = None) -> dict[str, Tensor]:
        """`boxes` float [B, M, 4] as shares of what is seen, and `box_class` int64 [B, M], -1 where there is none."""
        rows = torch.from_numpy(self.values.padded(np.asarray(index), -1.0))
        sides = torch.from_numpy(np.asarray(self.shapes)[index][:, [1, 0, 1, 0]].astype(float))
        seen = frames.whole(len(index)).double() if frame is None else torch.from_numpy(frame)
        return _none_where_none(frames.boxes(seen, rows[..., :4] / sides[:, None]).float(), rows[..., 4].long())

    @classmethod
    def moved(cls, batch: dict[str, Any]) -> dict[str, Tensor]:
        boxes, classes = _repeated(batch["boxes"], batch), _repeated(batch["box_class"], batch)
        return _none_where_none(boxes if "frame" not in batch else frames.boxes(batch["frame"].flatten(0, 1), boxes), classes)

    @property
    def strata(self) -> np.ndarray:
        return _strata_of([row[:, 4].astype(int) for row in self.values], len(self.classes))


def _none_where_none(boxes: Tensor, classes: Tensor) -> dict[str, Tensor]:
    return {"boxes": torch.where(classes[..., None] < 0, -1.0, boxes), "box_class": classes}


class Map(Answers):
    """A class for every pixel. values: ragged uint8 or uint16, the pixels of each image row by row; `IGNORE` counts as nothing.

    shapes int64 [N, 2]: height and width of each image. space["classes"].
    """

    kind, words, in_image = "map", "a class for every pixel", True
    learned_by: ClassVar[tuple[str, ...]] = ("segmentation",)
    fills: ClassVar = {"map": IGNORE}
    columns: ClassVar[tuple[str, ...]] = ("values", "shapes")
    shapes: np.ndarray
    outside: float = IGNORE
    key = "map"

    @classmethod
    def of(cls, maps: Sequence[np.ndarray], space: Space, **more: Any) -> Any:
        """Of N maps [H_i, W_i]."""
        dtype = np.result_type(*{m.dtype for m in maps}) if len(maps) else np.uint8
        shapes = np.array([m.shape for m in maps], np.int64).reshape(-1, 2)
        return cls(Ragged.of([m.ravel() for m in maps], dtype), space, shapes=shapes, **more)

    def row(self, i: int) -> np.ndarray:
        """The map [H, W] of an image."""
        return self.values[i].reshape(self.shapes[i])

    def batch(self, index: np.ndarray, frame: np.ndarray | None = None, size: int | None = None) -> dict[str, Tensor]:
        """The maps as they are seen, [B, size, size]; without a size all must be of one."""
        index = np.asarray(index)
        seen = torch.from_numpy(frame) if frame is not None else frames.whole(len(index))
        out = []
        for i, part in zip(index.tolist(), seen, strict=True):
            whole = torch.from_numpy(np.array(self.row(i), self._read_as(self.values.values.dtype)))
            h, w = (size, size) if size is not None else self.shapes[i].tolist()
            out.append(frames.maps(part[None], whole[None], (h, w), self.outside)[0])
        return {self.key: torch.stack(out).to(self._given_as)}

    _given_as: ClassVar[torch.dtype] = torch.int64

    @staticmethod
    def _read_as(dtype: np.dtype) -> Any:
        return np.int32 if dtype == np.uint16 else dtype  # torch can do little with uint16

    @classmethod
    def moved(cls, batch: dict[str, Any]) -> dict[str, Tensor]:
        values = _repeated(batch[cls.key], batch)
        if "frame" not in batch:
            return {cls.key: values}
        side = next(iter(batch["views"].values())).shape[-2:]
        return {cls.key: frames.maps(batch["frame"].flatten(0, 1), values, tuple(side), cls.outside)}

    @property
    def strata(self) -> np.ndarray:
        return _strata_of([np.flatnonzero(np.bincount(row[row != IGNORE])) for row in self.values], len(self.classes))


class Instances(Map):
    """Which object every pixel belongs to, 0 where to none. objects: ragged int64, the class of object 1, 2, … of each image."""

    kind, words, learned_by = "instances", "an object for every pixel", ()
    fills: ClassVar = {"instances": 0}
    columns = ("values", "shapes", "objects")
    objects: Ragged
    outside = 0
    key = "instances"

    @property
    def strata(self) -> np.ndarray:
        return _strata_of(list(self.objects), len(self.classes))


class Values(Map):
    """A number for every pixel (depth). values: ragged float32, NaN where it is not known."""

    kind, words, learned_by = "values", "a number for every pixel", ()
    fills: ClassVar = {"pixel_values": 0}
    outside = float("nan")
    key = "pixel_values"
    _given_as = torch.float32

    @property
    def strata(self) -> np.ndarray:
        return np.zeros(len(self), np.int64)


def _strata_of(rows: Sequence[np.ndarray], n: int) -> np.ndarray:
    present = np.zeros((len(rows), n), bool)
    for i, row in enumerate(rows):
        present[i, row[row < n]] = True
    return _rarest(present)


class Item(Answers):
    """The item that comes next. values int64 [N]: index into space["items"]; of predictions the likeliest one, -1 where there is none.

    Of predictions: top int64 [N, K], the likeliest items in their order (-1: there are no more), and their scores float [N, K]. Whether
    the true item is far behind cannot be read from these, so predictions on rows whose truth is known have its place among all items,
    rank int64 [N] (1: first; 0: the encoder knows no such item), and sampled int64 [N], that among items drawn for the row.
    """

    kind, words, learned_by = "item", "a next item", ("next_item",)
    fills: ClassVar = {}
    columns: ClassVar[tuple[str, ...]] = ("values", "top", "rank", "sampled")
    top: np.ndarray | None = None
    rank: np.ndarray | None = None
    sampled: np.ndarray | None = None

    @property
    def items(self) -> list[str]:
        return self.space["items"]

    def batch(self, index: np.ndarray, frame: np.ndarray | None = None, size: int | None = None) -> dict[str, Tensor]:
        return {}  # items belong to whoever has a vocabulary
