"""Square tiles of images, encoded one by one: cutting, and what keeps a network from cheating on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from sslt.encoders.base import Encoder, evaluating
from sslt.errors import UserError
from sslt.objectives.base import wide
from sslt.objectives.parts.pixels import require_images

SMALLEST = 4  # pixels along a tile that still show something


def cut_tiles(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Tiles [B, N, C, side, side] of images [B, C, H, W] whose upper left corners are at top, left [B, N]; channels last in memory."""
    steps = torch.arange(side, device=images.device)
    rows = (top.unsqueeze(2) + steps).unsqueeze(3)  # [B, N, side, 1]
    columns = (left.unsqueeze(2) + steps).unsqueeze(2)
    sample = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    return images.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 1, 4, 2, 3)


def even_out(tiles: Tensor) -> Tensor:
    """Every channel of every tile to mean 0 and deviation 1, so that brightness and contrast give no hint at its neighbours
    (Noroozi & Favaro, 2016, section 4.2). A flat channel becomes 0."""
    tiles = wide(tiles)
    var, mean = torch.var_mean(tiles, (-2, -1), correction=0, keepdim=True)
    return (tiles - mean) * torch.rsqrt(var + 1e-5)


def drop_colour(tiles: Tensor, probability: float) -> Tensor:
    """Of some tiles [B, N, C, s, s] only one channel is kept, the others become noise of a hundredth of its deviation of 1.

    Doersch et al. (2015, section 3.1): chromatic aberration tells where in a photograph a tile lies. Grey images are left alone.
    """
    b, n, c = tiles.shape[:3]
    if not probability or c == 1:
        return tiles
    kept = torch.randint(c, (b, n, 1), device=tiles.device) == torch.arange(c, device=tiles.device)
    left_alone = torch.rand(b, n, 1, device=tiles.device) >= probability
    return torch.where((kept | left_alone)[..., None, None], tiles, 0.01 * torch.randn_like(tiles))


def encode_tiles(encoder: Encoder, tiles: Tensor) -> Tensor:
    """Pooled features [B, N, D] of tiles [B, N, C, s, s], in one forward."""
    return encoder({"image": tiles.flatten(0, 1)}).pooled.unflatten(0, tiles.shape[:2])


def tile_side(encoder: Encoder, key: str, given: int | None, derive: Callable[[int], int]) -> int:
    """The side of a tile: as `given` under objective.`key`, or `derive`d from the image's side, in whole patches.

    Raises `UserError` where the images are too small, the side is no whole number of patches, or the encoder cannot take such tiles.
    """
    require_images(encoder)
    size, patch = encoder.processor.size, encoder.patch
    smallest = -(-SMALLEST // patch) * patch
    side = derive(size) // patch * patch if given is None else given
    if given is None and side < smallest:
        enough = next(s for s in itertools.count(patch, patch) if derive(s) >= smallest)
        raise UserError(f"images of {size} pixels are too small to be cut into tiles: set encoder.processor.size={enough} or more")
    if side < 1 or side % patch:
        near = sorted({max(side // patch, 1) * patch, -(-max(side, 1) // patch) * patch})
        raise UserError(
            f"objective.{key}={side}: the encoder takes tiles of whole patches of {patch} pixels: "
            f"set objective.{key}={' or '.join(map(str, near))}"
        )
    _try(encoder, key, side)
    return side


def _try(encoder: Encoder, key: str, side: int) -> None:
    """Raise `UserError` if the encoder cannot take tiles of `side`, or makes another number of features of them."""
    device = next(encoder.parameters()).device
    try:
        with evaluating(encoder):
            pooled = encoder({"image": torch.zeros(2, encoder.processor.channels, side, side, device=device)}).pooled
        problem = "" if pooled.shape == (2, encoder.dim) else f"makes {pooled.shape[1]} features of them instead of {encoder.dim}"
    except (RuntimeError, AssertionError, ValueError, IndexError) as e:
        problem = f"cannot take them ({str(e).splitlines()[0] if str(e) else type(e).__name__})"
    if problem:
        name = encoder.args.get("name", type(encoder).__name__)
        raise UserError(
            f"this objective encodes tiles of {side} pixels, and {name} {problem}: choose an encoder= for any size, such as resnet_small, "
            f"or set objective.{key}="
        )
