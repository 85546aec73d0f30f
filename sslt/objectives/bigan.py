"""BiGAN: a generator, and the encoder as its inverse, learned by deceiving a critic."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from sslt.encoders.base import Encoder
from sslt.encoders.batch_norm import batch_statistics
from sslt.objectives.base import Loss, Objective, Picture, encode_views, full_precision, wide
from sslt.objectives.parts.decoders import VectorDecoder
from sslt.objectives.parts.pixels import images_of, require_images
from sslt.ranges import Count

DRAWN = 12  # images of a picture


class PairCritic(nn.Module):
    """Images [B, C, S, S] and codes [B, Z] → scores [B]: convolutions of stride 2 down to 4×4 or less, then both through a dense layer.

    Its weights have spectral norm 1 (Miyato et al., 2018), which keeps it from running ahead of the generator at one learning rate.
    It has no BatchNorm: true and drawn pairs must not tell on each other.
    """

    def __init__(self, size: int, channels: int, latent: int, width: int):
        super().__init__()
        parts: list[nn.Module] = []
        while size > 4 or not parts:
            parts += [spectral_norm(nn.Conv2d(channels, width, 3, stride=2, padding=1)), nn.LeakyReLU(0.2, inplace=True)]
            channels, width, size = width, 2 * width, (size + 1) // 2
        self.look = nn.Sequential(*parts, nn.Flatten())
        first, last = nn.Linear(channels * size * size + latent, width), nn.Linear(width, 1)
        self.judge = nn.Sequential(spectral_norm(first), nn.LeakyReLU(0.2, inplace=True), spectral_norm(last))

    def forward(self, images: Tensor, codes: Tensor) -> Tensor:
        seen = self.look(images)
        return self.judge(torch.cat([seen, codes.to(seen.dtype)], 1)).squeeze(1)


class BiGAN(Objective):
    """Adversarial feature learning (Donahue et al., 2017; with the same idea Dumoulin et al., 2017).

    Reads `views` [V, B, C, S, S]. The encoder with a linear map gives codes E(x) of images, a generator images G(z) of codes drawn from
    N(0, I), and a critic learns to tell pairs (x, E(x)) from pairs (G(z), z), which encoder and generator are to make alike (eq. 2). At
    the optimum they are each other's inverse (theorem 2).

    Both sides move in one step, by one loss: the critic's logistic loss, whose gradient stops at the pairs, and the same with the
    labels swapped (theirs, too: section 3.4), whose gradient stops at the critic's weights. latent: numbers of a code. width: of the
    generator's last step and the critic's first. The loss starts at its least value, 4 log 2, and says nothing of progress: logs the square
    error of G(E(x)), which falls as the two become each other's inverse, and the critic's accuracy and loss.
    """

    advice = "train for longer, or by a task that compares views (+task=simclr): what generates pixels need not tell classes apart"
    needs_full_batches = True

    def __init__(self, encoder: Encoder, latent: Count, width: Count):
        super().__init__()
        require_images(encoder)
        size, channels = encoder.processor.size, encoder.processor.channels
        self.latent = latent
        self.code = nn.Linear(encoder.dim, latent)
        self.generator = VectorDecoder(latent, size, channels, width)
        self.critic = PairCritic(size, channels, latent, width)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        images = images_of(batch)
        found = self.code(encode_views(encoder, batch).pooled)
        given = torch.randn(len(images), self.latent, dtype=found.dtype, device=images.device)
        drawn = self.generator(given)
        pairs = torch.cat([images.to(drawn.dtype), drawn]), torch.cat([found, given])
        scores = self.critic(*(x.detach() for x in pairs))
        fixed = {name: p.detach() for name, p in self.critic.named_parameters()}
        # a copy of the buffers: the spectral norms' vectors move once a step, with the critic's own pass
        fixed |= {name: b.clone() for name, b in self.critic.named_buffers()}
        swapped = cast(Tensor, functional_call(self.critic, fixed, pairs))
        with full_precision():
            critic, others = self.logistic(wide(scores)), self.logistic(-wide(swapped))
        b = len(images)
        accuracy = 0.5 * ((scores[:b] > 0).float().mean() + (scores[b:] <= 0).float().mean())
        logs = {"critic_loss": critic.detach(), "critic_accuracy": accuracy.detach()}
        if self.logs_now:
            with torch.no_grad(), batch_statistics(self.generator):  # what is only told changes no statistics
                logs["reconstruction"] = (wide(self.generator(found)) - wide(images)).square().mean()
        return Loss(critic + others, logs)

    @staticmethod
    def logistic(scores: Tensor) -> Tensor:
        """The mean loss of scores [2B], high for the first half and low for the second."""
        true, drawn = scores.chunk(2)
        return F.softplus(-true).mean() + F.softplus(drawn).mean()

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = images_of(batch)[:DRAWN]
        again = self.generator(self.code(encoder({"image": images}).pooled))
        new = self.generator(torch.randn(len(images), self.latent, device=images.device))
        return {"bigan": Picture({"truth": images, "reconstruction": again}), "bigan_samples": Picture({"samples": new})}
