"""From features back to images."""

from __future__ import annotations

import math

from torch import Tensor, nn


class ConvDecoder(nn.Module):
    """Maps of features [B, dim, grid, grid] → images [B, channels, size, size], doubling the side step by step.

    Each step is nearest-neighbour upsampling and a 3×3 convolution, which leaves no chequerboard (Odena et al., 2016), with
    BatchNorm and ReLU; the last convolution is bare. Sides are size, its half, a quarter, …, rounded up, so that any size can be drawn.
    width: channels of the last step; those before have twice as many each, at most 8 × width.
    """

    def __init__(self, dim: int, grid: int, size: int, channels: int, width: int):
        super().__init__()
        parts: list[nn.Module] = []
        for i in reversed(range(math.ceil(math.log2(size / grid)))):
            out = width * min(2**i, 8)
            parts += [
                nn.Upsample(math.ceil(size / 2**i)),
                nn.Conv2d(dim, out, 3, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
            ]
            dim = out
        self.layers = nn.Sequential(*parts, nn.Conv2d(dim, channels, 3, padding=1))

    def forward(self, maps: Tensor) -> Tensor:
        return self.layers(maps)


class VectorDecoder(nn.Module):
    """Vectors [B, dim] → images [B, channels, size, size]: a linear map to 4×4 (or the odd part of the size), then `ConvDecoder`."""

    def __init__(self, dim: int, size: int, channels: int, width: int):
        super().__init__()
        grid = size
        while grid % 2 == 0 and grid > 4:
            grid //= 2
        start = width * min(size // grid, 8)
        self.spread = nn.Sequential(nn.Linear(dim, start * grid * grid), nn.Unflatten(1, (start, grid, grid)), nn.ReLU(inplace=True))
        self.draw = ConvDecoder(start, grid, size, channels, width)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.draw(self.spread(vectors))


def to_maps(tokens: Tensor) -> Tensor:
    """Tokens [B, T, D] of a square grid → maps [B, D, √T, √T]."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))
