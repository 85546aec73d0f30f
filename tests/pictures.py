"""Images as samples, for tests of what is done with pixels: no files."""

from __future__ import annotations

import torch

from sslt.data import cache


class Pictures:
    """Images [N, C, H, W] as samples."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    @property
    def fingerprint(self) -> str:
        return cache.digest(self.images.numpy())

    def __len__(self):
        return len(self.images)

    def batch(self, index):
        return {"image": self.images[torch.from_numpy(index)]}
