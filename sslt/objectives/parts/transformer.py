"""Small transformers that objectives need while training only: MAE's decoder, I-JEPA's predictor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslt.errors import UserError


class Transformer(nn.Module):
    """Pre-norm blocks and a last norm (Dosovitskiy et al., 2021) on tokens [B, T, width]."""

    def __init__(self, width: int, depth: int, heads: int):
        super().__init__()
        from timm.models.vision_transformer import Block

        if width % heads or width % 4:
            raise UserError(f"objective.width={width}: give a multiple of 4 and of objective.heads={heads}")
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.blocks(tokens))


def grid_positions(grid: int, width: int) -> Tensor:
    """Fixed sine and cosine positions [grid², width] of a square grid (He et al., 2022, appendix A)."""
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    return build_sincos2d_pos_embed([grid, grid], width)


def mask_token(width: int) -> nn.Parameter:
    """What stands for a hidden token [width], learned."""
    return nn.Parameter(torch.randn(width) * 0.02)
