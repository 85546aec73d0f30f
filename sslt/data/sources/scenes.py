"""Scenes that need no file: coloured digits of scikit-learn, near and far, on a textured ground, with every kind of answer about them.

A scene is a function of (seed, split, index): uniform numbers of the Mersenne twister, whose stream NumPy has frozen, and then only
sums, products, quotients and comparisons, which IEEE 754 defines to the bit; so scenes are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sslt.data import cache, copies
from sslt.data.answers import IGNORE, KINDS, Answers, Boxes, Class, Instances, Labels, Map, Number, Space, Texts, Values
from sslt.data.base import SPLITS, Raw, stratified
from sslt.data.ragged import Ragged
from sslt.data.sources.image_files import ImageSource
from sslt.data.sources.images import DIGIT_NAMES, Digits
from sslt.errors import UserError, nearest
from sslt.ranges import Count, NonNegative, Seed

FORMAT = 1  # of what is drawn: raise it when scenes change
COLOURS = {
    "red": (225, 45, 45), "green": (50, 190, 70), "blue": (60, 90, 235), "yellow": (235, 215, 50),
    "purple": (170, 60, 200), "orange": (240, 135, 35), "cyan": (60, 205, 215), "white": (235, 235, 235),
}  # fmt: skip
MOST = 4  # digits in a scene
TRIES = 12  # places that a digit may stand in, of which it takes the one with most room
COVERED = 0.25  # of a digit's square that nearer ones may hide; one without such a place is left out
SIDE = 0.5  # of the picture's, of a digit at depth 1
STEP, WITHIN = 0.4, 0.25  # depths are 1 + STEP · k + at most WITHIN, each k once: no two digits are equally far
GROUND = (3.6, 2.6)  # depth of the ground at the top and at the bottom of the picture
SPEED = 0.06  # of the picture's side that a digit at depth 1 moves in a frame, at most, along each axis
SHARES = {"test": 0.3, "val": 0.15}  # of scikit-learn's digits that only scenes of these splits show
EDGE = (0.25, 0.75)  # covering of a pixel between which it is neither ground nor digit


class Thing(NamedTuple):
    """A digit in a scene: 8×8 `ink` in 0..16, and where its square of `side` pixels has its centre; pixels a frame."""

    ink: np.ndarray
    label: int
    colour: str
    rgb: np.ndarray
    depth: float
    side: float
    centre: np.ndarray  # x, y
    velocity: np.ndarray


class Scene(NamedTuple):
    """Digits, the nearest first, before a ground [S, S, 3] of numbers in 0..255."""

    things: list[Thing]
    ground: np.ndarray


class Drawn(NamedTuple):
    """A scene as pixels: `image` uint8 [S, S, 3]; `classes` uint8 [S, S]: 0 the ground, 1..10 the digits, `IGNORE` on soft edges.

    `objects` uint8 [S, S]: 0, or from 1 which of the things is seen; `depth` float32 [S, S].
    """

    image: np.ndarray
    classes: np.ndarray
    objects: np.ndarray
    depth: np.ndarray


class Scenes(ImageSource):
    """`count` training scenes of `size` pixels, and so many more, as shares of it, for val and test, of digits that train never shows.

    answer: what is asked about them. class: the largest digit; labels: which there are; number: how many; map, instances, values: a
    class, an object, a depth for each pixel; boxes: of the visible parts; texts: a caption. Colours say nothing of the class.
    """

    name = "scenes"

    def __init__(self, answer: str, count: Count, size: Count, seed: Seed, val_fraction: NonNegative, test_fraction: NonNegative):
        if answer not in ABOUT:
            raise UserError(f"data.answer={answer}: give {', '.join(ABOUT)}{nearest(answer, ABOUT)}")
        if size < 16:
            raise UserError(f"data.size={size}: give 16 or more pixels, or no digit can be read")
        self.answer, self.count, self.size, self.seed = KINDS[answer], count, size, seed
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    @property
    def image_shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.size, 3

    @property
    def space(self) -> Space:
        if self.answer in (Number, Texts, Values):
            return {}
        return {"classes": [*(["background"] if self.answer is Map else []), *DIGIT_NAMES]}

    @property
    def classes(self) -> list[str] | None:
        return self.space.get("classes")

    @property
    def _counts(self) -> dict[str, int]:
        shares = {"train": 1.0, "val": self.val_fraction, "test": self.test_fraction}
        return {split: n for split, share in shares.items() if (n := round(self.count * share))}

    def own_splits(self) -> tuple[str, ...]:
        return tuple(self._counts)

    def drawn(self, own: tuple[str, ...]) -> dict[str, float]:
        """Nothing: a share of 0 is a split that is not wanted, and train's digits belong to train."""
        return {}

    def fingerprint(self) -> str:
        about = [self.answer.kind, self.count, self.size, self.seed, self.val_fraction, self.test_fraction]
        return cache.digest("scenes", FORMAT, Digits().fingerprint(), about)

    def read(self, split: str) -> Raw:
        self._check(split)
        scenes = [self.scene(split, i) for i in range(self._counts[split])]
        pixels = [draw(scene, self.size) for scene in scenes]
        return Raw(np.stack([p.image for p in pixels]), ABOUT[self.answer.kind](scenes, pixels, self.space))

    def clip(self, split: str, index: int, frames: Count) -> list[Drawn]:
        """The scene in motion: `frames` pictures, of which the first is the scene itself; digits keep their velocity and may leave."""
        scene = self.scene(split, index)
        return [draw(scene, self.size, time) for time in range(frames)]

    # ---------------------------------------------------------------- what is in a scene
    @cached_property
    def _digits(self) -> dict[str, list[list[np.ndarray]]]:
        """For each split and class the digits [8, 8] of scikit-learn that its scenes show: no image is in two splits, nor a copy of one."""
        raw = Digits().read("train")
        assert raw.labels is not None
        ink, labels = np.rint(np.asarray(raw.items)[..., 0] / (255 / 16)), raw.labels
        same, left, rows = copies.first_of(copies.contents_of(raw.items)), np.arange(len(raw)), {}
        for split, share in SHARES.items():
            held = stratified(labels[left], fraction=share, together=same[left])
            rows[split], left = left[held], np.delete(left, held)
        rows["train"] = left
        return {s: [list(ink[r[labels[r] == c]]) for c in range(len(DIGIT_NAMES))] for s, r in rows.items()}

    def scene(self, split: str, index: int) -> Scene:
        """What is to be seen in scene `index` of a split."""
        numbers = np.random.RandomState([self.seed, SPLITS.index(split), index])  # of all generators the one whose stream stays
        count, slots = 1 + int(numbers.random_sample() * MOST), np.argsort(numbers.random_sample(MOST), kind="stable")
        things: list[Thing] = []
        for k in np.sort(slots[:count]):
            u, places = numbers.random_sample(10), numbers.random_sample((TRIES, 2))
            depth = 1 + STEP * float(k) + WITHIN * u[0]
            side = SIDE * self.size / depth
            centres = side / 2 + places * (self.size - side)
            hidden = np.array([sum(_shared(c, side, t) for t in things) for c in centres])
            if hidden.min() > COVERED * side * side:
                continue
            label, name = int(u[1] * len(DIGIT_NAMES)), list(COLOURS)[int(u[2] * len(COLOURS))]
            ink = self._digits[split][label]
            rgb = np.clip(np.array(COLOURS[name]) + 30 * (u[4:7] - 0.5), 0, 255)
            velocity = SPEED * self.size / depth * (2 * u[7:9] - 1)
            centre = centres[int(hidden.argmin())]
            things.append(Thing(ink[int(u[3] * len(ink))], label, name, rgb, depth, side, centre, velocity))
        return Scene(things, _ground(numbers, self.size))


