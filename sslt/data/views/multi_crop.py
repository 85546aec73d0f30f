"""Multi-crop: two large views and several small ones of every image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sslt.data.views.base import Views
from sslt.data.views.image_views import ImageViews
from sslt.errors import UserError
from sslt.ranges import Count, Share


class MultiCrop(Views):
    """`views` [V, B, C, S, S] and `local` [L, B, C, s, s] of each image (Caron et al., 2020, section 3.2).

    large, small: the views of each size. small_size: s, as a share of the encoder's size S. multiple: s is a multiple of it (a ViT's
    patch size).
    """

    modality = "image"
    n_setting = "views.large.n"

    def __init__(self, large: ImageViews, small: ImageViews, small_size: Share, multiple: Count):
        super().__init__()
        if not 0 < small_size <= 1:
            raise UserError(f"views.small_size={small_size}: give a share of the image's side, more than 0 and at most 1")
        self.n = large.n
        self.large, self.small, self.small_size, self.multiple = large, small, small_size, multiple

    def crop_size(self, size: int) -> int:
        """Side of the small crops of images of side `size`."""
        return max(1, round(size * self.small_size / self.multiple)) * self.multiple

    def check(self, encoder: Any) -> None:
        size = self.crop_size(encoder.processor.size)
        if size % encoder.patch:
            raise UserError(
                f"small crops of {size} pixels are no whole number of the encoder's patches of {encoder.patch}: "
                f"set views.multiple={encoder.patch}"
            )

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        p = encoder.processor
        size = self.crop_size(p.size)
        crops = self.small.augment(batch["image"], size, list(p.mean), list(p.std))
        return {**self.large(batch, encoder), "local": {"image": crops}}
