"""Rotation and flip: every image in four positions, and the question which one it is in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslt.data.views.base import Views
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, Picture
from sslt.objectives.parts.pixels import answers, choice, images_of, require_images


class _Positions(Objective):
    """Reads `views` [V, B, C, S, S]; each image is encoded in all K positions, in one forward of K·V·B, and classified linearly."""

    advice = (
        "train for longer, or by a task that compares views (+task=simclr): this one may be solved by other means than "
        "what classes differ in"
    )
    names: tuple[str, ...]

    def __init__(self, encoder: Encoder):
        super().__init__()
        require_images(encoder)
        self.head = nn.Linear(encoder.dim, len(self.names))

    def place(self, images: Tensor, position: int) -> Tensor:
        """Images [N, C, S, S] in one of the positions."""
        raise NotImplementedError

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        images = images_of(batch)
        turned = torch.cat([self.place(images, k) for k in range(len(self.names))])
        logits = self.head(encoder({"image": _like(turned, images)}).pooled)
        truth = torch.arange(len(self.names), device=images.device).repeat_interleave(len(images))
        return choice(logits, truth, self.logs_now)

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = images_of(batch)[:12]
        truth = [i % len(self.names) for i in range(len(images))]
        seen = torch.cat([self.place(images[i : i + 1], k) for i, k in enumerate(truth)])
        said = self.head(encoder({"image": seen}).pooled).argmax(1).tolist()
        captions = answers([self.names[k] for k in said], [self.names[k] for k in truth])
        return {type(self).__name__.lower(): Picture({"seen": seen}, captions)}


def _like(turned: Tensor, images: Tensor) -> Tensor:
    """In the memory format of the images as they came, which turning changes."""
    last = images.is_contiguous(memory_format=torch.channels_last) and images.shape[1] > 1
    return turned.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class Rotation(_Positions):
    """By how much an image was turned: 0, 90, 180 or 270 degrees (Gidaris et al., 2018, section 3.1).

    All four copies of an image are in the same batch, as in their section 3.2. Reads `views` [V, B, C, S, S]. The views may mirror
    images, but must not turn them.
    """

    names = ("0°", "90°", "180°", "270°")

    def place(self, images: Tensor, position: int) -> Tensor:
        return images.rot90(position, (2, 3))


class Flip(_Positions):
    """How an image was flipped: not, left-right, upside-down or both, the last being half a turn.

    `Rotation` with the other four symmetries of a rectangle. Reads `views` [V, B, C, S, S], which must not be mirrored
    (views.flip=0), or left and right cannot be told. Images that are their own mirror image cannot be solved.
    """

    names = ("not", "left-right", "upside-down", "both")

    def check_views(self, views: Views) -> None:
        if getattr(views, "flip", 0):
            raise UserError(f"views.flip={views.flip} mirrors images before they are asked about: set views.flip=0")

    def place(self, images: Tensor, position: int) -> Tensor:
        return images.flip([dim for dim, bit in ((3, 1), (2, 2)) if position & bit])
