"""Jigsaw and patch context: tiles of an image are encoded alone, and the question is how they lie."""

from __future__ import annotations

import functools
import itertools
import math
from typing import cast

import numpy as np
import torch
from torch import Tensor

from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, Picture, mlp
from sslt.objectives.parts.pixels import answers, choice, images_of
from sslt.objectives.parts.tiles import cut_tiles, drop_colour, encode_tiles, even_out, tile_side
from sslt.ranges import Count, Natural, Share

SEED = 0  # of the set of permutations, which is the same for every run


@functools.cache
def distant_permutations(tiles: int, count: int, min_distance: int) -> np.ndarray:
    """`count` permutations [count, tiles] far from each other in Hamming distance, the number of places in which two differ.

    Greedy (Noroozi & Favaro, 2016, algorithm 1): the next is the one whose nearest among those chosen is farthest, and of these the
    one with the largest mean distance. (Theirs looks at the mean alone, which lets two be close.) Raises `UserError` if there are
    not so many, or if the greedy choice runs out of those that differ in `min_distance` places from all before.
    """
    most = math.factorial(tiles)
    if not 2 <= count <= most:
        raise UserError(f"objective.permutations={count}: {tiles} tiles have {most:,} permutations, give 2 to {most:,}")
    if not 2 <= min_distance <= tiles:
        raise UserError(f"objective.min_distance={min_distance}: two permutations of {tiles} tiles differ in 2 to {tiles} places")
    every = np.array(list(itertools.permutations(range(tiles))), np.uint8)
    every = every[np.random.default_rng(SEED).permutation(most)]
    nearest, total = np.full(most, tiles + 1, np.int64), np.zeros(most, np.int64)
    chosen = [0]
    while len(chosen) < count:
        distance = (every != every[chosen[-1]]).sum(1)
        nearest, total = np.minimum(nearest, distance), total + distance
        far = nearest.max()
        if far < min_distance:
            raise UserError(
                f"objective.permutations={count}: only {len(chosen)} permutations were found that differ in min_distance={min_distance} "
                f"places from each other: give fewer, or a smaller objective.min_distance"
            )
        chosen.append(int(np.where(nearest == far, total, -1).argmax()))
    return every[chosen].astype(np.int64)


