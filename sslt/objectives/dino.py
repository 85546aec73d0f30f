"""DINO and iBOT: self-distillation over prototypes, of whole images and of hidden patches."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.encoders.base import Encoder, Features
from sslt.objectives.base import Loss, encode_views, full_precision, n_views
from sslt.objectives.parts.masking import block_tokens, check_share, positions_of, take
from sslt.objectives.parts.momentum import Taught, Teacher
from sslt.objectives.parts.prototypes import Centre, UnitPrototypes, cross_entropy_of_views, entropy, head, ramp
from sslt.objectives.parts.transformer import mask_token
from sslt.ranges import Count, Positive, Share, interval

UNDECIDED = 0.99  # share of the largest entropy from which on targets say next to nothing


class DINO(Taught):
    """Self-distillation with no labels (Caron et al., 2021, algorithm 1).

    Reads `views` [V, B, ...], which student and teacher see, and `local` [L, B, ...] where there are small crops, which only the
    student sees. Every student view predicts the teacher's assignment of every other view. The teacher's scores are centred by the
    running mean of all ranks (centre_momentum) and sharpened: its temperature rises from teacher_temperature_start to
    teacher_temperature over the first `warmup` share of the run. The prototypes stay still for the first share `freeze` of it.
    hidden, bottleneck: of the projector; out: prototypes. momentum: of the `Teacher`.
    The teacher is evaluated: it is ahead of the student all through training (section 3.1), and the authors' kNN and linear
    evaluations load it by default.

    Logs the entropy of the batch's mean target (`prototype_entropy`: 0 if one prototype takes all) and the mean entropy of the targets
    (`target_entropy`: log K if the teacher prefers nothing, so that there is nothing to learn).
    """

    advice = "try a lower learning rate, a longer schedule.warmup, or teacher temperature and number of prototypes anew"
    needs_full_batches = True
    only_pooled = True
    least_views = 2
    evaluated = "teacher"

    def __init__(
        self,
        encoder: Encoder,
        hidden: Count,
        bottleneck: Count,
        out: Count,
        temperature: Positive,
        teacher_temperature_start: Positive,
        teacher_temperature: Positive,
        warmup: Share,
        freeze: Share,
        momentum: Share | list[Share],
        centre_momentum: Share,
    ):
        super().__init__()
        self.temperature, self.warmup, self.freeze = temperature, warmup, freeze
        self.teacher_temperatures = (teacher_temperature_start, teacher_temperature)
        self.projector, self.prototypes = head(encoder.dim, hidden, bottleneck), UnitPrototypes(bottleneck, out)
        self.centre = Centre(out, centre_momentum)
        self.undecided: Tensor | None = None  # the targets' entropy as last logged, as a share of the largest possible
        self.teacher = Teacher(momentum, encoder=encoder, projector=self.projector, prototypes=self.prototypes)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        v = n_views(batch["views"])
        pooled = [encode_views(encoder, batch).pooled.unflatten(0, (v, -1))]
        if "local" in batch:
            small = encode_views(encoder, {"views": batch["local"]}).pooled
            pooled.append(small.unflatten(0, (n_views(batch["local"]), -1)))
        student = self.student_scores(torch.cat([x.flatten(0, 1) for x in pooled])).unflatten(0, (-1, pooled[0].shape[1]))
        teacher = self.teacher_scores(self.teach(batch).pooled).unflatten(0, (v, -1))
        return self.compare(student, teacher)

    def compare(self, student: Tensor, teacher: Tensor) -> Loss:
        """The loss of scores [S, B, K] and [V, B, K]; moves the centre."""
        targets = self.sharpened(self.centre(teacher))
        loss = cross_entropy_of_views(targets, F.log_softmax(student / self.temperature, -1))
        if self.training:
            self.centre.update(teacher)
        logs = {}
        if self.logs_now:
            logs["prototype_entropy"] = entropy(targets.flatten(0, 1).mean(0))
            logs["target_entropy"] = entropy(targets).mean()
            self.undecided = logs["target_entropy"] / math.log(targets.shape[-1])
        return Loss(loss, logs)

    def student_scores(self, features: Tensor) -> Tensor:
        return self.prototypes(self.projector(features), frozen=self.progress < self.freeze)

    @torch.no_grad()
    def teach(self, batch: dict) -> Features:
        """The teacher's features of `views`."""
        teacher: Any = self.teacher["encoder"]
        return encode_views(teacher, {"views": batch["views"]})

    @torch.no_grad()
    def teacher_scores(self, features: Tensor) -> Tensor:
        return self.teacher["prototypes"](self.teacher["projector"](features))

    def sharpened(self, scores: Tensor) -> Tensor:
        with full_precision():
            return F.softmax(scores / ramp(*self.teacher_temperatures, self.warmup, self.progress), -1)

    def trouble(self) -> str | None:
        if self.undecided is None or self.undecided < UNDECIDED:
            return None
        return (
            f"the teacher prefers no prototype to another (the entropy of its targets is {100 * float(self.undecided):.1f} % of the "
            "largest), so there is little to learn from it; if that lasts, try a lower objective.teacher_temperature and "
            "teacher_temperature_start, fewer prototypes (objective.out) or a larger batch"
        )


