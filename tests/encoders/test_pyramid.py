"""Protects the maps of encoders: sizes from fine to coarse, gradients to the weights and adapters they go through, clear refusals."""

from __future__ import annotations

import copy

import pytest
import torch

from sslt.adaptation.base import Full
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders import inserted
from sslt.encoders.conv4 import Conv4
from sslt.encoders.image import ImageEncoder
from sslt.encoders.lenet import LeNet
from sslt.encoders.patches import PatchEncoder
from sslt.encoders.rbm import RBMEncoder
from sslt.encoders.unet import UNetEncoder
from sslt.errors import UserError

TINY = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
VIT = {"patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2}


def processor(size: int = 32) -> ImageProcessor:
    return ImageProcessor(size, 3, [0.5] * 3, [0.25] * 3)


def image_encoder(name: str, args: dict, stem: str = "standard", size: int = 32) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(processor(size), name, dict(args), stem, "vit" in name)


NEXT = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
ENCODERS = {
    "resnet, small stem": (lambda: image_encoder("resnet18", TINY, "small"), [(8, 1), (8, 2), (16, 4), (16, 8)]),
    "resnet": (lambda: image_encoder("resnet18", TINY, size=64), [(8, 4), (8, 8), (16, 16), (16, 32)]),
    "convnext": (lambda: image_encoder("convnext_atto", NEXT), [(8, 4), (8, 8), (16, 16), (16, 32)]),
    "vit": (lambda: image_encoder("vit_tiny_patch16_224", VIT), [(16, 4)]),
    "vit of means": (lambda: image_encoder("vit_tiny_patch16_224", {**VIT, "global_pool": "avg", "class_token": False}), [(16, 4)]),
    "torchvision resnet": (lambda: image_encoder("torchvision/resnet18", {}, size=64), [(64, 4), (128, 8), (256, 16), (512, 32)]),
    "conv4": (lambda: Conv4(processor(), 8, 3, "pool", "mean"), [(8, 8)]),
    "unet": (lambda: UNetEncoder(processor(), [8, 16], 1, 10, 3, "up.0"), [(16, 1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_maps_come_from_fine_to_coarse(name):
    """Of the shapes that the encoder says, for images of its size; the coarsest of a network with stages is what its tokens are."""
    make, shapes = ENCODERS[name]
    encoder = make().eval()
    assert encoder.pyramid_shapes == shapes and "maps" in encoder.offers
    images = torch.randn(2, 3, encoder.processor.size, encoder.processor.size)
    maps = encoder.pyramid({"image": images})
    assert [(m.shape[1], encoder.processor.size // m.shape[-1]) for m in maps] == shapes
    assert torch.allclose(maps[-1].flatten(2).transpose(1, 2), encoder({"image": images}).tokens, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_weight_is_trained_or_named(name):
    """What gets no gradient is what `unread_by_maps` says, for several processes wait for the gradient of every other one."""
    encoder = ENCODERS[name][0]().train()
    before = copy.deepcopy(encoder.state_dict())
    unread = encoder.unread_by_maps()
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items()), "asking must not move running statistics"
    sum(m.square().sum() for m in encoder.pyramid({"image": torch.randn(2, 3, encoder.processor.size, encoder.processor.size)})).backward()
    assert sorted(unread) == sorted(n for n, p in encoder.named_parameters() if p.grad is None)
    if "vit of means" in name:
        assert {"model.fc_norm.weight", "model.fc_norm.bias"} <= set(unread)
    elif "unet" not in name and "convnext" not in name:
        assert not unread


def test_places_of_a_vit_stay_where_they_are():
    """Prefix tokens are left out, and the map has rows of the image as rows: a change in a corner moves that corner most."""
    encoder = image_encoder("vit_tiny_patch16_224", VIT).eval()
    image = torch.randn(1, 3, 32, 32)
    changed = image.clone()
    changed[:, :, :4, 28:] += 3
    moved = (encoder.pyramid({"image": changed})[0] - encoder.pyramid({"image": image})[0]).norm(dim=1)[0]
    assert moved.argmax() == 7


@pytest.mark.parametrize("name", ["resnet, small stem", "vit"])
@pytest.mark.parametrize("kind", [{"kind": "lora", "r": 2, "lora_alpha": 4}, {"kind": "adapter", "size": 2}])
def test_adapters_are_on_the_way(name, kind):
    """LoRA and bottlenecks behind blocks change the maps and get gradients."""
    encoder = ENCODERS[name][0]().eval()
    image = {"image": torch.randn(1, 3, 32, 32)}
    before = [m.detach().clone() for m in encoder.pyramid(image)]
    inserted.inject(encoder, kind)
    own = [p for n, p in encoder.named_parameters() if "lora_" in n or "added_bottleneck" in n]
    with torch.no_grad():
        for p in own:
            p.add_(torch.randn_like(p))
    after = encoder.pyramid(image)
    assert not torch.allclose(before[-1], after[-1], atol=1e-4)
    sum(m.sum() for m in after).backward()
    assert own and all(p.grad is not None for p in own)


def test_full_training_moves_batch_statistics():
    """BatchNorm of the stages is in train mode on the way to the maps."""
    encoder = ENCODERS["resnet, small stem"][0]().train()
    Full(1.0).prepare(encoder)
    before = encoder.model.layer4[0].bn1.running_mean.clone()
    encoder.pyramid({"image": torch.randn(4, 3, 32, 32)})
    assert not torch.equal(before, encoder.model.layer4[0].bn1.running_mean)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LeNet(processor(), [2, 2], 4, 0.0),
        lambda: Conv4(processor(), 4, 2, "pool", "flatten"),
        lambda: RBMEncoder(processor(8), 4, "binary"),
        lambda: PatchEncoder(processor(), 4, 4, 2, 2, 1.0, None, 8),
    ],
)
def test_one_vector_is_no_map(make):
    """Encoders of one vector refuse by name, in one line."""
    encoder = make()
    with pytest.raises(UserError, match=rf"{type(encoder).__name__} gives none \(its features are one vector\)") as e:
        encoder.pyramid({"image": torch.zeros(1, 3, encoder.processor.size, encoder.processor.size)})
    assert "\n" not in str(e.value)
