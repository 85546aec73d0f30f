"""Between sRGB and CIE L*a*b* with the white of daylight D65."""

from __future__ import annotations

import torch
from torch import Tensor

# IEC 61966-2-1: linear sRGB → XYZ; its inverse; and the white it makes of (1, 1, 1).
_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_TO_RGB = ((3.2404542, -1.5371385, -0.4985314), (-0.9692660, 1.8760108, 0.0415560), (0.0556434, -0.2040259, 1.0572252))
_WHITE = tuple(sum(row) for row in _TO_XYZ)
_BEND = 6 / 29  # where CIE's cube root goes over into a straight line


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB in 0..1 → L in 0..100, a and b in about -110..110; both [..., 3, H, W].

    Channel by channel, without a product of matrices, so that it is as exact under autocast.
    """
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055).clamp(min=0) ** 2.4)
    r, g, b = linear.unbind(-3)
    x, y, z = (_root((m[0] * r + m[1] * g + m[2] * b) / w) for m, w in zip(_TO_XYZ, _WHITE, strict=True))
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; colours that sRGB does not have are clipped to 0..1."""
    light, a, b = lab.unbind(-3)
    y = (light + 16) / 116
    x, y, z = (w * _unroot(t) for t, w in zip((y + a / 500, y, y - b / 200), _WHITE, strict=True))
    linear = torch.stack([m[0] * x + m[1] * y + m[2] * z for m in _TO_RGB], -3).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055)


def _root(t: Tensor) -> Tensor:
    return torch.where(t > _BEND**3, t.clamp(min=1e-8) ** (1 / 3), t / (3 * _BEND**2) + 4 / 29)


def _unroot(t: Tensor) -> Tensor:
    return torch.where(t > _BEND, t**3, 3 * _BEND**2 * (t - 4 / 29))


def gamut(step: float) -> Tensor:
    """Centres [Q, 2] of the cells of a grid over (a, b), `step` wide, in which some colour of sRGB lies; sorted."""
    levels = torch.linspace(0, 1, 64, dtype=torch.float64)
    r, g, b = torch.meshgrid(levels, levels, levels, indexing="ij")
    lab = rgb_to_lab(torch.stack([r, g, b]).flatten(2))
    return (lab[1:].flatten(1).T / step).round().unique(dim=0) * step
