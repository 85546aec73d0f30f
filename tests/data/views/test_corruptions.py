"""Protects the corruptions: stronger is worse, the same seed is the same, and labels and shapes stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sslt.data.answers import Class
from sslt.data.base import Samples
from sslt.data.views import corruptions
from sslt.errors import UserError

KINDS = [corruptions.GaussianNoise, corruptions.ImpulseNoise, corruptions.Blur, corruptions.Contrast, corruptions.Brightness,
         corruptions.Pixelate]  # fmt: skip


class Pictures(Samples):
    """Smooth gradients with an edge, which every corruption harms."""

    fingerprint = "pictures"

    def __init__(self) -> None:
        y, x = np.mgrid[0:32, 0:32]
        waves = [100 + 60 * np.sin(x / 3 + k) + 30 * np.cos(y / (2 + k % 3)) + 40 * (x > y + k) for k in range(16)]
        self.images = torch.from_numpy(np.stack(waves).clip(0, 255).astype(np.uint8)).unsqueeze(1)
        self.answers = Class(np.arange(16) % 2, {"classes": ["a", "b"]})

    def __len__(self) -> int:
        return 16

    def batch(self, index):
        return {"image": self.images[index], "label": torch.from_numpy(self.labels[index])}

    def subset(self, index):
        raise NotImplementedError


@pytest.mark.parametrize("kind", KINDS)
def test_more_severe_is_farther_from_the_original(kind):
    """Mean change grows with severity; type, shape and labels stay."""
    clean, rows = Pictures(), np.arange(16)
    changes = []
    for severity in range(1, 6):
        made = corruptions.Corrupted(clean, kind(severity), seed=0).batch(rows)
        assert made["image"].dtype == torch.uint8 and made["image"].shape == clean.images.shape
        assert made["label"].tolist() == clean.labels.tolist()
        changes.append(float((made["image"].float() - clean.images.float()).abs().mean()))
    assert 0 < changes[0] < changes[4]


def test_a_seed_is_repeatable():
    """The same rows under the same seed are the same, under another they are not, and caches can tell them apart."""
    rows = np.arange(16)
    one, same, other = (corruptions.Corrupted(Pictures(), corruptions.GaussianNoise(3), seed=s) for s in (0, 0, 1))
    assert torch.equal(one.batch(rows)["image"], same.batch(rows)["image"])
    assert not torch.equal(one.batch(rows)["image"], other.batch(rows)["image"])
    assert len({one.fingerprint, other.fingerprint, Pictures().fingerprint}) == 3


def test_noise_has_the_deviation_it_says():
    """Severity 3: 0.12 of the range, on grey images that no clamp touches."""
    grey = {"image": torch.full((8, 1, 32, 32), 128, dtype=torch.uint8)}
    made = corruptions.GaussianNoise(3)(grey, torch.Generator().manual_seed(0))
    assert float(made["image"].float().std() / 255) == pytest.approx(0.12, rel=0.03)


def test_salt_and_pepper_hit_the_share_they_say():
    """Half of it black and half white, on grey images; milder to stronger."""
    grey = {"image": torch.full((16, 3, 64, 64), 128, dtype=torch.uint8)}
    for severity, share in enumerate((0.01, 0.03, 0.06, 0.1, 0.17), start=1):
        made = corruptions.ImpulseNoise(severity)(grey, torch.Generator().manual_seed(0))["image"]
        for colour in (0, 255):
            assert float((made == colour).float().mean()) == pytest.approx(share / 2, rel=0.1)


def test_words_are_dropped_where_there_are_words():
    """The first token and padding stay; about the stated share of the others becomes unknown."""
    tokens, mask = torch.full((200, 21), 7), torch.ones(200, 21, dtype=torch.bool)
    mask[:, 15:] = False
    corruption = corruptions.DroppedWords(3)
    corruption.unknown = 1
    made = corruption({"tokens": tokens, "mask": mask}, torch.Generator().manual_seed(0))["tokens"]
    assert (made[:, 0] == 7).all() and (made[:, 15:] == 7).all()
    assert float((made[:, 1:15] == 1).float().mean()) == pytest.approx(0.2, abs=0.02)
    corruption.window = 6
    made = corruption({"tokens": tokens, "mask": mask}, torch.Generator().manual_seed(0))["tokens"]
    assert (made[:, [0, 6, 12]] == 7).all() and (made[:, [1, 5, 7, 11]] == 1).any(0).all()  # nor is one that starts a window


def test_severity_is_one_to_five():
    """One line."""
    with pytest.raises(UserError, match=r"corruption\.severity=6"):
        corruptions.Blur(6)


@pytest.mark.parametrize("kind", [*KINDS, corruptions.DroppedWords])
def test_each_severity_is_stronger_than_the_one_before(kind):
    """Five strengths in order, none twice, each that of its number."""
    steps = np.diff(kind.strengths)
    assert len(steps) == 4 and ((steps > 0).all() or (steps < 0).all())
    assert [kind(severity).strength for severity in range(1, 6)] == list(kind.strengths)
