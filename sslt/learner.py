"""The one LightningModule: a weighted sum of objectives on streams, with an adaptation that says what moves."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from sslt import distributed
from sslt.adaptation.average import Average
from sslt.adaptation.base import Adaptation
from sslt.data.streams.sampling import Sampling
from sslt.data.streams.streams import Loader, Stream
from sslt.encoders.base import Encoder, evaluating
from sslt.errors import UserError
from sslt.lanes import Lanes
from sslt.objectives.base import Objective
from sslt.optimizers import adapt_weights, values_of
from sslt.schedules import Schedule
from sslt.sharded.model import Whole, copies, shard

log = logging.getLogger("sslt")


@dataclasses.dataclass
class Term:
    """One summand of the loss: weight · objective(encoder, batch of a stream).

    stream: its name, or several, of which the objective then gets a dictionary. weight: a number, or a function of the
    run's progress 0..1. In a step in which one of its streams gives no batch, a term is left out.
    """

    objective: Objective
    stream: str | tuple[str, ...]
    weight: float | Callable[[float], float] = 1.0

    def batch(self, batches: dict[str, Any]) -> Any:
        """What the objective gets of a step's batches; None where one is not there."""
        if isinstance(self.stream, str):
            return batches.get(self.stream)
        return {name: batches[name] for name in self.stream} if all(name in batches for name in self.stream) else None

    def weight_at(self, progress: float) -> float:
        return self.weight(progress) if callable(self.weight) else self.weight


