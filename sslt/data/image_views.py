"""Random views of images: crop, flip, colour, blur, for a whole batch in few passes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sslt.data.views import Views

# Rows of the batch worked on at a time on a CPU: their intermediate results then stay in the cache.
_CPU_CHUNK_PIXELS = 1 << 18


class ImageViews(Views):
    """`n` random views of each image: resized crop, flip, colour jitter, grey, blur; then the encoder's normalisation.

    Two passes over pixels for geometry and one for colour. Crop, resize and flip are one separable resampling: a matrix
    [out, in] per sample and axis, with a triangle filter that widens when shrinking (as Pillow's antialiased bilinear).
    Brightness, contrast, saturation, hue, grey and normalisation are affine in RGB, so they are multiplied into one 3×4
    matrix per sample. Against torchvision's chain of uint8 operations: hue turns in YIQ instead of HSV, the order of the four is
    fixed, and values are clipped once, at the end, not after each.

    scale, ratio: area and aspect of the crop (Szegedy et al., 2015); scale [1, 1] takes the whole image.
    flip, jitter, grey, blur: probabilities. brightness, contrast, saturation, hue: as in torchvision's ColorJitter.
    blur_sigma: range in pixels at 224, scaled with the image. padding: pixels of shift around an uncropped image.
    """

    modality = "image"

    def __init__(
        self,
        n: int,
        scale: list[float],
        ratio: list[float],
        flip: float,
        jitter: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        grey: float,
        blur: float,
        blur_sigma: list[float],
        padding: int,
    ):
        super().__init__()
        self.n, self.scale, self.ratio, self.flip, self.padding = n, scale, ratio, flip, padding
        self.jitter, self.strengths, self.grey = jitter, (brightness, contrast, saturation, hue), grey
        self.blur, self.blur_sigma = blur, blur_sigma

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        images = batch["image"]
        p = encoder.processor
        views = self.augment(images, p.size, list(p.mean), list(p.std))
        return {**batch, "views": {"image": views}}

    def augment(self, images: Tensor, size: int, mean: list[float], std: list[float]) -> Tensor:
        """uint8 [B, C, H, W] → normalised float [n, B, C, size, size], channels last in memory."""
        b = len(images)
        boxes = self._boxes(self.n * b, images.shape[-2], images.shape[-1], images.device)
        colour = self._colour(self.n * b, images.device)
        sigma = self._sigma(self.n * b, size, images.device)
        step = max(1, _CPU_CHUNK_PIXELS // (images.shape[-1] * images.shape[-2])) if images.device.type == "cpu" else b
        out = torch.empty(
            (self.n * b, images.shape[1], size, size), device=images.device, memory_format=torch.channels_last
        )
        for v in range(self.n):
            for i in range(0, b, step):
                rows = slice(v * b + i, v * b + min(i + step, b))
                x = images[i : i + step]
                x = resample(x, boxes[0][rows], boxes[1][rows], size)
                if sigma is not None:
                    x = gaussian_blur(x, sigma[rows])
                out[rows] = self._recolour(x, colour, rows, mean, std)
        return out.unflatten(0, (self.n, b))

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

    def _recolour(
        self, x: Tensor, colour: dict[str, Tensor] | None, rows: slice, mean: list[float], std: list[float]
    ) -> Tensor:
        """Jitter and normalise x [b, C, H, W] in 0..255."""
        scale = 1 / (255 * x.new_tensor(std))
        shift = -x.new_tensor(mean) / x.new_tensor(std)
        if colour is None:
            return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1))
        if x.shape[1] == 1:  # grey images: brightness and contrast are all there is
            gain = colour["contrast"][rows] * colour["brightness"][rows]
            offset = (1 - colour["contrast"][rows]) * colour["brightness"][rows] * x.mean((1, 2, 3))
            x = torch.addcmul(offset.view(-1, 1, 1, 1), x, gain.view(-1, 1, 1, 1)).clamp_(0, 255)
            return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1))
        matrix, offset = colour_matrix(
            x.mean((2, 3)), *(colour[k][rows] for k in ("brightness", "contrast", "saturation", "angle", "grey"))
        )
        flat = torch.baddbmm(offset.unsqueeze(2), matrix, x.flatten(2)).clamp_(0, 255)
        return torch.addcmul(shift.view(1, -1, 1), flat, scale.view(1, -1, 1)).view_as(x)

    def _sigma(self, n: int, size: int, device: torch.device) -> Tensor | None:
        if not self.blur:
            return None
        sigma = _uniform(n, self.blur_sigma[0], self.blur_sigma[1], device) * (size / 224)
        return torch.where(torch.rand(n, device=device) < self.blur, sigma, sigma.new_zeros(()))


_LUMA = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


def colour_matrix(
    means: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, angle: Tensor, grey: Tensor
) -> tuple[Tensor, Tensor]:
    """The affine map y = M x + o of RGB that brightness, contrast, saturation, hue and grey make together, in that order.

    means: [b, 3] mean colour of each image (contrast blends with its grey value); factors [b]; angle in radians; grey in {0, 1}.
    Returns M [b, 3, 3] and o [b, 3].
    """
    b = len(means)
    luma = means.new_tensor(_LUMA)
    eye = torch.eye(3, device=means.device)
    to_grey = luma.expand(3, 3)
    yiq = means.new_tensor(_YIQ)
    back = torch.linalg.inv(yiq)
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


def resample(x: Tensor, y_range: Tensor, x_range: Tensor, size: int) -> Tensor:
    """Resize the box [y_range] × [x_range] (each [B, 2], input pixels) of x [B, C, H, W] to [B, C, size, size], float32."""
    wy = resize_weights(y_range, x.shape[-2], size)  # [B, size, H]
    wx = resize_weights(x_range, x.shape[-1], size)  # [B, size, W]
    b, c, h, w = x.shape
    x = x.float()
    if x.is_contiguous(memory_format=torch.channels_last) and c > 1:
        rows = wy @ x.permute(0, 2, 3, 1).reshape(b, h, w * c)  # [B, size, W·C]
        rows = rows.view(b, size, w, c).permute(0, 3, 1, 2)
    else:
        rows = wy.unsqueeze(1) @ x
    return rows.reshape(b, c * size, w).bmm(wx.transpose(1, 2)).view(b, c, size, size)


def resize_weights(bounds: Tensor, n_in: int, n_out: int) -> Tensor:
    """Rows of interpolation weights [B, n_out, n_in] that resize bounds [B, 2] = (start, end) of an axis to n_out points.

    A triangle filter, widened when shrinking; start > end mirrors; weight beyond the image goes to what is inside.
    """
    start, end = bounds[:, :1], bounds[:, 1:]
    step = (end - start) / n_out  # [B, 1], negative when mirrored
    out = torch.arange(n_out, device=bounds.device, dtype=torch.float32) + 0.5
    centre = start + out * step  # [B, n_out]
    pixel = torch.arange(n_in, device=bounds.device, dtype=torch.float32) + 0.5
    support = step.abs().clamp(min=1.0).unsqueeze(2)
    weights = (1 - (pixel - centre.unsqueeze(2)).abs() / support).clamp_(min=0)
    total = weights.sum(2, keepdim=True)
    return weights / total.clamp(min=1e-6)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur x [B, C, H, W] with a standard deviation of sigma [B] pixels per sample; 0 leaves a sample as it is."""
    size = x.shape[-1]
    radius = min(max(1, math.ceil(3 * float(sigma.max()))), size - 1)
    offset = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3).unsqueeze(1)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # [B, K]; sigma → 0 is the identity
    blur = banded(kernel, size)  # [B, size, size]
    return blur.unsqueeze(1) @ x @ blur.transpose(1, 2).unsqueeze(1)


def banded(kernel: Tensor, size: int) -> Tensor:
    """The matrices [B, size, size] that convolve with kernel [B, K], repeating the border pixel."""
    b, k = kernel.shape
    radius = k // 2
    rows = torch.arange(size, device=kernel.device)
    columns = (rows.unsqueeze(1) + torch.arange(-radius, radius + 1, device=kernel.device)).clamp(0, size - 1)
    out = kernel.new_zeros(b, size, size)
    return out.scatter_add_(2, columns.expand(b, -1, -1), kernel.unsqueeze(1).expand(b, size, k))


def _uniform(n: int, low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(n, device=device) * (high - low) + low


def to_pixels(views: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Undo the normalisation of views [..., C, H, W]: values in 0..1, to look at."""
    m, s = (views.new_tensor(v).view(-1, 1, 1) for v in (mean, std))
    return (views.float() * s + m).clamp(0, 1)
