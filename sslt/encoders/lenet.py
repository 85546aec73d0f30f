"""The small convolutional network of the digit benchmarks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import Features, require
from sslt.encoders.pixels import PixelEncoder
from sslt.errors import UserError


class LeNet(PixelEncoder):
    """Two 5×5 convolutions, each halved by a maximum, and one dense layer (LeCun et al., 1998, in the form that domain
    adaptation uses for digits: Long et al., 2018, section 5.1).

    maps: channels of the two convolutions. width: of the dense layer, whose output is the features [B, width] (and their only
    token). dropout: of whole maps after the second convolution, and of the features. Images of at least 16×16 pixels.
    """

    Processor = ImageProcessor

    def __init__(self, processor: ImageProcessor, maps: list[int], width: int, dropout: float):
        super().__init__(processor, maps=maps, width=width, dropout=dropout)
        side = ((processor.size - 4) // 2 - 4) // 2
        if side < 1:
            raise UserError(f"encoder lenet needs images of at least 16×16 pixels: set encoder.processor.size (it is {processor.size})")
        if len(maps) != 2:
            raise UserError(f"encoder.maps={maps}: give the channels of the two convolutions, as [20, 50]")
        first, second = maps
        self.dim = width
        self.conv1 = nn.Sequential(nn.Conv2d(processor.channels, first, 5), nn.MaxPool2d(2), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(first, second, 5), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU())
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(second * side * side, width), nn.ReLU(), nn.Dropout(dropout))

    @classmethod
    def build(cls, source: Any, processor: dict[str, Any], **args: Any) -> LeNet:
        """An encoder for `source`'s images, brought to the size and channels that `processor` says."""
        require("image", source, "encoder lenet")
        return cls(ImageProcessor.fit(source, **processor), **args)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        pooled = self.dense(self.conv2(self.conv1(inputs["image"])))
        return Features(pooled, pooled.unsqueeze(1))

    def block_names(self) -> list[str]:
        return ["conv1", "conv2", "dense"]
