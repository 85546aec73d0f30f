"""Protects what is told of a pixel: means and deviations on several scales, against plain loops, and models that read them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sslt.encoders.pixel_numbers import SCALES, PixelNumbers, levels, numbers


def by_loops(x: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Of an image [C, H, W] means [C, h, w] of squares, those at the edge as large as there is room, and the deviation of the mean."""
    side_y, side_x = min(side, x.shape[1]), min(side, x.shape[2])
    rows, columns = range(0, x.shape[1], side_y), range(0, x.shape[2], side_x)
    squares = [[x[:, i : i + side_y, j : j + side_x] for j in columns] for i in rows]
    means = np.stack([np.stack([s.mean((1, 2)) for s in row], -1) for row in squares], 1)
    return means, np.array([[s.mean(0).std() for s in row] for row in squares])


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 40, 33), (1, 5, 70), (3, 3, 3)])
def test_levels_are_means_and_deviations_of_squares(channels, height, width):
    """Also of images that are smaller than a square, and where squares do not fit."""
    x = np.random.default_rng(0).random((channels, height, width))
    found = [m[0].numpy() for m in levels(torch.from_numpy(x).float()[None])]
    assert np.allclose(found[0], x, atol=1e-6)
    for scale, level in zip(SCALES, found[1:], strict=False):
        means, deviation = by_loops(x, scale)
        assert np.allclose(level[:-1], means, atol=1e-5) and np.allclose(level[-1], deviation, atol=2e-3), scale
    assert np.allclose(found[-2][:-1, 0, 0], x.mean((1, 2)), atol=1e-5) and found[-2][-1, 0, 0] == pytest.approx(x.mean(0).std(), abs=1e-4)
    down, across = found[-1]
    assert (down[0] == 0).all() and (down[-1] == 1).all() and (across[:, 0] == 0).all() and (across[:, -1] == 1).all()


@pytest.mark.parametrize("hidden", [0, 5])
def test_a_model_reads_the_numbers_of_every_pixel(hidden):
    """Computed level by level it is the model of all numbers of a pixel; a scale is one of all scores."""
    torch.manual_seed(0)
    x, model = torch.rand(2, 3, 20, 26), PixelNumbers(3, 4, hidden)
    told = numbers(x)
    layers = [torch.nn.Linear(told.shape[1], hidden or 4), *([torch.nn.Linear(hidden, 4)] if hidden else [])]
    model.fill([(layer.weight.detach(), layer.bias.detach()) for layer in layers])
    wanted = layers[0](told.permute(0, 2, 3, 1))
    wanted = (layers[1](wanted.relu()) if hidden else wanted).permute(0, 3, 1, 2)
    torch.testing.assert_close(model.of(x), wanted, atol=1e-5, rtol=1e-5)
    encoder = SimpleNamespace(processor=SimpleNamespace(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4]))
    inputs = {"image": (x - torch.tensor([0.5, 0.4, 0.3]).view(-1, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(-1, 1, 1)}
    torch.testing.assert_close(model(encoder, inputs), wanted, atol=1e-4, rtol=1e-4)
    model.scale(2.5)
    torch.testing.assert_close(model.of(x), 2.5 * wanted, atol=1e-4, rtol=1e-4)
