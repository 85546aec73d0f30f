"""A ResNet whose first convolution begins with patches of the images it learns from."""

from __future__ import annotations

from typing import Any

import torch

from sslt.data.base import Samples
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.image import ImageEncoder, resnets_stem
from sslt.encoders.patches import first_filters, rows_to_start_on
from sslt.errors import UserError, nearest

STARTS = ("random", "patches")
IMAGES = 1024  # whose patches it begins with


class ResNet(ImageEncoder):
    """An `ImageEncoder` of a ResNet.

    stem_start: what the first convolution of a fresh one holds when training begins: "random" weights, or whitened "patches" of its
    images (`patches.first_filters`), for which training would take minutes.
    """

    Processor = ImageProcessor

    def __init__(
        self, processor: ImageProcessor, name: str, args: dict[str, Any], stem: str, stem_start: str, fixed_size: bool,
        pretrained: bool = False,
    ):  # fmt: skip
        super().__init__(processor, name, args, stem, fixed_size, pretrained)
        self.args = {**self.args, "stem_start": stem_start}
        if stem_start not in STARTS:
            raise UserError(f"encoder.stem_start={stem_start}{nearest(stem_start, STARTS)}")
        resnets_stem(self.model, name, f"stem_start={stem_start}", "_target_=sslt.encoders.image.ImageEncoder")

    @torch.no_grad()
    def begin(self, samples: Samples) -> None:
        if self.args["stem_start"] == "patches":
            weight, shards = self.model.conv1.weight, samples.shards
            rows = rows_to_start_on(len(samples) if shards is None else int(shards[1]), IMAGES)  # or one shard has to be had for each
            images = self.inputs(samples.batch(rows))["image"]
            weight.copy_(first_filters(images, len(weight), weight.shape[-1]))
