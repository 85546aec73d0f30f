"""data2vec and I-JEPA: what is hidden is predicted as a momentum teacher's features of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt import lanes
from sslt.encoders.base import Encoder
from sslt.encoders.pixels import PixelEncoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, wide
from sslt.objectives.parts.masking import block_tokens, check_share, random_tokens, take
from sslt.objectives.parts.momentum import Taught, Teacher
from sslt.objectives.parts.transformer import Transformer, grid_positions, mask_token
from sslt.ranges import Count, NonNegative, Positive, Share, interval


class Data2Vec(Taught):
    """data2vec (Baevski et al., 2022), for images and text alike: hidden tokens' features, as the teacher's last layers have them.

    Reads `views` [V, B, ...]. The target of a token is the mean of the outputs of the teacher's last `layers` blocks (null: of the
    upper half; theirs are the outputs of the blocks' feed-forward parts, before the residual sum), each normalised over its features
    (section 3.3); the student, who sees the input with tokens hidden, predicts it by a linear layer where they are hidden. Smooth L1
    with `beta` (0: squared error), averaged over hidden tokens, then over samples. share: of the tokens that are hidden. blocks: in
    rectangles (images only), else one by one. momentum: of the `Teacher`. The student is evaluated: it is what the authors' code
    fine-tunes, which drops the teacher's weights.
    """

    advice = "try a lower learning rate, a longer schedule.warmup or a teacher that follows more slowly (objective.momentum)"

    def __init__(
        self,
        encoder: Encoder,
        share: Share,
        blocks: bool,
        aspect: list[Positive],
        layers: Count | None,
        beta: NonNegative,
        momentum: Share | list[Share],
    ):
        super().__init__()
        encoder.require_tokens(pooled=False)
        check_share("share", share)
        layers = max(1, encoder.depth // 2) if layers is None else layers
        if not 1 <= layers <= encoder.depth:
            raise UserError(f"objective.layers={layers}: the encoder has {encoder.depth} blocks, give 1 to {encoder.depth}")
        self.share, self.beta, self.layers, self.aspect = share, beta, layers, interval(aspect, "objective.aspect")
        self.blocks = blocks and encoder.modality == "image"
        self.token = mask_token(encoder.dim) if encoder.modality == "image" else None
        self.predict = nn.Linear(encoder.dim, encoder.dim)
        self.teacher = Teacher(momentum, encoder=encoder)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        inputs = {k: x.flatten(0, 1) for k, x in batch["views"].items()}
        hideable = encoder.hideable(inputs)
        if self.blocks:
            masked = block_tokens(len(hideable), math.isqrt(hideable.shape[1]), self.share, self.aspect, hideable.device)
        else:
            masked = random_tokens(hideable, self.share)
        target = self.targets(inputs, hideable.shape[1])
        predicted = wide(self.predict(encoder(encoder.hide(inputs, masked, self.token)).tokens))  # type: ignore[arg-type]
        if self.beta:
            gap = F.smooth_l1_loss(predicted, target, beta=self.beta, reduction="none")
        else:
            gap = F.mse_loss(predicted, target, reduction="none")
        each = (gap.mean(-1) * masked).sum(1) / masked.sum(1).clamp(min=1)
        spread = target.flatten(0, 1).std(0).mean() if self.logs_now else None  # near 0: the teacher says the same of everything
        return Loss(each.mean(), {} if spread is None else {"target_spread": spread})

    @torch.no_grad()
    def targets(self, inputs: dict[str, Tensor], tokens: int) -> Tensor:
        """[B, T, D] in float32."""
        teacher = cast(Encoder, self.teacher["encoder"])
        with outputs_of(teacher, teacher.block_names()[-self.layers :]) as outputs:
            teacher(inputs)
        last = [teacher.in_rows(x[0] if isinstance(x, tuple) else x, inputs) for x in outputs]
        # class and register tokens stand before those of the input
        return torch.stack([F.layer_norm(wide(x[:, -tokens:]), x.shape[-1:]) for x in last]).mean(0)


@contextlib.contextmanager
def outputs_of(module: nn.Module, names: list[str]) -> Iterator[list[Any]]:
    """What the submodules `names` give while the context is open, in the order of their calls."""
    caught: list[Any] = []
    handles = [module.get_submodule(n).register_forward_hook(lambda m, inputs, output: caught.append(output)) for n in names]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


class IJEPA(Taught):
    """Image joint-embedding predictive architecture (Assran et al., 2023).

    Reads `views` [V, B, C, H, W], best without colour augmentation. The encoder sees a large block of patches less the target
    blocks; from it, a narrow predictor gives the teacher's features, normalised per patch, at each of `targets` blocks. Smooth L1.
    Blocks of a step have one size, drawn with area in context_scale or target_scale (shares of the image) and, for targets, aspect; their
    places are each image's own; contexts are cut at random to the smallest one's number of patches, as in the paper's code, or to a row
    of patches where that is more, for which an image whose targets cover its context gives others. All ranks have the same sizes.
    width, depth, heads: of the predictor. The teacher is evaluated: the paper's results are those of the target encoder.
    """

    advice = "try a lower learning rate, a longer schedule.warmup or a teacher that follows more slowly (objective.momentum)"
    modality = "image"
    evaluated = "teacher"

    def __init__(
        self,
        encoder: PixelEncoder,
        targets: Count,
        context_scale: list[Share],
        target_scale: list[Share],
        aspect: list[Positive],
        width: Count,
        depth: Count,
        heads: Count,
        momentum: Share | list[Share],
    ):
        super().__init__()
        encoder.require_tokens(pooled=False)
        self.grid = encoder.grid
        self.n_targets, self.aspect = targets, interval(aspect, "objective.aspect")
        self.context_scale = interval(context_scale, "objective.context_scale")
        self.target_scale = interval(target_scale, "objective.target_scale")
        self.embed, self.token = nn.Linear(encoder.dim, width), mask_token(width)
        self.register_buffer("positions", grid_positions(self.grid, width), persistent=False)
        self.predictor, self.predict = Transformer(width, depth, heads), nn.Linear(width, encoder.dim)
        self.teacher = Teacher(momentum, encoder=encoder)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        images = batch["views"]["image"].flatten(0, 1)
        context, blocks = (x.to(images.device, non_blocking=True) for x in self.draw_blocks(len(images)))  # [B, K], [M, B, P]
        with torch.no_grad():
            tokens = wide(self.teacher["encoder"]({"image": images}).tokens)
            tokens = F.layer_norm(tokens, tokens.shape[-1:])
            target = torch.stack([take(tokens, block) for block in blocks])
        known = encoder({"image": images, "visible": context}).tokens
        loss = F.smooth_l1_loss(wide(self.predicted(known, context, blocks)), target)
        return Loss(loss, {"target_spread": tokens.flatten(0, 1).std(0).mean()} if self.logs_now else {})

    def predicted(self, known: Tensor, context: Tensor, blocks: Tensor) -> Tensor:
        """Features [M, B, P, D] of the blocks [M, B, P] from tokens [B, K, D] at `context` [B, K]; all blocks in one forward."""
        m, b, p = blocks.shape
        positions = cast(Tensor, self.positions)
        x = self.embed(known)
        x = (x + positions[context].to(x.dtype)).repeat(m, 1, 1)
        asked = (self.token + positions[blocks.flatten(0, 1)]).to(x.dtype)
        return self.predict(self.predictor(torch.cat([x, asked], 1))[:, -p:]).unflatten(0, (m, b))

    def draw_blocks(self, b: int) -> tuple[Tensor, Tensor]:
        """Positions of contexts [B, K] and of target blocks [M, B, P]; made on the CPU, since K is a number that Python needs."""
        h, w = self._size(self.target_scale, self.aspect)
        targets = torch.stack([self._places(b, h, w) for _ in range(self.n_targets)])  # [M, B, T]
        side, _ = self._size(self.context_scale, (1.0, 1.0))
        untaken = ~targets.any(0)  # [B, T]
        free = self._places(b, side, side) & untaken
        # where the targets cover an image's whole context, what is nobody's target stands in: no target is shown, unless they cover all
        keep = max(1, lanes.least(int(free.sum(1).clamp(min=self.grid).minimum(untaken.sum(1)).min())))
        order = (torch.rand(free.shape) + (~free) + (~untaken)).argsort(1)[:, :keep]
        positions = targets.flatten(0, 1).float().argsort(dim=1, descending=True, stable=True)[:, : h * w]
        return order.sort(1).values, positions.unflatten(0, (self.n_targets, b))

    def _size(self, scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        """Height and width of a block, in patches."""
        rng = lanes.common()
        area = float(torch.empty(()).uniform_(*scale, generator=rng)) * self.grid**2
        ratio = math.exp(float(torch.empty(()).uniform_(math.log(aspect[0]), math.log(aspect[1]), generator=rng)))
        sides = (round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio)))
        height, width = (min(max(s, 1), self.grid) for s in sides)
        return height, width

    def _places(self, b: int, h: int, w: int) -> Tensor:
        """[B, T] bool: a block of h × w patches at a random place of each image."""
        place = torch.arange(self.grid)
        top, left = torch.randint(self.grid - h + 1, (b, 1)), torch.randint(self.grid - w + 1, (b, 1))
        rows, columns = (place >= top) & (place < top + h), (place >= left) & (place < left + w)
        return (rows.unsqueeze(2) & columns.unsqueeze(1)).flatten(1)
