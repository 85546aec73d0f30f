"""Protects what results are held against: gradients and NB-SVM against slow references, the choice by validation, every script."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sslt.evaluation import baselines
from sslt.evaluation.baselines import Rows


class Pictures:
    """Images [N, C, H, W] as samples."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self):
        return len(self.images)

    def batch(self, index):
        return {"image": self.images[torch.from_numpy(index)]}


def slow_gradients(image: np.ndarray, bins: int = 9) -> np.ndarray:
    """Histograms of oriented gradients of one image [C, H, W], pixel by pixel."""
    c, h, w = image.shape
    at = lambda k, i, j: image[k, min(max(i, 0), h - 1), min(max(j, 0), w - 1)]  # noqa: E731
    cell = max(2, -(-min(h, w) // 8))
    rows, columns = -(-h // cell), -(-w // cell)
    sums, counts = np.zeros((rows, columns, bins)), np.zeros((rows, columns))
    for i in range(h):
        for j in range(w):
            found = [(at(k, i, j + 1) - at(k, i, j - 1), at(k, i + 1, j) - at(k, i - 1, j)) for k in range(c)]
            dx, dy = max(found, key=lambda g: g[0] ** 2 + g[1] ** 2)
            place = (math.atan2(dy, dx) % math.pi) * bins / math.pi - 0.5
            low = math.floor(place)
            size = math.hypot(dx, dy)
            sums[i // cell, j // cell, low % bins] += size * (1 - (place - low))
            sums[i // cell, j // cell, (low + 1) % bins] += size * (place - low)
            counts[i // cell, j // cell] += 1
    cells = sums / counts[..., None]
    blocks = []
    for i in range(rows - 1):
        for j in range(columns - 1):
            block = cells[i : i + 2, j : j + 2].reshape(-1)
            block = np.minimum(block / max(np.linalg.norm(block), 1e-12), 0.2)
            blocks.append(block / max(np.linalg.norm(block), 1e-12))
    return np.sort(np.concatenate(blocks))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 20, 27)], ids=str)
def test_oriented_gradients_equal_a_pixel_by_pixel_reference(shape):
    """Up to the order of the numbers, which no classifier here looks at."""
    images = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    ours = baselines.oriented_gradients(torch.from_numpy(images)).numpy()
    for image, row in zip(images, ours, strict=True):
        np.testing.assert_allclose(np.sort(row), slow_gradients(image.astype(float)), atol=1e-5)


def test_majority_and_difference_are_known():
    assert baselines.majority(np.array([0, 1, 1, 2]), np.array([1, 0, 1, 1, 2])) == pytest.approx(0.6)
    a, b = np.array([True] * 60 + [False] * 40), np.array([True] * 50 + [False] * 50)
    mean, low, high = baselines.difference(a, b)
    half = 1.96 * np.std(a.astype(float) - b, ddof=1) / 10
    assert (mean, low, high) == pytest.approx((0.1, 0.1 - half, 0.1 + half))
    assert baselines.difference(a, a) == (0.0, 0.0, 0.0)


def test_colours_are_counted_by_quarter_wherever_they_are_in_it():
    """A plain image has one colour in each quarter; grey images have none; moved pixels of a quarter count alike."""
    plain = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    plain[:, 0] = 255
    found = baselines._colours(plain.float() / 255)[0]
    assert found.tolist() == [1.0 if i % 64 == 3 * 16 else 0.0 for i in range(256)]
    image = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float() / 255
    moved = image.clone()
    moved[:, :, :4, :4] = image[:, :, :4, :4].flip(2)
    assert torch.equal(baselines._colours(image), baselines._colours(moved))
    assert baselines.gradients_and_colour(plain).shape[1] > baselines.gradients_and_colour(plain[:, :1]).shape[1]


def test_whitened_patches_tell_textures_apart_wherever_they_lie():
    """Stripes across and along, at any place: neighbours by pixels cannot, by patches can. Nothing random is taken from the run."""
    rng = np.random.default_rng(0)
    stripes = np.stack([np.roll(np.tile([0, 60, 255, 60], 4), rng.integers(4))[:, None] * np.ones(16) for _ in range(60)])
    y = np.arange(60) % 2
    stripes[y == 1] = stripes[y == 1].swapaxes(1, 2)
    x = torch.from_numpy((stripes + rng.integers(0, 80, stripes.shape)).clip(0, 255).astype(np.uint8)).unsqueeze(1)
    train, test = Pictures(x[:20]), Pictures(x[20:])
    before = torch.get_rng_state()
    describe = baselines.whitened_patches(train)
    assert torch.equal(before, torch.get_rng_state())
    seen, asked = (baselines._described(part, describe) for part in (train, test))
    assert seen.shape == (20, 4 * baselines.FILTERS) and torch.equal(seen, baselines._described(train, baselines.whitened_patches(train)))
    nearest = lambda a, b: y[:20][torch.cdist(b, a).argmin(1).numpy()]  # noqa: E731
    assert (nearest(seen, asked) == y[20:]).all()
    found = baselines.strongest("image", Rows(train, y[:20]), None, Rows(test, y[20:]), 2)
    assert found.method.startswith("pixels")  # without validation nothing is chosen


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 40, 40), (1, 9, 9)], ids=str)
def test_patches_of_images_of_any_size_and_channels(shape):
    images = torch.randint(0, 256, (12, *shape), dtype=torch.uint8)
    found = baselines._described(Pictures(images), baselines.whitened_patches(Pictures(images)))
    assert len(found) == 12 and found.isfinite().all()


