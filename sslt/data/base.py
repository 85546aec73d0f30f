"""What every data set is: a `Source` that can read its splits, and the `Samples` an encoder can take.

A source only reads: it knows files and formats. What an encoder needs (a size, a tokenizer) belongs to the
encoder's processor (`prepare/`), which turns a source's split into `Samples` through the cache.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from sslt.data import copies
from sslt.data.answers import Answers, Class, Space
from sslt.errors import UserError, nearest

SPLITS = ("train", "val", "test", "unlabeled")


def many(modality: str) -> str:
    """What samples of a modality are called: images, texts, items."""
    return modality if modality.endswith("s") else f"{modality}s"


@dataclasses.dataclass
class Raw:
    """One split as its files hold it.

    `items`: for images a uint8 array [N, H, W, C] (or a lazy sequence of such [H, W, C] arrays of any size);
    for text a sequence of `str`; of samples of several parts tuples of such, in the order of `Source.parts`. `answers`: what there is to
    tell of them, or None.
    `skipped` names what `on_error=skip` left out. `contents`: uint64 [N], equal where rows are copies of one another; None: not known
    yet. `remarks`: what there is to say about the rows, a line each.
    """

    items: Sequence[Any] | np.ndarray
    answers: Answers | None = None
    skipped: list[str] = dataclasses.field(default_factory=list)
    contents: np.ndarray | None = None
    remarks: list[str] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labels(self) -> np.ndarray | None:
        """Class indices [N], where the answers are classes."""
        return np.asarray(self.answers.values) if isinstance(self.answers, Class) else None

    def take(self, index: np.ndarray) -> Raw:
        """The rows `index`, in that order."""
        items = self.items[index] if isinstance(self.items, np.ndarray) else _Taken(self.items, index)
        answers = None if self.answers is None else self.answers.take(index)
        return Raw(items, answers, self.skipped, None if self.contents is None else self.contents[index], self.remarks)


class _Taken(Sequence):
    """A lazy subset, so that choosing rows of a folder does not open its files."""

    def __init__(self, items: Sequence[Any], index: np.ndarray):
        self.items, self.rows = items, index

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i):  # type: ignore[override]
        return self.items[int(self.rows[i])]


class Source(abc.ABC):
    """A data set that can be read split by split.

    Subclasses set `modality` ("image", "text" or "items") and, where it is not classes, `answer` and `space`, implement `read` and
    `fingerprint`, and list in `own_splits` what they hold themselves. `val` (and `test`, where there is none) is drawn from `train`:
    stratified, by a fixed seed, the same for every run, so that nothing is ever both trained on and chosen by.
    """

    modality: str
    name: str = "data"
    answer: type[Answers] = Class  # what its samples have, where they have any
    parts: tuple[str, ...] = ()  # names of what a sample is made of, where these are several ("a", "b")
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    new_classes_in_test = False  # the test split holds other classes than train: made for few-shot episodes
    turned_is_another_class = False  # an image turned by a quarter is of another class (characters)
    names_drawn = False  # `row_names` knows the rows of splits that are drawn from train, too

    @abc.abstractmethod
    def own_splits(self) -> tuple[str, ...]:
        """The splits that exist as such, out of `SPLITS`; cheap (no decoding)."""

    @abc.abstractmethod
    def read(self, split: str) -> Raw:
        """Read one of `own_splits()`. Raises `UserError` naming the file, row or column that is wrong."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A digest of the content (not of the path): the same data elsewhere has the same one."""

    @property
    @abc.abstractmethod
    def classes(self) -> list[str] | None:
        """Class names in label order, or None for data without labels."""

    @property
    def space(self) -> Space | None:
        """What the answers can be (`Answers.space`); None for data without answers."""
        return None if self.classes is None else {"classes": self.classes}

    @property
    def has_classes(self) -> bool:
        """Whether its samples are of classes."""
        return self.answer is Class and self.space is not None

    def as_answers(self, labels: np.ndarray | None) -> Class | None:
        """Class indices [N] as what the samples have; None for None."""
        return None if labels is None else Class(np.asarray(labels, np.int64), {"classes": self.classes})

    @property
    def image_shape(self) -> tuple[int, int]:
        """(size, channels) of the images as an encoder built for them would take them. Images only."""
        raise UserError(f"{self.name} holds no images")

    def text_bytes(self, split: str) -> int | None:
        """About how many bytes of text an own split has, of texts that `stream` can read one by one; None where it cannot."""
        return None

    def stream(self, split: str, skipped: list[str]) -> Iterator[str]:
        """The texts that `read` gives, one after the other, of which few are held; what is left out is named in `skipped`."""
        raise NotImplementedError(f"{type(self).__name__} has no texts that are read one by one")

    def row_names(self, split: str) -> list[str] | None:
        """Names of the rows of an own split (file names), where rows have names."""
        return None

    def truth(self, split: str, column: str | None) -> list[str | None] | None:
        """Labels by name of all rows of an own split that is read without them (None: of a row without one); None where there are none.

        column: the one to look at in a table; None finds it.
        """
        return None

    def splits(self) -> tuple[str, ...]:
        """Every split `get` can give: the own ones, and those drawn from train."""
        own = self.own_splits()
        if "train" not in own or self.space is None:
            return own
        return tuple(s for s in SPLITS if s in own or s in self.drawn(own))

    def drawn(self, own: tuple[str, ...]) -> dict[str, float]:
        """What is drawn from train, and the share of it, in the order of drawing."""
        shares = {"test": self.test_fraction, "val": self.val_fraction}
        return {split: share for split, share in shares.items() if share and split not in own}

    def get(self, split: str) -> Raw:
        """Read a split, drawing `val`/`test` from train where the data have none.

        `unlabeled` falls back to `train`, whose labels are then dropped. Of samples of several parts it has each part as a sample.
        """
        own = self.own_splits()
        if split == "unlabeled":
            raw = self.read("unlabeled") if "unlabeled" in own else self.get("train")
            if self.parts:  # learned from one by one, each once: equal ones would be contrasted with one another
                return Raw(list(dict.fromkeys(text for row in raw.items for text in row)), None, raw.skipped, None, raw.remarks)
            return Raw(raw.items, None, raw.skipped, raw.contents, raw.remarks)
        if split in own and split != "train":
            return self.read(split)
        if "train" not in own:
            raise UserError(f"{self.name} has no '{split}' split; it has: {', '.join(own)}")
        raw = self.read("train")
        parts = self._carve(raw, own)
        if split not in parts:
            raise UserError(f"{self.name} has no '{split}' split; it has: {', '.join(parts)}")
        if not len(parts[split]):
            raise UserError(
                f"{self.name}: nothing is left for the '{split}' split of {len(raw)} samples: give more, or a {split} split of your own"
                + (f", or set data.{split}_fraction=0" if split != "train" else "")
            )
        return raw if len(parts) == 1 else raw.take(parts[split])

    def _carve(self, raw: Raw, own: tuple[str, ...]) -> dict[str, np.ndarray]:
        rest = np.arange(len(raw))
        parts: dict[str, np.ndarray] = {}
        if raw.answers is None or not self.drawn(own):
            return {"train": rest}
        if raw.contents is None:
            raw.contents = copies.contents_of(raw.items)
        first, strata = copies.first_of(raw.contents), raw.answers.strata
        raw.remarks = [*raw.remarks, *copies.remarks(self.name, first, raw.labels)]
        if raw.answers.groups is not None:
            first = _connected(first, raw.answers.groups)
        for split, fraction in self.drawn(own).items():
            if not 0 < fraction < 1:
                raise UserError(f"data.{split}_fraction={fraction}: give the share of train to hold out, above 0 and below 1, or 0")
            held = stratified(strata[rest], fraction=fraction, seed=0, at_least=0, together=first[rest])
            parts[split] = rest[held]
            rest = np.delete(rest, held)
        return {"train": rest, **parts}