class IBOT(DINO):
    """Image BERT with an online tokenizer (Zhou et al., 2022, eq. 2 and 3): DINO, and the same for hidden patches.

    Student views have patches hidden in blocks; for each, the student predicts the assignment that the teacher, who sees all, gives
    this patch. Head and prototypes are shared by images and patches; each has a centre of its own. share: of the patches, equally many in
    every view (the paper leaves half of the views whole and varies the share). aspect: range of the blocks'. Other arguments: as DINO.
    The teacher is evaluated and fine-tuned, as by the authors' commands.
    """

    modality = "image"
    only_pooled = False

    def __init__(
        self,
        encoder: Encoder,
        share: Share,
        aspect: list[Positive],
        hidden: Count,
        bottleneck: Count,
        out: Count,
        temperature: Positive,
        teacher_temperature_start: Positive,
        teacher_temperature: Positive,
        warmup: Share,
        freeze: Share,
        momentum: Share | list[Share],
        centre_momentum: Share,
    ):
        encoder.require_tokens(pooled=True)
        check_share("share", share)
        super().__init__(
            encoder, hidden, bottleneck, out, temperature, teacher_temperature_start, teacher_temperature, warmup, freeze, momentum,
            centre_momentum,
        )  # fmt: skip
        self.share, self.aspect = share, interval(aspect, "objective.aspect")
        self.token = mask_token(encoder.dim)
        self.patch_centre = Centre(out, centre_momentum)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        v = n_views(batch["views"])
        images = batch["views"]["image"].flatten(0, 1)
        whole = self.teach(batch)
        grid = int(whole.tokens.shape[1] ** 0.5)
        masked = block_tokens(len(images), grid, self.share, self.aspect, images.device)
        hidden = positions_of(masked, max(1, round(self.share * grid**2)))
        seen = encoder(encoder.hide({"image": images}, masked, self.token))
        rows, local = [seen.pooled, take(seen.tokens, hidden).flatten(0, 1)], 0
        if "local" in batch:
            local = n_views(batch["local"])
            rows.insert(1, encode_views(encoder, {"views": batch["local"]}).pooled)
        scores = self.student_scores(torch.cat(rows))
        taught = self.teacher_scores(torch.cat([whole.pooled, take(whole.tokens, hidden).flatten(0, 1)]))
        n, b = len(images), len(images) // v
        images_loss = self.compare(scores[: n + local * b].unflatten(0, (-1, b)), taught[:n].unflatten(0, (v, b)))
        targets = self.sharpened(self.patch_centre(taught[n:]))
        guesses = F.log_softmax(scores[n + local * b :] / self.temperature, -1)
        patches_loss = -(targets * guesses).sum(-1).mean()
        if self.training:
            self.patch_centre.update(taught[n:])
        logs = {**images_loss.logs, "image_loss": images_loss.value.detach(), "patch_loss": patches_loss.detach()}
        return Loss(images_loss.value + patches_loss, logs)
