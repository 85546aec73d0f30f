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
        with evaluating(self):
            tokens = self(self._blank()).tokens.shape[1]
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise UserError(
                f"this objective needs a square map of features, and the encoder gives {tokens} tokens: choose another encoder="
            )
        return side

    def pyramid(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Here its tokens as one map [B, D, √T, √T]. Raises `UserError` where they form no square of at least 2 × 2."""
        return [square_map(self(inputs).tokens, self)]

    @functools.cached_property
    def pyramid_shapes(self) -> list[tuple[int, int]]:
        """Channels of each map of `pyramid`, and pixels of the image from one of its places to the next."""
        with evaluating(self):
            maps = self.pyramid(self._blank())
        return [(m.shape[1], max(1, round(self.processor.size / m.shape[-1]))) for m in maps]

    def unread_by_maps(self) -> list[str]:
        moving = {n: p for n, p in self.named_parameters() if p.requires_grad}
        if not moving:
            return []
        with evaluating(self), torch.inference_mode(False), torch.enable_grad():
            total = torch.stack([m.float().sum() for m in self.pyramid(self._blank())]).sum()
            grads = torch.autograd.grad(total, list(moving.values()), allow_unused=True)
        return [n for n, g in zip(moving, grads, strict=True) if g is None]

    def _blank(self) -> dict[str, Tensor]:
        p, device = self.processor, next(self.parameters()).device
        return {"image": torch.zeros(1, p.channels, p.size, p.size, device=device)}

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


def square_map(tokens: Tensor, encoder: Encoder) -> Tensor:
    """Tokens [B, T, D] as a map [B, D, √T, √T]. Raises `UserError` naming the encoder where they form no square of at least 2 × 2."""
    side = math.isqrt(tokens.shape[1])
    if side < 2 or side * side != tokens.shape[1]:
        name = str(encoder.args.get("name") or type(encoder).__name__)
        has = "its features are one vector" if tokens.shape[1] == 1 else f"its {tokens.shape[1]} tokens form no square"
        raise UserError(f"this target reads maps of features, and {name} gives none ({has}): choose encoder=resnet_small or vit_small")
    return tokens.transpose(1, 2).unflatten(2, (side, side))