def _connected(first: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """One number [N] for rows that are copies of one another, are of one group, or hang together by several such steps."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, (_, leader, inverse) = len(first), np.unique(groups, return_index=True, return_inverse=True)
    rows = np.tile(np.arange(n), 2)
    edges = coo_array((np.ones(2 * n, bool), (rows, np.concatenate([first, leader[inverse.reshape(-1)]]))), shape=(n, n))
    return connected_components(edges, directed=False)[1]


def stratified(
    labels: np.ndarray,
    *,
    fraction: float | None = None,
    per_class: int | None = None,
    seed: int = 0,
    at_least: int = 1,
    together: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Sorted indices of a seeded subset that keeps the class proportions, or takes `per_class` of each.

    With `fraction`, the sizes are apportioned by largest remainder, so that they add up to round(fraction · N), unless
    that leaves a class with fewer than `at_least` samples, which it then has.
    together [N]: rows that share a number are all taken or all left, for the class of the first one drawn; a class then has as many
    rows as its number or, where they do not fit, fewer. names: of the classes, for the message.
    Raises `UserError` where a class has fewer than `per_class` samples.
    """
    rng = np.random.default_rng([seed, 0x5B5E7])
    classes, counts = np.unique(labels, return_counts=True)
    if per_class is not None:
        if counts.min() < per_class:
            short = classes[counts.argmin()]
            name = short if names is None else repr(names[short])
            raise UserError(
                f"labels_per_class={per_class}: class {name} has only {counts.min()} samples: lower it, use label_fraction=, or leave the "
                f"class out of the data"
            )
        want = np.full(len(classes), per_class)
    else:
        assert fraction is not None
        if not 0 < fraction <= 1:
            raise UserError(f"label_fraction={fraction}: give a number above 0 and up to 1")
        exact = counts * fraction
        want = np.floor(exact).astype(int)
        for i in np.argsort(want - exact, kind="stable")[: round(exact.sum()) - want.sum()]:
            want[i] += 1
        want = np.maximum(want, at_least)
    order = rng.permutation(len(labels))
    if together is not None and len(np.unique(together)) < len(labels):
        return _whole_groups(labels, order, dict(zip(classes.tolist(), want.tolist(), strict=True)), together)
    chosen = [order[labels[order] == c][:n] for c, n in zip(classes, want, strict=True)]
    return np.sort(np.concatenate(chosen))


def _whole_groups(labels: np.ndarray, order: np.ndarray, want: dict[int, int], together: np.ndarray) -> np.ndarray:
    """`stratified` for rows of which some belong together: each group is taken in `order` while its class has room for all of it."""
    _, first, group, sizes = np.unique(together[order], return_index=True, return_inverse=True, return_counts=True)
    taken = np.zeros(len(sizes), bool)
    for g in np.argsort(first):
        c = int(labels[order[first[g]]])
        if sizes[g] <= want[c]:
            taken[g], want[c] = True, want[c] - int(sizes[g])
    return np.sort(order[taken[group.reshape(-1)]])


def spread(bounds: np.ndarray, shards: int) -> np.ndarray:
    """The rows of at most so many shards, evenly spread over all, in order. bounds: as `Samples.shards`."""
    filled = np.flatnonzero(np.diff(bounds))
    chosen = filled[np.unique(np.linspace(0, len(filled) - 1, shards).astype(np.int64))]
    return np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in chosen])


