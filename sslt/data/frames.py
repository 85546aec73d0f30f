"""What a crop, a flip and a resize do to places in a picture: four numbers that move pixels, points, boxes and maps, there and back.

A frame [..., 4] is the part of a picture that a view shows: where its top, bottom, left and right edges lie, as shares of the picture's
height and width, whatever size picture and view have. Left beyond right is a mirrored view; edges outside 0..1 show what lies beside the
picture. Shares are of edges, not of centres of pixels, so that a resize alone moves nothing (half-pixel centres).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WHOLE = (0.0, 1.0, 0.0, 1.0)


def whole(*shape: int) -> Tensor:
    """Frames [*shape, 4] that show all of a picture as it is."""
    return torch.tensor(WHOLE).expand(*shape, 4)


def fitted(sizes: np.ndarray, fit: str, narrowest: int) -> np.ndarray:
    """Frames [N, 4] of the square that pictures of `sizes` [N, 2] (height, width) are brought to.

    fit: `crop` cuts the longer side around its centre, at most `narrowest` times the shorter one; `pad` adds to the shorter side;
    `stretch` takes the picture as it is.
    """
    frames = np.tile(np.array(WHOLE), (len(sizes), 1))
    if fit == "stretch":
        return frames
    short, long = sizes.min(1), sizes.max(1)
    side = short if fit == "crop" else long
    for axis in (0, 1):
        half = side / sizes[:, axis] / 2
        frames[:, 2 * axis], frames[:, 2 * axis + 1] = 0.5 - half, 0.5 + half
    return frames


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
    centres = (torch.arange(n, device=edges.device, dtype=torch.float64) + 0.5) / n
    start, end = edges[:, :1].double(), edges[:, 1:].double()
    return ((start + centres * (end - start)) * of).floor().long()
