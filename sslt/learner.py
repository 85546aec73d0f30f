"""The one LightningModule: a weighted sum of objectives on streams, with an adaptation that says what moves."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from sslt import distributed
from sslt.adaptation.base import Adaptation
from sslt.data.streams import Loader, Stream
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Objective
from sslt.schedules import Schedule


@dataclasses.dataclass
class Term:
    """One summand of the loss: weight · objective(encoder, batch of the named stream)."""

    objective: Objective
    stream: str
    weight: float = 1.0


class Learner(pl.LightningModule):
    """Trains `encoder` on Σ weight · objective.

    Everything random in step g is drawn from a state set by (seed, rank, g), and batches are a function of g: `batches_seen`
    is all that a resumed run needs to repeat what an uninterrupted one does.

    Gradients are those of the mean over all units (samples, tokens) of the optimizer step's batches on all ranks,
    however unevenly these are spread. With several terms, the first one's counts weigh them all.
    """

    def __init__(
        self,
        encoder: Encoder,
        terms: dict[str, Term],
        streams: dict[str, Stream],
        adaptation: Adaptation,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule,
        *,
        weight_decay: float,
        progress: Callable[[Learner], float],
        seed: int,
        log_every: int,
    ):
        super().__init__()
        self.encoder = encoder
        self.objectives = nn.ModuleDict({name: t.objective for name, t in terms.items()})
        self.terms, self.streams, self.adaptation = terms, streams, adaptation
        self.make_optimizer, self.schedule, self.weight_decay = optimizer, schedule, weight_decay
        self.progress, self.seed, self.log_every = progress, seed, log_every
        self.batches_seen = 0
        self.interrupted = False  # somebody stopped the run before its bound
        self.last: dict[str, Tensor] = {}
        self.first_views: dict[str, Any] | None = None  # by stream: what the encoder saw in the first step
        self.run_metrics: dict[str, Any] = {}
        self.loggers_used: list[Any] = []
        self._nominal: int | Tensor | None = None
        self._count: int | Tensor = 0
        adaptation.prepare(encoder)

    # ---------------------------------------------------------------- data
    def train_dataloader(self) -> Loader:
        return Loader(self.streams, lambda: self.batches_seen)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        seed_step(self.seed, self.batches_seen)
        with torch.no_grad():
            seen = {name: self._views(name, part) for name, part in batch.items()}
        if self.first_views is None:
            self.first_views = {name: _some(part.get("views", part.get("inputs")), "views" in part) for name, part in seen.items()}
        return seen

    def _views(self, name: str, batch: dict[str, Tensor]) -> dict[str, Any]:
        views = self.streams[name].views
        return batch if views is None else views(batch, self.encoder)

    # ---------------------------------------------------------------- one step
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        total: Tensor | None = None
        for i, (name, term) in enumerate(self.terms.items()):
            term.objective.logs_now = (self.batches_seen + 1) % self.log_every == 0 or batch_idx == 0
            loss = term.objective(self.encoder, batch[term.stream])
            part = term.weight * loss.value
            total = part if total is None else total + part
            if i == 0:
                count = loss.units
            prefix = f"{name}/" if len(self.terms) > 1 else ""
            self.last.update({f"{prefix}{k}": v for k, v in loss.logs.items()})
            if prefix:
                self.last[f"{prefix}loss"] = loss.value.detach()
        assert total is not None
        self.last["loss"] = total.detach()
        self.batches_seen += 1
        if self._weighs:
            self._nominal = count if self._nominal is None else self._nominal
            self._count += count
            return total * (count / self._nominal)
        return total

    @property
    def _weighs(self) -> bool:
        """Whether an optimizer step joins several batches, which may differ in size."""
        return distributed.active() or self.trainer.accumulate_grad_batches > 1

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._weighs:
            return
        assert self._nominal is not None
        world = distributed.world_size()
        total = distributed.sum_over_ranks(torch.as_tensor(self._count, dtype=torch.float32, device=self.device))
        factor = self.trainer.accumulate_grad_batches * world * self._nominal / total
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(factor)
        self._count = 0

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_([p for g in optimizer.param_groups for p in g["params"]], gradient_clip_val)
        else:  # Lightning refuses fused optimizers here for the sake of a loss scaler, which bfloat16 does not have
            params = [p for g in optimizer.param_groups for p in g["params"]]
            self.last["grad_norm"] = torch.nn.utils.clip_grad_norm_(params, gradient_clip_val).detach()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        factor = self.schedule(self.progress(self))
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["base_lr"] * factor

    def on_fit_start(self) -> None:
        if distributed.active():  # a count differs between ranks; the unit it is measured in must not
            self._nominal = distributed.broadcast_object(self.streams[next(iter(self.streams))].batch_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = self.adaptation.parameter_groups(self.encoder, self.objectives, self.weight_decay)
        try:
            optimizer = self.make_optimizer(groups)
        except (ValueError, TypeError) as e:
            raise UserError(f"optimizer: {e}") from e
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
        return optimizer

    # ---------------------------------------------------------------- state
    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        if mode:
            self.adaptation.set_modes(self.encoder)
        return self

    def on_train_start(self) -> None:
        self.train()  # Lightning restores the modes it saw before fit, submodule by submodule

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = int(checkpoint["batches_seen"])

    @property
    def epoch_position(self) -> float:
        """Epochs of the first stream that were seen, with fraction."""
        return self.batches_seen / self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch of the first stream has."""
        return len(next(iter(self.streams.values())))


def _some(views: dict[str, Tensor] | None, stacked: bool) -> dict[str, Tensor] | None:
    """The first dozen samples of views [V, B, ...], or of inputs [B, ...], to look at later."""
    return {k: (x[:, :12] if stacked else x[:12]).detach().cpu().clone() for k, x in (views or {}).items()} or None


def seed_step(seed: int, step: int) -> None:
    """Set the generators of torch (CPU and devices), numpy and Python for step `step` of this rank."""
    state = int(np.random.SeedSequence([seed, distributed.rank(), step]).generate_state(1, np.uint64)[0])
    # torch.manual_seed also visits every absent backend, at half a millisecond a call
    torch.default_generator.manual_seed(state)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(state)
    np.random.seed(state % 2**32)  # for views and objectives of a user's own
    random.seed(state)
