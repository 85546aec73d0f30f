"""Protects what is measured on episodes: batched classifiers against loops, the interval, one feature pass, no trace in the encoder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslt.data import cache
from sslt.data.answers import Class
from sslt.data.prepare.image_processor import ImageProcessor, ImageSamples
from sslt.data.streams.episodes import ClassSet
from sslt.data.streams.episodes import test_draws as draws_of
from sslt.encoders.conv4 import Conv4
from sslt.errors import UserError
from sslt.evaluation.episode_classifiers import Centroid, FineTune, Logistic
from sslt.evaluation.episodes import episode_accuracies, episode_metrics
from sslt.objectives.episodic import ANIL, MAML, Prototypes

CPU = torch.device("cpu")


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """A small encoder and 5 noisy classes of images that can be told apart, mostly."""
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5), 12))
    images = rng.integers(0, 256, (5, 8, 8, 1))[labels] + rng.normal(0, 90, (60, 8, 8, 1))
    samples = ImageSamples(images.clip(0, 255).astype(np.uint8), Class(labels, {"classes": list("abcde")}), "five")
    encoder = Conv4(ImageProcessor(8, 1, [0.5], [0.25]), 8, 2, "pool", "flatten").eval()
    return encoder, ClassSet(samples, "")


def features(encoder, classes, rows) -> np.ndarray:
    with torch.no_grad():
        return encoder(encoder.inputs(classes.samples.batch(rows.reshape(-1)))).pooled.double().numpy().reshape(*rows.shape, -1)


@pytest.mark.parametrize(("way", "shot"), [(3, 1), (5, 4)])
@pytest.mark.parametrize("normalize", [False, True])
def test_centroids_are_the_plain_loop(setting, way, shot, normalize):
    """Episode by episode and query by query: the class whose mean is nearest, over more episodes than go at a time."""
    encoder, classes = setting
    draws = draws_of(classes, way, shot + 3, 70, seed=0)
    found = episode_accuracies(Centroid(encoder, way, normalize), encoder, classes, draws, shot, CPU, 32)
    expected = []
    for episode in draws:
        x = features(encoder, classes, episode)
        if normalize:
            x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        means = [rows[:shot].mean(0) for rows in x]
        answers = [min(range(way), key=lambda c, q=q: ((q - means[c]) ** 2).sum()) == n for n in range(way) for q in x[n, shot:]]
        expected.append(np.mean(answers))
    assert np.allclose(found.numpy(), expected) and 0.4 < np.mean(expected) < 1
    if not normalize:
        assert torch.equal(episode_accuracies(Prototypes(encoder, way), encoder, classes, draws, shot, CPU, 32), found)


def test_one_feature_pass_for_all_episodes(setting, monkeypatch):
    """600 episodes cost one forward of each sample, and a second measurement none."""
    encoder, classes = setting
    seen = []
    monkeypatch.setattr(encoder, "forward", lambda inputs, f=encoder.forward: seen.append(len(inputs["image"])) or f(inputs))
    draws = draws_of(classes, 3, 6, 600, seed=0)
    for shot in (1, 5):
        episode_accuracies(Centroid(encoder, 3, True), encoder, classes, draws, shot, CPU, 32)
    assert sum(seen) == 60
    some = draws_of(classes, 2, 2, 2, seed=0)
    kept = episode_accuracies(Centroid(encoder, 2, True), encoder, classes, some, 1, CPU, 32)
    assert torch.equal(episode_accuracies(Centroid(encoder, 2, True), encoder, classes, some, 1, CPU, 32, cached=False), kept)
    assert sum(seen) == 60 + len(np.unique(some))


def test_logistic_regression_is_scikit_learns(setting):
    """On features of length 1, of each episode by itself; scikit-learn's C is 1 / (N · l2)."""
    from sklearn.linear_model import LogisticRegression

    encoder, classes = setting
    draws = draws_of(classes, 4, 7, 12, seed=0)
    found = episode_accuracies(Logistic(encoder, 4, 0.05), encoder, classes, draws, 4, CPU, 32)
    expected = []
    for episode in draws:
        x = features(encoder, classes, episode)
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        fit = LogisticRegression(C=1 / (16 * 0.05), tol=1e-8, max_iter=1000).fit(x[:, :4].reshape(16, -1), np.repeat(np.arange(4), 4))
        expected.append(fit.score(x[:, 4:].reshape(12, -1), np.repeat(np.arange(4), 3)))
    assert np.allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("moves", ["head", "encoder"])
