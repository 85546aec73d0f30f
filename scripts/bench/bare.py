"""Bare PyTorch loops over batches that lie ready: the limit of what a training command can reach."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.device import autocast, device
from bench.ours import Pretraining
from bench.rounds import Watch

_READY = 4  # batches a bare loop goes round in
_CLIP = 1.0  # gradient norm, as in sslt's MLM recipe and by default in Hugging Face's Trainer


class Method(NamedTuple):
    """outputs: of a batch, under autocast. loss: of the outputs, in float32. after: what follows the optimizer's step."""

    modules: list[nn.Module]
    outputs: Callable[[dict[str, Any]], Any]
    loss: Callable[[Any], Tensor]
    after: Callable[[], None] = lambda: None


def images(ours: Pretraining, make: Callable[[Pretraining], Method]) -> Callable[[Watch], None]:
    """A method's step on ready views: ours' precision and memory format, the fused AdamW, clipped where the recipe clips."""
    method = make(ours)
    parameters = [p for m in method.modules for p in m.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    clip = ours.cfg.trainer.get("gradient_clip_val")
    batches, precision = _cycle([ours.views(i, device()) for i in range(_READY)]), ours.precision

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision):
            outputs = method.outputs(next(batches))
        method.loss(outputs).backward()
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        method.after()

    def run(watch: Watch) -> None:
        for module in method.modules:
            module.train()
        watch.drive(step)

    return run


def _copies(*modules: nn.Module) -> list[nn.Module]:
    return [copy.deepcopy(m).to(device()) for m in modules]


def _teachers(*modules: nn.Module) -> list[nn.Module]:
    return [copy.deepcopy(m).requires_grad_(False) for m in modules]


def _follow(teachers: list[nn.Module], students: list[nn.Module], momentum: float) -> Callable[[], None]:
    old = [p for m in teachers for p in m.parameters()]
    new = [p.detach() for m in students for p in m.parameters()]
    return lambda: torch._foreach_lerp_(old, new, 1 - momentum)


def _flat(batch: dict[str, Any], name: str = "views") -> Tensor:
    return batch[name]["image"].flatten(0, 1)


