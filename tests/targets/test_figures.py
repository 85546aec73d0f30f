"""Protects the pictures of a classifier's predictions: drawn whatever the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sslt.targets import figures

pytestmark = pytest.mark.usefixtures("true_pictures")


def _picture(path: Path) -> np.ndarray:
    """The pixels of a PNG, checked not to be blank."""
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert len(np.unique(pixels)) > 5
    return pixels


@pytest.mark.parametrize("n", [2, 20, 100])
def test_confusion(tmp_path, n):
    """Any number of classes, long names, names with a dollar sign, a class without samples."""
    matrix = np.random.default_rng(0).integers(0, 30, (n, n))
    matrix[0] = 0
    figures.confusion(matrix, [f"$class_{i}$ with quite a long name" for i in range(n)], tmp_path / "c.png")
    assert max(_picture(tmp_path / "c.png").shape) < 2500


def test_reliability(tmp_path):
    """Also with a single filled bin; the format follows the name."""
    figures.reliability(torch.randn(50, 4), torch.arange(50) % 4, tmp_path / "r.png")
    _picture(tmp_path / "r.png")
    figures.reliability(100 * torch.eye(4), torch.arange(4), tmp_path / "r.pdf")
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF")
