"""Encoders of images small enough to check by hand, for the tests of this folder."""

from __future__ import annotations

import torch
from torch import nn

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import Features
from sslt.encoders.image import ImageEncoder
from sslt.encoders.pixels import PixelEncoder


class TinyEncoder(PixelEncoder):
    """A convolution of stride 2, BatchNorm, ReLU and another such convolution: a map of a quarter of the side. Remembers its inputs."""

    Processor = ImageProcessor

    def __init__(self, size: int = 16, channels: int = 3, dim: int = 8):
        super().__init__(ImageProcessor(size, channels, [0.4, 0.5, 0.45][:channels], [0.25, 0.2, 0.3][:channels]))
        torch.manual_seed(0)
        self.dim = dim
        self.net = nn.Sequential(nn.Conv2d(channels, dim, 3, 2, 1), nn.BatchNorm2d(dim), nn.ReLU(), nn.Conv2d(dim, dim, 3, 2, 1), nn.ReLU())
        self.seen: list[torch.Tensor] = []

    def forward(self, inputs):
        self.seen.append(inputs["image"])
        x = self.net(inputs["image"]).flatten(2)
        return Features(x.mean(2), x.transpose(1, 2))

    def block_names(self):
        return ["net"]


def tiny_vit(size: int = 32, channels: int = 3) -> ImageEncoder:
    """A ViT of one block with patches of 4 pixels."""
    processor = ImageProcessor(size, channels, [0.5] * channels, [0.25] * channels)
    args = {"patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}
    return ImageEncoder(processor, "vit_tiny_patch16_224", args, "standard", True)


def views(b: int = 4, size: int = 16, channels: int = 3, v: int = 1, seed: int = 1) -> dict:
    """[v, b, channels, size, size] of blotches, of about mean 0 and deviation 1, channels last in memory."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(v * b, channels, size // 4, size // 4, generator=generator)
    x = nn.functional.interpolate(coarse, scale_factor=4) + 0.3 * torch.randn(v * b, channels, size, size, generator=generator)
    return {"views": {"image": x.contiguous(memory_format=torch.channels_last).unflatten(0, (v, b))}}


def coordinates(b: int, size: int) -> torch.Tensor:
    """Images [b, 1, size, size] whose pixels tell where they are: y · size + x."""
    return torch.arange(float(size * size)).view(1, 1, size, size).expand(b, -1, -1, -1).contiguous()
