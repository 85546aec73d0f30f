"""What every image encoder shares: pixels in, its weights and its processor in a folder."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslt.config import check_arguments
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import Encoder, evaluating
from sslt.encoders.files import fill
from sslt.errors import UserError
from sslt.stored import shown

WEIGHTS = "model.safetensors"
LARGEST = 1 << 14  # pixels of a side that a folder may ask for


class PixelEncoder(Encoder):
    """Takes `image` [B, C, H, W] as its `ImageProcessor` normalises it. `stored` is the module whose state is written down."""

    modality = "image"
    offers = frozenset({"pooled", "tokens", "maps"})
    side_models = ("gradients", "patches")

    @property
    def stored(self) -> nn.Module:
        return self

    @property
    def samples_are(self) -> str:
        return f"images of {self.processor.size} × {self.processor.size}"

    @functools.cached_property
    def grid(self) -> int:
        """Tokens along one side of the image. Raises `UserError` where they form no square."""
        p = self.processor
        device = next(self.parameters()).device
        with evaluating(self):
            tokens = self({"image": torch.zeros(1, p.channels, p.size, p.size, device=device)}).tokens.shape[1]
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise UserError(
                f"this objective needs a square map of features, and the encoder gives {tokens} tokens: choose another encoder="
            )
        return side

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"image": self.processor.normalize(batch["image"])}

    def save_weights(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(
            {k: v.detach().cpu().contiguous() for k, v in self.stored.state_dict().items()}, folder / WEIGHTS, metadata={"format": "pt"}
        )

    def load_weights(self, folder: Path) -> None:
        fill(self.stored, folder / WEIGHTS)

    def processor_config(self, folder: Path) -> dict[str, Any]:
        return self.processor.config()

    @classmethod
    def load_processor(cls, folder: Path, config: dict[str, Any]) -> ImageProcessor:
        where = f"{shown(folder)}: processor"
        check_arguments(where, "sslt.data.prepare.image_processor.ImageProcessor", config, given=set())
        numbers = [*config["mean"], *config["std"]]
        if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers) or config["size"] > LARGEST:
            raise UserError(f"{where} is damaged: size is at most {LARGEST} pixels, mean and std are numbers")
        return ImageProcessor(**config)
