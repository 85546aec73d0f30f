"""Few-shot episodes: N classes, K labelled samples of each, Q more to tell apart; and which classes are for what."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from sslt.data.base import Samples
from sslt.data.streams.joined import Joined
from sslt.data.streams.streams import Stream
from sslt.errors import UserError

PURPOSES = {"train": "to learn from", "val": "to validate on", "test": "to test on"}
_TRAIN, _TEST = 0xE915, 0xE7E57  # so that episodes to learn from and to be measured on are drawn apart


@dataclasses.dataclass
class Training:
    """How a method learns from episodes.

    way: classes of an episode, at most as many as there are to learn from; None: as in tests. shot: None: as in tests.
    query: samples of each class to classify. per_step: episodes a step, on each device.
    rotations: whether classes turned by 90°, 180° and 270° are learned as classes of their own; None: where the data say so.
    val_every_n_steps, val_episodes: when and on how many episodes of validation classes to measure (0: never).
    """

    way: int | None
    shot: int | None
    query: int
    per_step: int
    rotations: bool | None
    val_every_n_steps: int
    val_episodes: int


@dataclasses.dataclass
class Episodes:
    """What is measured, and how: `way` classes, `shot` labelled samples of each, `query` others to classify.

    test_episodes: how many. val_classes, test_classes: shares of the classes held out, where a data set does not say itself
    which; split_seed: which ones. A run and what is measured of it later must agree in these three.
    method: the objective or classifier, which the stage builds with its encoder. training: None for what learns nothing.
    Raises `UserError` for numbers that make no episodes.
    """

    way: int
    shot: int
    query: int
    test_episodes: int
    val_classes: float
    test_classes: float
    split_seed: int
    method: Any
    training: Training | None

    def __post_init__(self) -> None:
        least: dict[str, tuple[float | None, int]] = {
            "way": (self.way, 2), "shot": (self.shot, 1), "query": (self.query, 1), "test_episodes": (self.test_episodes, 2),
        }  # fmt: skip
        if (t := self.training) is not None:
            least |= {"training.way": (t.way, 2), "training.shot": (t.shot, 1), "training.query": (t.query, 1)}
            least |= {"training.per_step": (t.per_step, 1)}
            least |= {"training.val_every_n_steps": (t.val_every_n_steps, 0), "training.val_episodes": (t.val_episodes, 1)}
        for key, (value, lowest) in least.items():
            if value is not None and value < lowest:
                raise UserError(f"episodes.{key}={value}: give at least {lowest}")
        for key in ("val_classes", "test_classes"):
            if not 0 < getattr(self, key) < 1:
                raise UserError(f"episodes.{key}={getattr(self, key)}: give the share of the classes, between 0 and 1")


class ClassSet:
    """Some classes of a data set. `rows[c]`: where class c is in `samples`; `purpose`: what it is for, in messages."""

    def __init__(self, samples: Samples, purpose: str):
        assert samples.labels is not None
        self.samples, self.purpose = samples, purpose
        labels = np.asarray(samples.labels)
        self.labels, counts = np.unique(labels, return_counts=True)
        self.rows = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])

    def __len__(self) -> int:
        return len(self.rows)

    def check(self, way: int, shot: int, query: int, turns: int = 1) -> None:
        """Raise `UserError` where an episode needs more classes, or more samples of a class, than there are."""
        if way > len(self) * turns:
            raise UserError(
                f"{way}-way episodes need {way} classes {self.purpose}, but there are {len(self) * turns}: lower episodes.way, or hold out "
                f"more by episodes.test_classes and episodes.val_classes"
            )
        smallest = min(range(len(self)), key=lambda c: len(self.rows[c]))
        if shot + query > len(self.rows[smallest]):
            names = self.samples.classes
            name = names[self.labels[smallest]] if names else self.labels[smallest]
            raise UserError(
                f"an episode takes {shot} + {query} samples of a class (shot + query), but class '{name}' ({self.purpose}) has "
                f"{len(self.rows[smallest])}: lower episodes.shot or query (also episodes.training.query)"
            )

    def draw(self, rng: np.random.Generator, way: int, size: int, turns: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Rows [way, size] of an episode, and by how many quarters [way] each class is turned (below `turns`)."""
        turned, chosen = np.divmod(rng.choice(len(self) * turns, way, replace=False), len(self))
        return np.stack([rng.choice(self.rows[c], size, replace=False) for c in chosen]), turned


def test_draws(classes: ClassSet, way: int, size: int, count: int, seed: int) -> np.ndarray:
    """Rows [count, way, size] of the episodes to measure on: the same for every method, more of them begin with the same."""
    return np.stack([classes.draw(np.random.default_rng([seed, e, _TEST]), way, size)[0] for e in range(count)])