# ---------------------------------------------------------------- methods
def simclr(ours: Pretraining) -> Method:
    model, projector = _copies(ours.encoder.model, ours.objective.projector)
    temperature = ours.objective.temperature

    def loss(z: Tensor) -> Tensor:
        z = F.normalize(z.float(), dim=1)
        targets = (torch.arange(len(z), device=z.device) + len(z) // 2) % len(z)
        return F.cross_entropy((z @ z.T / temperature).fill_diagonal_(float("-inf")), targets)

    return Method([model, projector], lambda batch: projector(model(_flat(batch))), loss)


def barlow_twins(ours: Pretraining) -> Method:
    model, projector = _copies(ours.encoder.model, ours.objective.projector)
    redundancy = ours.objective.redundancy

    def loss(z: Tensor) -> Tensor:
        a, b = (F.batch_norm(x, None, None, training=True) for x in z.float().chunk(2))
        square = (a.T @ b / len(a) - torch.eye(a.shape[1], device=a.device)).square()
        return redundancy * square.sum() + (1 - redundancy) * square.diagonal().sum()

    return Method([model, projector], lambda batch: projector(model(_flat(batch))), loss)


def byol(ours: Pretraining) -> Method:
    model, projector, predictor = _copies(ours.encoder.model, ours.objective.projector, ours.objective.predictor)
    teacher, teacher_projector = teachers = _teachers(model, projector)

    def outputs(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        x = _flat(batch)
        with torch.no_grad():
            target = teacher_projector(teacher(x))
        return predictor(projector(model(x))), target

    def loss(pair: tuple[Tensor, Tensor]) -> Tensor:
        predicted, target = (F.normalize(x.float(), dim=1) for x in pair)
        return 2 - 2 * (predicted * target.roll(len(target) // 2, 0)).sum(1).mean()

    return Method([model, projector, predictor], outputs, loss, _follow(teachers, [model, projector], 0.99))


def dino(ours: Pretraining) -> Method:
    """One forward for the large crops and one for the small ones; the head sees all at once."""
    objective = ours.objective
    model, projector, prototypes = _copies(ours.encoder.model, objective.projector, objective.prototypes)
    teacher, teacher_projector, teacher_prototypes = teachers = _teachers(model, projector, prototypes)
    centre = torch.zeros(prototypes.weight.shape[0], device=device())

    def outputs(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        large, small = _flat(batch), _flat(batch, "local")
        with torch.no_grad():
            target = teacher_prototypes(teacher_projector(teacher(large)))
        scores = prototypes(projector(torch.cat([model(large), model(small)])))
        return scores.unflatten(0, (-1, len(large) // 2)), target.unflatten(0, (2, -1))

    def loss(pair: tuple[Tensor, Tensor]) -> Tensor:
        scores, target = pair[0].float(), pair[1].float()
        wanted, found = F.softmax((target - centre) / 0.04, -1), F.log_softmax(scores / objective.temperature, -1)
        centre.lerp_(target.mean((0, 1)), 1 - objective.centre.momentum)
        # every target with every view, less the two pairs of a view with itself
        pairs = (wanted.sum(0) * found.sum(0)).sum() - (wanted * found[:2]).sum()
        return -pairs / (target.shape[1] * (2 * len(scores) - 2))

    return Method([model, projector, prototypes], outputs, loss, _follow(teachers, [model, projector, prototypes], 0.996))


def mae(ours: Pretraining) -> Method:
    """The encoder sees the visible patches alone."""
    objective = ours.objective
    model, embed, decoder, predict = _copies(ours.encoder.model, objective.embed, objective.decoder, objective.predict)
    token = nn.ParameterList([objective.token.detach().clone()]).to(device())
    positions, grid = objective.positions.to(device()), objective.grid
    keep = grid**2 - round(objective.share * grid**2)

    def rows(x: Tensor, index: Tensor) -> Tensor:
        return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def outputs(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        x = _flat(batch)
        order = torch.rand(len(x), grid**2, device=x.device).argsort(1)
        visible, hidden = order[:, :keep], order[:, keep:]
        known = model.patch_embed(x).flatten(1, 2) + model.pos_embed
        known = embed(model.norm(model.blocks(rows(known, visible))))
        masked = token[0].to(known.dtype).expand(*hidden.shape, -1)
        drawn = predict(decoder(torch.cat([known, masked], 1) + positions[order].to(known.dtype))[:, keep:])
        p = x.shape[-1] // grid
        patches = x.unflatten(3, (grid, p)).unflatten(2, (grid, p)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return drawn, rows(patches, hidden)

    def loss(pair: tuple[Tensor, Tensor]) -> Tensor:
        drawn, target = (x.float() for x in pair)
        std, mean = torch.std_mean(target, -1, keepdim=True)
        return F.mse_loss(drawn, (target - mean) / (std + 1e-6))

    return Method([model, embed, decoder, predict, token], outputs, loss)


# ---------------------------------------------------------------- text
def mlm(ours: Pretraining) -> Callable[[Watch], None]:
    """BERT on tokens that are masked already, logits at the masked positions only, AdamW, clipped gradients."""
    model, head = _copies(ours.encoder.model, ours.encoder.words)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    batches, precision = _cycle([_flat_mlm(ours.views(i, device())) for i in range(_READY)]), ours.precision

    def step() -> None:
        tokens, index, targets = next(batches)
        optimizer.zero_grad()
        with autocast(precision):
            hidden = model(input_ids=tokens).last_hidden_state.flatten(0, 1)[index]
            logits = F.linear(head(hidden[None])[0], model.get_input_embeddings().weight, head.bias)
        F.cross_entropy(logits.float(), targets).backward()
        nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()

    def run(watch: Watch) -> None:
        model.train()
        watch.drive(step)

    return run


def _flat_mlm(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """(masked tokens [B, L], their chosen positions in the flattened batch [B·K], true ids [B·K])."""
    rows = torch.arange(len(batch["positions"]), device=device()).unsqueeze(1) * batch["tokens"].shape[1]
    return batch["inputs"]["tokens"], (rows + batch["positions"]).flatten(), batch["targets"].flatten()


def _cycle(items: list[Any]) -> Iterator[Any]:
    while True:
        yield from items