def _shared(centre: np.ndarray, side: float, other: Thing) -> float:
    """The area that a square has in common with that of another thing."""
    both = np.minimum(centre + side / 2, other.centre + other.side / 2) - np.maximum(centre - side / 2, other.centre - other.side / 2)
    return float(np.maximum(both[0], 0) * np.maximum(both[1], 0))


def _ground(numbers: np.random.RandomState, size: int) -> np.ndarray:
    """Dull colours in patches of two sizes, with grain: numbers in 0..255, [S, S, 3]."""
    at = (np.arange(size) + 0.5) / size
    ground = np.full((size, size, 3), 85.0) + 30 * (numbers.random_sample(3) - 0.5)
    for cells, strength, channels in ((4, 50, 3), (13, 40, 1)):
        ground = ground + strength * (sampled(numbers.random_sample((cells, cells, channels)), at * cells - 0.5, at * cells - 0.5) - 0.5)
    return ground + 16 * (numbers.random_sample((size, size, 1)) - 0.5)


# Pixels ---------------------------------------------------------------------------------------------------------------


def sampled(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear values of a grid [h, w, ...] at rows [H] and columns [W], counted from the centre of its first cell; its border goes on."""
    for axis, places in enumerate((rows, columns)):
        last = grid.shape[axis] - 1
        low = np.clip(np.floor(places), 0, last).astype(int)
        share = np.clip(places - low, 0, 1).reshape(*[1] * axis, -1, *[1] * (grid.ndim - axis - 1))
        a, b = np.take(grid, low, axis), np.take(grid, np.minimum(low + 1, last), axis)
        grid = a + (b - a) * share
    return grid


def draw(scene: Scene, size: int, time: float = 0) -> Drawn:
    """Paint a scene `time` frames after its beginning, the farthest things first."""
    image, at = scene.ground, np.arange(size) + 0.5
    classes, objects = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    slope = (GROUND[0] + (GROUND[1] - GROUND[0]) * at / size).astype(np.float32)
    depth = np.repeat(slope[:, None], size, 1)
    for number, thing in reversed(list(enumerate(scene.things, 1))):
        left, top = thing.centre + time * thing.velocity - thing.side / 2
        ink = np.pad(thing.ink, 1)  # nothing around it, and half a cell more to fade out in
        cells = [(at - start) * (len(thing.ink) / thing.side) + 0.5 for start in (top, left)]
        cover = np.clip((sampled(ink, *cells) - 3) / 5, 0, 1)
        image = image + (thing.rgb - image) * cover[..., None]
        solid = cover >= 0.5
        classes[cover > EDGE[0]] = IGNORE
        classes[cover >= EDGE[1]] = thing.label + 1
        objects[solid], depth[solid] = number, thing.depth
    return Drawn(np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8), classes, objects, depth)


def boxes(drawn: Drawn, things: list[Thing]) -> np.ndarray:
    """float64 [n, 5]: left, top, right, bottom in pixels and the class, of what is to be seen of each thing."""
    found = []
    for number, thing in enumerate(things, 1):
        rows, columns = np.nonzero(drawn.objects == number)
        if len(rows):
            found.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, thing.label))
    return np.array(found, float).reshape(-1, 5)


def caption(things: list[Thing]) -> str:
    """The digits from left to right: "a red 3 left of a blue 7 above an orange 1"."""
    said, before = "", None
    for thing in sorted(things, key=lambda t: float(t.centre[0])):
        if before is not None:
            across, down = thing.centre - before.centre
            said += " left of " if across >= abs(down) else " above " if down > 0 else " below "
        said += f"{'an' if thing.colour[0] in 'aeiou' else 'a'} {thing.colour} {thing.label}"
        before = thing
    return said


def _present(scenes: list[Scene]) -> np.ndarray:
    present = np.zeros((len(scenes), len(DIGIT_NAMES)), bool)
    for row, scene in zip(present, scenes, strict=True):
        row[[t.label for t in scene.things]] = True
    return present


def _boxes(scenes: list[Scene], pixels: list[Drawn], space: Space) -> Boxes:
    rows = Ragged.of([boxes(p, s.things) for p, s in zip(pixels, scenes, strict=True)], np.float64, 5)
    return Boxes(rows, space, shapes=np.array([p.classes.shape for p in pixels]))


def _instances(scenes: list[Scene], pixels: list[Drawn], space: Space) -> Instances:
    objects = Ragged.of([[t.label for t in s.things] for s in scenes], np.int64)
    return Instances.of([p.objects for p in pixels], space, objects=objects)


ABOUT: dict[str, Callable[[list[Scene], list[Drawn], Space], Answers]] = {
    "class": lambda scenes, _, space: Class(np.array([s.things[0].label for s in scenes], np.int64), space),
    "labels": lambda scenes, _, space: Labels(_present(scenes), space),
    "number": lambda scenes, _, space: Number(np.array([len(s.things) for s in scenes], float), space),
    "map": lambda _, pixels, space: Map.of([p.classes for p in pixels], space),
    "instances": _instances,
    "values": lambda _, pixels, space: Values.of([p.depth for p in pixels], space),
    "boxes": _boxes,
    "texts": lambda scenes, _, space: Texts([[caption(s.things)] for s in scenes], space),
}
