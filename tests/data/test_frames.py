"""Protects frames: what a crop, a flip, a resize or a border does to pixels, the frame does to points, boxes and maps, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sslt.data import frames
from sslt.data.prepare.image_processor import NARROWEST, resize

SIZES = [(8, 8), (7, 10), (10, 7), (33, 50), (12, 5), (5, 64), (100, 3), (1, 1), (9, 9), (640, 480)]
RNG = np.random.default_rng(0)


def frame(top: float = 0, bottom: float = 1, left: float = 0, right: float = 1) -> torch.Tensor:
    return torch.tensor([[top, bottom, left, right]], dtype=torch.float64)


def numbered(h: int, w: int) -> torch.Tensor:
    """A map [1, h, w] whose pixels are all different."""
    return torch.arange(h * w).view(1, h, w)


# -------------------------------------------------------------------- maps
def test_a_whole_frame_changes_nothing():
    """At its own size a map is itself, whatever its sides."""
    for h, w in SIZES:
        assert torch.equal(frames.maps(frame(), numbered(h, w), (h, w), -1), numbered(h, w))


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_flips_are_of_pixels(h, w):
    """Edges the other way round are torch.flip."""
    m = numbered(h, w)
    assert torch.equal(frames.maps(frame(left=1, right=0), m, (h, w), -1), m.flip(2))
    assert torch.equal(frames.maps(frame(top=1, bottom=0), m, (h, w), -1), m.flip(1))


def test_a_crop_in_whole_pixels_is_a_slice():
    """Rows 2..7 of 10, columns 1..4 of 6, as they are and mirrored; in float32 too, as views have it."""
    m = numbered(10, 6)
    for dtype in (torch.float64, torch.float32):
        f = frame(2 / 10, 7 / 10, 1 / 6, 4 / 6).to(dtype)
        assert torch.equal(frames.maps(f, m, (5, 3), -1), m[:, 2:7, 1:4])
        assert torch.equal(frames.maps(f[:, [0, 1, 3, 2]], m, (5, 3), -1), m[:, 2:7, 1:4].flip(2))


def test_what_lies_beside_the_picture_is_told():
    """A frame that is shifted by two pixels shows two columns of nothing; one beyond the picture nothing else."""
    m = numbered(4, 4)
    seen = frames.maps(frame(left=-0.5, right=0.5), m, (4, 4), -1)
    assert (seen[..., :2] == -1).all() and torch.equal(seen[..., 2:], m[..., :2])
    assert (frames.maps(frame(top=1, bottom=2), m, (4, 4), 255) == 255).all()
    assert frames.maps(frame(left=-1, right=0), torch.ones(1, 2, 2), (2, 2), float("nan")).isnan().all()


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_enlarging_repeats_pixels(factor):
    """With half-pixel centres every pixel becomes a block; with centres counted from 0 the first and last ones would be halves."""
    m = numbered(3, 4)
    large = frames.maps(frame(), m, (3 * factor, 4 * factor), -1)
    assert torch.equal(large, m.repeat_interleave(factor, 1).repeat_interleave(factor, 2))


@pytest.mark.parametrize(("h", "w", "to"), [(9, 15, (3, 5)), (51, 33, (17, 8)), (5, 3, (7, 5)), (11, 11, (4, 3))])
def test_nearest_is_pils(h, w, to):
    """PIL's nearest neighbour, which has half-pixel centres too. Of odd sides no centre lies on an edge."""
    m = RNG.integers(0, 255, (h, w), np.uint8)
    known = np.asarray(Image.fromarray(m).resize((to[1], to[0]), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(frames.maps(frame(), torch.from_numpy(m)[None], to, 0)[0].numpy(), known)


def test_every_row_has_its_own_frame():
    """In a batch frames and maps go together."""
    m = torch.stack([numbered(4, 4)[0], numbered(4, 4)[0] + 100])
    f = torch.cat([frame(left=1, right=0), frame()])
    assert torch.equal(frames.maps(f, m, (4, 4), -1), torch.stack([m[0].flip(1), m[1]]))


# -------------------------------------------------------------------- points and boxes
@pytest.mark.parametrize("seed", range(5))
def test_frames_compose_and_lead_back(seed):
    """A view of a view is the view by `within`; the inverse frame of a point's view gives the point again."""
    g = torch.Generator().manual_seed(seed)
    outer, inner = torch.rand(2, 3, 4, generator=g, dtype=torch.float64)
    xy = torch.rand(3, 6, 2, generator=g, dtype=torch.float64)
    twice = frames.points(inner, frames.points(outer, xy))
    torch.testing.assert_close(frames.points(frames.within(outer, inner), xy), twice)
    torch.testing.assert_close(frames.points(frames.inverse(outer), frames.points(outer, xy)), xy)
    torch.testing.assert_close(frames.within(outer, frames.inverse(outer)), frames.whole(3).double())


@pytest.mark.parametrize("seed", range(20))
def test_a_moved_box_is_the_box_of_the_moved_pixels(seed):
    """A rectangle drawn into a map and moved with it has the corners that the frame gives its box: crops, flips and shifts."""
    rng = np.random.default_rng(seed)
    h, w = (int(n) for n in rng.integers(12, 40, 2))
    (top, bottom), (left, right) = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in (h, w))
    m = torch.zeros(1, h, w, dtype=torch.long)
    m[:, top:bottom, left:right] = 1
    y0, x0 = (int(rng.integers(-4, 4)) for _ in range(2))
    ch, cw = int(rng.integers(5, h + 4)), int(rng.integers(5, w + 4))
    f = frame(y0 / h, (y0 + ch) / h, x0 / w, (x0 + cw) / w)
    if seed % 2:
        f = f[:, [0, 1, 3, 2]]
    seen = frames.maps(f, m, (ch, cw), 0)[0]
    box = frames.boxes(f, torch.tensor([[[left / w, top / h, right / w, bottom / h]]]))[0, 0] * torch.tensor([cw, ch, cw, ch])
    box = torch.minimum(box.clamp(min=0), torch.tensor([cw, ch, cw, ch]))
    rows, columns = np.nonzero(seen.numpy())
    if len(rows):
        known = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        torch.testing.assert_close(box, torch.tensor(known).double(), atol=1e-6, rtol=0)
    else:
        assert (box[2] - box[0]) * (box[3] - box[1]) < 1e-6


# -------------------------------------------------------------------- the processor's own resize
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [5, 8, 16, 31])
@pytest.mark.parametrize(("h", "w"), SIZES)
def test_fitted_is_what_resize_does(h, w, size, fit):
    """A picture whose grey is its row (column) has, where `resize` puts it, the grey of the place that the frame says."""
    (f,) = frames.fitted(np.array([[h, w]]), size, fit, NARROWEST)
    for axis, n in enumerate((h, w)):
        ramp = np.linspace(0, 240, n)[:, None] if axis == 0 else np.linspace(0, 240, n)[None]
        image = np.broadcast_to(np.rint(ramp), (h, w)).astype(np.uint8)[None, ..., None]
        seen = resize(image, size, 1, fit)[0, ..., 0].astype(float)
        at = (
            f[2 * axis] + (np.arange(size) + 0.5) / size * (f[2 * axis + 1] - f[2 * axis])
        ) * n - 0.5  # in pixels, from the first's centre
        scale = max((f[2 * axis + 1] - f[2 * axis]) * n / size, 1)
        clear = (at > scale) & (at < n - 1 - scale)  # away from borders, which a filter repeats
        line, a_pixel = seen.max(1 - axis), 240 / max(n - 1, 1)  # where it is black across, it is border
        if clear.any():
            wanted = np.interp(at, np.arange(n), np.rint(ramp.ravel()))
            np.testing.assert_allclose(line[clear], wanted[clear], atol=0.2 * scale * a_pixel + 1)
        outside = (at < -0.5 - 1e-6) | (at > n - 0.5 + 1e-6)
        assert not outside.any() or fit == "pad"
        assert (line[outside] == 0).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_fitted_maps_are_fitted_pixels(fit):
    """At a size that needs no scaling, the map of a picture moves to the very pixels: odd differences included."""
    for h, w in [(7, 10), (10, 7), (7, 7), (8, 11)]:
        size = {"crop": min(h, w), "pad": max(h, w), "stretch": h}[fit]
        if fit == "stretch":
            w = h
        image = RNG.integers(1, 255, (1, h, w, 1), np.uint8)
        (f,) = frames.fitted(np.array([[h, w]]), size, fit, NARROWEST)
        seen = frames.maps(torch.from_numpy(f)[None], torch.from_numpy(image[..., 0]), (size, size), 0)
        np.testing.assert_array_equal(seen.numpy(), resize(image, size, 1, fit)[..., 0])


def test_what_a_crop_and_a_border_show():
    """By hand: the middle half of a picture twice as wide as high, and the same with half of its height added above and below."""
    sizes = np.array([[10, 20], [20, 10]])
    np.testing.assert_allclose(frames.fitted(sizes, 10, "crop", NARROWEST), [[0, 1, 0.25, 0.75], [0.25, 0.75, 0, 1]])
    np.testing.assert_allclose(frames.fitted(sizes, 20, "pad", NARROWEST), [[-0.5, 1.5, 0, 1], [0, 1, -0.5, 1.5]])
    np.testing.assert_allclose(frames.fitted(sizes, 7, "stretch", NARROWEST), [[0, 1, 0, 1]] * 2)
    assert frames.fitted(np.empty((0, 2), int), 8, "crop", NARROWEST).shape == (0, 4)
