"""What a pixel's surroundings say of it without any training: levels, colours and their spread on several scales, and its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.encoders.base import Encoder
from sslt.encoders.side import SideModel, grey_levels

SCALES = (2, 4, 8, 16, 32)  # sides of squares, in pixels


def levels(x: Tensor) -> list[Tensor]:
    """Images [B, C, H, W] of grey levels 0..1 → maps [B, n, h, w], from the finest on: the images; of squares of `SCALES` pixels, and of
    the whole, means of the C channels and the deviation of their mean; last `places`."""
    h, w = x.shape[-2:]
    both = torch.cat([x, x.mean(1, keepdim=True).square()], 1)
    squares = [F.avg_pool2d(both, (min(s, h), min(s, w)), ceil_mode=True, count_include_pad=False) for s in SCALES]
    return [x, *(_spread(found) for found in [*squares, both.mean((2, 3), keepdim=True)]), places(x)]


def places(x: Tensor) -> Tensor:
    """How far down and across a pixel of images [B, C, H, W] is, 0..1, [1, 2, H, W]."""
    h, w = x.shape[-2:]
    down, across = (torch.linspace(0, 1, n, device=x.device) for n in (h, w))
    return torch.stack([down.view(-1, 1).expand(h, w), across.expand(h, w)])[None]


def _spread(means: Tensor) -> Tensor:
    """Means of channels and of the square of their mean → means of channels and the deviation of their mean."""
    channels, square = means[:, :-1], means[:, -1:]
    return torch.cat([channels, (square - channels.mean(1, keepdim=True).square()).clamp(min=1e-8).sqrt()], 1)


def resized(x: Tensor, like: Tensor) -> Tensor:
    """x [B, C, h, w] in the size of another map, bilinear with half-pixel centres."""
    return x if x.shape[-2:] == like.shape[-2:] else F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def numbers(x: Tensor) -> Tensor:
    """`levels` of every pixel of images [B, C, H, W], [B, D, H, W]."""
    return torch.cat([resized(m, x).expand(len(x), -1, -1, -1) for m in levels(x)], 1)


class PixelNumbers(SideModel):
    """Scores of classes of every pixel by the `numbers` of it: a linear model, or one with a layer of `hidden` rectified units.

    share: of the encoder's scores in what it and this say together. channels: of the images.
    """

    kind = name = "pixels"
    title = "each pixel on several scales"
    share: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor

    def __init__(self, channels: int, outputs: int, hidden: int):
        super().__init__()
        self.settings = {"channels": channels, "outputs": outputs, "hidden": hidden}
        self.sizes = [channels, *[channels + 1] * (len(SCALES) + 1), 2]
        self.register_buffer("share", torch.ones(()))
        self.register_buffer("first", torch.zeros(hidden or outputs, sum(self.sizes)))
        self.register_buffer("first_bias", torch.zeros(hidden or outputs))
        self.register_buffer("second", torch.zeros(outputs, hidden))
        self.register_buffer("second_bias", torch.zeros(outputs if hidden else 0))

    @classmethod
    def beside(cls, encoder: Encoder, settings: dict[str, Any]) -> PixelNumbers:
        return cls(**settings)

    def forward(self, encoder: Encoder, inputs: dict[str, Tensor]) -> Tensor:
        """Scores [B, C, H, W]."""
        with torch.autocast(inputs["image"].device.type, enabled=False):
            return self.of(grey_levels(encoder, inputs))

    def of(self, x: Tensor) -> Tensor:
        """Scores of images of grey levels 0..1.

        The first layer is computed level by level before they are enlarged, which is the same and much less work.
        """
        parts = zip(levels(x), self.first.split(self.sizes, 1), strict=True)
        found = sum(resized(F.conv2d(m, w[:, :, None, None]), x) for m, w in parts) + self.first_bias.view(-1, 1, 1)
        if not self.settings["hidden"]:
            return found
        return F.conv2d(found.relu(), self.second[:, :, None, None], self.second_bias)

    def fill(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take weights and biases of one layer, or of two."""
        self.first, self.first_bias = layers[0]
        if self.settings["hidden"]:
            self.second, self.second_bias = layers[1]

    def scale(self, factor: float) -> None:
        if self.settings["hidden"]:
            self.second, self.second_bias = factor * self.second, factor * self.second_bias
        else:
            self.first, self.first_bias = factor * self.first, factor * self.first_bias
