"""Protects the bank of whitened patches: its features are those of patches cut out one by one, at any size, saved and read back exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders import patches
from sslt.encoders.load import fresh_like, load_encoder
from sslt.encoders.patches import FIRST_EPSILON, ROOT, PatchEncoder, first_filters
from sslt.errors import UserError


def encoder(size: int = 13, channels: int = 3, **given) -> PatchEncoder:
    """One with everything that can be learned at random values."""
    args = {"filters": 7, "patch_size": 4, "stride": 1, "cells": 2, "contrast": 0.05, "mirror": False, "width": 11} | given
    torch.manual_seed(0)
    found = PatchEncoder(ImageProcessor(size, channels, [0.4] * channels, [0.25] * channels), **args).eval()
    bank = found.bank
    with torch.no_grad():
        bank.mean.normal_()
        bank.whitening.normal_()
        bank.thresholds.normal_()
        found.centre.uniform_()
    return found


def images(size: int = 13, channels: int = 3, n: int = 3) -> torch.Tensor:
    x = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))
    x[0, :, : size // 2] = 1.5  # flat patches, whose variance is a difference of equal numbers
    return x


def slow(model: PatchEncoder, x: np.ndarray) -> np.ndarray:
    """The same features in float64, patch by patch and filter by filter."""
    bank = model.bank
    w, m, d, t, centre, projection = (
        v.detach().double().numpy() for v in (bank.whitening, bank.mean, bank.filters, bank.thresholds, model.centre, model.projection)
    )
    places = (x.shape[2] - bank.side) // bank.stride + 1
    out = []
    for image in x:
        answers = np.zeros((len(d), places, places))
        for i in range(places):
            for j in range(places):
                a, b = i * bank.stride, j * bank.stride
                p = image[:, a : a + bank.side, b : b + bank.side].ravel()
                p = (p - p.mean()) / np.sqrt(p.var() + bank.contrast)
                answers[:, i, j] = np.maximum(0, d @ (w @ (p - m)) - t)
        cells = np.zeros((len(d), model.cells, model.cells))
        edge = [(c * places // model.cells, -(-(c + 1) * places // model.cells)) for c in range(model.cells)]
        for i, (a, b) in enumerate(edge):
            for j, (e, f) in enumerate(edge):
                cells[:, i, j] = answers[:, a:b, e:f].mean((1, 2))
        out.append(projection @ (np.sqrt(cells + ROOT).ravel() - centre))
    return np.stack(out)


@pytest.mark.parametrize(
    ("size", "channels", "given"),
    [
        (13, 3, {}),
        (12, 1, {"stride": 2, "cells": 3}),
        (8, 1, {"patch_size": 6}),  # patches of half the side
        (3, 3, {"cells": 5}),  # no more cells than places
    ],
)
def test_features_are_those_of_patches_cut_out_one_by_one(size, channels, given):
    """Box filters, folded whitening and the convolution against the definition."""
    model, x = encoder(size, channels, **given), images(size, channels)
    found = model({"image": x})
    assert found.pooled.shape == (3, model.dim) and found.tokens.shape == (3, 1, model.dim)
    np.testing.assert_allclose(found.pooled.detach(), slow(model, x.double().numpy()), atol=2e-4)


def test_parts_of_a_batch_change_nothing(monkeypatch):
    """On a CPU a batch is worked on in parts where no gradient is wanted."""
    model, x = encoder(), images(n=5)
    whole = model({"image": x}).pooled
    monkeypatch.setattr("sslt.encoders.patches.CHUNK", 2 * 7 * 100)
    with torch.no_grad():
        assert torch.allclose(model({"image": x}).pooled, whole, atol=1e-6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model({"image": x}).pooled - whole).abs().mean() < 0.05


def test_a_cut_patch_is_what_the_filters_see():
    """`cut` and `whiten` at one place, and the convolution's response there."""
    model, x = encoder(), images()
    bank = model.bank
    top, left = torch.tensor([[2, 0], [9, 4], [5, 5]]), torch.tensor([[3, 0], [9, 1], [0, 8]])
    responses = bank.whiten(bank.cut(x, top, left)) @ bank.filters.T - bank.thresholds
    expected = bank(x)[torch.arange(3).unsqueeze(1), :, top, left].flatten(0, 1)
    assert torch.allclose(responses.relu(), expected, atol=1e-4)


