"""What happens to data on the way: noise, blur, fog and missing words, in five severities, to measure robustness on.

The kinds and the idea of five severities are those of Hendrycks & Dietterich (2019); the strengths are our own, set for
small images, and made in batches.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data.base import Samples
from sslt.errors import UserError
from sslt.ranges import Count


class Corruption(abc.ABC):
    """A batch of prepared samples → the same, worse. severity: 1 (mild) to 5."""

    modality: ClassVar[str]
    strengths: ClassVar[tuple[float, ...]]

    def __init__(self, severity: Count):
        if not 1 <= severity <= 5:
            raise UserError(f"corruption.severity={severity}: give 1 (mild) to 5 (strong)")
        self.strength = self.strengths[severity - 1]
        self.name = f"{type(self).__name__}-{severity}"

    def fit(self, processor: Any) -> None:
        """Take what it needs of the processor whose samples it corrupts."""

    @abc.abstractmethod
    def __call__(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The batch, corrupted."""


class ImageCorruption(Corruption):
    """One that changes pixels."""

    modality = "image"

    def __call__(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        x = batch["image"].float() / 255
        worse = self.apply(x, generator).clamp(0, 1).mul(255).round().to(torch.uint8)
        return {**batch, "image": worse}

    @abc.abstractmethod
    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Images [B, C, H, W] in 0..1, corrupted."""


class GaussianNoise(ImageCorruption):
    """Independent normal noise; strength: its deviation."""

    strengths = (0.04, 0.08, 0.12, 0.18, 0.26)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x + self.strength * torch.randn(x.shape, generator=generator)


class ImpulseNoise(ImageCorruption):
    """Salt and pepper; strength: the share of pixels hit."""

    strengths = (0.01, 0.03, 0.06, 0.1, 0.17)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        hit = torch.rand(x[:, :1].shape, generator=generator)
        return torch.where(hit < self.strength / 2, 0.0, torch.where(hit < self.strength, 1.0, x))


class Blur(ImageCorruption):
    """Gaussian blur; strength: its sigma as a share of the image's height."""

    strengths = (0.015, 0.025, 0.035, 0.05, 0.07)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        sigma = self.strength * x.shape[2]
        radius = min(int(3 * sigma + 1), x.shape[2] - 1, x.shape[3] - 1)
        t = torch.arange(-radius, radius + 1, dtype=x.dtype)
        kernel = torch.exp(-t.square() / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
        x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="reflect"), kernel.unsqueeze(2), groups=x.shape[1])
        return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="reflect"), kernel.unsqueeze(3), groups=x.shape[1])


class Contrast(ImageCorruption):
    """Less contrast about each image's mean; strength: the share that is left."""

    strengths = (0.75, 0.5, 0.4, 0.3, 0.15)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * self.strength + mean


class Brightness(ImageCorruption):
    """Everything brighter; strength: what is added."""

    strengths = (0.1, 0.2, 0.3, 0.4, 0.5)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x + self.strength


class Pixelate(ImageCorruption):
    """Fewer pixels, drawn large; strength: the share of height and width that is left."""

    strengths = (0.8, 0.65, 0.5, 0.4, 0.3)

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        small = [max(1, round(n * self.strength)) for n in x.shape[2:]]
        return F.interpolate(F.interpolate(x, small, mode="area"), x.shape[2:], mode="nearest")


class DroppedWords(Corruption):
    """Tokens replaced by the tokenizer's unknown one (`unknown`); strength: the share of tokens hit."""

    modality = "text"
    strengths = (0.05, 0.1, 0.2, 0.35, 0.5)
    unknown = 0
    window: int | None = None  # tokens that are read at once; None: all

    def fit(self, processor: Any) -> None:
        self.unknown, self.window = processor.unknown_id, processor.max_length

    def __call__(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        found = dict(batch)
        for name in [k for k in batch if k.rpartition(".")[2] == "tokens"]:  # of each part, where samples have several
            tokens, mask = batch[name], batch.get(f"{name.removesuffix('tokens')}mask")
            hit = torch.rand(tokens.shape, generator=generator) < self.strength
            hit[:, :: self.window or tokens.shape[1]] = False  # the sentence's own token
            found[name] = torch.where(hit if mask is None else hit & mask, self.unknown, tokens)
        return found


class Corrupted(Samples):
    """Samples, corrupted as they are read: a function of the seed and of which rows are read together."""

    def __init__(self, samples: Samples, corruption: Corruption, seed: int):
        self.samples, self.corruption, self.seed = samples, corruption, seed
        self.answers, self.skipped = samples.answers, samples.skipped
        self.fingerprint = f"{samples.fingerprint}-{corruption.name}-{seed}"

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def lengths(self) -> np.ndarray | None:
        return self.samples.lengths

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        state = np.random.SeedSequence([self.seed, *np.asarray(index, dtype=np.uint32)[:8].tolist()]).generate_state(1, np.uint64)
        return self.corruption(self.samples.batch(index), torch.Generator().manual_seed(int(state[0])))

    def subset(self, index: np.ndarray) -> Corrupted:
        return Corrupted(self.samples.subset(index), self.corruption, self.seed)
