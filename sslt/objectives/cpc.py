"""Contrastive predictive coding on a grid of patches: rows further down from the rows above."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt import distributed
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, full_precision, wide
from sslt.objectives.parts.pixels import choice, images_of
from sslt.objectives.parts.tiles import cut_tiles, encode_tiles, tile_side
from sslt.ranges import Count, NonNegative


class RowBlock(nn.Module):
    """A residual block on maps [B, D, G, G] in which a row sees itself and the one above (Hénaff et al., 2020, appendix A.2)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.reduce = nn.Conv2d(dim, hidden, 1)
        self.along = nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1))
        self.down = nn.Conv2d(hidden, hidden, (2, 1))
        self.expand = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.along(F.relu(self.reduce(x)))
        h = self.down(F.pad(h, (0, 0, 1, 0)))  # an empty row on top, so that row i is made of rows i-1 and i
        return x + self.expand(F.relu(h))


def patch_logits(predicted: Tensor, targets: Tensor, below: int) -> tuple[Tensor, Tensor]:
    """Scores [B·(G - below)·G, W·B·G·G] of predictions [B, d, G, G] by each row for the row `below` it, against the targets [B, d, G, G]
    of all W ranks, and the right columns. The negatives of a patch are all other patches of all images (Hénaff et al., 2020, eq. 2).
    """
    b, _, rows, columns = targets.shape
    everyone = distributed.gather(targets.permute(0, 2, 3, 1)).flatten(0, 2)
    logits = predicted[:, :, : rows - below].permute(0, 2, 3, 1).flatten(0, 2) @ everyone.T
    first = torch.arange(distributed.rank() * b, (distributed.rank() + 1) * b, device=targets.device) * (rows * columns)
    return logits, (first[:, None] + torch.arange(below * columns, rows * columns, device=targets.device)).flatten()


class CPC(Objective):
    """Contrastive predictive coding (van den Oord et al., 2018, section 3.2; the context network and scaling of Hénaff et al., 2020).

    Reads `views` [V, B, C, S, S]. Each image is cut into a grid of overlapping patches, each encoded alone (grid²·V·B in one forward).
    A network of masked convolutions makes of every place a context of the rows down to it, which predicts, linearly, the features k
    rows below, for each k in `rows`; the loss is the mean over k of the cross-entropy of `patch_logits` (InfoNCE). Ranks must have
    equally large batches.

    Neighbouring rows show some of the same pixels where they overlap, so k best starts at 2. BatchNorm in the encoder (theirs is layer
    normalisation) lets patches of one batch see each other's statistics; a ViT has none.

    grid: patches along a side. patch: their side; null: so that neighbours overlap by half, in whole patches of a ViT. hidden, blocks:
    of the context network. out, scale: dimensions of predictions and targets, and a factor of the predictions.
    """

    advice = "try a lower learning rate or a larger batch_size, whose patches are the negatives"

    def __init__(
        self,
        encoder: Encoder,
        grid: Count,
        patch: Count | None,
        rows: list[Count],
        hidden: Count,
        blocks: Count,
        out: Count,
        scale: NonNegative,
    ):
        super().__init__()
        if grid < 2 or not rows or min(rows) < 1 or max(rows) >= grid:
            raise UserError(
                f"objective.rows={list(rows)}: of a grid of {grid} rows, give how many rows below is predicted, 1 to {grid - 1}"
            )
        size = encoder.processor.size if encoder.modality == "image" else 0
        self.patch = tile_side(encoder, "patch", patch, lambda side: 2 * side // (grid + 1))
        if self.patch > size:
            raise UserError(f"objective.patch={self.patch}: images have encoder.processor.size={size} pixels")
        self.scale = scale
        start = torch.linspace(0, size - self.patch, grid).round().long()
        self.register_buffer("start", start, persistent=False)
        self.context = nn.Sequential(*(RowBlock(encoder.dim, hidden) for _ in range(blocks)), nn.ReLU(inplace=True))
        self.target = nn.Conv2d(encoder.dim, out, 1)
        self.predict = nn.ModuleDict({str(k): nn.Conv2d(encoder.dim, out, 1) for k in sorted(set(rows))})

    def features(self, encoder: Encoder, images: Tensor) -> Tensor:
        """[B, D, grid, grid]: the pooled features of each patch alone."""
        start = self.start
        assert isinstance(start, Tensor)
        g, b = len(start), len(images)
        top, left = (x.expand(b, -1) for x in (start.repeat_interleave(g), start.repeat(g)))
        return encode_tiles(encoder, cut_tiles(images, top, left, self.patch)).transpose(1, 2).unflatten(2, (g, g))

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        features = self.features(encoder, images_of(batch))
        context, targets = self.context(features), self.target(features)
        predicted = {int(k): self.scale * predict(context) for k, predict in self.predict.items()}
        with full_precision():
            targets = wide(targets)
            found = [choice(*patch_logits(wide(p), targets, k), self.logs_now) for k, p in predicted.items()]
        logs = {name: torch.stack([part.logs[name] for part in found]).mean() for name in found[0].logs}
        return Loss(torch.stack([part.value for part in found]).mean(), logs)
