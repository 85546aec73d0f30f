"""Random views of images: crop, flip, colour, blur, for a whole batch in few passes."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from sslt.data.views.base import Views
from sslt.data.views.resampling import blur_matrices, cut, resample
from sslt.ranges import Count, Natural, NonNegative, Positive, Share

# Rows of the batch worked on at a time on a CPU: their intermediate results then stay in the cache.
_CPU_CHUNK_PIXELS = 1 << 16


class ImageViews(Views):
    """`n` random views of each image: resized crop, flip, colour jitter, grey, blur; then the encoder's normalisation.

    Two passes over pixels for geometry and one for colour. Crop, resize, flip and blur are one separable resampling: a matrix
    [out, in] per sample and axis, with a triangle filter that widens when shrinking (as Pillow's antialiased bilinear).
    Brightness, contrast, saturation, hue, grey and normalisation are affine in RGB, so they are multiplied into one 3×4
    matrix per sample. Against torchvision's chain of uint8 operations: hue turns in YIQ instead of HSV, the order of the four is
    fixed, and values are clipped once, at the end, not after each.

    scale, ratio: area and aspect of the crop (Szegedy et al., 2015); scale [1, 1] takes the whole image.
    flip, jitter, grey, blur: probabilities. brightness, contrast, saturation, hue: as in torchvision's ColorJitter.
    blur_sigma: range in pixels at 224, scaled with the image. padding: pixels of shift around an uncropped image.
    """

    modality = "image"
    n_setting = "views.n"
    tells_frames = True

    def __init__(
        self,
        n: Count,
        scale: tuple[Share, Share],
        ratio: tuple[Positive, Positive],
        flip: Share,
        jitter: Share,
        brightness: NonNegative,
        contrast: NonNegative,
        saturation: NonNegative,
        hue: NonNegative,
        grey: Share,
        blur: Share,
        blur_sigma: tuple[NonNegative, NonNegative],
        padding: Natural,
    ):
        super().__init__()
        self.n, self.scale, self.ratio, self.flip, self.padding = n, scale, ratio, flip, padding
        self.jitter, self.strengths, self.grey = jitter, (brightness, contrast, saturation, hue), grey
        self.blur, self.blur_sigma = blur, blur_sigma

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        images = batch["image"]
        p = encoder.processor
        views, frame = self.framed(images, p.size, list(p.mean), list(p.std))
        return {**batch, "views": {"image": views}, "frame": frame}

    def augment(self, images: Tensor, size: int, mean: list[float], std: list[float]) -> Tensor:
        """uint8 [B, C, H, W] → normalised float [n, B, C, size, size], channels last in memory."""
        return self.framed(images, size, mean, std)[0]

    def framed(self, images: Tensor, size: int, mean: list[float], std: list[float]) -> tuple[Tensor, Tensor]:
        """`augment`, and what of each image its views show, [n, B, 4], as frames (`data/frames.py`): answers are moved by them."""
        b, c, h, w = images.shape
        device = images.device
        ys, xs = self._boxes(self.n * b, h, w, device)
        colour = self._colour(self.n * b, device)
        sigma = self._sigma(self.n * b, size, device)
        scale, shift = _moments(tuple(mean), tuple(std), device)
        on_cpu = device.type == "cpu"
        step = max(1, _CPU_CHUNK_PIXELS // (h * w)) if on_cpu else b
        out = torch.empty((self.n * b, c, size, size), device=device, memory_format=torch.channels_last)
        for first in range(0, self.n * b, b):
            for i in range(0, b, step):
                rows = slice(first + i, first + min(i + step, b))
                x, y_range, x_range = images[i : i + step], ys[rows], xs[rows]
                if on_cpu:
                    x, y_range, x_range = cut(x, y_range, x_range, size)
                blur = None if sigma is None or (on_cpu and not sigma[rows].any()) else blur_matrices(sigma[rows], size, self._radius(size))
                out[rows] = self._recolour(resample(x, y_range, x_range, size, blur), colour, rows, scale, shift)
        return out.unflatten(0, (self.n, b)), torch.cat([ys / h, xs / w], 1).unflatten(0, (self.n, b))

    # ---------------------------------------------------------------- geometry
    def _boxes(self, n: int, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(start, end) along y and along x, [n, 2] each, in input pixels; start > end mirrors."""
        area = h * w * _uniform(n, self.scale[0], self.scale[1], device)
        ratio = torch.exp(_uniform(n, math.log(self.ratio[0]), math.log(self.ratio[1]), device))
        ch, cw = (area / ratio).sqrt().clamp(max=h), (area * ratio).sqrt().clamp(max=w)
        top = torch.rand(n, device=device) * (h - ch)
        left = torch.rand(n, device=device) * (w - cw)
        if self.padding:
            top += torch.randint(-self.padding, self.padding + 1, (n,), device=device)
            left += torch.randint(-self.padding, self.padding + 1, (n,), device=device)
        y, x = torch.stack([top, top + ch], 1), torch.stack([left, left + cw], 1)
        mirrored = torch.rand(n, 1, device=device) < self.flip
        return y, torch.where(mirrored, x.flip(1), x)

    # ---------------------------------------------------------------- colour
    def _colour(self, n: int, device: torch.device) -> dict[str, Tensor] | None:
        if not (self.jitter or self.grey):
            return None
        on = (torch.rand(n, device=device) < self.jitter).float()
        b, c, s, h = self.strengths
        draw = lambda strength: 1 + on * _uniform(n, -strength, strength, device)  # noqa: E731
        angle = on * _uniform(n, -h, h, device) * (2 * math.pi)
        return {
            "brightness": draw(b).clamp(min=0), "contrast": draw(c).clamp(min=0), "saturation": draw(s).clamp(min=0), "angle": angle,
            "grey": (torch.rand(n, device=device) < self.grey).float(),
        }  # fmt: skip

    def _recolour(self, x: Tensor, colour: dict[str, Tensor] | None, rows: slice, scale: Tensor, shift: Tensor) -> Tensor:
        """Jitter x [b, C, H, W] in 0..255, then normalise it by scale and shift [C]."""
        scale, shift = scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
        if colour is None:
            return torch.addcmul(shift, x, scale)
        if x.shape[1] == 1:  # grey images: brightness and contrast are all there is
            gain = colour["contrast"][rows] * colour["brightness"][rows]
            offset = (1 - colour["contrast"][rows]) * colour["brightness"][rows] * x.mean((1, 2, 3))
            x = torch.addcmul(offset.view(-1, 1, 1, 1), x, gain.view(-1, 1, 1, 1)).clamp_(0, 255)
            return torch.addcmul(shift, x, scale)
        factors = (colour[k][rows] for k in ("brightness", "contrast", "saturation", "angle", "grey"))
        matrix, offset = colour_matrix(x.mean((2, 3)), *factors)
        flat = torch.baddbmm(offset.unsqueeze(2), matrix, x.flatten(2)).clamp_(0, 255)
        return torch.addcmul(shift, flat.view_as(x), scale)

    def _radius(self, size: int) -> int:
        return max(1, math.ceil(3 * self.blur_sigma[1] * size / 224))

    def _sigma(self, n: int, size: int, device: torch.device) -> Tensor | None:
        if not self.blur:
            return None
        sigma = _uniform(n, self.blur_sigma[0], self.blur_sigma[1], device) * (size / 224)
        return torch.where(torch.rand(n, device=device) < self.blur, sigma, sigma.new_zeros(()))


_LUMA = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


@functools.cache
def _colour_constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Luma weights [3], RGB → YIQ and back [3, 3]: copied to a device once, for a copy makes a GPU wait."""
    yiq = torch.tensor(_YIQ)
    return torch.tensor(_LUMA, device=device), yiq.to(device), torch.linalg.inv(yiq).to(device)


@functools.lru_cache(maxsize=64)
def _moments(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(scale, shift) [C] that normalise pixels in 0..255."""
    m, s = torch.tensor(mean), torch.tensor(std)
    return (1 / (255 * s)).to(device), (-m / s).to(device)


def colour_matrix(
    means: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, angle: Tensor, grey: Tensor
) -> tuple[Tensor, Tensor]:
    """The affine map y = M x + o of RGB that brightness, contrast, saturation, hue and grey make together, in that order.

    means: [b, 3] mean colour of each image (contrast blends with its grey value); factors [b]; angle in radians; grey in {0, 1}.
    Returns M [b, 3, 3] and o [b, 3].
    """
    b = len(means)
    luma, yiq, back = (t.to(means.dtype) for t in _colour_constants(means.device))
    eye = torch.eye(3, device=means.device, dtype=means.dtype)
    to_grey = luma.expand(3, 3)
    cos, sin = angle.cos(), angle.sin()
    turn = means.new_zeros(b, 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    blend = saturation.view(-1, 1, 1) * eye + (1 - saturation).view(-1, 1, 1) * to_grey
    linear = back @ turn @ yiq @ blend
    g = grey.view(-1, 1, 1)
    linear = g * (to_grey @ linear) + (1 - g) * linear
    centre = (1 - contrast) * brightness * (means @ luma)
    matrix = linear * (contrast * brightness).view(-1, 1, 1)
    return matrix, (linear @ centre.view(-1, 1, 1).expand(-1, 3, 1)).squeeze(2)


def _uniform(n: int, low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(n, device=device) * (high - low) + low


def to_pixels(views: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Undo the normalisation of views [..., C, H, W]: values in 0..1, to look at."""
    m, s = (views.new_tensor(v).view(-1, 1, 1) for v in (mean, std))
    return (views.float() * s + m).clamp(0, 1)
