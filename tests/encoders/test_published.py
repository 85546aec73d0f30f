"""Protects encoders by a published name: what their weights were made with is what they get; nothing is fetched here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import timm

from sslt.encoders import load
from sslt.errors import UserError


@pytest.fixture
def built(monkeypatch) -> list[tuple]:
    """The arguments of encoders that would be built."""
    found: list[tuple] = []

    def make(*args: Any, **given: Any) -> None:
        found.append((*args, given))

    make.Processor = lambda **given: SimpleNamespace(**given)  # type: ignore[attr-defined]
    monkeypatch.setattr(load, "_image", lambda: make)
    return found


@pytest.mark.parametrize(("name", "fixed"), [("inception_v3", False), ("vit_base_patch16_384", True), ("timm/deit_tiny_patch16_224", True)])
def test_size_and_statistics_are_those_of_the_weights(built, name, fixed):
    """As timm has them; positions of transformers belong to one size."""
    load._published_image(name)
    (processor, made, args, stem, size_is_fixed, given) = built[0]
    cfg = timm.get_pretrained_cfg(name.removeprefix("timm/")).to_dict()
    assert (processor.channels, processor.size) == cfg["input_size"][:2]
    assert (tuple(processor.mean), tuple(processor.std)) == (cfg["mean"], cfg["std"])
    assert (made, args, stem, size_is_fixed, given) == (name.removeprefix("timm/"), {}, "standard", fixed, {"pretrained": True})


def test_torchvisions(built):
    """224 pixels and ImageNet's statistics."""
    load._published_image("torchvision/resnet18")
    load._published_image("torchvision/vit_b_16")
    (processor, name, _, _, fixed, given), other = built
    assert (processor.size, processor.channels, processor.mean[0], processor.std[0]) == (224, 3, 0.485, 0.229)
    assert (name, fixed, given) == ("torchvision/resnet18", False, {"pretrained": True}) and other[4] is True


def test_a_name_that_is_none(built):
    """With the one that was meant."""
    with pytest.raises(UserError, match=r"from=resnet81 is no folder and no timm model.*did you mean"):
        load._published_image("resnet81")
    assert not built
