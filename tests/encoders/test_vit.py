"""Protects hidden and left-out patches: they do not reach the output, what is left is what it was, and sizes are checked."""

from __future__ import annotations

import pytest
import torch

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.image import ImageEncoder
from sslt.errors import UserError

SIZES = {"patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2}


def vit(name: str = "vit_tiny_patch16_224", size: int = 16, **args) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(ImageProcessor(size, 3, [0.5] * 3, [0.25] * 3), name, {**SIZES, **args}, "standard", True).eval()


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("args", [{}, {"global_pool": "avg", "class_token": False, "fc_norm": False}], ids=["class token", "mean"])
def test_nothing_hidden_is_the_plain_forward(args):
    """All patches visible, in their order, and an empty mask give what timm gives."""
    encoder = vit(**args)
    plain = encoder({"image": X})
    seen = encoder({"image": X, "visible": torch.arange(16).expand(2, 16)})
    masked = encoder(encoder.hide({"image": X}, torch.zeros(2, 16, dtype=torch.bool), torch.ones(16)))
    for other in (seen, masked):
        assert torch.allclose(plain.tokens, other.tokens, atol=1e-6) and torch.allclose(plain.pooled, other.pooled, atol=1e-6)


def test_what_is_hidden_is_not_seen():
    """Pixels of hidden patches change nothing; pixels of the others do; a patch's position stays known."""
    encoder = vit()
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[:, 5] = True
    other = X.clone()
    other[:, :, 4:8, 4:8] = 9.0  # patch 5: row 1, column 1
    hide = lambda x, m: encoder(encoder.hide({"image": x}, m, torch.ones(16))).tokens  # noqa: E731
    assert torch.equal(hide(X, masked), hide(other, masked))
    assert not torch.allclose(hide(X, ~masked), hide(other, ~masked))
    a, b = torch.zeros(2, 2, 16, dtype=torch.bool)
    a[:, 5], b[:, 6] = True, True
    assert not torch.allclose(hide(torch.zeros_like(X), a)[:, 5], hide(torch.zeros_like(X), b)[:, 6])


def test_left_out_patches_are_not_seen_and_cost_nothing():
    """Only the visible tokens go through the blocks; order gives the order of the output."""
    encoder = vit()
    visible = torch.tensor([[3, 7, 8], [0, 1, 15]])
    widths = []
    encoder.model.blocks[0].register_forward_hook(lambda m, i, o: widths.append(o.shape[1]))
    out = encoder({"image": X, "visible": visible}).tokens
    assert widths == [4] and out.shape == (2, 3, 16)  # with the class token
    other = X.clone()
    other[0, :, 4:8, 4:8] = 9.0
    assert torch.equal(out[0], encoder({"image": other, "visible": visible}).tokens[0])
    turned = encoder({"image": X, "visible": visible.flip(1)}).tokens
    assert torch.allclose(turned.flip(1), out, atol=1e-6)


def test_other_sizes_have_their_own_grid():
    """Small crops go through the same encoder, with interpolated positions."""
    assert vit()({"image": X[:, :, :8, :8]}).tokens.shape == (2, 4, 16)


def test_hideable_and_grid():
    """As many tokens as patches, all of which may be hidden."""
    encoder = vit()
    assert encoder.grid == 4 and encoder.hideable({"image": X}).shape == (2, 16) and encoder.hideable({"image": X}).all()


def test_sizes_that_do_not_fit_and_networks_without_patches():
    """One line, naming what would."""
    with pytest.raises(UserError, match="16 or 20"):
        vit(size=18)
    resnet = ImageEncoder(ImageProcessor(16, 3, [0.5] * 3, [0.25] * 3), "resnet18", {"channels": [8] * 4}, "small", False)
    with pytest.raises(UserError, match="resnet18 has none"):
        resnet.require_tokens(pooled=True)
    assert resnet.grid == 2


def test_a_class_token_that_no_loss_reaches_is_said(caplog):
    """Losses on patches alone leave the class token untrained."""
    vit().require_tokens(pooled=False)
    assert "global_pool=avg" in caplog.text
    caplog.clear()
    vit(global_pool="avg", class_token=False, fc_norm=False).require_tokens(pooled=False)
    vit().require_tokens(pooled=True)
    assert not caplog.text
