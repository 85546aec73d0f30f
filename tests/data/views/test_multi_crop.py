"""Protects the views of multi-crop and the plain ones: how many, of which size, of whole patches, and which are of no use."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sslt.config import build, compose
from sslt.data.views.base import Plain
from sslt.data.views.multi_crop import MultiCrop
from sslt.errors import UserError


def multi_crop(*settings: str) -> MultiCrop:
    views = build(compose("pretrain", ["+task=dino", *settings]).views)
    assert isinstance(views, MultiCrop)
    return views


def encoder(size: int = 32, patch: int = 4):
    return SimpleNamespace(processor=SimpleNamespace(size=size, mean=[0.5] * 3, std=[0.25] * 3), patch=patch)


@pytest.mark.parametrize(
    ("share", "multiple", "size", "crop"), [(0.5, 4, 32, 16), (0.43, 8, 224, 96), (0.3, 4, 32, 8), (0.01, 4, 32, 4), (1, 1, 31, 31)]
)
def test_small_crops_are_whole_patches(share, multiple, size, crop):
    """Of the share of the side that is asked for, to the nearest whole number of patches, one at least."""
    assert multi_crop(f"views.small_size={share}", f"views.multiple={multiple}").crop_size(size) == crop


def test_large_and_small_views():
    """So many of each; the large ones first, in `views`; what else a batch holds stays."""
    views = multi_crop("views.large.n=2", "views.small.n=3", "views.small_size=0.5", "views.multiple=4")
    batch = {"image": torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8), "index": torch.arange(5)}
    made = views(batch, encoder())
    assert views.n == 2 and made["views"]["image"].shape == (2, 5, 3, 32, 32) and made["local"]["image"].shape == (3, 5, 3, 16, 16)
    assert torch.equal(made["index"], batch["index"])
    grey = views({"image": torch.full((5, 3, 40, 40), 255, dtype=torch.uint8)}, encoder())
    assert grey["local"]["image"].max() == grey["views"]["image"].max() == pytest.approx(2.0)  # (1 - mean) / deviation


def test_mistakes_of_sizes():
    """A share that is none, and crops that are no whole number of patches, before training."""
    for share in (0, 1.5):
        with pytest.raises(UserError, match=r"views\.small_size"):
            multi_crop(f"views.small_size={share}")
    views = multi_crop("views.small_size=0.5", "views.multiple=4")
    views.check(encoder(32, 4))
    with pytest.raises(UserError, match=r"16 pixels.*set views\.multiple=12"):
        views.check(encoder(32, 12))


def test_plain_views():
    """The inputs as they are, so many times; more than once is of no use to an encoder without dropout."""
    batch = {"x": torch.arange(6).view(3, 2), "label": torch.arange(3)}
    made = Plain(2)(batch, SimpleNamespace(inputs=lambda b: {"x": b["x"] + 1}))
    assert torch.equal(made["views"]["x"], torch.stack([batch["x"] + 1] * 2)) and torch.equal(made["label"], batch["label"])
    Plain(1).check(SimpleNamespace(varies=False))
    Plain(2).check(SimpleNamespace(varies=True))
    with pytest.raises(UserError, match=r"dropout=0\.1"):
        Plain(2).check(SimpleNamespace(varies=False))
