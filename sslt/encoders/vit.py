"""Vision transformers of timm, with patches hidden or left out before their blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslt.errors import UserError


def is_vit(model: Any) -> bool:
    """Whether `model` is one of timm's VisionTransformers."""
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(model, VisionTransformer)


def any_size(model: Any) -> None:
    """Let a ViT take images of other sizes than it was built for, by interpolated positions (multi-crop)."""
    from timm.layers import Format

    model.dynamic_img_size = True
    embed = model.patch_embed
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC


def check_patches(name: str, size: int, patch: int) -> None:
    """Raise `UserError` if patches do not tile the image."""
    if size % patch:
        near = [s for s in (size // patch * patch, -(-size // patch) * patch) if s]
        raise UserError(
            f"encoder {name}: images of {size} pixels are no whole number of patches of {patch}: "
            f"set encoder.processor.size={' or '.join(map(str, near))}, or encoder.args.patch_size"
        )


def encode(model: Any, image: Tensor, masked: Tensor | None, token: Tensor | None, visible: Tensor | None) -> Tensor:
    """Tokens [B, P + T, D] after the blocks and the norm, P class and register tokens first.

    masked [B, T]: True where a patch's embedding is replaced by `token` [D] (its position stays). visible [B, K]: the patches that go
    through the blocks at all; T is then K, in this order.
    """
    x = model.patch_embed(image)  # [B, h, w, D]
    if masked is not None:
        assert token is not None
        x = torch.where(masked.view(*x.shape[:3], 1), token.to(x.dtype), x)
    x = model._pos_embed(x)
    if visible is not None:
        first = model.num_prefix_tokens
        patches = x[:, first:].gather(1, visible.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :first], patches], 1)
    return model.norm(model.blocks(model.norm_pre(model.patch_drop(x))))
