"""Protects what is told of images as views move them: a map or a box moved by a view is the one that the moved pixels show."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sslt.data import frames
from sslt.data.answers import IGNORE, Boxes, Map
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.views.base import Plain
from sslt.data.views.image_views import ImageViews

SIDE, CLASSES = 48, 3
SPACE = {"classes": ["a", "b", "c"]}


def encoder(size: int) -> SimpleNamespace:
    """Whose views are the shares of each class at a pixel, 0..1: colours are the classes."""
    p = ImageProcessor(size, 3, [0.0] * 3, [1.0] * 3)
    return SimpleNamespace(processor=p, inputs=lambda batch: {"image": p.normalize(batch["image"])})


def views(**given) -> ImageViews:
    plain = {"n": 2, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "brightness": 0.0, "contrast": 0.0}
    rest = {"saturation": 0.0, "hue": 0.0, "grey": 0.0, "blur": 0.0, "blur_sigma": (0.1, 2.0), "padding": 0}
    return ImageViews(**{**plain, **rest, **given})


def coloured(n: int) -> tuple[Map, dict[str, torch.Tensor]]:
    """Maps of a few blobs, and a batch of images whose pixels are the maps: class c is all of colour c."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    maps = np.zeros((n, SIDE, SIDE), np.uint8)
    for m in maps:
        for c in (1, 2, 1):
            cy, cx, ry, rx = *rng.uniform(8, SIDE - 8, 2), *rng.uniform(5, 14, 2)
            m[(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2) < 1] = c
    answers = Map.of(list(maps), SPACE)
    pixels = torch.from_numpy(np.eye(CLASSES, dtype=np.uint8)[maps] * 255).permute(0, 3, 1, 2).contiguous()
    return answers, {"image": pixels, **answers.batch(np.arange(n))}


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_shifts_and_flips_are_exact(flip):
    """Without a resize the moved map is the moved pixels, one by one; what came from beside the image is ignored."""
    torch.manual_seed(1)
    _, batch = coloured(6)
    made = views(flip=flip, padding=5)(batch, encoder(SIDE))
    moved, shares = Map.moved(made)["map"], made["views"]["image"].flatten(0, 1)
    inside = moved != IGNORE
    assert moved.shape == (12, SIDE, SIDE) and 0.7 < inside.float().mean() < 1
    assert torch.equal(moved[inside], shares.argmax(1)[inside])
    assert not torch.equal(moved[:6], batch["map"])


@pytest.mark.parametrize("size", [24, 48, 96])
def test_crops_and_resizes_follow_the_pixels(size):
    """Wherever all that a pixel was made of is of one class, smaller or larger, the moved map has this class."""
    torch.manual_seed(2)
    _, batch = coloured(8)
    made = views(scale=(0.2, 0.9), ratio=(0.6, 1.7), flip=0.5)(batch, encoder(size))
    moved, shares = Map.moved(made)["map"], made["views"]["image"].flatten(0, 1)
    pure = shares.amax(1) > 0.999
    assert moved.shape == (16, size, size) and not (moved == IGNORE).any() and pure.float().mean() > 0.6
    assert torch.equal(moved[pure], shares.argmax(1)[pure])
    assert (moved == shares.argmax(1)).float().mean() > 0.97


@pytest.mark.parametrize("size", [32, 48, 80])
def test_boxes_follow_the_pixels(size):
    """A moved box is where the pixels of its object went, to a pixel; beyond the edges of the view, too."""
    torch.manual_seed(3)
    maps, rows, rng = np.zeros((10, SIDE, SIDE), np.uint8), [], np.random.default_rng(1)
    for m in maps:
        left, top = rng.integers(6, 22, 2)
        right, bottom = left + rng.integers(10, 20), top + rng.integers(10, 20)
        m[top:bottom, left:right] = 1
        rows.append([[left, top, right, bottom, 1]])
    from sslt.data.ragged import Ragged

    answers = Boxes(Ragged.of(rows, float, 5), SPACE, shapes=np.full((10, 2), SIDE))
    pixels = torch.from_numpy(np.eye(CLASSES, dtype=np.uint8)[maps] * 255).permute(0, 3, 1, 2).contiguous()
    made = views(scale=(0.5, 1.0), flip=0.5)({"image": pixels, **answers.batch(np.arange(10))}, encoder(size))
    moved, shares = Boxes.moved(made)["boxes"][:, 0] * size, made["views"]["image"].flatten(0, 1)
    assert (moved[:, 0] < moved[:, 2]).all() and (moved[:, 1] < moved[:, 3]).all()
    for box, image in zip(moved, shares, strict=True):
        ys, xs = torch.nonzero(image[1] > 0.5, as_tuple=True)
        found = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
        assert (box.clamp(0, size) - found).abs().max() <= max(1, size / SIDE)


def test_plain_views_move_nothing():
    """As many copies as there are views."""
    _, batch = coloured(3)
    made = Plain(2)(batch, encoder(SIDE))
    assert torch.equal(Map.moved(made)["map"], batch["map"].repeat(2, 1, 1))


def test_telling_frames_draws_nothing_more():
    """The views of a seed are those they were, so that no run of before changes."""
    _, batch = coloured(3)
    drawn = []
    for way in ("augment", "framed"):
        torch.manual_seed(7)
        drawn.append(getattr(views(scale=(0.3, 1.0), flip=0.5, padding=2), way)(batch["image"], SIDE, [0.0] * 3, [1.0] * 3))
        drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[2][0]) and torch.equal(drawn[1], drawn[3])


# -------------------------------------------------------------------- frames of numbers
def test_smooth_maps_are_torchs_interpolation():
    """A whole frame is a resize with half-pixel centres; mirrored edges mirror."""
    x = torch.randn(2, 3, 6, 9)
    expected = torch.nn.functional.interpolate(x, (13, 20), mode="bilinear", align_corners=False)
    assert torch.allclose(frames.smooth(frames.whole(2), x, (13, 20)), expected, atol=1e-5)
    mirrored = torch.tensor([[0.0, 1.0, 1.0, 0.0]]).expand(2, 4)
    assert torch.allclose(frames.smooth(mirrored, x, (13, 20)), expected.flip(-1), atol=1e-5)


def test_the_way_back_leads_back():
    """What a crop shows of a ramp is the ramp again where it was, and only there."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    ramp = torch.stack([y, x])[None]
    seen = torch.tensor([[0.25, 0.85, 0.9, 0.2]])  # mirrored, too
    back = frames.inverse(seen)
    again, inside = frames.smooth(back, frames.smooth(seen, ramp, (24, 42)), (20, 30)), frames.covered(back, (20, 30))
    assert inside[0, 5:17, 6:27].all() and inside.sum() == 12 * 21
    assert (again - ramp)[0, :, 6:16, 7:26].abs().max() < 0.05
