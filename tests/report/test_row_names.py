"""Protects that answers stand beside the names of the rows that they are of."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sslt.data.prepare import image_processor
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.sources.images import ImageFolder
from sslt.report.answers import row_names


@pytest.mark.parametrize("in_memory", [True, False])
def test_names_are_of_the_pictures_that_could_be_read(here, monkeypatch, in_memory):
    """However the pictures are held, and of a part of them, too."""
    if not in_memory:
        monkeypatch.setattr(image_processor, "IN_MEMORY", 0)
    for i in range(4):
        path = here / "photos" / "train" / f"{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(path)
    broken = here / "photos" / "train" / "0" / "0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    source = ImageFolder(path=str(here / "photos"), on_error="skip", size=None, val_fraction=0, test_fraction=0)
    samples = ImageProcessor(8, 3, [0.5] * 3, [0.5] * 3).prepare(source, "train")
    for part in (samples, samples.subset(np.array([2, 0]))):
        values = part.batch(np.arange(len(part)))["image"][:, 0, 0, 0].tolist()
        assert [f"{v // 20}.png" for v in values] == [name.rsplit("/", 1)[-1] for name in row_names(source, "train", part)]
    assert len(samples) == 3
