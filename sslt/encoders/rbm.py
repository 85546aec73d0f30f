"""A restricted Boltzmann machine as an encoder: its hidden units' probabilities are the features."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import Features, require
from sslt.encoders.pixels import PixelEncoder
from sslt.errors import UserError, nearest

VISIBLE = ("binary", "gaussian")


class RBMEncoder(PixelEncoder):
    """One layer of binary hidden units over pixels (Smolensky, 1986; Hinton, 2002; with Gaussian visible units Welling et al., 2005).

    E(v, h) = -vᵀb - hᵀc - hᵀWv for binary units, where a pixel's brightness in 0..1 is taken as the probability that its unit is on,
    and ½|v - b|² - hᵀc - hᵀWv for Gaussian ones of variance 1, which are the normalised pixels. Features [B, hidden] (and their only
    token) are P(h = 1 | v). What it learns by is in `objectives/rbm.py`.
    """

    Processor = ImageProcessor

    def __init__(self, processor: ImageProcessor, hidden: int, visible: str):
        super().__init__(processor, hidden=hidden, visible=visible)
        if visible not in VISIBLE:
            raise UserError(f"encoder.visible={visible}{nearest(visible, VISIBLE)}")
        if hidden < 1:
            raise UserError(f"encoder.hidden={hidden}: give at least 1")
        self.dim, self.binary = hidden, visible == "binary"
        self.numbers = processor.channels * processor.size**2
        self.layer = nn.Linear(self.numbers, hidden)
        nn.init.normal_(self.layer.weight, std=0.01)  # Hinton (2010), section 8
        nn.init.zeros_(self.layer.bias)
        self.visible_bias = nn.Parameter(torch.zeros(self.numbers))
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", processor.mean), ("std", processor.std)):
            self.register_buffer(name, torch.tensor(list(values)).view(-1, 1, 1), persistent=False)

    @classmethod
    def build(cls, source: Any, processor: dict[str, Any], **args: Any) -> RBMEncoder:
        """An encoder for `source`'s images, brought to the size and channels that `processor` says."""
        require("image", source, "encoder rbm")
        return cls(ImageProcessor.fit(source, **processor), **args)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        pooled = self.hidden_probability(self.visible(inputs["image"]))
        return Features(pooled, pooled.unsqueeze(1))

    # ---------------------------------------------------------------- the machine
    def visible(self, images: Tensor) -> Tensor:
        """Units' values [B, N] of normalised images [B, C, S, S]."""
        if self.binary:
            images = (images * self.std + self.mean).clamp(0, 1)
        return images.flatten(1)

    def images(self, visible: Tensor) -> Tensor:
        """The inverse of `visible`."""
        p = self.processor
        images = visible.unflatten(1, (p.channels, p.size, p.size))
        return (images - self.mean) / self.std if self.binary else images

    def hidden_probability(self, v: Tensor) -> Tensor:
        """P(h = 1 | v) [B, hidden]."""
        return self.layer(v).sigmoid()

    def visible_mean(self, h: Tensor) -> Tensor:
        """E[v | h] [B, N]."""
        activation = F.linear(h, self.layer.weight.T, self.visible_bias)
        return activation.sigmoid() if self.binary else activation

    def free_energy(self, v: Tensor) -> Tensor:
        """-log Σ_h exp(-E(v, h)) [B]."""
        hidden = F.softplus(self.layer(v)).sum(1)
        return (-(v @ self.visible_bias) if self.binary else 0.5 * (v - self.visible_bias).square().sum(1)) - hidden

    @torch.no_grad()
    def gibbs(self, v: Tensor, steps: int) -> Tensor:
        """Visible units [B, N] after `steps` rounds of drawing h given v and v given h."""
        for _ in range(steps):
            p = self.hidden_probability(v)
            mean = self.visible_mean((torch.rand(p.shape, device=p.device) < p).to(p.dtype))
            v = (torch.rand(mean.shape, device=p.device) < mean).to(p.dtype) if self.binary else mean + torch.randn_like(mean)
        return v

    def block_names(self) -> list[str]:
        return ["layer"]
