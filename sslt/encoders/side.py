"""Models beside an encoder that score classes from its inputs themselves."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from torch import Tensor, nn

from sslt.encoders.base import Encoder


class SideModel(nn.Module, abc.ABC):
    """What a cheap method knows, beside what an encoder does: (encoder, its inputs) → scores of classes [B, C], of maps of every pixel.

    Solved for and weighed on validation (`targets/fusion.py`), not trained; kept with the classifier in `head/`. kind: its name there.
    settings: plain data from which `beside` makes another one of the same shape. name, title: in metrics, in words.
    """

    kind: ClassVar[str]
    settings: dict[str, Any]
    name: str
    title: str

    @classmethod
    @abc.abstractmethod
    def beside(cls, encoder: Encoder, settings: dict[str, Any]) -> SideModel:
        """One for this encoder."""

    @abc.abstractmethod
    def forward(self, encoder: Encoder, inputs: dict[str, Tensor]) -> Tensor:
        """Scores [B, C]."""

    @abc.abstractmethod
    def scale(self, factor: float) -> None:
        """Multiply all scores."""


def grey_levels(encoder: Encoder, inputs: dict[str, Tensor]) -> Tensor:
    """Images [B, C, H, W] as they were before an encoder's inputs were standardized, float32 in 0..1."""
    x = inputs["image"].float()
    mean, std = (x.new_tensor(list(v)).view(-1, 1, 1) for v in (encoder.processor.mean, encoder.processor.std))
    return (x * std + mean).clamp(0, 1)
