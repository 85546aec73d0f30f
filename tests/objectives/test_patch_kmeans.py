"""Protects k-means on patches: whitening, the mini-batch update, filters without patches, and that its features are worth something."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # a rank knows nothing of pytest's paths
import two_processes
from tiny_encoders import TinyEncoder

from sslt.data.prepare.image_processor import ImageProcessor, ImageSamples
from sslt.data.sources.images import Digits
from sslt.encoders.patches import PatchEncoder, zca
from sslt.errors import UserError
from sslt.objectives.patch_kmeans import PATIENCE, SHRINK, PatchKMeans, principal


def digits(n: int = 600) -> tuple[ImageSamples, ImageProcessor]:
    processor = ImageProcessor.fit(Digits())
    return processor.prepare(Digits(), "train").subset(np.arange(n)), processor


def made(filters: int = 24, patches: int = 16, prepare: bool = True) -> tuple[PatchEncoder, PatchKMeans, ImageSamples]:
    samples, processor = digits()
    torch.manual_seed(0)
    encoder = PatchEncoder(processor, filters=filters, patch_size=4, stride=1, cells=2, contrast=0.01, mirror=None, width=40)
    objective = PatchKMeans(encoder, patches=patches, epsilon=0.03, threshold=0.8)
    if prepare:
        objective.prepare(encoder, samples, 64)
    return encoder, objective, samples


def batch_of(encoder: PatchEncoder, samples: ImageSamples, rows: np.ndarray) -> dict:
    return {"views": {"image": encoder.inputs(samples.batch(rows))["image"].unsqueeze(0)}}


def train(encoder: PatchEncoder, objective: PatchKMeans, samples: ImageSamples, steps: int) -> list[float]:
    """Gradient steps whose rate falls from 1 to 0."""
    losses, rng = [], np.random.default_rng(0)
    for step in range(steps):
        loss = objective(encoder, batch_of(encoder, samples, rng.integers(len(samples), size=64))).value
        losses.append(float(loss))
        encoder.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in (encoder.bank.filters, encoder.bank.thresholds):
                p -= (1 - step / steps) * p.grad
        objective.after_step(encoder)
    return losses


def test_whitening_gives_the_identity_up_to_epsilon():
    """Covariance of whitened rows: λ / (λ + ε) in the same directions; W is symmetric."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 6)) @ rng.normal(size=(6, 6))
    x -= x.mean(0)
    w = zca(torch.from_numpy(x), 0.1).numpy()
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    assert np.allclose(np.cov((x @ w.T).T, bias=True), vectors * (values / (values + 0.1)) @ vectors.T) and np.allclose(w, w.T)


def test_what_is_measured_before_training():
    """Whitened patches of the samples have mean 0 and no direction of variance above 1; filters are patches, the same each time."""
    encoder, _, samples = made()
    again = made()[0]
    bank = encoder.bank
    images = encoder.inputs(samples.batch(np.arange(600)))["image"]
    q = bank.whiten(bank.cut(images, *bank.corners(images, 100, torch.Generator().manual_seed(5))))
    assert q.mean(0).abs().max() < 0.05 and 0.9 < torch.linalg.eigvalsh(torch.cov(q.T)).max() < 1.1
    nearest = (torch.nn.functional.normalize(q, dim=1) @ bank.filters.T).amax(0)
    assert float(nearest.min()) > 0.999  # each is one of the patches, of which there are 25 an image
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in encoder.state_dict().items())


def test_a_step_of_rate_one_is_the_update_of_the_paper():
    """Coates & Ng (2012): D S of the patches' one-hot codes s, and columns of length 1, written out in numpy."""
    encoder, objective, samples = made()
    bank, batch = encoder.bank, batch_of(encoder, samples, np.arange(64))
    images = batch["views"]["image"][0]
    objective.eval()
    torch.manual_seed(3)
    q = bank.whiten(bank.cut(images, *bank.corners(images, objective.patches))).numpy()
    d = bank.filters.detach().numpy().copy()
    codes = q @ d.T
    best = codes.argmax(1)
    s = np.zeros_like(codes)
    s[np.arange(len(q)), best] = np.maximum(codes[np.arange(len(q)), best], 0)
    expected = s.T @ q
    expected = np.where((s > 0).any(0)[:, None], expected, d)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    torch.manual_seed(3)
    loss = objective(encoder, batch).value
    assert float(loss) == pytest.approx(((q - s @ d) ** 2).sum() / (q**2).sum(), abs=1e-5)
    loss.backward()
    with torch.no_grad():
        bank.filters -= bank.filters.grad
        bank.thresholds -= bank.thresholds.grad
    objective.after_step(encoder)
    np.testing.assert_allclose(bank.filters.detach(), expected, atol=1e-4)
    np.testing.assert_allclose(bank.thresholds.detach(), 0.8 * codes.std(0), atol=1e-4)


