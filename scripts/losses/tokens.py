"""Objectives with prototypes or with hidden patches: a draw z [2, B, D] becomes scores, tokens or images, then rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightly import loss as peer
from lightly.models import utils
from torch import Tensor, nn

from losses.common import Given, Row, build, ours
from sslt.encoders.base import Features

GRID, PATCH = 4, 2  # tokens and pixels along a side


class GivenTokens(Given):
    """An encoder whose inputs are its features: the pooled one first, then those of GRID × GRID tokens."""

    grid = GRID

    def __init__(self, dim: int):
        super().__init__(dim)
        from types import SimpleNamespace

        self.processor = SimpleNamespace(size=GRID * PATCH, channels=3)
        self.masked: Any = None

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        x = inputs["image"]
        return Features(x[:, 0], x[:, 1:]) if x.dim() == 3 else Features(x, x.unsqueeze(1))

    def require_tokens(self, pooled: bool) -> None:
        pass

    def hideable(self, inputs: dict[str, Tensor]) -> Tensor:
        return torch.ones(len(inputs["image"]), GRID**2, dtype=torch.bool)

    def hide(self, inputs: dict[str, Tensor], masked: Tensor, token: Tensor) -> dict[str, Tensor]:
        self.masked = masked
        return inputs


class Scores(nn.Module):
    """Stands for prototypes: rows are scores already."""

    def forward(self, rows: Tensor, frozen: bool = False) -> Tensor:
        return rows


def like(z: Tensor, *shape: int) -> Tensor:
    """Random numbers, always the same, that depend on nothing."""
    return torch.randn(*shape, z.shape[-1], generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- prototypes
def dino(z: Tensor) -> Iterator[Row]:
    _, b, k = z.shape
    objective = build("dino", GivenTokens(k), out=k)
    objective.progress = 1.0
    objective.centre.mean.copy_(like(z)[:k])
    teacher, local = like(z, 2, b) + z.detach(), 0.5 * like(z, 4, b)
    student = torch.cat([z, local])
    for crops in (2, 6):
        centre = objective.centre.mean.clone()
        theirs = peer.DINOLoss(k, teacher_temp=objective.teacher_temperatures[1], student_temp=objective.temperature)
        theirs.center = centre.view(1, 1, -1).clone()
        values = objective.compare(student[:crops], teacher).value, theirs(list(teacher), list(student[:crops]))
        yield Row(f"{crops} crops", *values)
        probe = like(z)[:k]
        yield Row(f"{crops} crops, the centre afterwards", objective.centre.mean @ probe, theirs.center.flatten() @ probe)


def ibot(z: Tensor) -> Iterator[Row]:
    _, b, k = z.shape
    encoder = GivenTokens(k)
    objective = build("ibot", encoder, out=k)
    objective.progress = 1.0
    objective.prototypes = Scores()
    objective.teacher.copies["prototypes"] = Scores()
    x = torch.cat([z.unsqueeze(2), z.unsqueeze(2) + like(z, 2, b, GRID**2)], 2)  # [2, B, 1 + T, K]
    value = objective(encoder, {"views": {"image": x}}).value
    temperatures = {"teacher_temp": objective.teacher_temperatures[1], "student_temp": objective.temperature}
    taught = objective.teacher_scores(x.detach())
    images = peer.DINOLoss(k, **temperatures)(list(taught[:, :, 0]), list(x[:, :, 0]))
    masked = encoder.masked
    tokens = [rows[:, :, 1:].flatten(0, 1)[masked] for rows in (taught, x)]
    patches = peer.IBOTPatchLoss(k, **temperatures)(*tokens, masked.unflatten(1, (GRID, GRID)))
    yield Row("DINO and patches", value, images + patches)


def msn(z: Tensor) -> Iterator[Row]:
    _, b, d = z.shape
    encoder = GivenTokens(d)
    objective = build("msn", encoder, out=d, prototypes=2 * d)
    theirs = peer.MSNLoss(objective.temperature, sinkhorn_iterations=0, regularization_weight=objective.spread)
    target = z.detach()[0] + 0.5 * like(z, b)
    value = objective(encoder, {"views": {"image": torch.cat([target.unsqueeze(0), z])}}).value
    with torch.no_grad():
        taught = objective.teacher["projector"](target)
    sharpen = objective.target_temperature / objective.temperature
    shown = theirs(z.flatten(0, 1), taught, objective.prototypes.weight, target_sharpen_temperature=sharpen)
    choice = (
        "Minus the entropy of the mean assignment, as in the paper's equation 2; the peer adds the constant log K. Targets are sharpened "
        "and no more; the peer can send them through Sinkhorn's algorithm (here sinkhorn_iterations=0)."
    )
    yield Row(f"{2 * d} prototypes", value, shown, shown - objective.spread * torch.tensor(2.0 * d).log(), choice)


def swav(z: Tensor) -> Iterator[Row]:
    _, b, d = z.shape
    local = 0.5 * like(z, 4, b) + z.mean(0)
    for queue in (0, 3 * d):
        encoder = Given(d)
        objective = build("swav", encoder, out=d, prototypes=2 * d, queue=queue)
        objective.progress, objective.filled = 1.0, torch.tensor(queue)
        past = None if objective.queue is None else [objective.prototypes(objective.queue.rows)] * 2
        theirs = peer.SwaVLoss(objective.temperature, objective.iterations, objective.epsilon)
        scores = [objective.prototypes(x) for x in (*z, *local)]
        value = theirs(scores[:2], scores[2:], past)
        yield Row(f"2 + 4 crops, queue of {queue}" if queue else "2 + 4 crops", ours(objective, z, local={"z": local}), value.squeeze())


# ---------------------------------------------------------------- hidden patches
def images_of(z: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, 3, 8, 8], which depend on nothing, and a prediction [B, T, 12] of all patches, which depends on z."""
    b, d = z.shape[1:]
    g = torch.Generator().manual_seed(2)
    images = torch.randn(b, 3, GRID * PATCH, GRID * PATCH, generator=g) * 2 + 1
    return images, (z[0] @ torch.randn(d, GRID**2 * 3 * PATCH**2, generator=g)).unflatten(1, (GRID**2, -1)) / d**0.5


