"""Variational autoencoder: features from which the image can be drawn, and whose distribution is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, Picture, encode_views, full_precision, wide
from sslt.objectives.parts.decoders import VectorDecoder
from sslt.objectives.parts.pixels import images_of, require_images
from sslt.ranges import Count, NonNegative

DRAWN = 12  # images of a picture


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_variance)) ‖ N(0, I)) [B] of [B, Z], in nats (Kingma & Welling, 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


class VAE(Objective):
    """Variational autoencoder (Kingma & Welling, 2014, eq. 10, one draw a sample); β-VAE with beta ≠ 1 (Higgins et al., 2017, eq. 4).

    Reads `views` [V, B, C, S, S]. Two linear maps of the pooled features give mean and log-variance of `latent` numbers, a
    convolutional decoder `width` wide draws the image from them. The likelihood is Gaussian with variance 1 on normalised pixels, so that
    the loss is ½|x - x̂|² + beta · KL, a sum over pixels and latent numbers, over the number of pixels: nats a pixel, less a constant.
    """

    advice = "train for longer, or by a task that compares views (+task=simclr): what generates pixels need not tell classes apart"

    def __init__(self, encoder: Encoder, latent: Count, beta: NonNegative, width: Count):
        super().__init__()
        require_images(encoder)
        if beta < 0:
            raise UserError(f"objective.beta={beta}: give 0 (an autoencoder with noise), 1 (a VAE) or more")
        self.latent, self.beta = latent, beta
        self.mean, self.log_variance = nn.Linear(encoder.dim, latent), nn.Linear(encoder.dim, latent)
        nn.init.zeros_(self.log_variance.weight)  # all variances start at 1, whatever the size of the features
        nn.init.zeros_(self.log_variance.bias)
        self.decoder = VectorDecoder(latent, encoder.processor.size, encoder.processor.channels, width)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        images = images_of(batch)
        mean, log_variance = self.posterior(encode_views(encoder, batch).pooled)
        drawn = self.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean))
        with full_precision():
            numbers = images[0].numel()
            error = 0.5 * (wide(drawn) - wide(images)).square().sum((1, 2, 3)).mean() / numbers
            kl = kl_to_standard_normal(mean, log_variance).mean() / numbers
        return Loss(error + self.beta * kl, {"reconstruction": error.detach(), "kl": kl.detach()})

    def posterior(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, Z]."""
        with full_precision():
            return self.mean(wide(pooled)), self.log_variance(wide(pooled))

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = images_of(batch)[:DRAWN]
        again = self.decoder(self.posterior(encoder({"image": images}).pooled)[0])
        new = self.decoder(torch.randn(len(images), self.latent, device=images.device))
        return {"vae": Picture({"truth": images, "reconstruction": again}), "vae_samples": Picture({"samples": new})}
