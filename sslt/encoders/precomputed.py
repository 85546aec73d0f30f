"""The encoder of features that exist already: a frozen one, seen by the head that trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from sslt.encoders.base import Encoder, Features


class Precomputed(Encoder):
    """Passes features [B, D] on. It stands in for `encoder` while a head trains; that one is what is saved."""

    def __init__(self, encoder: Encoder):
        super().__init__(encoder.processor)
        self.modality, self.dim = encoder.modality, encoder.dim  # type: ignore[misc]
        self.samples_behind = encoder.samples_are
        self.parameters_behind = sum(p.numel() for p in encoder.parameters())

    @property
    def samples_are(self) -> str:
        return self.samples_behind

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"features": batch["features"]}

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        return Features(inputs["features"], inputs["features"].unsqueeze(1))

    def block_names(self) -> list[str]:
        return []

    def save_weights(self, folder: Path) -> None:
        raise TypeError("there are no weights to save: save the encoder this one stands for")

    def load_weights(self, folder: Path) -> None:
        raise TypeError("there are no weights to load")

    def processor_config(self, folder: Path) -> dict[str, Any]:
        raise TypeError("save the encoder this one stands for")

    @classmethod
    def load_processor(cls, folder: Path, config: dict[str, Any]) -> Any:
        raise TypeError("load the encoder this one stands for")
