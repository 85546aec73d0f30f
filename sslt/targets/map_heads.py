"""Heads that make scores of classes of an encoder's maps, and the way from scores to answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sslt.data import frames
from sslt.data.answers import IGNORE, Map, Space
from sslt.encoders.pixel_numbers import resized
from sslt.errors import UserError, nearest

HEADS = ("fpn", "linear")


def head_of(name: str, channels: Sequence[int], classes: int, width: int) -> nn.Module:
    """The head `name` of `HEADS` on maps of so many channels each. Raises `UserError` for another name."""
    if name not in HEADS:
        raise UserError(f"objective.head={name}: give {' or '.join(HEADS)}{nearest(name, HEADS)}")
    head = Pyramid(channels, classes, width) if name == "fpn" else LinearMaps(channels, classes)
    return head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def class_weights(pixels: np.ndarray, balance: float) -> Tensor:
    """share ** -balance of each class, with mean 1 over all pixels, of so many pixels a class, [C]; 0 of a class that has none."""
    shares = pixels / max(pixels.sum(), 1)
    raw = np.where(pixels > 0, np.where(pixels > 0, shares, 1.0) ** -balance, 0.0)
    return torch.from_numpy(raw / max((raw * shares).sum(), 1e-12)).float()


class LinearMaps(nn.Module):
    """Scores [B, C, H, W] that are linear in all maps, each brought to the size of the finest.

    A 1×1 convolution of the maps one upon the other (Hariharan et al., 2015), computed map by map before they are enlarged, which is the
    same and much less work. channels: of each map.
    """

    def __init__(self, channels: Sequence[int], classes: int):
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(c, classes, 1, bias=i == 0) for i, c in enumerate(channels))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return sum(resized(layer(m), maps[0]) for layer, m in zip(self.maps, maps, strict=True))  # type: ignore[return-value]


class Pyramid(nn.Module):
    """A small feature pyramid (Lin et al., 2017): each map in `width` channels, added from coarse to fine, and a 3×3 convolution.

    Scores [B, C, H, W] have the size of the finest map. Each map is normalised before they are added, since those of a network differ in
    scale by far. Scores start as large as layers usually do: from tiny ones, it stays with the background for long.
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width)) for c in channels)
        self.smooth = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.scores = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, x = (layer(m) for layer, m in zip(self.lateral, maps, strict=True))
        for lateral in reversed(finer):
            x = lateral + resized(x, lateral)
        return self.scores(self.smooth(x))


def in_own_size(scores: Tensor, batch: dict[str, Tensor], space: Space) -> Map:
    """The class of the highest score in every pixel of the images as they were.

    scores [B, C, h, w] are of what is seen of them: `seen` [B, 4] and `size` [B, 2] of the batch lead back. What was cut away is of
    class 0.
    """
    b, found = len(scores), []
    seen = batch["seen"] if "seen" in batch else frames.whole(b).to(scores.device)
    sizes = batch["size"].tolist() if "size" in batch else [list(batch["image"].shape[-2:])] * b
    back, dtype = frames.inverse(seen.double()), np.uint8 if scores.shape[1] <= IGNORE else np.uint16
    for row, frame, (h, w) in zip(scores.float(), back, sizes, strict=True):
        best = frames.smooth(frame[None], row[None], (h, w)).argmax(1)
        best = best.masked_fill(~frames.covered(frame[None], (h, w)), 0)
        found.append(best[0].cpu().numpy().astype(dtype))
    return Map.of(found, space)