def test_fine_tuning_starts_at_the_cosine_and_leaves_the_encoder(setting, moves):
    """Almost no step is the nearest centroid by cosine; real steps fit the support; weights and buffers are as they were."""
    encoder, classes = setting
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    draws = draws_of(classes, 3, 5, 6, seed=0)
    still = episode_accuracies(FineTune(encoder, 3, moves, 1, 1e-9), encoder, classes, draws, 1, CPU, 32)
    assert torch.equal(still, episode_accuracies(Centroid(encoder, 3, True), encoder, classes, draws, 1, CPU, 32))
    rows = draws[:, :, :2]
    on_itself = np.concatenate([rows, rows], 2)
    moved = episode_accuracies(FineTune(encoder, 3, moves, 60, 0.05), encoder, classes, on_itself, 2, CPU, 32)
    assert float(moved.mean()) > 0.99
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters()) and not encoder.training


def test_fine_tuning_a_head_is_adam_on_each_episode_alone(setting):
    """The batch of episodes against torch.optim.Adam on one at a time, in float64."""
    torch.manual_seed(0)
    support, query = torch.randn(3, 2, 2, 5).double(), torch.randn(3, 4, 5).double()
    found = FineTune(setting[0], 2, "head", 7, 0.1).classify(support, query)
    for s, q, logits in zip(F.normalize(support, dim=-1), F.normalize(query, dim=-1), found, strict=True):
        w = F.normalize(s.mean(1), dim=-1).requires_grad_()
        b = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([w, b], 0.1)
        for _ in range(7):
            optimizer.zero_grad()
            F.cross_entropy(s.flatten(0, 1) @ w.T + b, torch.tensor([0, 0, 1, 1])).backward()
            optimizer.step()
        assert torch.allclose(logits, q @ w.T + b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [MAML, ANIL])
def test_learned_inner_loops_are_measured(setting, kind):
    """Accuracies of each episode, also where gradients are off altogether; the encoder is as it was."""
    encoder, classes = setting
    method = kind(encoder, 3, inner_steps=1, test_steps=20, inner_lr=0.3, first_order=True)
    draws = draws_of(classes, 3, 5, 8, seed=0)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    found = episode_accuracies(method, encoder, classes, draws, 2, CPU, 32)
    with torch.inference_mode():
        assert torch.equal(episode_accuracies(method, encoder, classes, draws, 2, CPU, 32), found)
    assert found.shape == (8,) and 0.4 < float(found.mean()) <= 1
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_the_interval_is_students():
    """Mean ± t · s / √n; for 600 episodes t is 1.9639."""
    accuracies = torch.tensor([0.6, 0.8] * 300)
    found = episode_metrics(accuracies, 5, 1)
    s = 0.1 * math.sqrt(600 / 599)
    assert found["episodes/accuracy"] == pytest.approx(0.7)
    assert found["episodes/interval"] == pytest.approx(1.9639 * s / math.sqrt(600), rel=1e-4)
    assert (found["episodes/way"], found["episodes/shot"], found["episodes/count"]) == (5, 1, 600)


def test_mistakes(setting):
    with pytest.raises(UserError, match="give head or encoder"):
        FineTune(setting[0], 3, "heads", 5, 0.1)
    with pytest.raises(UserError, match=r"episodes\.method\.l2=-1"):
        Logistic(setting[0], 3, -1.0)
