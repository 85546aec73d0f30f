"""Denoising diffusion: predict the noise in an image, at all levels of it."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.encoders.base import Encoder
from sslt.encoders.unet import BETAS, UNetEncoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, Picture, full_precision, wide
from sslt.objectives.parts.pixels import images_of
from sslt.ranges import Count

DRAWN = 12  # images of a picture


class Diffusion(Objective):
    """Denoising diffusion probabilistic model (Ho et al., 2020, eq. 14): mean square error of the predicted noise.

    Reads `views` [V, B, C, S, S]; each image gets a noise level of its own, all equally likely. The encoder must be a `UNetEncoder`, and
    says at which level and block it is read later. draw_steps: of the sampler (DDIM: Song et al., 2021) that draws the picture.
    """

    advice = "train for longer, or by a task that compares views (+task=simclr): what generates pixels need not tell classes apart"

    def __init__(self, encoder: Encoder, draw_steps: Count):
        super().__init__()
        if not isinstance(encoder, UNetEncoder):
            raise UserError("diffusion trains a network from images to images: set encoder=unet_small, or choose another +task=")
        if not 1 <= draw_steps <= encoder.steps:
            raise UserError(f"objective.draw_steps={draw_steps}: give 1 to {encoder.steps}, the number of noise levels")
        self.draw_steps = draw_steps

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        unet, images = cast(UNetEncoder, encoder), images_of(batch)
        level = torch.randint(unet.steps, (len(images),), device=images.device)
        noise = torch.randn_like(images)
        predicted = unet.predict_noise(unet.noisy(images, level, noise), level)
        with full_precision():
            return Loss(F.mse_loss(wide(predicted), wide(noise)), {})

    def sample(self, unet: UNetEncoder, noise: Tensor) -> Tensor:
        """Images [B, C, S, S] from noise. What is predicted of them is kept within the range of pixels on the way."""
        from diffusers import DDIMScheduler

        pixels = zip(unet.processor.mean, unet.processor.std, strict=True)
        reach = max(max(mean, 1 - mean) / std for mean, std in pixels)  # of a normalised pixel
        plan: Any = DDIMScheduler(unet.steps, *BETAS, clip_sample=True, clip_sample_range=reach)
        plan.set_timesteps(self.draw_steps)
        x = noise
        for level in plan.timesteps.tolist():
            t = torch.full((len(x),), level, device=x.device)
            x = plan.step(unet.predict_noise(x, t).float(), level, x).prev_sample
        return x

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        unet, images = cast(UNetEncoder, encoder), images_of(batch)[:DRAWN]
        level = torch.full((len(images),), unet.steps // 4, device=images.device)
        noise = torch.randn_like(images)
        seen = unet.noisy(images, level, noise)
        share = cast(Tensor, unet.shares)[level].view(-1, 1, 1, 1)
        clean = (seen - (1 - share).sqrt() * unet.predict_noise(seen, level).float()) / share.sqrt()
        return {
            "diffusion": Picture({"noisy": seen, "denoised at once": clean, "truth": images}),
            "diffusion_samples": Picture({"samples": self.sample(unet, torch.randn_like(images))}),
        }