class Learner(pl.LightningModule):
    """Trains `encoder` on Σ weight · objective.

    Everything random in step g is drawn from a state set by (seed, lane, g), and batches are a function of g: `batches_seen`
    is all that a resumed run needs to repeat what an uninterrupted one does. lanes: how many (`lanes.py`); None: one for each rank.

    Each term's gradient is that of the mean over all its units (samples, tokens) in the optimizer step's batches on all
    ranks, however unevenly these are spread.

    ema: decay of the `Average` of what moves (None: there is none). mesh: over which ranks all of it is sharded (None: each has all); the
    modules given then stay as they are until they are measured, and training moves copies of them.
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
        sampling: Sampling,
        weight_decay: float,
        progress: Callable[[Learner], float],
        seed: int,
        log_every: int,
        ema: float | None = None,
        mesh: Any = None,
        lanes: int | None = None,
    ):
        super().__init__()
        adaptation.prepare(encoder)
        self.whole: Whole | None = None
        if mesh is not None:
            adaptation.thaw(encoder)
            self.whole = Whole(encoder, {name: t.objective for name, t in terms.items()})
            encoder, twins = self.whole.twins()
            terms = _with(terms, twins)
        self.encoder = encoder
        self.objectives = nn.ModuleDict({name: t.objective for name, t in terms.items()})
        if mesh is not None:
            shard(self, mesh, "training_step")
        self.terms, self.streams, self.sampling, self.adaptation = terms, streams, sampling, adaptation
        self.make_optimizer, self.schedule, self.weight_decay = optimizer, schedule, weight_decay
        self.progress, self.seed, self.log_every = progress, seed, log_every
        self.lanes = Lanes(lanes or distributed.world_size(), distributed.rank(), distributed.world_size())
        self.steps_per_epoch = sampling.epoch({name: len(stream) for name, stream in streams.items()})
        self.batches_seen = 0
        self.optimizer_steps = 0
        self.progress_now = 0.0
        self.interrupted = False  # somebody stopped the run before its bound
        self.finished = False  # `finish` was called
        self.last: dict[str, Tensor] = {}  # scalars of the last batch, of this rank's share
        self._parts: dict[str, Tensor] = {}  # of several ranks: what this one's share adds to a scalar of the joined batch
        self.first_views: dict[str, Any] | None = None  # by stream: what the encoder saw in the first step
        self.run_metrics: dict[str, Any] = {}
        self.loggers_used: list[Any] = []
        self._advanced: tuple[float, float] | None = None  # epoch and progress of the optimizer step that was begun last
        self._waiting: list[tuple[dict[str, Any], Any, Any]] = []  # batches of this optimizer step, with what `_shares` says of them
        self._share: Any = None
        self._of_ranks: Any = None
        self._fill = 1.0  # accumulated batches that a whole step has, per batch that this one has
        moving = [p for group in adaptation.parameter_groups(encoder, self.objectives, 0.0) for p in group["params"]]
        self.average = None if ema is None else Average(ema, self, moving)
        self._ddp_params_and_buffers_to_ignore = distributed.alike_buffers(self)  # Lightning's name, and torch's

    # ---------------------------------------------------------------- data
    def train_dataloader(self) -> Loader:
        had = self.trainer.fit_loop.epoch_loop.batch_progress
        accumulate = self.trainer.accumulate_grad_batches
        return Loader(self.streams, lambda: self.batches_seen, self.sampling, accumulate, lambda: had.current.ready)

    def on_after_batch_transfer(self, batch: list[dict[str, Any]], dataloader_idx: int) -> dict[str, Any]:
        if batch:  # all batches of an optimizer step come at its start
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()  # Lightning does so after the forward pass, which would have the old gradients beside its activations
            made = [self._make(part, self.batches_seen + i) for i, part in enumerate(batch)]
            self._waiting = [(part, *shares) for part, shares in zip(made, self._shares(made), strict=True)]
            self._fill = self.trainer.accumulate_grad_batches / len(made)
        now, self._share, self._of_ranks = self._waiting.pop(0)
        self._show(now)
        return now

    def see_first_views(self) -> None:
        """Make `first_views` again, in a process that did not train the first step."""
        lengths, seed = {name: len(s) for name, s in self.streams.items()}, next(iter(self.streams.values())).seed
        first = {name: self.streams[name].at(g) for name, g in self.sampling.at(0, lengths, seed).items()}
        self.first_views = None
        self._show(self._make({name: {k: v.to(self.device) for k, v in part.items()} for name, part in first.items()}, 0))

    def _show(self, made: dict[str, Any]) -> None:
        if self.first_views is None:
            self.first_views = {name: _some(part.get("views", part.get("inputs")), "views" in part) for name, part in made.items()}

    def _make(self, batches: dict[str, dict[str, Tensor]], step: int) -> dict[str, Any]:
        """The views of step `step`."""
        self.lanes.begin(self.seed, step)
        made = {}
        for name, part in batches.items():
            with torch.no_grad(), self._drawing(name, part):
                made[name] = self._views(name, part)
        return made

    def _drawing(self, stream: str | tuple[str, ...], part: dict[str, Any]) -> AbstractContextManager[None]:
        first = stream if isinstance(stream, str) else stream[0]
        return self.lanes.drawing(_rows(part), self.streams[first].together)

    def _views(self, name: str, batch: dict[str, Tensor]) -> dict[str, Any]:
        views = self.streams[name].views
        return batch if views is None else views(batch, self.encoder)

    def _shares(self, made: list[dict[str, Any]]) -> list[tuple[Tensor | None, Tensor | None]]:
        """For each batch of the optimizer step, [T] factors: of a term's mean over this batch, so that the mean of the batches
        over accumulation and ranks is the mean over all units; and this rank's share of the units of all ranks' batches."""
        accumulated = self.trainer.accumulate_grad_batches
        if accumulated == 1 and not distributed.active():
            return [(None, None)]
        counts = torch.stack([self._units(part) for part in made])
        joined = distributed.sum_over_ranks(counts)
        factors = counts * (accumulated * distributed.world_size()) / joined.sum(0).clamp(min=1)
        return list(zip(factors, counts / joined.clamp(min=1), strict=True))

    def _units(self, made: dict[str, Any]) -> Tensor:
        parts = [(t.objective, t.batch(made)) for t in self.terms.values()]
        counts = [0 if part is None else objective.units(part) for objective, part in parts]
        return torch.stack([torch.as_tensor(n, dtype=torch.float32, device=self.device) for n in counts])

    # ---------------------------------------------------------------- one step
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.lanes.begin(self.seed, self.batches_seen, 1)
        losses, shown, present = [], [], []
        for i, (name, term) in enumerate(self.terms.items()):
            part = term.batch(batch)
            if part is None:
                continue
            term.objective.logs_now = (self.batches_seen + 1) % self.log_every == 0 or batch_idx == 0
            with self._drawing(term.stream, part):
                loss = term.objective(self.encoder, part)
            weighted = term.weight_at(self.progress_now) * loss.value
            losses.append(weighted if self._share is None else weighted * self._share[i])
            shown.append(weighted.detach())
            present.append(i)
            prefix = f"{name}/" if len(self.terms) > 1 else ""
            logs = {f"{prefix}{k}": v for k, v in loss.logs.items()} | ({f"{prefix}loss": loss.value.detach()} if prefix else {})
            self.last.update(logs)
            if distributed.active():
                self._parts.update({k: v * self._of_ranks[i] for k, v in logs.items()})
        self.last["loss"] = torch.stack(shown).sum()
        if distributed.active():
            self._parts["loss"] = (torch.stack(shown) * self._of_ranks[present]).sum()
        penalty = self.adaptation.penalty(self.encoder)
        if penalty is not None:
            self.last["penalty"] = penalty.detach()
            losses.append(penalty * self._fill)
        self.batches_seen += 1
        return torch.stack(losses).sum()

    def scalars(self) -> dict[str, float]:
        """`last` as one process with the batches of all ranks would have it: the mean over their units. Every rank must call it."""
        own = {k: float(v) for k, v in self.last.items()}
        parts = distributed.gather_objects({k: float(v) for k, v in self._parts.items()})
        return own | {k: sum(part.get(k, 0.0) for part in parts) for k in parts[0]}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.progress_now = self.progress(self)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._advance((self.epoch_position, self.progress_now))
        for objective in self.objectives.values():
            objective.progress = self.progress_now  # type: ignore[assignment]
        factor = self.schedule(self.progress_now)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["base_lr"] * factor

    def _advance(self, position: tuple[float, float]) -> None:
        self._advanced = position
        self.adaptation.advance(self.encoder, *position)

    def on_after_backward(self) -> None:
        if self.whole is not None:  # sharded weights have a gradient as they had when they were spread
            for p in self.parameters():
                if not p.requires_grad:
                    p.grad = None

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.optimizer_steps += 1
        self.adaptation.after_step(self.encoder, self.optimizer_steps)
        for term in self.terms.values():
            term.objective.after_step(self.encoder)
        if self.average is not None:
            self.average.follow(self, self.optimizer_steps)

    @contextlib.contextmanager
    def as_saved(self) -> Iterator[None]:
        """Within, encoder and objectives are what the run would save now: averaged, where weights are, and whole where they are sharded."""
        with contextlib.nullcontext() if self.average is None else self.average.applied(self):
            if self.whole is None:
                yield
                return
            self.whole.fill(self.encoder, self.objectives)  # type: ignore[arg-type]
        try:
            yield
        finally:
            if self.device.type != "cpu":
                self.whole.leave()

    @property
    def measured(self) -> Encoder:
        """The encoder as measuring knows it: with the weights of now within `as_saved`."""
        return self.encoder if self.whole is None else self.whole.encoder

    def on_fit_end(self) -> None:
        """Give back the modules that were given, with what they have learned."""
        if self.whole is None or self.interrupted:
            return
        whole, self.whole = self.whole, None
        whole.fill(self.encoder, self.objectives)  # type: ignore[arg-type]
        if self.average is not None:
            self.average.gather()
        self.encoder, self.objectives = whole.encoder, nn.ModuleDict(whole.objectives)
        self.terms = _with(self.terms, whole.objectives)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if not gradient_clip_val:  # Lightning's own refuses fused optimizers for the sake of a loss scaler, which bfloat16 does not have
            return
        grads = [distributed.local(g) for g in values_of([p for group in optimizer.param_groups for p in group["params"]])]
        if gradient_clip_algorithm == "value":
            for grad in grads:
                grad.clamp_(-gradient_clip_val, gradient_clip_val)
        else:
            norm = torch.stack(torch._foreach_norm(grads)).norm()
            if self.whole is not None:  # a sum over parts, of which several ranks may hold the same
                norm = (distributed.sum_over_ranks(norm.square()) / copies(self.parameters())).sqrt()
            torch._foreach_mul_(grads, (gradient_clip_val / (norm + 1e-6)).clamp(max=1))
            self.last["grad_norm"] = norm.detach()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = self.adaptation.parameter_groups(self.encoder, self.objectives, self.weight_decay)
        try:
            optimizer = self.make_optimizer(groups)
        except (ValueError, TypeError) as e:
            raise UserError(f"optimizer: {e}") from e
        adapt_weights(optimizer)
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"] * group.get("lr_scale", 1.0)
        return optimizer

    def finish(self) -> None:
        """What objectives do after the last step; once, also where a resumed run had no step left."""
        if not self.finished:
            for term in self.terms.values():
                term.objective.finish(self.encoder)
            self.finished = True

    def pictures(self) -> dict[str, Any]:
        """What the objectives draw (`Objective.draw`) from the first samples of their streams."""
        drawn: dict[str, Any] = {}
        for name, term in self.terms.items():
            if isinstance(term.stream, str) and type(term.objective).draw is not Objective.draw:
                samples = self.streams[term.stream].samples
                self.lanes.begin(self.seed, self.batches_seen)
                with evaluating(self):
                    batch = {k: v.to(self.device) for k, v in samples.batch(np.arange(min(12, len(samples)))).items()}
                    found = term.objective.draw(self.encoder, self._views(term.stream, batch))
                drawn |= {f"{name}_{k}" if len(self.terms) > 1 else k: picture for k, picture in found.items()}
        return drawn

    # ---------------------------------------------------------------- state
    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        if mode:
            for objective in self.objectives.values():  # a teacher's frozen part is as frozen as the student's
                for encoder in objective.encoders(self.encoder).values():  # type: ignore[operator]
                    self.adaptation.set_modes(encoder)
        return self

    def setup(self, stage: str) -> None:
        if distributed.active() and self.whole is None:  # before DDP is made
            self.adaptation.thaw(self.encoder)
        kind = getattr(self.make_optimizer, "func", self.make_optimizer)
        # a GPU updates whole tables in no time, and DDP's sums over ranks are of whole tables
        by_row = getattr(kind, "takes_sparse", False) and not distributed.active() and self.trainer.strategy.root_device.type == "cpu"
        for table in self.encoder.tables():
            table.sparse = by_row

    def on_train_start(self) -> None:
        if distributed.active():
            self.adaptation.settle(self.encoder)
        if self._advanced is not None:  # of a checkpoint: there may be no step left to do so
            self._advance(self._advanced)
        self.train()  # Lightning restores the modes it saw before fit, submodule by submodule

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen
        checkpoint["optimizer_steps"] = self.optimizer_steps
        checkpoint["adaptation"] = self.adaptation.state_dict()
        checkpoint["step_size"] = self._step_size()
        checkpoint["last"] = {k: torch.tensor(v, dtype=torch.float64) for k, v in self.scalars().items()}
        checkpoint["progress"], checkpoint["advanced"] = self.progress_now, self._advanced

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = int(checkpoint["batches_seen"])
        self.optimizer_steps = int(checkpoint["optimizer_steps"])
        self.adaptation.load_state_dict(checkpoint["adaptation"])
        self.last = checkpoint.get("last", {})  # as the next, not before 0.2
        self.progress_now, self._advanced = checkpoint.get("progress", 0.0), checkpoint.get("advanced")
        for objective in self.objectives.values():
            objective.progress = self.progress_now  # type: ignore[assignment]
        before, size = checkpoint.get("step_size"), self._step_size()
        if before is not None and math.prod(before) != math.prod(size) and distributed.rank() == 0:
            log.warning("%s", _another_step(before, size))

    def _step_size(self) -> list[int]:
        """Ranks, batches that are accumulated on each, samples of a batch of the first stream."""
        return [distributed.world_size(), self.trainer.accumulate_grad_batches, next(iter(self.streams.values())).batch_size]

    @property
    def epoch_position(self) -> float:
        """Epochs that were seen, with fraction."""
        return self.batches_seen / self.steps_per_epoch


def _with(terms: dict[str, Term], objectives: Mapping[str, Any]) -> dict[str, Term]:
    """The terms with other objectives."""
    return {name: dataclasses.replace(term, objective=objectives[name]) for name, term in terms.items()}


def _another_step(before: list[int], now: list[int]) -> str:
    """What to say when a run goes on with steps of another size (`Learner._step_size`)."""
    was, others = math.prod(before), now[0] * now[1]
    told = [f"{math.prod(s)} samples ({s[0]} rank{'s' if s[0] > 1 else ''} × {s[1] * s[2]})" for s in (now, before)]
    if was % others:
        way = f"no batch_size keeps it on {now[0]} ranks, batch_size={max(round(was / others), 1)} comes closest"
    else:
        way = f"batch_size={was // others} keeps it"
    return f"a step has {told[0]} from here on and had {told[1]}, for which the learning rate was chosen; epochs have other steps: {way}"


def _some(views: dict[str, Tensor] | None, stacked: bool) -> dict[str, Tensor] | None:
    """The first dozen samples of views [V, B, ...], or of inputs [B, ...], to look at later."""
    return {k: (x[:, :12] if stacked else x[:12]).detach().cpu().clone() for k, x in (views or {}).items()} or None


def _rows(part: dict[str, Any]) -> int:
    """How many samples a batch has, or each of several; 0, where it does not say."""
    first = next(iter(part.values()), None)
    if isinstance(first, dict) and "index" in first:
        return len(first["index"])
    return len(part["index"]) if "index" in part else 0
