"""Image encoders: any model of timm or torchvision by name, with a stem that suits small images."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslt import deferred
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.sources.hub import ask_once
from sslt.encoders import vit
from sslt.encoders.base import Features, require
from sslt.encoders.pixels import PixelEncoder
from sslt.errors import UserError, nearest
from sslt.stored import first_line

log = logging.getLogger("sslt")
STEMS = {"small": (3, 1), "half": (4, 2)}  # side and stride of the first convolution of a ResNet, without pooling
LEVELS = 4  # of a pyramid (C2 to C5 of Lin et al., 2017): finer ones cost most of the work and hold little


class ImageEncoder(PixelEncoder):
    """A timm model without its classifier (Wightman, 2019).

    name: a timm architecture, or `torchvision/NAME`. args: keyword arguments of the model, e.g. channels, layers.
    stem: "standard", or without its pooling "half" (4×4 convolution of stride 2) or "small" (3×3 of stride 1: Chen et al. 2020, B.9);
    "auto" is chosen by the size of the images when an encoder is built for a source.
    fixed_size: the model is built for one image size (a ViT's position embeddings).
    pretrained: start from the library's published weights (needs a network or a filled cache).
    """

    Processor = ImageProcessor

    def __init__(
        self,
        processor: ImageProcessor,
        name: str,
        args: dict[str, Any],
        stem: str,
        fixed_size: bool,
        pretrained: bool = False,
    ):
        super().__init__(processor, name=name, args=args, stem=stem, fixed_size=fixed_size)
        given = dict(args)
        if fixed_size:
            given["img_size"] = processor.size
        self.model: Any
        self.model = _create(name, processor.channels, given, pretrained)
        self.is_vit = vit.is_vit(self.model)
        if self.is_vit:
            vit.check_patches(name, processor.size, self.model.patch_embed.patch_size[0])
            vit.any_size(self.model)
        if stem in STEMS:
            _own_stem(self.model, name, stem)
        elif stem != "standard":
            raise UserError(f"encoder.stem={stem}{nearest(stem, ['auto', *STEMS, 'standard'])}")
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # timm's name for the width of what a classifier reads, which some families widen after pooling (MobileNetV3); torchvision has none
        self.dim = int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)
        if self.dim != self.model.num_features:
            self.offers -= {"tokens"}  # they are of another width

    @classmethod
    def build(cls, source: Any, processor: dict[str, Any], **args: Any) -> ImageEncoder:
        """An encoder for `source`'s images, unless `processor` says another size or number of channels."""
        require("image", source, f"encoder {args.get('name')}")
        fitted = ImageProcessor.fit(source, **processor)
        if args["stem"] == "auto":
            args["stem"] = _stem_for(fitted.size)
        return cls(fitted, **args)

    @property
    def patch(self) -> int:
        return int(self.model.patch_embed.patch_size[0]) if self.is_vit else 1

    @property
    def stored(self) -> nn.Module:
        return self.model  # in the names of the library it comes from

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        hidden = {k: inputs[k] for k in ("masked", "token", "visible") if k in inputs}
        if hidden:
            x = vit.encode(self.model, inputs["image"], *(hidden.get(k) for k in ("masked", "token", "visible")))
        else:
            x = self.model.forward_features(inputs["image"])
        pooled = self.model.forward_head(x, pre_logits=True)
        prefix = getattr(self.model, "num_prefix_tokens", 0)
        tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x[:, prefix:]
        return Features(pooled, tokens)

    def pyramid(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Of a network with stages the maps of the coarsest `LEVELS` resolutions, each the last of its own; of a ViT its last patches."""
        model = self.model
        if isinstance(model, _TorchvisionModel) and not model.num_prefix_tokens:
            maps = model.stages_of(inputs["image"])
        elif self.is_vit or not hasattr(model, "forward_intermediates"):
            return super().pyramid(inputs)
        else:
            maps = model.forward_intermediates(inputs["image"], intermediates_only=True, output_fmt="NCHW")
        last = {m.shape[-1]: m for m in maps}
        return list(last.values())[-LEVELS:]

    def require_tokens(self, pooled: bool) -> None:
        if not self.is_vit:
            super().require_tokens(pooled)
        if not pooled and self.model.global_pool == "token":
            log.warning(
                "the loss trains patches, not the class token that the features are read from: "
                "+encoder.args.global_pool=avg +encoder.args.fc_norm=false reads the patches"
            )

    def hide(self, inputs: dict[str, Tensor], masked: Tensor, token: Tensor) -> dict[str, Tensor]:
        return {**inputs, "masked": masked, "token": token}

    def hideable(self, inputs: dict[str, Tensor]) -> Tensor:
        b, _, h, w = inputs["image"].shape
        return torch.ones(b, (h // self.patch) * (w // self.patch), dtype=torch.bool, device=inputs["image"].device)

    def block_names(self) -> list[str]:
        names = []
        for stage in ("blocks", "stages", "features", "layer1", "layer2", "layer3", "layer4"):
            module = getattr(self.model, stage, None)
            if not isinstance(module, nn.Module):
                continue
            for child, inner in module.named_children():
                blocks = getattr(inner, "blocks", None)
                if isinstance(blocks, nn.Module):
                    names += [f"model.{stage}.{child}.blocks.{b}" for b, _ in blocks.named_children()]
                elif isinstance(inner, nn.Sequential) and stage == "blocks":
                    names += [f"model.{stage}.{child}.{b}" for b, _ in inner.named_children()]
                else:
                    names.append(f"model.{stage}.{child}")
        return names

    def save_weights(self, folder: Path) -> None:
        super().save_weights(folder)
        if self.pruned is None and not self.args["name"].startswith("torchvision/"):  # timm builds no layers of other widths
            p = self.processor
            about = {
                "architecture": self.args["name"],
                "num_classes": 0,
                "num_features": int(self.model.num_features),
                "model_args": {**self.args["args"], "in_chans": p.channels, **({"img_size": p.size} if self.args["fixed_size"] else {})},
                "pretrained_cfg": {
                    "input_size": [p.channels, p.size, p.size], "mean": list(p.mean), "std": list(p.std),
                    "num_classes": 0, "interpolation": "bilinear", "crop_pct": 1.0,
                },
            }  # fmt: skip
            (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n")


_TORCHVISION = {"img_size": "image_size"}  # what timm's arguments are called there


def _create(name: str, channels: int, args: dict[str, Any], pretrained: bool) -> Any:
    timm = deferred.timm()

    if name.startswith("torchvision/"):
        return _TorchvisionModel(name.partition("/")[2], channels, {_TORCHVISION.get(k, k): v for k, v in args.items()}, pretrained)
    name = name.removeprefix("timm/")
    if not name.startswith("local-dir:") and not timm.is_model(name):
        raise UserError(f"encoder '{name}' is no timm model{nearest(name, timm.list_models())}")
    if pretrained and not name.startswith("local-dir:"):
        ask_once()
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=channels, **args)
    except TypeError as e:
        raise UserError(f"encoder {name}: {first_line(e)}") from e
    except Exception as e:
        if pretrained and not name.startswith("local-dir:"):
            raise UserError(_offline(name, e)) from e
        raise


def _offline(name: str, e: Exception) -> str:
    return (
        f"the published weights of '{name}' cannot be had ({type(e).__name__}): this machine is offline or they do not exist. "
        f"Copy the model's folder here and say from=FOLDER, or fill the hub cache ($HF_HOME, $TORCH_HOME)"
    )


class _TorchvisionModel(nn.Module):
    """A torchvision model, cut before its classifier, behind timm's two-step forward."""

    def __init__(self, name: str, channels: int, args: dict[str, Any], pretrained: bool):
        super().__init__()
        import torchvision

        try:
            net = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **args)
        except ValueError as e:
            raise UserError(f"encoder '{name}' is no torchvision model{nearest(name, torchvision.models.list_models())}") from e
        except Exception as e:
            raise UserError(_offline(name, e)) from e
        if isinstance(net, torchvision.models.VisionTransformer):
            self._take_vit(net, channels)
        elif isinstance(net, torchvision.models.ResNet):
            if channels != 3:
                net.conv1 = _adapt_channels(net.conv1, channels)
            self.num_features, self.num_prefix_tokens = net.fc.in_features, 0
            self.steps = [child for child, _ in net.named_children() if child not in ("avgpool", "fc")]
            for child in self.steps:
                setattr(self, child, net.get_submodule(child))
        else:
            raise UserError(f"torchvision/{name}: only its ResNets and ViTs are read; timm has the other families: encoder.name={name}")

    def _take_vit(self, net: Any, channels: int) -> None:
        self.num_features, self.num_prefix_tokens, self.steps = net.hidden_dim, 1, []
        self.conv_proj = net.conv_proj if channels == 3 else _adapt_channels(net.conv_proj, channels)
        self.class_token, self.pos_embedding = net.class_token, net.encoder.pos_embedding
        self.dropout, self.blocks, self.ln = net.encoder.dropout, net.encoder.layers, net.encoder.ln

    def forward_features(self, x: Tensor) -> Tensor:
        if not self.num_prefix_tokens:
            for child in self.steps:
                x = self.get_submodule(child)(x)
            return x
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], 1)
        return self.ln(self.blocks(self.dropout(tokens + self.pos_embedding)))

    def stages_of(self, x: Tensor) -> list[Tensor]:
        """What each stage of a ResNet gives."""
        found = []
        for child in self.steps:
            x = self.get_submodule(child)(x)
            if child.startswith("layer"):
                found.append(x)
        return found

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        return x[:, 0] if self.num_prefix_tokens else x.mean((2, 3))


def _adapt_channels(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The same convolution for another number of input channels; weights are averaged over the old ones."""
    bias = conv.bias is not None
    new = nn.Conv2d(channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=bias)  # type: ignore[arg-type]
    if conv.bias is not None:
        new.bias = conv.bias
    new.weight.data = conv.weight.data.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (conv.in_channels / channels)
    return new


def _stem_for(size: int) -> str:
    """By which stem the first stage of a ResNet sees maps of about 16 × 16 of images of `size` pixels a side.

    On maps of every pixel of 32 × 32 a step takes four times as long, and SimCLR is four to five points behind after three minutes.
    """
    return "small" if size < 24 else "half" if size < 48 else "standard"


def resnets_stem(model: Any, name: str, asked: str, instead: str) -> nn.Conv2d:
    conv = getattr(model, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise UserError(f"encoder.{asked} is for ResNets; {name} has another stem: set encoder.{instead}")
    return conv


def _own_stem(model: Any, name: str, stem: str) -> None:
    conv = resnets_stem(model, name, f"stem={stem}", "stem=standard")
    model.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, *STEMS[stem], padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
