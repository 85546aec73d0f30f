"""What objectives on images share: their inputs, pixels in 0..1 and back, and questions with one right answer."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, full_precision, wide


def require_images(encoder: Encoder) -> None:
    """Raise `UserError` for an encoder of something else."""
    if encoder.modality != "image":
        raise UserError(f"this objective is one on images, and the encoder reads {encoder.modality}: choose another +task= or encoder=")


def images_of(batch: dict) -> Tensor:
    """[V·B, C, H, W]: every view as an image of its own."""
    return batch["views"]["image"].flatten(0, 1)


def grid_of(encoder: Encoder) -> int:
    """Features along one side of the encoder's map. Raises `UserError` where it has none."""
    require_images(encoder)
    side = getattr(encoder, "grid", None)
    if side is None:
        raise UserError(
            f"this objective needs a square map of features, and {type(encoder).__name__} has no `grid`: choose another encoder="
        )
    return side


class Pixels(nn.Module):
    """Between images as the encoder normalises them, [..., C, H, W], and values in 0..1.

    Keeps mean and std as buffers, since a copy to an accelerator in every step would make it wait.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        p = encoder.processor
        for name, values in (("mean", p.mean), ("std", p.std)):
            self.register_buffer(name, torch.tensor(list(values)).view(-1, 1, 1), persistent=False)

    def to_unit(self, x: Tensor) -> Tensor:
        return (wide(x) * cast(Tensor, self.std) + cast(Tensor, self.mean)).clamp(0, 1)

    def from_unit(self, x: Tensor) -> Tensor:
        return (x - cast(Tensor, self.mean)) / cast(Tensor, self.std)


def choice(logits: Tensor, truth: Tensor, logs_now: bool) -> Loss:
    """Cross-entropy of logits [N, K] with the right answers [N], and how often the highest is right."""
    with full_precision():
        loss = F.cross_entropy(wide(logits), truth)
    return Loss(loss, {"accuracy": (logits.detach().argmax(1) == truth).float().mean()} if logs_now else {})


def answers(said: list[str], true: list[str]) -> list[str]:
    """What stands under pictures of a question: the answer given, and the right one where it is another."""
    return [f"{s} ✓" if s == t else f"{s} ✗\n{t}" for s, t in zip(said, true, strict=True)]