def test_as_good_as_scikit_learn_on_all_patches():
    """Mini-batches explain as much of the patches as full-batch k-means on their directions does, weighted by their energy."""
    from sklearn.cluster import KMeans

    encoder, objective, samples = made()
    losses = train(encoder, objective, samples, 150)
    bank = encoder.bank
    images = encoder.inputs(samples.batch(np.arange(600)))["image"]
    places = torch.arange(25).expand(600, 25)
    q = bank.whiten(bank.cut(images, places // 5, places % 5))
    energy = q.square().sum(1)
    directions = torch.nn.functional.normalize(q, dim=1)
    theirs = KMeans(24, n_init=3, max_iter=50, random_state=0).fit(directions.numpy(), sample_weight=energy.numpy()).cluster_centers_

    def unexplained(d: torch.Tensor) -> float:
        s = (q @ torch.nn.functional.normalize(d, dim=1).T).amax(1).clamp(min=0)
        return float(1 - s.square().sum() / energy.sum())

    assert unexplained(bank.filters.detach()) < 1.02 * unexplained(torch.from_numpy(theirs)) < losses[0] - 0.05


def test_a_filter_without_patches_is_replaced():
    """One that no patch belongs to stays where it is for a while, and then becomes a patch of the batch."""
    encoder, objective, samples = made()
    filters = encoder.bank.filters
    for step in range(PATIENCE):
        with torch.no_grad():
            filters[3] = torch.nn.functional.normalize(filters[3], dim=0) if step else filters[4]  # of two that are alike the first wins
            filters[4] = filters[3]
        objective(encoder, batch_of(encoder, samples, np.arange(step, step + 64)))
        assert int(objective.idle[4]) == step + 1 and int(objective.idle[3]) == 0
        spare = objective.spare
        objective.after_step(encoder)
        assert torch.allclose(filters[4], filters[3], atol=1e-6) == (step < PATIENCE - 1)
    assert spare is not None and torch.allclose(filters[4], torch.nn.functional.normalize(spare[0], dim=0), atol=1e-6)
    assert int(objective.idle[4]) == 0 and torch.allclose(filters.norm(dim=1), torch.ones(24), atol=1e-5)


def test_an_encoder_that_learned_goes_on():
    """Preparing again leaves whitening and filters as they are."""
    encoder, objective, samples = made()
    train(encoder, objective, samples, 3)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    objective.prepare(encoder, samples.subset(np.arange(100)), 64)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def finished(rank: int) -> dict[str, torch.Tensor]:
    encoder, objective, _ = made()
    objective.finish(encoder)
    return encoder.state_dict()


def test_two_ranks_finish_as_one(tmp_path):
    """Each makes the maps of half of the images, and all get what one makes of all."""
    whole = finished(0)
    for found in two_processes.run(finished, tmp_path):
        assert all(torch.allclose(found[k], v, atol=1e-4) for k, v in whole.items())


@pytest.mark.parametrize("n", [300, 30])  # more rows than numbers, and fewer
def test_the_projection_is_of_principal_components(n):
    """Its inner products are those of scikit-learn's components, each divided by √(λ + SHRINK); features have about the same variance."""
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 8)) @ rng.normal(size=(8, 50)) * np.linspace(0.1, 5, 50) + 0.1 * rng.normal(size=(n, 50))
    x[:, 7] = 3.0  # a number that never changes
    x -= x.mean(0)
    z = torch.from_numpy(x) @ principal(torch.from_numpy(x), 12).T
    std = x.std(0)
    pca = PCA(12).fit(x / np.where(std > 0, std, 1))
    parts = pca.transform(x / np.where(std > 0, std, 1)) / np.sqrt(pca.explained_variance_ * (n - 1) / n + SHRINK)
    np.testing.assert_allclose(z @ z.T, parts @ parts.T, atol=1e-6)
    assert z.var(0).max() < 10 * z.var(0).min()


def test_what_follows_the_last_step():
    """The encoder's features become those components of its own map, of mean 0; what it had before was random."""
    encoder, objective, samples = made()
    x = encoder.inputs(samples.batch(np.arange(600)))
    before = encoder(x).pooled
    objective.finish(encoder)
    after = encoder(x).pooled.detach()
    assert after.shape == before.shape == (600, 40) and after.mean(0).abs().max() < 1e-3
    numbers = encoder.numbers(x["image"]).detach()
    assert torch.allclose(after, (numbers - numbers.mean(0)) @ principal(numbers - numbers.mean(0), 40).T, atol=1e-3)


def test_features_of_digits_are_better_than_pixels(sslt, here):
    """The task as it is learns and ends with its projection, whose neighbours are better than those of pixels."""
    from sslt.runs import Run
    from sslt.targets.knn import knn_accuracy

    small = [
        "encoder.filters=64",
        "trainer.max_epochs=8",
        "online_probe.every_n_epochs=0",
        "trainer.precision=32",
        "trainer.accelerator=cpu",
    ]
    sslt("pretrain", "+task=patch_kmeans", *small, "hydra.run.dir=run")
    sslt("evaluate", "from=run", "shots=[5]", "draws=2", "trainer.accelerator=cpu", "hydra.run.dir=measured")
    found = Run(here / "measured").metrics
    processor = ImageProcessor.fit(Digits())
    (x, y), (tx, ty) = ((s.images.reshape(len(s), -1), s.labels) for s in (processor.prepare(Digits(), p) for p in ("train", "test")))
    pixels = knn_accuracy(*(torch.from_numpy(np.array(v)) for v in (x, y, tx, ty)), 10)
    assert found["knn/accuracy"] > pixels and found["linear/accuracy"] > 0.98


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="encoder=patches"):
        PatchKMeans(TinyEncoder(), 8, 0.1, 0.5)
    with pytest.raises(UserError, match="at least 1 patch"):
        PatchKMeans(made(prepare=False)[0], 0, 0.1, 0.5)
    encoder, objective, samples = made(filters=100, patches=1, prepare=False)
    with pytest.raises(UserError, match="fewer patches than the 100 filters"):
        objective.prepare(encoder, samples, 64)