class Jigsaw(Objective):
    """Nine tiles in disorder, and the question in which (Noroozi & Favaro, 2016).

    Reads `views` [V, B, C, S, S]. A tile is cut at a random place of each cell of a 3×3 grid, which leaves random gaps; it is normalised by
    itself and encoded alone (all 9·V·B in one forward). The pooled features, concatenated in the permuted order, go through an MLP to
    the permutation: there are `permutations` of them, any two at least `min_distance` apart. Theirs are 1000.

    tile: its side; null: 64/75 of a cell, as theirs, in whole patches of a ViT. drop_colour: probability with which a tile keeps one
    channel only, against chromatic aberration. hidden: of the MLP.
    """

    advice = (
        "train for longer, or by a task that compares views (+task=simclr): this one may be solved by other means than "
        "what classes differ in"
    )

    def __init__(self, encoder: Encoder, permutations: Count, min_distance: Count, tile: Count | None, drop_colour: Share, hidden: Count):
        super().__init__()
        self.tile = tile_side(encoder, "tile", tile, lambda size: size // 3 * 64 // 75)
        self.cell = encoder.processor.size // 3
        if self.tile > self.cell:
            size = encoder.processor.size
            raise UserError(f"objective.tile={self.tile}: three tiles side by side do not fit into encoder.processor.size={size} pixels")
        chosen = distant_permutations(9, permutations, min_distance)
        self.register_buffer("permutations", torch.from_numpy(chosen))
        self.drop_colour = drop_colour
        self.head = mlp(9 * encoder.dim, hidden, permutations, norm=False)

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        count = len(cast(Tensor, self.permutations))
        if len(samples) < count:
            raise UserError(
                f"{len(samples)} images are too few to tell {count} permutations apart: set objective.permutations={len(samples)}"
            )

    def cut(self, images: Tensor) -> Tensor:
        """Tiles [B, 9, C, t, t] as they lie in the image, row by row."""
        b, device = len(images), images.device
        start = torch.arange(3, device=device) * self.cell + (images.shape[-1] - 3 * self.cell) // 2
        moved = torch.randint(self.cell - self.tile + 1, (b, 9, 2), device=device)
        return cut_tiles(images, start.repeat_interleave(3) + moved[..., 0], start.repeat(3) + moved[..., 1], self.tile)

    def ask(self, encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tiles [B, 9, C, t, t] in order, the right permutations [B], and the logits [B, P]."""
        permutations = cast(Tensor, self.permutations)
        tiles = self.cut(images)
        features = encode_tiles(encoder, drop_colour(even_out(tiles), self.drop_colour))
        truth = torch.randint(len(permutations), (len(images),), device=images.device)
        order = permutations[truth].unsqueeze(2).expand(-1, -1, features.shape[2])
        return tiles, truth, self.head(features.gather(1, order).flatten(1))

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        _, truth, logits = self.ask(encoder, images_of(batch))
        return choice(logits, truth, self.logs_now)

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = images_of(batch)[:12]
        tiles, truth, logits = self.ask(encoder, images)
        permutations, said = cast(Tensor, self.permutations), logits.argmax(1)
        shuffled = tiles[torch.arange(len(images), device=images.device)[:, None], permutations[truth]]
        back = shuffled[torch.arange(len(images), device=images.device)[:, None], permutations[said].argsort(1)]
        rows = {"in disorder": self._lay(shuffled, images), "put back": self._lay(back, images), "image": images}
        return {"jigsaw": Picture(rows, answers([f"no. {k}" for k in said.tolist()], [f"no. {k}" for k in truth.tolist()]))}

    def _lay(self, tiles: Tensor, images: Tensor) -> Tensor:
        """Tiles on canvases as large as the images."""
        canvas = torch.zeros_like(images)
        for i in range(9):
            y, x = i // 3 * self.cell, i % 3 * self.cell
            canvas[:, :, y : y + self.tile, x : x + self.tile] = tiles[:, i]
        return canvas


_NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
_ARROWS = "↖↑↗←→↙↓↘"


def _jitter(tile: int) -> int:
    return max(1, round(tile * 7 / 96))


def _context_tile(size: int) -> int:
    """The largest tile, at most a quarter of the image, beside which the smallest gap has room."""
    return max((t for t in range(size // 4 + 1) if 3 * t + 6 * _jitter(t) <= size), default=0)


class PatchContext(Objective):
    """Where beside a tile another one lies (Doersch et al., 2015): which of eight neighbours.

    Reads `views` [V, B, C, S, S]. A tile and one of its neighbours in a 3×3 grid with gaps, placed at random, each moved by some
    pixels, are normalised and encoded alone (2·V·B in one forward); an MLP on both features tells the direction.

    tile: its side; null: a quarter of the image's, in whole patches of a ViT. jitter: largest movement; null: 7/96 of a tile, as
    theirs, at least 1. gap: between tiles before they move; null: half a tile, as theirs, or as much as there is room for.
    drop_colour: probability with which a tile keeps one channel only (theirs: 1). hidden: of the MLP.
    """

    advice = (
        "train for longer, or by a task that compares views (+task=simclr): this one may be solved by other means than "
        "what classes differ in"
    )

    def __init__(
        self, encoder: Encoder, tile: Count | None, gap: Natural | None, jitter: Natural | None, drop_colour: Share, hidden: Count
    ):
        super().__init__()
        self.tile = tile_side(encoder, "tile", tile, _context_tile)
        size = encoder.processor.size
        self.jitter = _jitter(self.tile) if jitter is None else jitter
        room = (size - 3 * self.tile - 2 * self.jitter) // 2
        self.gap = max(min(self.tile // 2, room), 2 * self.jitter) if gap is None else gap
        if self.jitter < 0 or self.gap < 2 * self.jitter:
            raise UserError(
                f"objective.gap={self.gap} and objective.jitter={self.jitter}: tiles would overlap, give a gap of twice the jitter or more"
            )
        need = 3 * self.tile + 2 * (self.gap + self.jitter)
        if need > size:
            raise UserError(
                f"tiles of {self.tile} pixels, gap {self.gap} and jitter {self.jitter} need images of {need} pixels, not {size}: "
                f"set encoder.processor.size={need} or a smaller objective.tile"
            )
        self.room = size - need
        self.drop_colour = drop_colour
        self.head = mlp(2 * encoder.dim, hidden, 8, norm=False)
        self.register_buffer("neighbours", torch.tensor(_NEIGHBOURS), persistent=False)

    def cut(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles [B, 2, C, t, t], the middle one first, and the directions [B]."""
        b, device = len(images), images.device
        direction = torch.randint(8, (b,), device=device)
        step = torch.stack([torch.zeros_like(cast(Tensor, self.neighbours)[direction]), cast(Tensor, self.neighbours)[direction]], 1)
        origin = self.jitter + torch.randint(self.room + 1, (b, 1, 2), device=device)
        moved = torch.randint(-self.jitter, self.jitter + 1, (b, 2, 2), device=device)
        corner = origin + (step + 1) * (self.tile + self.gap) + moved  # [B, 2, (y, x)]
        return cut_tiles(images, corner[..., 0], corner[..., 1], self.tile), direction

    def ask(self, encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tiles [B, 2, C, t, t], the right directions [B], and the logits [B, 8]."""
        tiles, direction = self.cut(images)
        features = encode_tiles(encoder, drop_colour(even_out(tiles), self.drop_colour))
        return tiles, direction, self.head(features.flatten(1))

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        _, direction, logits = self.ask(encoder, images_of(batch))
        return choice(logits, direction, self.logs_now)

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = images_of(batch)[:12]
        tiles, direction, logits = self.ask(encoder, images)
        said, true = logits.argmax(1).tolist(), direction.tolist()
        rows = {"as said": self._lay(tiles, said, images), "as it is": self._lay(tiles, true, images), "image": images}
        return {"patch_context": Picture(rows, answers([_ARROWS[k] for k in said], [_ARROWS[k] for k in true]))}

    def _lay(self, tiles: Tensor, directions: list[int], images: Tensor) -> Tensor:
        """The two tiles on canvases as large as the images, the second in the given direction."""
        canvas = torch.zeros_like(images)
        step, t = self.tile + self.gap, self.tile
        first = (images.shape[-1] - 3 * t - 2 * self.gap) // 2 + step
        for i, k in enumerate(directions):
            for tile, (dy, dx) in zip(tiles[i], ((0, 0), _NEIGHBOURS[k]), strict=True):
                y, x = first + dy * step, first + dx * step
                canvas[i, :, y : y + t, x : x + t] = tile
        return canvas
