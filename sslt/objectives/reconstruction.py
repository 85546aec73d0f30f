"""Inpainting, denoising and the contrastive autoencoder: images from what was left of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.encoders.base import Encoder
from sslt.errors import UserError, nearest
from sslt.objectives.base import Loss, Objective, Picture, encode_views, full_precision, mlp, n_views, wide
from sslt.objectives.contrastive import nt_xent
from sslt.objectives.parts.decoders import ConvDecoder, VectorDecoder, to_maps
from sslt.objectives.parts.pixels import Pixels, grid_of, images_of, require_images
from sslt.ranges import Count, Natural, NonNegative, Positive, Share

MASKS = ("centre", "blocks", "irregular")
NOISES = ("gaussian", "masking", "salt_and_pepper")
BLOCKS = 4  # that a mask of blocks has


def hidden_region(kind: str, b: int, size: int, share: float, device: torch.device) -> Tensor:
    """[B, 1, size, size] bool, True where pixels are hidden (Pathak et al., 2016, section 3.3).

    centre: a square of `share` of the area. blocks: four rectangles at random places, of half to all of the side √(share/4) each,
    which may overlap, so that at most about `share` is hidden. irregular: exactly round(share · size²) pixels of random blobs,
    the highest of smooth noise (theirs are outlines from another data set).
    """
    if kind == "centre":
        side = max(1, round(size * math.sqrt(share)))
        start = (size - side) // 2
        centre = torch.zeros(b, 1, size, size, dtype=torch.bool, device=device)
        centre[:, :, start : start + side, start : start + side] = True
        return centre
    if kind == "blocks":
        most = max(1, round(size * math.sqrt(share / BLOCKS)))
        length = torch.randint((most + 1) // 2, most + 1, (b, BLOCKS, 2), device=device)
        corner = (torch.rand(b, BLOCKS, 2, device=device) * (size - length + 1)).long()
        place = torch.arange(size, device=device)
        inside = (place >= corner.unsqueeze(3)) & (place < (corner + length).unsqueeze(3))  # [B, blocks, (y, x), size]
        return (inside[:, :, 0, :, None] & inside[:, :, 1, None, :]).any(1, keepdim=True)
    coarse = max(3, size // 8)
    noise = torch.randn(b, 1, coarse, coarse, device=device)
    smooth = F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False).flatten(1)
    highest = smooth.topk(max(1, round(share * size * size)), dim=1).indices
    return torch.zeros_like(smooth, dtype=torch.bool).scatter_(1, highest, True).view(b, 1, size, size)


def region_error(drawn: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Square error of images [B, C, S, S]: the mean over channels, by weight [B, 1, S, S] over an image's pixels, and over images."""
    error = (drawn - truth).square().mean(1, keepdim=True)
    return ((error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))).mean()