def test_all_of_it_learns():
    """Filters and thresholds get gradients, finite ones where nothing responds."""
    model, x = encoder().train(), images()
    with torch.no_grad():
        model.bank.thresholds[0] = 1e3
    model({"image": x}).pooled.square().sum().backward()
    grads = [model.bank.filters.grad, model.bank.thresholds.grad]
    assert all(g.isfinite().all() for g in grads) and all(g[1:].abs().sum() > 0 for g in grads)


def test_saved_and_read_back_exactly(tmp_path):
    """All that was learned is in the folder; fresh weights of the same architecture are random filters without a whitening."""
    model, x = encoder(), images()
    model.save(tmp_path)
    again = load_encoder(str(tmp_path)).eval()
    assert torch.equal(again({"image": x}).pooled, model({"image": x}).pooled) and again.bank.learned
    fresh = fresh_like(str(tmp_path))
    assert not fresh.bank.learned and torch.equal(fresh.bank.whitening, torch.eye(48))
    assert torch.allclose(fresh.bank.filters.norm(dim=1), torch.ones(7)) and not torch.equal(fresh.bank.filters, model.bank.filters)


def test_large_images_are_brought_to_a_size_that_is_fast(tmp_path):
    """Unless somebody says a size."""

    class Photographs:
        modality, name, image_shape = "image", "photographs", (128, 3)

    args = {"filters": 4, "patch_size": 6, "stride": 1, "cells": 2, "contrast": 0.01, "mirror": None, "width": 8}
    sizes = [PatchEncoder.build(Photographs(), {"size": s, "channels": None}, **args).processor.size for s in (None, 96)]
    assert sizes == [48, 96]


def test_a_mirror_image_has_the_same_features():
    """Where it is asked for, or images have colours: the mean of both."""
    plain, both, x = encoder(), encoder(mirror=True), images()
    assert [encoder(channels=c, mirror=None).mirror for c in (1, 3)] == [False, True]
    found = both({"image": x}).pooled
    assert torch.allclose(found, both({"image": x.flip(3)}).pooled, atol=1e-5)
    assert torch.allclose(found, (plain({"image": x}).pooled + plain({"image": x.flip(3)}).pooled) / 2, atol=1e-5)


@pytest.mark.parametrize("given", [{"filters": 0}, {"cells": 0}, {"contrast": 0.0}])
def test_impossible_settings_are_refused(given):
    with pytest.raises(UserError, match=f"encoder.{next(iter(given))}="):
        encoder(**given)


@pytest.mark.parametrize("channels", [1, 3])
def test_first_filters_are_centroids_of_whitened_patches(channels, monkeypatch):
    """In float64, of images that are one patch each: all of length 1 where patches are white, and each is the mean direction of those that
    it answers to most, by how much. A flat image has finite ones.
    """
    monkeypatch.setattr(patches, "FIRST_STEPS", 60)
    x = torch.randn(900, channels, 4, 4, generator=torch.Generator().manual_seed(3)).cumsum(2).cumsum(3) + 2
    found = first_filters(x, 6, 4).flatten(1).double().numpy()
    p = x.flatten(1).double().numpy()
    p -= p.mean(0)
    values, vectors = np.linalg.eigh(p.T @ p / len(p))
    root = (vectors * np.sqrt(values + FIRST_EPSILON * values.sum())) @ vectors.T
    centroids, q = found @ root, p @ np.linalg.inv(root)
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-4)
    answers = q @ centroids.T
    nearest = answers.argmax(1)
    means = np.stack([(q * np.maximum(answers[:, [k]], 0) * (nearest == k)[:, None]).sum(0) for k in range(6)])
    assert np.allclose(means / np.linalg.norm(means, axis=1, keepdims=True), centroids, atol=2e-2)
    assert len(set(nearest)) == 6
    assert first_filters(torch.zeros(5, channels, 3, 3), 6, 4).isfinite().all()  # smaller than a filter, too
