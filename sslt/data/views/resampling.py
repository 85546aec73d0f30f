"""Crop, resize, mirror and blur as one product of matrices an axis: X → Wy X Wxᵀ, a pair of matrices for each sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def resample(x: Tensor, y_range: Tensor, x_range: Tensor, size: int, blur: Tensor | None = None) -> Tensor:
    """Resize the box [y_range] × [x_range] (each [B, 2], input pixels) of x [B, C, H, W] to [B, C, size, size], float32.

    blur [B, size, size] (`blur_matrices`) is applied after resizing, at the cost of two products of small matrices.
    """
    wy = resize_weights(y_range, x.shape[-2], size)  # [B, size, H]
    wx = resize_weights(x_range, x.shape[-1], size)  # [B, size, W]
    if blur is not None:
        wy, wx = blur @ wy, blur @ wx
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


def cut(x: Tensor, y_range: Tensor, x_range: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Only the part of x [B, C, H, W] that the boxes of `resample` reach, and the boxes within it. For the CPU: it reads values."""
    (y0, y1), (x0, x1) = (_reach(r, n, size) for r, n in ((y_range, x.shape[-2]), (x_range, x.shape[-1])))
    return x[:, :, y0:y1, x0:x1], y_range - y0, x_range - x0


def _reach(bounds: Tensor, n: int, size: int) -> tuple[int, int]:
    filter_width = max(1.0, float((bounds[:, 1] - bounds[:, 0]).abs().max()) / size)
    low, high = float(bounds.min()) - filter_width, float(bounds.max()) + filter_width
    return max(0, math.floor(low)), min(n, math.ceil(high))


def blur_matrices(sigma: Tensor, size: int, radius: int) -> Tensor:
    """The matrices [B, size, size] that blur an axis with a Gaussian of sigma [B] pixels, cut at `radius`, repeating the border.

    sigma 0 gives the identity.
    """
    radius = min(radius, size - 1)
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3).unsqueeze(1)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # [B, K]
    rows = torch.arange(size, device=sigma.device)
    columns = (rows.unsqueeze(1) + torch.arange(-radius, radius + 1, device=sigma.device)).clamp(0, size - 1)
    b, k = kernel.shape
    return kernel.new_zeros(b, size, size).scatter_add_(2, columns.expand(b, -1, -1), kernel.unsqueeze(1).expand(b, size, k))