class Inpainting(Objective):
    """Context encoders (Pathak et al., 2016): draw what a hole in the image hides.

    Reads `views` [V, B, C, S, S]. Hidden pixels get the mean colour; a convolutional decoder draws the image from the encoder's map of
    features, and the square error over the hidden region is the loss (eq. 1). Left out: the adversarial loss (eq. 2), which theirs
    uses to make pictures sharper and not for its features alone, and the channel-wise fully connected layer before the decoder.

    mask: "centre", "blocks" or "irregular" (`hidden_region`); share: of the pixels hidden. overlap: that many pixels around the hole count
    too, `overlap_weight` times (theirs: 7 of 128 pixels, 10 times); 0: none. width: of the decoder.
    """

    advice = (
        "train for longer, or by a task that compares views (+task=simclr): this one may be solved by other means than "
        "what classes differ in"
    )

    def __init__(self, encoder: Encoder, mask: str, share: Share, overlap: Natural, overlap_weight: NonNegative, width: Count):
        super().__init__()
        if mask not in MASKS:
            raise UserError(f"objective.mask={mask}{nearest(mask, MASKS)}")
        if not 0 < share < 1:
            raise UserError(f"objective.share={share}: give the share of the pixels to hide, more than 0 and less than 1")
        if overlap < 0 or overlap_weight < 0:
            raise UserError(f"objective.overlap={overlap}, objective.overlap_weight={overlap_weight}: give 0 or more")
        self.mask, self.share, self.overlap, self.overlap_weight = mask, share, overlap, overlap_weight
        self.decoder = ConvDecoder(encoder.dim, grid_of(encoder), encoder.processor.size, encoder.processor.channels, width)

    def fill(self, encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where pixels are hidden [B, 1, S, S], what the encoder sees and what is drawn, [B, C, S, S] each."""
        hidden = hidden_region(self.mask, len(images), images.shape[-1], self.share, images.device)
        seen = images.masked_fill(hidden, 0.0)  # the mean, as images are normalised
        return hidden, seen, self.decoder(to_maps(encoder({"image": seen}).tokens))

    def weight(self, hidden: Tensor) -> Tensor:
        """What each pixel counts, [B, 1, S, S]."""
        inside = hidden.float()
        if not self.overlap:
            return inside
        around = F.max_pool2d(inside, 2 * self.overlap + 1, stride=1, padding=self.overlap) - inside
        return inside + self.overlap_weight * around

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        images = images_of(batch)
        hidden, _, drawn = self.fill(encoder, images)
        with full_precision():
            return Loss(region_error(wide(drawn), wide(images), self.weight(hidden)), {})

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = images_of(batch)[:12]
        hidden, seen, drawn = self.fill(encoder, images)
        return {"inpainting": Picture({"input": seen, "reconstruction": torch.where(hidden, drawn, images), "truth": images})}


class Denoising(Objective):
    """Denoising autoencoder (Vincent et al., 2010): the clean image from a noisy one, by square error.

    Reads `views` [V, B, C, S, S]. Theirs are layers trained one after the other; here the whole encoder is, with a convolutional
    decoder from its map of features.

    noise (their section 3.3), strength: "gaussian", the deviation of what is added, where that of the data is 1; "masking", the share of
    pixels that become black; "salt_and_pepper", the share that become black or white. width: of the decoder.
    """

    advice = (
        "train for longer, or by a task that compares views (+task=simclr): this one may be solved by other means than "
        "what classes differ in"
    )

    def __init__(self, encoder: Encoder, noise: str, strength: NonNegative, width: Count):
        super().__init__()
        if noise not in NOISES:
            raise UserError(f"objective.noise={noise}{nearest(noise, NOISES)}")
        if strength <= 0 or (noise != "gaussian" and strength >= 1):
            what = "a deviation above 0" if noise == "gaussian" else "the share of the pixels, more than 0 and less than 1"
            raise UserError(f"objective.strength={strength}: for {noise} noise give {what}")
        self.noise, self.strength = noise, strength
        self.pixels = Pixels(encoder)
        self.decoder = ConvDecoder(encoder.dim, grid_of(encoder), encoder.processor.size, encoder.processor.channels, width)

    def corrupt(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] with noise."""
        if self.noise == "gaussian":
            return images + self.strength * torch.randn_like(images)
        b, _, h, w = images.shape
        chance = torch.rand(b, 1, h, w, device=images.device)
        bright = (chance < self.strength / 2).float() if self.noise == "salt_and_pepper" else torch.zeros_like(chance)
        return torch.where(chance < self.strength, self.pixels.from_unit(bright), images)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        images = images_of(batch)
        drawn = self.decoder(to_maps(encoder({"image": self.corrupt(images)}).tokens))
        with full_precision():
            return Loss(F.mse_loss(wide(drawn), wide(images)), {})

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = images_of(batch)[:12]
        seen = self.corrupt(images)
        drawn = self.decoder(to_maps(encoder({"image": seen}).tokens))
        return {"denoising": Picture({"input": seen, "reconstruction": drawn, "truth": images})}


class ContrastiveAutoencoder(Objective):
    """An autoencoder (Hinton & Salakhutdinov, 2006) whose views are also contrasted (NT-Xent: Chen et al., 2020, eq. 1).

    Reads `views` [V, B, C, S, S], V ≥ 2. The pooled features of a view must draw that view, which keeps what the contrast, by itself,
    throws away. The loss is contrast + weight · mean square error. temperature, hidden, out: of the contrast and its projector.
    width: of the decoder.
    """

    advice = (
        "train for longer, or by a task that compares views (+task=simclr): this one may be solved by other means than "
        "what classes differ in"
    )
    needs_full_batches = True
    least_views = 2

    def __init__(self, encoder: Encoder, weight: NonNegative, temperature: Positive, hidden: Count, out: Count, width: Count):
        super().__init__()
        require_images(encoder)
        if weight < 0:
            raise UserError(f"objective.weight={weight}: give 0 (contrast alone) or more")
        self.weight, self.temperature = weight, temperature
        self.projector = mlp(encoder.dim, hidden, out)
        self.decoder = VectorDecoder(encoder.dim, encoder.processor.size, encoder.processor.channels, width)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        pooled = encode_views(encoder, batch).pooled
        z, drawn = self.projector(pooled), self.decoder(pooled)
        with full_precision():
            contrast, accuracy = nt_xent(wide(z).unflatten(0, (n_views(batch["views"]), -1)), self.temperature)
            error = F.mse_loss(wide(drawn), wide(images_of(batch)))
        logs = {"contrast": contrast.detach(), "contrast_accuracy": accuracy, "reconstruction": error.detach()}
        return Loss(contrast + self.weight * error, logs)

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = images_of(batch)[:12]
        return {"contrastive_autoencoder": Picture({"input": images, "reconstruction": self.decoder(encoder({"image": images}).pooled)})}
