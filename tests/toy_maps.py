"""Made-up images of several sizes with a class for every pixel: bright discs and dark squares, edges between them ignored."""

from __future__ import annotations

import numpy as np

from sslt.data.answers import IGNORE, Map
from sslt.data.base import Raw, Source
from sslt.data.cache import digest

CONFIG = """# made-up images with maps
_target_: toy_maps.Shapes
n: 60
classes: [ground, disc, square]
sizes: [[24, 24], [24, 40], [33, 20]]
"""


class Shapes(Source):
    """`n` images of the given sizes (height, width) in turn, with a disc and, where there are three classes, a square in each."""

    modality, name, answer = "image", "shapes", Map
    classes = None

    def __init__(self, n: int, classes: list[str], sizes: list[list[int]]):
        self.n, self.names, self.sizes = n, list(classes), [tuple(s) for s in sizes]

    @property
    def space(self):
        return {"classes": self.names}

    @property
    def image_shape(self):
        return 24, 3

    def own_splits(self):
        return ("train",)

    def fingerprint(self):
        return digest("Shapes", self.n, self.names, self.sizes)

    def read(self, split):
        rng = np.random.default_rng(3)
        images, maps = zip(*[self._one(rng, *self.sizes[i % len(self.sizes)]) for i in range(self.n)], strict=True)
        return Raw(list(images), Map.of(list(maps), self.space))

    def _one(self, rng, h, w):
        image = rng.integers(90, 130, (h, w, 3)).astype(np.uint8)
        y, x = np.mgrid[:h, :w] + 0.5
        found = np.zeros((h, w), np.uint8)
        radius, cy, cx = rng.uniform(4, 7), rng.uniform(6, h - 6), rng.uniform(6, w - 6)
        away = np.hypot(y - cy, x - cx)
        image[away < radius] = (230, 200, 60)
        found[away < radius] = 1
        if len(self.names) > 2:
            top, left = rng.integers(0, h - 7), rng.integers(0, w - 7)
            image[top : top + 7, left : left + 7] = (20, 30, 90)
            found[top : top + 7, left : left + 7] = 2
        found[(abs(away - radius) < 0.5) & (found < 2)] = IGNORE
        return image, found
