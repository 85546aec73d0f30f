"""The four-block convolutional network of the few-shot literature."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import Features, require
from sslt.encoders.pixels import PixelEncoder
from sslt.errors import UserError, nearest


class Conv4(PixelEncoder):
    """Blocks of 3×3 convolution, BatchNorm, ReLU and halving (Vinyals et al., 2016, section 4.1.1; Snell et al., 2017).

    blocks: how many (4 in the literature). width: channels of each.
    downsample: how a block halves the image: "pool" (maximum of 2×2), or "stride" (the convolution's own, as Finn et al., 2017,
    appendix A.1 for Omniglot; a quarter of the work). An image of one pixel is not halved further.
    pooling: "flatten" gives the last map as it is, width · side² numbers (28×28 pixels pooled four times: side 1), as one token;
    "mean" its average over places, each place being a token.
    """

    Processor = ImageProcessor

    def __init__(self, processor: ImageProcessor, width: int, blocks: int, downsample: str, pooling: str):
        super().__init__(processor, width=width, blocks=blocks, downsample=downsample, pooling=pooling)
        for key, value, known in (("downsample", downsample, ("pool", "stride")), ("pooling", pooling, ("flatten", "mean"))):
            if value not in known:
                raise UserError(f"encoder.{key}={value}: give {' or '.join(known)}{nearest(value, known)}")
        if width < 1 or blocks < 1:
            raise UserError(f"encoder.width={width}, encoder.blocks={blocks}: give at least 1 of each")
        self.pooling = pooling
        self.blocks = nn.ModuleList()
        channels, side = processor.channels, processor.size
        for _ in range(blocks):
            halved = side > 1
            self.blocks.append(ConvBlock(channels, width, downsample if halved else "none"))
            channels, side = width, (side // 2 if downsample == "pool" else (side + 1) // 2) if halved else side
        self.dim = width * side * side if pooling == "flatten" else width
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def build(cls, source: Any, processor: dict[str, Any], **args: Any) -> Conv4:
        """An encoder for `source`'s images, unless `processor` says another size or number of channels."""
        require("image", source, "encoder conv4")
        return cls(ImageProcessor.fit(source, **processor), **args)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        x = inputs["image"]
        for block in self.blocks:
            x = block(x)
        if self.pooling == "flatten":
            pooled = x.flatten(1)
            return Features(pooled, pooled.unsqueeze(1))
        tokens = x.flatten(2).transpose(1, 2)
        return Features(tokens.mean(1), tokens)

    def block_names(self) -> list[str]:
        return [f"blocks.{i}" for i in range(len(self.blocks))]


class ConvBlock(nn.Module):
    """Convolution, BatchNorm, ReLU and halving; [B, C, H, W] → [B, width, H/2, W/2].

    The maximum is taken before the ReLU, which is the same function (both grow) on a quarter of the numbers.
    """

    def __init__(self, channels: int, width: int, downsample: str):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride=2 if downsample == "stride" else 1, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pool = downsample == "pool"

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(F.max_pool2d(x, 2) if self.pool else x)
