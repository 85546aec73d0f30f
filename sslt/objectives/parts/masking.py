"""Which tokens are hidden, and images as rows of patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslt.errors import UserError


def check_share(name: str, share: float) -> None:
    """Raise `UserError` unless 0 < share < 1."""
    if not 0 < share < 1:
        raise UserError(f"objective.{name}={share}: give the share of the tokens, more than 0 and less than 1")


def random_tokens(hideable: Tensor, share: float) -> Tensor:
    """[B, T] bool: in each row round(share · n) of its n hideable tokens, at least 1, drawn evenly (so equally many in images)."""
    count = (share * hideable.sum(1)).round().clamp(min=1)
    score = torch.rand(hideable.shape, device=hideable.device).masked_fill(~hideable, 2.0)
    rank = score.argsort(1).argsort(1)
    return (rank < count.unsqueeze(1)) & hideable


def random_split(b: int, t: int, share: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """(visible [B, K], hidden [B, T-K]): positions of a random division of T tokens, of which round(share · T) are hidden; sorted."""
    order = torch.rand(b, t, device=device).argsort(1)
    keep = t - max(1, min(t - 1, round(share * t)))
    return order[:, :keep].sort(1).values, order[:, keep:].sort(1).values


def block_tokens(b: int, grid: int, share: float, aspect: tuple[float, float], device: torch.device) -> Tensor:
    """[B, grid²] bool with exactly round(share · grid²) True per row, in blocks (BEiT: Bao et al., 2022, algorithm 1).

    Rectangles of random area and aspect are laid until there are enough; what the last one has too much is given back at random.
    """
    t = grid * grid
    want = max(1, min(t - 1, round(share * t)))
    # Enough rectangles are drawn at once, for all rows: no loop over samples, no waiting for the device
    n = 16
    low = min(max(4, t // 16), want)
    area = torch.rand(b, n, device=device) * (max(want, low + 1) - low) + low
    ratio = torch.exp(torch.rand(b, n, device=device) * math.log(aspect[1] / aspect[0]) + math.log(aspect[0]))
    height, width = (area * ratio).sqrt().round().clamp(1, grid), (area / ratio).sqrt().round().clamp(1, grid)
    top = (torch.rand(b, n, device=device) * (grid - height + 1)).floor()
    left = (torch.rand(b, n, device=device) * (grid - width + 1)).floor()
    place = torch.arange(grid, device=device)
    inside = lambda start, length: (place >= start.unsqueeze(-1)) & (place < (start + length).unsqueeze(-1))  # noqa: E731
    boxes = (inside(top, height).unsqueeze(3) & inside(left, width).unsqueeze(2)).flatten(2)  # [B, n, T]
    # a token's rank is that of the first rectangle which covers it; within it, and beyond all, the order is random
    first = torch.where(boxes.any(1), boxes.float().argmax(1).float(), float(n))
    rank = (first + torch.rand(b, t, device=device) * 0.99).argsort(1).argsort(1)
    return rank < want


def patchify(images: Tensor, grid: int) -> Tensor:
    """Images [B, C, H, W] → patches [B, grid², p·p·C], in the order of the encoder's tokens, channels last within a patch."""
    b, c, h, w = images.shape
    x = images.reshape(b, c, grid, h // grid, grid, w // grid)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, grid * grid, -1)


def unpatchify(patches: Tensor, grid: int, channels: int) -> Tensor:
    """The inverse of `patchify`."""
    b, _, n = patches.shape
    p = math.isqrt(n // channels)
    return patches.reshape(b, grid, grid, p, p, channels).permute(0, 5, 1, 3, 2, 4).reshape(b, channels, grid * p, grid * p)


def positions_of(masked: Tensor, count: int) -> Tensor:
    """[B, count] places of the True in masked [B, T], which has `count` of them in each row; ascending."""
    return masked.float().argsort(dim=1, descending=True, stable=True)[:, :count]


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens [B, T, D] at positions [B, K] → [B, K, D]."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def normalise_patches(patches: Tensor) -> Tensor:
    """Each patch less its mean, over its standard deviation (He et al., 2022, section 3: better features than plain pixels)."""
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
    return (patches - mean) * torch.rsqrt(var + 1e-6)
