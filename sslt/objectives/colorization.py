"""Colorization: the colours of an image from its lightness, as a choice among bins."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, Picture, full_precision, wide
from sslt.objectives.parts.decoders import ConvDecoder, to_maps
from sslt.objectives.parts.lab import gamut, lab_to_rgb, rgb_to_lab
from sslt.objectives.parts.pixels import Pixels, grid_of, images_of
from sslt.ranges import Count, Positive

REACH = 110  # of a and b, either way
MEASURED = 2000  # images in which colours are counted
TEMPERATURE = 0.38  # of the mean that is drawn (Zhang et al., 2016, section 2.3)


def rebalancing(counts: Tensor, centres: Tensor, smooth: float, uniform: float) -> Tensor:
    """Weights [Q] of bins that occur `counts` [Q] times, with mean 1 over what occurs (Zhang et al., 2016, eq. 4).

    The distribution is smoothed over the `centres` [Q, 2] by a Gaussian of deviation `smooth` and mixed with `uniform` of the even one.
    """
    near = torch.exp(-torch.cdist(centres.double(), centres.double()).square() / (2 * smooth**2))
    share = (counts.double() / counts.sum()) @ (near / near.sum(1, keepdim=True))
    weight = 1 / ((1 - uniform) * share + uniform / len(share))
    return weight / (share * weight).sum()


class Colorization(Objective):
    """Colorful image colorization (Zhang et al., 2016): which of Q cells of (a, b) a pixel's colour lies in, given its lightness.

    Reads `views` [V, B, 3, S, S]. The encoder gets L, scaled to 0..1 and repeated, as if it were a grey photograph; a decoder from
    its map of features predicts at S/shrink pixels a side. The loss is the cross-entropy, weighted by `rebalancing`, the mean over
    pixels. Theirs spreads a target over its five nearest bins; here the nearest counts alone.

    step: width of the bins (10 as theirs makes 261; their 313 have some beyond the border of sRGB). shrink: theirs is 4. width: of
    the decoder. smooth, uniform: of the weights (theirs: 5 and 0.5; uniform=1 weighs all alike). Logs the share of pixels whose bin
    is right.
    """

    advice = (
        "train for longer, or by a task that compares views (+task=simclr): this one may be solved by other means than "
        "what classes differ in"
    )

    def __init__(self, encoder: Encoder, step: Positive, shrink: Count, width: Count, smooth: Positive, uniform: float):
        super().__init__()
        grid, size = grid_of(encoder), encoder.processor.size
        if encoder.processor.channels != 3:
            raise UserError(
                "colorization needs colours, and the encoder takes grey images: choose colour data= (encoder.processor.channels=3)"
            )
        if not 0 < step <= REACH:
            raise UserError(f"objective.step={step}: give the width of a bin of colours, more than 0 and at most {REACH}")
        if smooth <= 0 or not 0 < uniform <= 1:
            raise UserError(f"objective.smooth={smooth}, objective.uniform={uniform}: give more than 0, and uniform at most 1")
        if shrink < 1 or size % shrink or size // shrink < grid:
            raise UserError(
                f"objective.shrink={shrink}: give a divisor of encoder.processor.size={size} that leaves at least the encoder's "
                f"{grid}×{grid} features"
            )
        centres = gamut(step)
        self.shrink, self.step, self.smooth, self.uniform = shrink, step, smooth, uniform
        self.pixels = Pixels(encoder)
        self.decoder = ConvDecoder(encoder.dim, grid, size // shrink, len(centres), width)
        self.cells = 2 * math.ceil(REACH / step) + 1  # along a and along b
        edge = (torch.arange(self.cells) - self.cells // 2) * step
        every = torch.stack(torch.meshgrid(edge, edge, indexing="ij"), -1).flatten(0, 1).double()
        self.register_buffer("centres", centres.float(), persistent=False)
        self.register_buffer("table", torch.cdist(every, centres).argmin(1), persistent=False)  # cell → the nearest bin there is
        self.register_buffer("weights", torch.ones(len(centres)))

    def bins(self, lab: Tensor) -> Tensor:
        """lab [B, 3, S, S] → the bins [B, S/shrink, S/shrink] of its mean colours."""
        ab = F.avg_pool2d(lab[:, 1:], self.shrink)
        cell = (ab / self.step).round().long().add_(self.cells // 2).clamp_(0, self.cells - 1)
        return cast(Tensor, self.table)[cell[:, 0] * self.cells + cell[:, 1]]

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        """Count colours. Raises `UserError` for images that are all grey."""
        super().prepare(encoder, samples, batch_size)
        centres = cast(Tensor, self.centres)
        rows = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), MEASURED)).round().astype(np.int64))
        counts = torch.zeros(len(centres), dtype=torch.long)
        for i in range(0, len(rows), 200):
            images = samples.batch(rows[i : i + 200])["image"].to(centres.device).float() / 255
            counts += torch.bincount(self.bins(rgb_to_lab(images)).flatten(), minlength=len(centres)).cpu()
        grey = int(centres.abs().sum(1).argmin())
        if int(counts[grey]) == int(counts.sum()):
            raise UserError("colorization needs colours, and these images are grey: choose another data=")
        found = rebalancing(counts, centres.cpu(), self.smooth, self.uniform)
        cast(Tensor, self.weights).copy_(found)

    def predict(self, encoder: Encoder, lab: Tensor) -> Tensor:
        """Logits [B, Q, S/shrink, S/shrink] from the lightness of lab [B, 3, S, S]."""
        light = self.pixels.from_unit((lab[:, :1] / 100).expand(-1, 3, -1, -1))
        return self.decoder(to_maps(encoder({"image": light.contiguous(memory_format=torch.channels_last)}).tokens))

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        lab = rgb_to_lab(self.pixels.to_unit(images_of(batch)))
        logits, truth = self.predict(encoder, lab), self.bins(lab)
        with full_precision():  # the mean of weighted terms; torch's own weighted mean would divide by each batch's weights
            loss = F.cross_entropy(wide(logits), truth, cast(Tensor, self.weights), reduction="none").mean()
        return Loss(loss, {"accuracy": (logits.detach().argmax(1) == truth).float().mean()} if self.logs_now else {})

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = images_of(batch)[:12]
        lab = rgb_to_lab(self.pixels.to_unit(images))
        chance = (wide(self.predict(encoder, lab)) / TEMPERATURE).softmax(1)
        ab = torch.einsum("bqhw,qc->bchw", chance, cast(Tensor, self.centres))
        ab = F.interpolate(ab, size=images.shape[-2:], mode="bilinear", align_corners=False)
        grey = torch.cat([lab[:, :1], torch.zeros_like(ab)], 1)
        found = {"input": grey, "prediction": torch.cat([lab[:, :1], ab], 1), "truth": lab}
        return {"colorization": Picture({name: self.pixels.from_unit(lab_to_rgb(x)) for name, x in found.items()})}
