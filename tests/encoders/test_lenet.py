"""Protects the digit network: its size, its blocks, and that it comes back from its folder."""

from __future__ import annotations

import pytest
import torch

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.lenet import LeNet
from sslt.encoders.load import load_encoder
from sslt.errors import UserError


def lenet(size: int = 28) -> LeNet:
    torch.manual_seed(0)
    return LeNet(ImageProcessor(size, 1, [0.1], [0.3]), [20, 50], 500, 0.5).eval()


def test_it_has_the_benchmarks_size():
    """5·5·20 + 20, 5·5·20·50 + 50, 4·4·50·500 + 500 parameters; 500 features; three blocks that hold everything."""
    encoder = lenet()
    assert sum(p.numel() for p in encoder.parameters()) == 520 + 25_050 + 400_500
    features = encoder(encoder.inputs({"image": torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)}))
    assert features.pooled.shape == (3, 500) == (3, encoder.dim) and features.tokens.shape == (3, 1, 500)
    assert encoder.block_names() == ["conv1", "conv2", "dense"]
    assert {encoder.group_of()[n] for n, _ in encoder.named_parameters()} == {1, 2, 3}


def test_it_comes_back(tmp_path):
    before, image = lenet(), {"image": torch.randn(2, 1, 28, 28)}
    before.save(tmp_path)
    assert torch.equal(load_encoder(str(tmp_path)).eval()(image).pooled, before(image).pooled)


def test_smaller_images_and_those_too_small():
    assert lenet(16)({"image": torch.randn(2, 1, 16, 16)}).pooled.shape == (2, 500)
    with pytest.raises(UserError, match=r"at least 16×16.*encoder\.processor\.size"):
        lenet(12)
