"""Descriptions of images that need no training: pixels, gradients and colours, whitened patches; and a linear model on one of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.base import Samples
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import Encoder
from sslt.encoders.patches import PatchEncoder, rows_to_start_on
from sslt.encoders.side import SideModel, grey_levels

PIXELS, GRADIENTS = 32, 64  # longest sides of images as pixels and patches, and as gradients
FILTERS, STRIDE = 400, 2  # of patches of 6 × 6 pixels, pooled over quarters: 3,000 images a second on a core


class Description(nn.Module):
    """Images [B, C, H, W] of grey levels 0..1 → numbers [B, D]. channels, side: of the images."""

    name: str

    def __init__(self, channels: int, side: int):
        super().__init__()

    def learn(self, samples: Samples) -> None:
        """Called once with the training images, where a description depends on them."""

    def of(self, samples: Samples) -> Tensor:
        """The description of all images, [N, D]."""
        parts = [samples.batch(np.arange(i, min(i + 512, len(samples))))["image"] for i in range(0, len(samples), 512)]
        return torch.cat([self(part.float() / 255) for part in parts])


class Pixels(Description):
    """Grey levels, of at most `PIXELS` pixels a side."""

    name = "pixels"

    def forward(self, x: Tensor) -> Tensor:
        return _at_most(x, PIXELS).flatten(1)


class Gradients(Description):
    """Histograms of oriented gradients, and of colours where there are some, of at most `GRADIENTS` pixels a side."""

    name = "oriented gradients and colour"

    def forward(self, x: Tensor) -> Tensor:
        x = _at_most(x, GRADIENTS)
        parts = [oriented_gradients(x)]
        if x.shape[1] == 3:
            parts.append(colours(x))
        return torch.cat(parts, 1)


class WhitenedPatches(Description):
    """Rectified responses to `FILTERS` whitened patches of the training images, pooled over quarters.

    Patches as they come do nearly as well as centroids of them (Coates & Ng, 2011, "The importance of encoding versus training"), and cost
    no training.
    """

    name = "whitened patches"

    def __init__(self, channels: int, side: int):
        super().__init__(channels, side)
        processor = ImageProcessor(min(PIXELS, side), channels, [0.5] * channels, [0.25] * channels)
        with torch.random.fork_rng(devices=[]):  # what is random in a run does not depend on whether it has this beside it
            self.encoder = PatchEncoder(processor, FILTERS, 6, STRIDE, cells=2, contrast=0.0025, mirror=False, width=1)

    def learn(self, samples: Samples) -> None:
        images = lambda part: self._normalised(samples.batch(part)["image"].float() / 255)  # noqa: E731
        self.encoder.bank.start(rows_to_start_on(len(samples)), images, epsilon=0.03, threshold=0.5)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.numbers(self._normalised(x))

    @staticmethod
    def _normalised(x: Tensor) -> Tensor:
        return (_at_most(x, PIXELS) - 0.5) / 0.25


DESCRIPTIONS: dict[str, type[Description]] = {"pixels": Pixels, "gradients": Gradients, "patches": WhitenedPatches}


class Described(SideModel):
    """A linear model on a description of an encoder's images. description: a key of `DESCRIPTIONS`."""

    kind = "description"

    def __init__(self, processor: ImageProcessor, outputs: int, description: str):
        super().__init__()
        self.settings = {"outputs": outputs, "description": description}
        self.name = description
        self.describe = DESCRIPTIONS[description](processor.channels, processor.size)
        self.title = self.describe.name
        numbers = self.describe(torch.zeros(1, processor.channels, processor.size, processor.size)).shape[1]
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.zeros(outputs, numbers))
        self.register_buffer("bias", torch.zeros(outputs))

    @classmethod
    def beside(cls, encoder: Encoder, settings: dict[str, Any]) -> Described:
        return cls(encoder.processor, **settings)

    def forward(self, encoder: Encoder, inputs: dict[str, Tensor]) -> Tensor:
        with torch.autocast(inputs["image"].device.type, enabled=False):
            return F.linear(self.describe(grey_levels(encoder, inputs)), self.weight, self.bias)

    def scale(self, factor: float) -> None:
        self.weight, self.bias = factor * self.weight, factor * self.bias


def oriented_gradients(x: Tensor, bins: int = 9) -> Tensor:
    """Histograms of oriented gradients of images [B, C, H, W] (Dalal & Triggs, 2005) → [B, D].

    Of the channels the one with the strongest gradient counts; a pixel votes for the two nearest of `bins` directions over 180°; about
    8 × 8 cells (of at least two pixels); blocks of 2 × 2 cells have length 1, are clipped at 0.2 and have length 1 again.
    """
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dx, dy = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    size, channel = (dx.square() + dy.square()).max(1, keepdim=True)
    dx, dy, size = dx.gather(1, channel), dy.gather(1, channel), size.sqrt()
    place = torch.remainder(torch.atan2(dy, dx), math.pi) * (bins / math.pi) - 0.5
    low = place.floor()
    votes = torch.zeros(x.shape[0], bins, *x.shape[2:], device=x.device)
    for offset, share in ((0, 1 - (place - low)), (1, place - low)):
        votes.scatter_add_(1, torch.remainder(low.long() + offset, bins), size * share)
    cell = max(2, -(-min(x.shape[2:]) // 8))
    cells = F.avg_pool2d(votes, cell, ceil_mode=True, count_include_pad=False)
    if min(cells.shape[2:]) < 2:
        return F.normalize(cells.flatten(1), dim=1)
    blocks = F.unfold(cells, 2)  # [B, bins·4, places]
    blocks = F.normalize(F.normalize(blocks, dim=1).clamp(max=0.2), dim=1)
    return blocks.flatten(1)


def colours(x: Tensor, levels: int = 4) -> Tensor:
    """Shares of the `levels`³ colours in each quarter of images [B, 3, H, W] → [B, 4·levels³], as square roots (Hellinger)."""
    code = (x * levels).long().clamp(max=levels - 1)
    code = (code[:, 0] * levels + code[:, 1]) * levels + code[:, 2]
    h, w = (n // 2 for n in code.shape[1:])
    quarters = [q.flatten(1) for q in (code[:, :h, :w], code[:, :h, w:], code[:, h:, :w], code[:, h:, w:]) if q.shape[1] and q.shape[2]]
    none = torch.zeros(x.shape[0], levels**3, device=x.device)
    counts = [none.scatter_add(1, q, torch.ones_like(q, dtype=none.dtype)) for q in quarters]
    return torch.cat([n * (1 / q.shape[1]) for n, q in zip(counts, quarters, strict=True)], 1).sqrt()


def _at_most(x: Tensor, side: int) -> Tensor:
    """Images made smaller where they are larger than `side`."""
    longest = max(x.shape[2:])
    return x if longest <= side else F.interpolate(x, scale_factor=side / longest, mode="area")
