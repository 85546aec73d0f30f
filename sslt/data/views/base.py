"""What the objective sees of a batch: made for the whole batch at once, on its device, with parameters per sample."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sslt.errors import UserError
from sslt.ranges import Count


class Views(nn.Module):
    """batch of prepared samples → batch with what an objective reads. `encoder` says what its inputs look like."""

    modality: str | None = None  # None: any
    n = 1  # views of a sample, of full size
    n_setting: str | None = None  # what makes them more
    tells_frames = False  # whether `frame` says what of an image each of `views` shows, or that is all of it: answers can be moved with it
    whole_texts = False  # whether they choose their own parts of texts, which then come uncut

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        raise NotImplementedError

    def check(self, encoder: Any) -> None:
        """Raise `UserError` where these views are of no use to `encoder`; called before training."""


class Plain(Views):
    """The samples as they are, `n` times: `views` [n, B, ...].

    With n=2 on text the two views differ by the encoder's dropout alone (SimCSE: Gao et al., 2021).
    """

    n_setting = "views.n"
    tells_frames = True

    def __init__(self, n: Count):
        super().__init__()
        self.n = n

    def check(self, encoder: Any) -> None:
        if self.n > 1 and not encoder.varies:
            raise UserError(f"views.n={self.n} makes equal views, and this encoder has no dropout to tell them apart: set dropout=0.1")

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        inputs = encoder.inputs(batch)
        return {**batch, "views": {k: x.unsqueeze(0).expand(self.n, *x.shape) for k, x in inputs.items()}}
