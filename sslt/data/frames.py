"""What a crop, a flip and a resize do to places in a picture: four numbers that move pixels, points, boxes and maps, there and back.

A frame [..., 4] is the part of a picture that a view shows: where its top, bottom, left and right edges lie, as shares of the picture's
height and width, whatever size picture and view have. Left beyond right is a mirrored view; edges outside 0..1 show what lies beside the
picture. Shares are of edges, not of centres of pixels, so that a resize alone moves nothing (half-pixel centres).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WHOLE = (0.0, 1.0, 0.0, 1.0)


def whole(*shape: int) -> Tensor:
    """Frames [*shape, 4] that show all of a picture as it is."""
    return torch.tensor(WHOLE).expand(*shape, 4)


class Laid(NamedTuple):
    """How a picture becomes a square: of its (height, width) so many pixels are `kept` from `first` on, scaled, and taken from `start` on.

    A negative start adds so many pixels before. int64 [N, 2] each.
    """

    first: np.ndarray
    kept: np.ndarray
    scaled: np.ndarray
    start: np.ndarray


def laid(sizes: np.ndarray, size: int, fit: str, narrowest: int) -> Laid:
    """How pictures of `sizes` [N, 2] (height, width) are brought to `size` × `size`, in whole pixels.

    fit: `crop` cuts the longer side around its centre, which counts at most `narrowest` times the shorter one; `pad` adds to the
    shorter side; `stretch` takes the picture as it is.
    """
    kept = np.minimum(sizes, narrowest * sizes.min(1, keepdims=True)) if fit == "crop" else sizes
    if fit == "stretch":
        scaled = np.full_like(kept, size)
    else:
        of = kept.min(1, keepdims=True) if fit == "crop" else kept.max(1, keepdims=True)
        scaled = np.maximum(np.rint(kept * size / of).astype(np.int64), size if fit == "crop" else 1)
    start = np.where(scaled >= size, (scaled - size) // 2, -((size - scaled) // 2))
    return Laid((sizes - kept) // 2, kept, scaled, start)


def fitted(sizes: np.ndarray, size: int, fit: str, narrowest: int) -> np.ndarray:
    """Frames [N, 4] of the squares of `laid`."""
    by = laid(sizes, size, fit, narrowest)
    edges = np.stack([by.start, by.start + size], -1) * (by.kept / by.scaled)[..., None] + by.first[..., None]
    return (edges / sizes[..., None]).reshape(-1, 4)


def inverse(frame: Tensor) -> Tensor:
    """The frame [..., 4] that shows in a view of `frame` the picture again: what leads back."""
    start, end = frame[..., 0::2], frame[..., 1::2]
    size = end - start
    return torch.stack([-start / size, (1 - start) / size], -1).flatten(-2)


def within(outer: Tensor, inner: Tensor) -> Tensor:
    """The frame in the picture of a view `inner` that was taken of a view `outer`, [..., 4] each."""
    start, size = outer[..., 0::2], outer[..., 1::2] - outer[..., 0::2]
    edges = inner.unflatten(-1, (2, 2))
    return (start.unsqueeze(-1) + edges * size.unsqueeze(-1)).flatten(-2)


def points(frame: Tensor, xy: Tensor) -> Tensor:
    """Points [..., M, 2] (x, y as shares of the picture) as shares of the view `frame` [..., 4]."""
    start, end = frame[..., None, [2, 0]], frame[..., None, [3, 1]]
    return (xy - start) / (end - start)


def boxes(frame: Tensor, corners: Tensor) -> Tensor:
    """Boxes [..., M, 4] (left, top, right, bottom as shares of the picture) in the view `frame` [..., 4], not cut at its edges."""
    a, b = points(frame, corners[..., :2]), points(frame, corners[..., 2:])
    return torch.cat([torch.minimum(a, b), torch.maximum(a, b)], -1)


def maps(frame: Tensor, values: Tensor, size: tuple[int, int], outside: int | float) -> Tensor:
    """Maps [B, H, W] of pictures, as the views `frame` [B, 4] show them, [B, *size]; the nearest value, `outside` beside the picture."""
    rows, columns = (_places(frame[:, 2 * axis : 2 * axis + 2], size[axis], values.shape[1 + axis]) for axis in (0, 1))
    within_rows, within_columns = ((r >= 0) & (r < n) for r, n in zip((rows, columns), values.shape[1:], strict=True))
    b = torch.arange(len(values), device=values.device)[:, None, None]
    r, c = rows.clamp(0, values.shape[1] - 1)[:, :, None], columns.clamp(0, values.shape[2] - 1)[:, None, :]
    inside = within_rows[:, :, None] & within_columns[:, None, :]
    return torch.where(inside, values[b, r, c], torch.full((), outside, dtype=values.dtype, device=values.device))


def _places(edges: Tensor, n: int, of: int) -> Tensor:
    """Which of `of` pixels of the picture each of `n` pixels of a view has its centre in, int64 [B, n]; edges [B, 2]."""
    exact = _centres(edges, n) * of
    return (exact + 1e-3).floor().long()  # a centre on an edge between two pixels is in the latter, whatever the last digits say


def _centres(edges: Tensor, n: int) -> Tensor:
    """Where the centres of `n` pixels of a view lie, as shares of the picture, float64 [B, n]; edges [B, 2]."""
    centres = (torch.arange(n, device=edges.device, dtype=torch.float64) + 0.5) / n
    start, end = edges[:, :1].double(), edges[:, 1:].double()
    return start + centres * (end - start)


def smooth(frame: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of numbers [B, C, H, W] as the views `frame` [B, 4] show them, [B, C, *size]; bilinear, the nearest value beside the picture."""
    y, x = (_centres(frame[:, 2 * axis : 2 * axis + 2], size[axis]) * 2 - 1 for axis in (0, 1))
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1).to(values.dtype)
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)


def covered(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels of views `frame` [B, 4] have their centre in the picture, bool [B, *size]."""
    rows, columns = (_centres(frame[:, 2 * axis : 2 * axis + 2], size[axis]) for axis in (0, 1))
    rows, columns = ((c >= 0) & (c <= 1) for c in (rows, columns))
    return rows[:, :, None] & columns[:, None, :]
