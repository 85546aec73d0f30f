"""A dictionary of whitened patches as an encoder: one convolution, rectified and pooled over a few cells of the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import Features, require
from sslt.encoders.pixels import PixelEncoder
from sslt.errors import UserError

LARGEST = 48  # pixels a side that larger images are brought to where nobody says another size
CHUNK = 1 << 20  # responses at a time on a CPU, so that they stay in its cache
IMAGES, PATCHES = 4096, 100_000  # that the whitening is measured on, at most
FIRST_PATCHES, FIRST_STEPS = 25_000, 10  # patches, and steps of k-means, for the filters of a first convolution
FIRST_EPSILON = 0.001  # on the eigenvalues, as a share of their sum
ROOT = 1e-4  # added below a root, whose slope is infinite at 0, or its inverse


class PatchEncoder(PixelEncoder):
    """Rectified responses to whitened patches, pooled over cells and projected (Coates, Lee & Ng, 2011; Coates & Ng, 2012).

    A map holds √ of the mean response of each of `filters` filters (`FilterBank`) in each of `cells` × `cells` parts of the image; the root
    keeps few large responses from drowning the rest. The features [B, width], which are the only token as well, are a projection of the
    map: its principal components, partly whitened, for in the map itself brightness and contrast are most of a distance. Fresh filters
    and projections are random and see patches that are not whitened; `objectives/patch_kmeans.py` learns all of it.

    patch_size: pixels along a patch's side; at most half of the image's is taken. stride: pixels from patch to patch. contrast: see
    `FilterBank`. mirror: the map is averaged with that of the mirror image, so that both have the same features; None: for colour images,
    as a mirrored photograph is one, and mirrored writing is none. width: at most filters · cells² is taken.
    """

    Processor = ImageProcessor
    fixed = True  # a step on its filters costs three passes over a wide map, and moves accuracy by less than seeds do

    def __init__(
        self,
        processor: ImageProcessor,
        filters: int,
        patch_size: int,
        stride: int,
        cells: int,
        contrast: float,
        mirror: bool | None,
        width: int,
    ):
        given = {"filters": filters, "patch_size": patch_size, "stride": stride, "cells": cells, "width": width}
        super().__init__(processor, **given, contrast=contrast, mirror=mirror)
        for key, value in given.items():
            if value < 1:
                raise UserError(f"encoder.{key}={value}: give at least 1")
        if contrast <= 0:
            raise UserError(f"encoder.contrast={contrast}: give more than 0, as flat patches are divided by its root")
        self.bank = FilterBank(processor.channels, filters, min(patch_size, max(1, processor.size // 2)), stride, contrast)
        self.cells = min(cells, self.bank.places(processor.size))
        self.mirror = processor.channels == 3 if mirror is None else mirror
        numbers = filters * self.cells**2
        self.dim = min(width, numbers)
        self.centre: Tensor
        self.projection: Tensor
        self.register_buffer("centre", torch.zeros(numbers))
        self.register_buffer("projection", torch.randn(self.dim, numbers) / numbers**0.5)

    @classmethod
    def build(cls, source: Any, processor: dict[str, Any], **args: Any) -> PatchEncoder:
        """An encoder for `source`'s images, of at most `LARGEST` pixels a side unless `processor` says another size."""
        require("image", source, "encoder patches")
        size = processor.get("size") or min(source.image_shape[0], LARGEST)
        return cls(ImageProcessor.fit(source, **{**processor, "size": size}), **args)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        numbers = self.numbers(inputs["image"])
        with torch.autocast(numbers.device.type, enabled=False):  # directions in which images differ little are scaled up
            features = F.linear(numbers - self.centre, self.projection)
        return Features(features, features.unsqueeze(1))

    def numbers(self, x: Tensor) -> Tensor:
        """The map of images [B, C, S, S], [B, filters · cells²]."""
        x = x.contiguous(memory_format=torch.channels_last)
        if torch.compiler.is_compiling():  # into how many parts a batch is divided would become a constant of an exported graph
            return self._map(x).flatten(1)
        whole = torch.is_grad_enabled() or x.device.type != "cpu"
        rows = len(x) if whole else max(1, CHUNK // (self.bank.places(x.shape[-1]) ** 2 * len(self.bank.filters)))
        return torch.cat([self._map(part) for part in x.split(rows)]).flatten(1)

    def _map(self, x: Tensor) -> Tensor:
        ways = (x, x.flip(3)) if self.mirror else (x,)
        roots = [(F.adaptive_avg_pool2d(self.bank(way), self.cells) + ROOT).sqrt() for way in ways]
        return torch.stack(roots).mean(0)

    def block_names(self) -> list[str]:
        return ["bank"]


class FilterBank(nn.Module):
    """Rectified responses of K filters to whitened patches, [B, C, S, S] → [B, K, P, P] at the P = ⌊(S - side) / stride⌋ + 1 places a side.

    A patch p of side² pixels and C channels becomes (p - mean p) / √(var p + contrast), then q = W (p - m) by a whitening W [D, D] and the
    mean m [D] of patches; a filter d_k [D] answers max(0, d_k·q - t_k) with its threshold t_k. As one convolution: W is multiplied into
    the filters, and a patch's mean and variance are box filters, so that no patch is cut out. contrast: in squares of normalised pixels.
    """

    def __init__(self, channels: int, filters: int, side: int, stride: int, contrast: float):
        super().__init__()
        self.channels, self.side, self.stride, self.contrast = channels, side, stride, contrast
        d = channels * side**2
        self.filters = nn.Parameter(F.normalize(torch.randn(filters, d), dim=1))
        self.thresholds = nn.Parameter(torch.zeros(filters))
        self.mean: Tensor
        self.whitening: Tensor
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("whitening", torch.eye(d))

    @property
    def learned(self) -> bool:
        """Whether a whitening was learned."""
        return bool(self.mean.any())

    def places(self, size: int) -> int:
        """Patches along a side of `size` pixels."""
        return (size - self.side) // self.stride + 1

    def forward(self, x: Tensor) -> Tensor:
        folded = self.filters @ self.whitening
        weight = folded - folded.mean(1, keepdim=True)  # the part of a filter that sees a patch less its mean
        weight = weight.unflatten(1, (self.channels, self.side, self.side)).contiguous(memory_format=torch.channels_last)
        offset = (folded @ self.mean + self.thresholds).view(-1, 1, 1)
        gain = self._gain(x)
        responses = F.conv2d(x, weight, stride=self.stride).to(gain.dtype)
        return torch.addcmul(-offset, responses, gain).relu_()

    def _gain(self, x: Tensor) -> Tensor:
        """1 / √(var + contrast) of every patch, [B, 1, P, P]; not in bfloat16, whose 8 bits a difference of squares would lose."""
        x = x if x.dtype == torch.float64 else x.float()
        mean, square = (F.avg_pool2d(m.mean(1, keepdim=True), self.side, self.stride) for m in (x, x.square()))
        return (square - mean.square()).clamp(min=0).add(self.contrast).rsqrt()

    def cut(self, x: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Patches of images [B, C, S, S] at the corners `top`, `left` [B, N], less their mean and over their contrast: [B · N, D]."""
        windows = x.unfold(2, self.side, 1).unfold(3, self.side, 1)  # [B, C, …, side, side], nothing copied
        rows = torch.arange(len(x), device=x.device).unsqueeze(1)
        patches = windows[rows, :, top, left].flatten(0, 1).flatten(1)
        variance, mean = torch.var_mean(patches, 1, correction=0, keepdim=True)
        return (patches - mean) * (variance + self.contrast).rsqrt()

    def corners(self, images: Tensor, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Top and left [B, n] of random patches of images [B, C, H, W]."""
        rest = images.shape[-1] - self.side + 1
        drawn = torch.randint(rest * rest, (len(images), n), generator=generator, device=images.device)
        return drawn // rest, drawn % rest

    def whiten(self, patches: Tensor) -> Tensor:
        """q [N, D] of patches that `cut` made."""
        return (patches - self.mean) @ self.whitening.T

    @torch.no_grad()
    def start(self, rows: np.ndarray, images: Callable[[np.ndarray], Tensor], epsilon: float, threshold: float) -> None:
        """Measure mean and whitening on about `PATCHES` patches of the images of `rows`, and let the filters be some of them.

        images: rows → normalised images [B, C, S, S]. epsilon: on the eigenvalues. threshold: where a response begins to count, in
        deviations of a filter's responses.
        """
        generator, each, found = torch.Generator().manual_seed(0), -(-PATCHES // len(rows)), []
        for part in np.array_split(rows, -(-len(rows) // 256)):
            x = images(part)
            found.append(self.cut(x, *self.corners(x, each, generator)))
        patches = torch.cat(found)
        self.mean.copy_(patches.mean(0))
        self.whitening.copy_(zca(patches - self.mean, epsilon))
        q = self.whiten(patches)
        self.filters.copy_(F.normalize(q[torch.randperm(len(q), generator=generator)[: len(self.filters)]], dim=1))
        self.thresholds.copy_(threshold * (self.filters @ q.T).std(1))  # along what is contiguous: half of the time


def first_filters(images: Tensor, n: int, side: int) -> Tensor:
    """Filters [n, C, side, side] for a first convolution: centroids of whitened patches of images [B, C, S, S].

    Spherical k-means (Coates & Ng, 2012, section 3) on p ↦ W (p - mean p), W = (Σ + ε)^-½; a filter answers to a patch as its centroid
    does to the whitened one, but for a constant. Unlike in a `FilterBank` patches keep their brightness and contrast.
    """
    generator, d = torch.Generator().manual_seed(0), images.shape[1] * side**2
    images = F.pad(images, (0, max(side - images.shape[-1], 0)) * 2)
    windows = images.unfold(2, side, 1).unfold(3, side, 1)  # [B, C, …, side, side], nothing copied
    places = windows.shape[2]
    top, left = (torch.randint(places, (len(images), -(-FIRST_PATCHES // len(images))), generator=generator) for _ in "hw")
    patches = windows[torch.arange(len(images)).unsqueeze(1), :, top, left].reshape(-1, d)
    centred = patches - patches.mean(0)
    whitening = zca(centred, max(FIRST_EPSILON * float(centred.square().sum(1).mean()), ROOT))
    q = centred @ whitening.T
    centroids = F.normalize(torch.randn(n, d, generator=generator), dim=1)
    for _ in range(FIRST_STEPS):
        response, nearest = (q @ centroids.T).max(1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, q * response.clamp(min=0).unsqueeze(1))
        found = sums.norm(dim=1, keepdim=True)
        centroids = torch.where(found > 0, sums / found.clamp(min=1e-12), centroids)
    return (centroids @ whitening).unflatten(1, (images.shape[1], side, side))


def rows_to_start_on(n: int, most: int = IMAGES) -> np.ndarray:
    """At most so many of n images, drawn once and for all, in order."""
    return np.sort(np.random.default_rng(0).permutation(n)[:most])


def zca(centred: Tensor, epsilon: float) -> Tensor:
    """The symmetric W = (Σ + ε)^-½ [D, D] of rows [N, D] of mean 0 with covariance Σ."""
    values, vectors = torch.linalg.eigh(centred.T.double() @ centred.double() / len(centred))
    return ((vectors * (values.clamp(min=0) + epsilon).rsqrt()) @ vectors.T).to(centred.dtype)
