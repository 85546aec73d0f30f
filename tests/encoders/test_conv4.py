"""Conv-4: the shapes of the literature, its folder, and BatchNorm that leaves no trace of an episode."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import fingerprint
from sslt.encoders.batch_norm import batch_statistics, recalibrate
from sslt.encoders.conv4 import Conv4
from sslt.encoders.load import fresh_like, load_encoder
from sslt.errors import UserError


def conv4(size: int = 28, channels: int = 1, **changed) -> Conv4:
    torch.manual_seed(0)
    processor = ImageProcessor(size, channels, [0.5] * channels, [0.25] * channels)
    return Conv4(processor, **{"width": 8, "blocks": 4, "downsample": "pool", "pooling": "flatten", **changed})


def images(n: int = 6, size: int = 28, channels: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"image": torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))}


@pytest.mark.parametrize(
    ("size", "changed", "dim"),
    [
        (28, {"width": 64}, 64),  # Snell et al. (2017): a 64-dimensional space for Omniglot
        (84, {"width": 64}, 1600),  # and 1,600 for miniImageNet
        (28, {"downsample": "stride"}, 8 * 4),
        (28, {"downsample": "stride", "pooling": "mean"}, 8),
        (8, {}, 8),  # one pixel is not halved further
    ],
)
def test_dimensions(size, changed, dim):
    encoder = conv4(size, **changed)
    features = encoder(images(size=size))
    assert encoder.dim == dim and features.pooled.shape == (6, dim)
    assert features.tokens.shape[2] == dim


def test_is_convolution_norm_relu_maximum():
    """Against the layers in the order the papers give."""
    encoder = conv4().train()
    x = images()["image"]
    for block in encoder.blocks:
        x = F.max_pool2d(F.relu(F.batch_norm(F.conv2d(x, block.conv.weight, padding=1), None, None, training=True)), 2)
    assert torch.allclose(encoder(images()).pooled, x.flatten(1), atol=1e-5)


def test_comes_back_from_its_folder(tmp_path):
    before = conv4(downsample="stride", pooling="mean").eval()
    before.save(tmp_path)
    after = load_encoder(str(tmp_path)).eval()
    assert torch.equal(before(images()).pooled, after(images()).pooled)
    assert fingerprint(before) == fingerprint(after) != fingerprint(fresh_like(str(tmp_path)))
    assert before.block_names() == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"] and before.group_of()["blocks.2.norm.weight"] == 3


def test_a_wrong_option_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'stride'"):
        conv4(downsample="strided")


@pytest.mark.parametrize("changed", [{"width": 0}, {"blocks": 0}])
def test_nothing_of_either_is_refused(changed):
    with pytest.raises(UserError, match="at least 1 of each"):
        conv4(**changed)


# -------------------------------------------------------------------- BatchNorm
def test_batch_statistics_leave_no_trace():
    """Inside, in eval mode too, the batch's own statistics; afterwards modes, running statistics and counters are as before."""
    encoder = conv4().eval()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    x = images()["image"]
    with batch_statistics(encoder):
        inside = encoder({"image": x}).pooled
        alone = encoder({"image": x[:3]}).pooled
    assert torch.allclose(inside, conv4().train()({"image": x}).pooled)
    assert not torch.allclose(inside[:3], alone)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert not any(m.training for m in encoder.modules()) and all(b.norm.track_running_stats for b in encoder.blocks)
    with pytest.raises(RuntimeError), batch_statistics(encoder):
        raise RuntimeError
    assert not any(m.training for m in encoder.modules())


def test_recalibrated_statistics_are_plain_averages():
    """Over the batches' means and unbiased variances at the first norm; frozen norms and modes stay."""
    encoder = conv4().eval()
    batches = [images(seed=s) for s in range(3)]
    encoder.blocks[1].norm.requires_grad_(False)
    frozen = encoder.blocks[1].norm.running_mean.clone()
    recalibrate(encoder, batches)
    seen = [F.conv2d(b["image"].double(), encoder.blocks[0].conv.weight.double(), padding=1) for b in batches]
    norm = encoder.blocks[0].norm
    assert torch.allclose(norm.running_mean.double(), torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0), atol=1e-6)
    variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
    assert torch.allclose(norm.running_var.double(), variance, atol=1e-5)
    assert torch.equal(encoder.blocks[1].norm.running_mean, frozen)
    assert not any(m.training for m in encoder.modules()) and norm.momentum == nn.BatchNorm2d(1).momentum