def split_classes(parts: dict[str, Samples], o: Episodes, name: str) -> dict[str, ClassSet]:
    """Disjoint classes to learn from (`train`), to watch by (`val`) and to test on (`test`), out of the labelled splits.

    Where the test split (and the validation split) holds other classes than train, that division stands, and validation
    classes are drawn from train's if need be. Otherwise the classes of all samples are divided, by a seed of its own.
    Raises `UserError` where there are too few classes.
    """
    labels = {split: np.unique(np.asarray(part.labels)) for split, part in parts.items()}
    apart = {s for s in ("val", "test") if s in parts and all(not np.isin(labels[s], labels[t]).any() for t in labels if t != s)}
    own: dict[str, Samples] = {s: parts[s] for s in ("val", "test") if {"train", "test"} <= parts.keys() and "test" in apart and s in apart}
    rest = Joined([part for split, part in parts.items() if split not in own])
    classes = np.unique(np.asarray(rest.labels))
    order = np.random.default_rng([o.split_seed, 0x5C1A]).permutation(classes)
    sets: dict[str, ClassSet] = {split: ClassSet(part, PURPOSES[split]) for split, part in own.items()}
    for split, share in (("test", o.test_classes), ("val", o.val_classes), ("train", 1.0)):
        if split not in sets:
            n = math.ceil(share * len(classes) - 1e-9)
            chosen, order = order[:n], order[n:]
            part = rest.subset(np.flatnonzero(np.isin(np.asarray(rest.labels), chosen)))
            sets[split] = ClassSet(part, PURPOSES[split])
    if min(map(len, sets.values())) < 2:
        raise UserError(
            f"{name} has too few classes for episodes: {len(sets['train'])} to learn from, {len(sets['val'])} to validate on, "
            f"{len(sets['test'])} to test on, where each takes 2 at least: change episodes.val_classes and episodes.test_classes"
        )
    return sets


class EpisodeStream(Stream):
    """Batches of whole episodes, `per_step` on each rank; an epoch has as many as show each sample once, on average.

    Episodes are numbered over steps and ranks, which take them by turns, and each is drawn from (seed, its number): so two ranks
    with 8 episodes a step see those of one rank with 16. A batch holds the samples' own tensors, `label` [B] counted anew in each
    episode (0 to way-1), and the rows `support` [E, way, shot] and `query` [E, way, query] of its E episodes, classes in the order of
    their labels.

    turns: 4 makes a class turned by a quarter, a half and three quarters classes of their own. Images only.
    """

    def __init__(
        self,
        classes: ClassSet,
        way: int,
        shot: int,
        query: int,
        per_step: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        turns: int = 1,
        views: torch.nn.Module | None = None,
    ):
        self.classes, self.way, self.shot, self.query, self.per_step = classes, way, shot, query, per_step
        self.samples, self.seed, self.rank, self.world, self.turns, self.views = classes.samples, seed, rank, world, turns, views
        self.drop_last = True
        self.together = way * (shot + query)
        self.batch_size = per_step * self.together
        self.length = max(1, len(self.samples) * turns // (self.batch_size * world))
        places = torch.arange(self.batch_size).view(per_step, way, shot + query)
        self._support, self._query = places[:, :, :shot].contiguous(), places[:, :, shot:].contiguous()
        self._label = torch.arange(way).repeat_interleave(shot + query).repeat(per_step)

    def index_at(self, step: int) -> np.ndarray:
        return self._draw(step)[0].reshape(-1)

    def at(self, step: int) -> dict[str, torch.Tensor]:
        rows, turned = self._draw(step)
        batch = self.samples.batch(rows.reshape(-1))
        if self.turns > 1:
            turn(batch["image"], np.repeat(turned.reshape(-1), self.shot + self.query))
        return {**batch, "label": self._label, "support": self._support, "query": self._query}

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        first, size = step * self.per_step * self.world + self.rank, self.shot + self.query
        rngs = [np.random.default_rng([self.seed, first + i * self.world, _TRAIN]) for i in range(self.per_step)]
        drawn = [self.classes.draw(rng, self.way, size, self.turns) for rng in rngs]
        return np.stack([rows for rows, _ in drawn]), np.stack([turned for _, turned in drawn])


def turn(images: torch.Tensor, quarters: np.ndarray) -> None:
    """Turn images [B, C, S, S], each by its number of quarters [B], in place."""
    for k in np.unique(quarters[quarters > 0]):
        which = torch.from_numpy(np.flatnonzero(quarters == k))
        images[which] = torch.rot90(images[which], int(k), (2, 3))
