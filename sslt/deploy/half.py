"""Matrices in 16 bits on disk, computed in 32 as before: half the size, and nothing faster."""

from __future__ import annotations

from typing import Any

import torch

from sslt.data.base import Samples
from sslt.deploy.method import Method
from sslt.encoders.base import Encoder
from sslt.encoders.files import STORED_AS, rounded
from sslt.errors import UserError, nearest
from sslt.runs import Run
from sslt.targets.base import Target


class Half(Method):
    """dtype: "float16" (11 significant bits, up to 65504) or "bfloat16" (8 bits, the range of float32).

    Only tensors of two dimensions or more are rounded: biases, norms and running statistics are few, and their range is large.
    """

    def __init__(self, dtype: str):
        super().__init__()
        if dtype not in STORED_AS:
            raise UserError(f"method.dtype={dtype}: give {' or '.join(STORED_AS)}{nearest(dtype, STORED_AS)}")
        self.dtype = dtype

    def apply(
        self, encoder: Encoder, target: Target, train: Samples | None, val: Samples | None, cfg: Any, run: Run
    ) -> tuple[Encoder, Target]:
        with torch.no_grad():
            for tensor in encoder.state_dict().values():
                tensor.copy_(rounded(tensor, self.dtype).to(tensor.dtype))
        encoder.stored_as = self.dtype
        self.remarks.append(f"computed in float32 as before: {self.dtype} halves what is stored, and makes nothing faster here")
        return encoder, target
