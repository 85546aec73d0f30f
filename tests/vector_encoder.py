"""An encoder of vectors, for tests of what is done with features: no pixels, no words, no files."""

from __future__ import annotations

from torch import nn

from sslt.encoders.base import Encoder, Features


class VectorEncoder(Encoder):
    """Features [B, dim] of `inputs["x"]` by one module, `layer`, which is its only block."""

    modality = "image"
    Processor = None

    def __init__(self, layer: nn.Module, dim: int) -> None:
        super().__init__(None)
        self.layer, self.dim = layer, dim

    def forward(self, inputs):
        pooled = self.layer(inputs["x"])
        return Features(pooled, pooled.unsqueeze(1))

    def inputs(self, batch):
        return batch

    def block_names(self):
        return ["layer"]

    save_weights = load_weights = processor_config = load_processor = None  # type: ignore[assignment]
