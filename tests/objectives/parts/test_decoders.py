"""Protects decoders: from which grid they draw, how wide they are on the way, and that any size can be drawn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslt.objectives.parts.decoders import ConvDecoder, VectorDecoder, to_maps


def widths(decoder: ConvDecoder) -> list[int]:
    return [m.out_channels for m in decoder.layers if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    ("grid", "size", "expected"), [(4, 32, [32, 16, 8, 3]), (3, 12, [16, 8, 3]), (8, 8, [3]), (1, 64, [64, 64, 64, 32, 16, 8, 3])]
)
def test_maps_are_doubled_until_they_are_images(grid, size, expected):
    """Each time half as wide, 8 times the width at most."""
    decoder = ConvDecoder(10, grid, size, 3, 8)
    assert widths(decoder) == expected
    assert decoder(torch.randn(2, 10, grid, grid)).shape == (2, 3, size, size)


@pytest.mark.parametrize(
    ("grid", "size", "sides"), [(4, 24, [6, 12, 24]), (5, 32, [8, 16, 32]), (2, 28, [4, 7, 14, 28]), (3, 40, [5, 10, 20, 40])]
)
def test_sizes_that_doubling_alone_does_not_reach(grid, size, sides):
    """The sides on the way are those of the image, halved and rounded up."""
    decoder = ConvDecoder(10, grid, size, 3, 8)
    found, x = [], torch.randn(2, 10, grid, grid)
    for layer in decoder.layers:
        x = layer(x)
        if isinstance(layer, nn.Upsample):
            found.append(x.shape[-1])
    assert found == sides and x.shape == (2, 3, size, size)


@pytest.mark.parametrize(("size", "grid", "start"), [(32, 4, 64), (28, 7, 32), (8, 4, 16), (4, 4, 8), (12, 3, 32), (5, 5, 8), (96, 3, 64)])
def test_vectors_begin_as_a_small_grid(size, grid, start):
    """4×4, or the odd part of the size; as wide as is halved down to the width, 8 times at most."""
    decoder = VectorDecoder(10, size, 1, 8)
    assert decoder.spread(torch.randn(2, 10)).shape == (2, start, grid, grid)
    assert decoder(torch.randn(2, 10)).shape == (2, 1, size, size)


def test_tokens_as_maps():
    """Row by row."""
    tokens = torch.arange(2 * 9 * 4).view(2, 9, 4)
    maps = to_maps(tokens)
    assert maps.shape == (2, 4, 3, 3) and torch.equal(maps[1, :, 2, 1], tokens[1, 7])
