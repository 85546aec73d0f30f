"""A vision transformer small enough to check."""

from __future__ import annotations

import torch

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.image import ImageEncoder


def small_vit(pooled: str = "avg", size: int = 16) -> ImageEncoder:
    """4×4 pixels a patch, 16 wide, 2 blocks; pooled: "avg" of patches, or "token"."""
    torch.manual_seed(0)
    args = {"patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2}
    args |= {"global_pool": "avg", "class_token": False, "fc_norm": False} if pooled == "avg" else {}
    processor = ImageProcessor(size, 3, [0.5] * 3, [0.25] * 3)
    return ImageEncoder(processor, "vit_tiny_patch16_224", args, "standard", True)


def images(b: int = 3, v: int = 1, size: int = 16, seed: int = 1) -> dict:
    return {"views": {"image": torch.randn(v, b, 3, size, size, generator=torch.Generator().manual_seed(seed))}}
