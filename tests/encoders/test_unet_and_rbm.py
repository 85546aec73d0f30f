"""Protects the encoders of generative models: features are a function of the image, read where it was asked, and survive a folder."""

from __future__ import annotations

import pytest
import torch

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import evaluating
from sslt.encoders.load import load_encoder
from sslt.encoders.rbm import RBMEncoder
from sslt.encoders.unet import UNetEncoder

BLOCKS = ["down.0", "down.1", "mid", "up.0", "up.1"]


def unet(block: str) -> UNetEncoder:
    torch.manual_seed(0)
    return UNetEncoder(ImageProcessor(16, 1, [0.5], [0.25]), [8, 16], 1, 100, 10, block)


@pytest.mark.parametrize("block", BLOCKS)
def test_features_are_the_output_of_the_named_block(block):
    """The same as a hook sees in the model's own forward pass; what is behind it does not run."""
    encoder = unet(block)
    images, seen, ran = torch.randn(2, 1, 16, 16), [], []
    encoder.model.get_submodule(encoder.block_names()[-1].removeprefix("model.")).register_forward_hook(
        lambda m, i, o: seen.append(o[0] if isinstance(o, tuple) else o)
    )
    encoder.model.conv_out.register_forward_hook(lambda *_: ran.append(1))
    with evaluating(encoder):
        found = encoder({"image": images})
        level = encoder.level.expand(2)
        encoder.predict_noise(encoder.noisy(images, level, encoder.noise), level)
    assert len(seen) == 2 and ran == [1]  # once as features, once in the whole
    assert torch.allclose(seen[0], seen[1], atol=1e-6)
    assert torch.equal(found.tokens, seen[0].flatten(2).transpose(1, 2)) and torch.allclose(found.pooled, seen[0].mean((2, 3)), atol=1e-6)
    assert found.pooled.shape == (2, encoder.dim)


def test_features_do_not_change_from_call_to_call_or_with_the_batch():
    """The noise belongs to the encoder, not to the call."""
    encoder, images = unet("mid"), torch.randn(3, 1, 16, 16)
    with evaluating(encoder):
        a, b, alone = encoder({"image": images}), encoder({"image": images}), encoder({"image": images[:1]})
    assert torch.equal(a.pooled, b.pooled) and torch.allclose(a.pooled[:1], alone.pooled, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: unet("up.0"), lambda: RBMEncoder(ImageProcessor(8, 3, [0.5] * 3, [0.2] * 3), 6, "binary")])
def test_a_folder_gives_the_same_features(make, tmp_path):
    """Saved and loaded by name alone."""
    encoder = make()
    p = encoder.processor
    images = torch.randn(2, p.channels, p.size, p.size)
    encoder.save(tmp_path / "encoder")
    again = load_encoder(str(tmp_path / "encoder"), "image", [])
    with evaluating(encoder), evaluating(again):
        assert torch.equal(encoder({"image": images}).pooled, again({"image": images}).pooled)
    assert again.block_names() == encoder.block_names() and again.args == encoder.args


def test_a_machines_units_are_pixels_and_back():
    """Binary units are brightness in 0..1, Gaussian ones the normalised pixels."""
    images = (torch.rand(2, 1, 4, 4) - 0.5) / 0.25
    binary, gaussian = (RBMEncoder(ImageProcessor(4, 1, [0.5], [0.25]), 3, kind) for kind in ("binary", "gaussian"))
    assert torch.allclose(binary.visible(images), images.flatten(1) * 0.25 + 0.5, atol=1e-6)
    assert torch.allclose(binary.images(binary.visible(images)), images, atol=1e-5)
    assert torch.equal(gaussian.visible(images), images.flatten(1)) and torch.equal(gaussian.images(gaussian.visible(images)), images)
