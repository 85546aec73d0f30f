"""The U-Net of a diffusion model as an encoder of images."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import Features, require
from sslt.encoders.pixels import PixelEncoder
from sslt.errors import UserError, nearest

BETAS = (1e-4, 0.02)  # of the linear schedule, first and last (Ho et al., 2020, section 4)


def signal_shares(steps: int) -> Tensor:
    """ᾱ [steps]: how much of an image's variance is left at each noise level (Ho et al., 2020, eq. 4)."""
    return (1 - torch.linspace(*BETAS, steps, dtype=torch.float64)).cumprod(0).float()


class UNetEncoder(PixelEncoder):
    """A U-Net that predicts noise (Ho et al., 2020; the model is diffusers' `UNet2DModel`), whose inner maps are features.

    channels: of the levels, from fine to coarse; the coarsest has attention. layers: residual blocks a level. steps: noise levels of the
    diffusion. Features are read from `block` ("down.0", …, "mid", "up.0", …) at noise level `noise_level`: pooled, the mean of its map;
    tokens, its places (Baranchuk et al., 2022; Xiang et al., 2023). What stands behind this block is not computed. The noise is the same
    for every image and call, so that features are a function of the image and the network sees what it was trained on.
    """

    Processor = ImageProcessor

    def __init__(self, processor: ImageProcessor, channels: list[int], layers: int, steps: int, noise_level: int, block: str):
        args = {"channels": list(channels), "layers": layers, "steps": steps, "noise_level": noise_level, "block": block}
        super().__init__(processor, **args)
        levels = len(channels)
        if levels < 2 or processor.size % 2 ** (levels - 1):
            raise UserError(
                f"encoder.channels={list(channels)} halves images {levels - 1} times: give 2 or more levels, and set "
                f"encoder.processor.size (it is {processor.size}) to a multiple of {2 ** max(levels - 1, 1)}"
            )
        blocks = [*(f"down.{i}" for i in range(levels)), "mid", *(f"up.{i}" for i in range(levels))]
        if block not in blocks:
            raise UserError(f"encoder.block={block}{nearest(block, blocks) or '; there are ' + ', '.join(blocks)}")
        if not 0 <= noise_level < steps:
            raise UserError(f"encoder.noise_level={noise_level}: give 0 to {steps - 1}, one of the {steps} levels")
        from diffusers import UNet2DModel

        self.model: Any = UNet2DModel(
            in_channels=processor.channels,
            out_channels=processor.channels,
            layers_per_block=layers,
            block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
            norm_num_groups=math.gcd(8, *channels),
            attention_head_dim=min(32, channels[-1]),
        )
        self.block, self.steps = block, steps
        self.dim = [*channels, channels[-1], *reversed(channels)][blocks.index(block)]
        self.register_buffer("shares", signal_shares(steps), persistent=False)
        size = (1, processor.channels, processor.size, processor.size)
        self.register_buffer("noise", torch.randn(size, generator=torch.Generator().manual_seed(0)), persistent=False)
        self.register_buffer("level", torch.tensor([noise_level]), persistent=False)

    @classmethod
    def build(cls, source: Any, processor: dict[str, Any], **args: Any) -> UNetEncoder:
        """An encoder for `source`'s images, brought to the size and channels that `processor` says."""
        require("image", source, "encoder unet")
        return cls(ImageProcessor.fit(source, **processor), **args)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        image = inputs["image"]
        level = cast(Tensor, self.level)
        maps = self.trace(self.noisy(image, level, cast(Tensor, self.noise).to(image.dtype)), level.expand(image.shape[0]))
        tokens = maps.flatten(2).transpose(1, 2)
        return Features(tokens.mean(1), tokens)

    def noisy(self, images: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """√ᾱ · images + √(1 - ᾱ) · noise at levels [B] (Ho et al., 2020, eq. 4)."""
        share = cast(Tensor, self.shares)[level].to(images.dtype).view(-1, 1, 1, 1)
        return share.sqrt() * images + (1 - share).sqrt() * noise

    def predict_noise(self, noisy: Tensor, level: Tensor) -> Tensor:
        """ε(x, t) [B, C, S, S] of noisy images at levels [B]."""
        return self.model(noisy, level).sample

    def trace(self, noisy: Tensor, level: Tensor) -> Tensor:
        """The map [B, dim, h, w] behind `block`; the model's own forward pass, ended there."""
        net = self.model
        time = net.time_embedding(net.time_proj(level).to(noisy.dtype))
        x = net.conv_in(noisy)
        left = [x]
        for i, down in enumerate(net.down_blocks):
            x, kept = down(hidden_states=x, temb=time)
            left += kept
            if self.block == f"down.{i}":
                return x
        x = net.mid_block(x, time)
        if self.block == "mid":
            return x
        for i, up in enumerate(net.up_blocks):
            n = len(up.resnets)
            x, left = up(x, tuple(left[-n:]), time), left[:-n]
            if self.block == f"up.{i}":
                break
        return x

    def block_names(self) -> list[str]:
        """Those that features pass; the rest of the U-Net serves the objective alone."""
        levels = len(self.model.down_blocks)
        names = [*(f"down_blocks.{i}" for i in range(levels)), "mid_block", *(f"up_blocks.{i}" for i in range(levels))]
        short = [n.replace("_blocks", "").replace("_block", "") for n in names]
        return [f"model.{n}" for n in names[: short.index(self.block) + 1]]