def mae(z: Tensor) -> Iterator[Row]:
    images, predicted = images_of(z)
    for normalise in (False, True):
        objective = build("mae", GivenTokens(z.shape[-1]), normalise=normalise)
        found: list[Tensor] = []

        def decode(tokens: Tensor, visible: Tensor, hidden: Tensor, found: list[Tensor] = found) -> Tensor:
            found.append(hidden)
            return utils.get_at_index(predicted, hidden)

        objective.decode = decode
        value = ours_of_images(objective, images)
        patches = utils.patchify(images, PATCH)
        n = patches.shape[-1]
        patches = utils.normalize_mean_var(patches) if normalise else patches
        seen, target = (utils.get_at_index(x, found[0]) for x in (predicted, patches))
        theirs = nn.MSELoss()(seen, target)  # the loss of LightlySSL's example
        if normalise:
            choice = "A patch's variance is a mean of squares; the peer and the authors' code divide by one less than a patch's numbers."
            yield Row("patches normalised", value, theirs, nn.MSELoss()(seen, target * (n / (n - 1)) ** 0.5), choice)
        else:
            yield Row("pixels", value, theirs)


def simmim(z: Tensor) -> Iterator[Row]:
    images, predicted = images_of(z)
    objective = build("simmim", GivenTokens(z.shape[-1]))
    guess, found = objective.guess, []

    def replaced(encoder: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        objective.predict = nn.Identity()
        _, hidden = guess(encoder, x)
        found.append(hidden)
        return utils.get_at_index(predicted, hidden), hidden

    objective.guess = replaced
    value = ours_of_images(objective, images)
    target = utils.get_at_index(utils.patchify(images, PATCH), found[0])
    yield Row("pixels", value, nn.L1Loss()(utils.get_at_index(predicted, found[0]), target))  # the loss of LightlySSL's example


def ijepa(z: Tensor) -> Iterator[Row]:
    _, b, d = z.shape
    encoder = GivenTokens(d)
    objective = build("ijepa", encoder)
    x = torch.cat([z[:1].transpose(0, 1), z[1].unsqueeze(1) + like(z, b, GRID**2)], 1)  # [B, 1 + T, D]
    found: list[Tensor] = []
    weight = torch.randn(d, d, generator=torch.Generator().manual_seed(3)) / d**0.5

    def predicted(known: Tensor, context: Tensor, blocks: Tensor) -> Tensor:
        found.append(blocks)
        return torch.stack([utils.apply_masks(known @ weight, block) for block in blocks])

    objective.predicted = predicted
    value = objective(encoder, {"views": {"image": x.unsqueeze(0)}}).value
    blocks = list(found[0])
    target = utils.apply_masks(nn.functional.layer_norm(x[:, 1:].detach(), (d,)), blocks)
    yield Row(f"{len(blocks)} blocks", value, nn.SmoothL1Loss()(utils.apply_masks(x[:, 1:] @ weight, blocks), target))


def ours_of_images(objective: Any, images: Tensor) -> Tensor:
    """The loss of an objective whose prediction is given: of its encoder only the shapes count."""

    class Blank(GivenTokens):
        def forward(self, inputs: dict[str, Tensor]) -> Features:
            tokens = torch.zeros(len(images), GRID**2, self.dim)
            return Features(tokens[:, 0], tokens)

    return objective(Blank(3 * PATCH**2), {"views": {"image": images.unsqueeze(0)}}).value