def test_the_best_of_all_candidates_on_validation_is_taken(monkeypatch):
    """Whichever place it has; the test rows are shown to that one alone."""
    asked = []

    def fitted(name: str, score: float) -> baselines._Fitted:
        return baselines._Fitted(name, score, lambda items: asked.append(name) or np.zeros(4, int))

    monkeypatch.setattr(baselines, "_on_images", lambda *_: iter([fitted("a", 0.2), fitted("b", 0.9), fitted("c", 0.5)]))
    rows = Rows(None, np.array([0, 0, 0, 1]))
    found = baselines.strongest("image", rows, rows, rows, 2)
    assert (found.method, found.accuracy, asked) == ("b", 0.75, ["b"])


def test_the_choice_is_by_validation_and_not_by_test():
    """Validation likes what nearest neighbours say; the test set would have liked the other."""
    rng = np.random.default_rng(1)
    y = np.arange(80) % 2
    x = torch.from_numpy(rng.integers(0, 255, (80, 1, 8, 8)).astype(np.uint8))
    train = Rows(Pictures(x), y)
    best = baselines.strongest("image", train, Rows(Pictures(x), y), Rows(Pictures(x), 1 - y), 2)
    assert best.val_accuracy == 1.0 and best.accuracy == 0.0


def test_of_equally_good_regressions_the_most_regularised_is_taken(monkeypatch):
    """What validation does not tell apart."""

    def fit(x, y, n_classes, l2, init):
        return torch.tensor([[0.0], [1.0 if l2 == max(baselines.L2) else -1.0]]), torch.zeros(2)

    monkeypatch.setattr(baselines, "fit_logistic", fit)
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])
    describe = lambda images: images.flatten(1).float()  # noqa: E731
    fitted = baselines._logistic("pixels", describe, (x, y), (x, y), (torch.zeros(1), torch.ones(1)), 2)
    assert fitted.val_accuracy == 0.5 and fitted.predict(Pictures(torch.ones(3, 1, 1, 1))).tolist() == [1, 1, 1]


TEXTS = {
    "english": (["good film", "a fine good story", "bad film", "a bad dull story"], ["good story", "dull film"]),
    "chinese": (["很好的酒店", "服务很好", "很差的酒店", "服务很差"], ["房间很好", "房间很差"]),
}


@pytest.mark.parametrize("language", TEXTS)
def test_texts_with_and_without_spaces(language):
    train, test = TEXTS[language]
    y = np.array([0, 0, 1, 1])
    found = baselines.strongest("text", Rows(train, y), Rows(train, y), Rows(test, np.array([0, 1])), 2)
    assert found.accuracy == 1.0 and ("characters" if language == "chinese" else "words") in found.method


def test_without_validation_there_is_a_result_and_no_choice():
    train, test = TEXTS["english"]
    found = baselines.strongest("text", Rows(train, np.array([0, 0, 1, 1])), None, Rows(test, np.array([0, 1])), 2)
    assert found.method.startswith("TF-IDF") and math.isnan(found.val_accuracy) and found.accuracy == 1.0


def test_nb_svm_equals_its_definition():
    """Presence of words times the log-ratio of their smoothed counts, and a linear SVM on top (Wang & Manning, section 2)."""
    from sklearn.svm import LinearSVC

    texts = ["a b b c", "a c d", "b d e e", "e f a", "c c f", "d e f"]
    y = np.array([0, 0, 1, 1, 0, 1])
    words = baselines._fitted_vectoriser("word", (1, 1), texts)
    fitted = baselines._nb_svm(Rows(texts, y), Rows(texts, y), words, 2)
    names = sorted(words.vocabulary_, key=words.vocabulary_.get)
    seen = np.array([[float(w in t.split()) for w in names] for t in texts])
    p, q = seen[y == 1].sum(0) + 1, seen[y == 0].sum(0) + 1
    ratio = np.log((p / p.sum()) / (q / q.sum()))
    scores = []
    for strength in baselines.STRENGTHS:
        model = LinearSVC(C=strength / 100).fit(seen * ratio, y == 1)
        scores.append(((model.decision_function(seen * ratio) > 0) == y).mean())
    assert fitted.val_accuracy == pytest.approx(max(scores))


@pytest.mark.parametrize("texts", [["", "", "x", ""], ["?", "!", "?!", "."]])
def test_texts_that_say_nothing_are_no_crash(texts):
    y = np.array([0, 1, 0, 1])
    found = baselines.strongest("text", Rows(texts, y), None, Rows(texts, y), 2)
    assert 0 <= found.accuracy <= 1