def check_on_error(value: str) -> str:
    """What a source does with a sample it cannot read, "fail" or "skip". Raises `UserError` for anything else."""
    if value not in ("fail", "skip"):
        raise UserError(f"data.on_error={value}: give fail or skip{nearest(value, ('fail', 'skip'))}")
    return value


class Samples(abc.ABC):
    """One split, ready for an encoder: in memory or memory-mapped, read a batch at a time.

    `answers` [N] or None; `fingerprint`: digest of content and preparation.
    """

    answers: Answers | None
    fingerprint: str
    skipped: int = 0

    @property
    def labels(self) -> np.ndarray | None:
        """Class indices [N], where the answers are classes."""
        return np.asarray(self.answers.values) if isinstance(self.answers, Class) else None

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, where the answers have such."""
        return None if self.answers is None else self.answers.space.get("classes")

    @property
    def names(self) -> list[str] | None:
        """What `labels` are called in a picture."""
        return self.classes if self.labels is not None else None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def batch(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """The rows `index` as tensors (on the CPU), what `Answers.batch` gives among them."""

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens per row, where rows differ; batches are then grouped by it."""
        return None

    @property
    def output_lengths(self) -> np.ndarray | None:
        """Tokens per row of what is to be written, where something is."""
        return None

    @property
    def padding(self) -> dict[str, int]:
        """What fills up the shorter rows of a batch, by the tensor's name; 0 where it is not named."""
        return {}

    def text(self, i: int) -> str | None:
        """The text of row i as it was read, where answers are places in it."""
        return None

    @abc.abstractmethod
    def subset(self, index: np.ndarray) -> Samples:
        """The rows `index`, sharing storage."""

    @property
    def shards(self) -> np.ndarray | None:
        """Where each shard begins that the samples are read of, and N behind them, int64 [S + 1]; None where they are one array.

        Orders of an epoch (`streams/windows.py`) keep together what lies together.
        """
        return None

    def fetch(self, shards: Sequence[int]) -> None:
        """Have these shards on this machine's disk; without it, they come as they are read."""

    def held(self) -> Samples:
        """The same samples, all in memory: for few of sharded ones that are read again and again."""
        return self

    def lengths_of(self, index: np.ndarray) -> np.ndarray | None:
        """`lengths` of the rows `index`."""
        lengths = self.lengths
        return None if lengths is None else lengths[index]

    def uncut(self) -> Samples:
        """The same rows, texts among them at their full length, for views that choose their own parts of them."""
        return self

    def packed(self, length: int) -> Samples:
        """The same tokens in rows of `length` without padding. Text only."""
        raise UserError("pack=true joins texts into rows: images have none to join, set pack=false")

    def ordered_batches(self, size: int, longest: int | None = None) -> Iterator[np.ndarray]:
        """Indices of all rows in batches that waste little padding (longest first), for evaluation.

        longest: of rows that have more tokens, so many fewer are in a batch that it takes no more memory than `size` rows of `longest`.
        """
        lengths = self.lengths
        order = np.arange(len(self)) if lengths is None else np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            count = size
            if lengths is not None and longest is not None and lengths[order[start]] > longest:
                count = max(1, size * longest // int(lengths[order[start]]))
            yield order[start : start + count]
            start += count
