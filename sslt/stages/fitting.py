"""One fit in a run folder: Lightning's Trainer with sslt's bounds, callbacks and loggers."""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from sslt import distributed, precision
from sslt.adaptation.adapters import AdaLoRA, Adapter
from sslt.adaptation.base import Adaptation
from sslt.callbacks.budget import Budget, seconds
from sslt.callbacks.checkpoint import Checkpoint, NaNGuard, Signals, StreamedCheckpoints, newest
from sslt.callbacks.curves import Clock, Curves
from sslt.callbacks.progress import Progress
from sslt.config import OURS, build
from sslt.data.streams.sampling import Sampling, Together
from sslt.data.streams.streams import Stream
from sslt.data.views.base import Views
from sslt.encoders.base import Encoder
from sslt.encoders.load import is_own
from sslt.encoders.precomputed import Precomputed
from sslt.errors import UserError
from sslt.learner import Learner, Term
from sslt.machine import crowded, most_resident
from sslt.modules import of_kind
from sslt.objectives.base import Objective
from sslt.objectives.parts.momentum import Teacher
from sslt.processes import accelerator
from sslt.runs import Run, now
from sslt.sharded import model as sharded
from sslt.sharded.strategy import Sharded
from sslt.signals import Interrupted
from sslt.stages import common, contexts
from sslt.stored import first_line
from sslt.stored import shown as display

log = logging.getLogger("sslt")
for _name in ("pytorch_lightning", "lightning_fabric"):  # they set their own level when imported
    logging.getLogger(_name).setLevel(logging.ERROR)


def fit(
    cfg: Any,
    run: Run,
    encoder: Encoder,
    terms: dict[str, Term],
    streams: dict[str, Stream],
    adaptation: Adaptation,
    watchers: Any = None,
    sampling: Sampling | None = None,
    least_steps: int = 0,
    nothing_to_train: bool = False,
    most_epochs: int | None = None,
) -> Learner:
    """Train, or go on training, in a run folder. `watchers(curves)` gives the stage's own callbacks.

    sampling: which streams a step draws from (None: all of them). least_steps: of a run without a bound, whose epochs may be short.
    nothing_to_train: the run is measured and saved as any other, without a step. most_epochs: of a run that is bounded by time alone.
    Where weights are averaged (`ema=`), encoder and objectives have the average afterwards.
    Raises `Interrupted` when somebody stopped the run (its checkpoint is written).
    """
    _tell_unused(cfg, run)
    kind, world = accelerator(cfg.trainer), distributed.world_size()
    sampling = sampling or Together()
    budget = bounds(cfg, streams, sampling, least_steps, most_epochs)
    if nothing_to_train:
        budget = Budget(None, 0, None)
    learner = learner_of(cfg, encoder, terms, streams, adaptation, sampling, budget)
    primary = next(iter(streams.values()))
    curves = Curves(run, primary.batch_size * world)
    start = distributed.broadcast_object(newest(run / "checkpoints") if distributed.rank() == 0 else None)
    settings = (cfg.checkpoint.every_minutes, cfg.checkpoint.keep_every_n_epochs, budget.agreement)
    signals, checkpoint = Signals(), Checkpoint(run / "checkpoints", *settings)
    progress = Progress(budget, curves, str(cfg.name or run.info.get("verb", "train")))
    own = watchers(curves) if watchers else []
    yours = [build(c) for c in [*cfg.callbacks, *json.loads(os.environ.get("SSLT_WATCHERS", "[]"))]]  # those of a search (sweeps/job.py)
    loggers = [build(node, save_dir=str(run.path)) for node in (cfg.logger or {}).values()] if distributed.rank() == 0 else []
    callbacks = [signals, curves, budget, *own, *yours, progress, NaNGuard(checkpoint), checkpoint, Clock(curves)]
    trainer = trainer_of(cfg, learner, budget, callbacks, loggers, run.path)
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    number_format = precision.resolve(cfg.trainer.precision, kind)
    sizes = _sizes(learner, encoder)
    if not sizes["model/moving_parameters"] and not nothing_to_train:
        raise UserError(
            "nothing would be trained: what is learned has no weights of its own, and the encoder stands still: choose adaptation=full or "
            "lora, or measure the encoder as it is, sslt evaluate"
        )
    shown = precision.FLOAT8 if cfg.trainer.precision == precision.FLOAT8 else number_format
    _announce(learner, sizes, budget, start, f"{shown} on {kind}", silent=nothing_to_train)
    if kind == "cpu" and distributed.world_size() == 1 and (told := crowded(torch.get_num_threads())):
        log.info("%s", told)
    run.update(training=now())
    if kind == "gpu":
        torch.cuda.reset_peak_memory_stats()
    try:
        with contexts.training(cfg, learner, kind, number_format):
            _train(trainer, learner, start, run)
    finally:
        progress.close()
        signals.restore()
    came = [number for number in distributed.gather_objects(checkpoint.watch.came) if number]
    if came or learner.interrupted:  # one may have come to a single rank since training ended
        raise Interrupted(learner.batches_seen, came[0] if came else None)
    if learner.average is not None:
        learner.average.swap(learner)
    if start is not None:
        learner.see_first_views()
    learner.lanes.begin(
        learner.seed, learner.batches_seen, 2
    )  # what is random from here on is the same after a training that was interrupted
    learner.run_metrics = _ended(learner, curves, budget, sizes, kind)
    learner.loggers_used = loggers
    return learner


def _sizes(learner: Learner, encoder: Encoder) -> dict[str, int]:
    """How many parameters there are, and how many move."""
    groups = learner.adaptation.parameter_groups(encoder, learner.objectives, 0.0)
    behind = encoder.parameters_behind if isinstance(encoder, Precomputed) else 0
    return {
        "model/parameters": sum(p.numel() for p in learner.parameters()) + behind,
        "model/moving_parameters": sum(p.numel() for group in groups for p in group["params"]),
    }


def _announce(learner: Learner, sizes: dict[str, int], budget: Budget, start: Path | None, how: str, silent: bool) -> None:
    """Say what is trained on what, for how long and from where."""
    world, primary = distributed.world_size(), next(iter(learner.streams.values()))
    ranks = f" × {world} ranks" if world > 1 else ""
    if not silent:
        bound = _bound(budget, learner.steps_per_epoch)
        log.info("%s %s, batches of %d%s, %s", f"{len(primary.samples):,}", learner.encoder.samples_are, primary.batch_size, ranks, bound)
    if len(learner.streams) > 1:
        log.info("%s", learner.sampling.describe({name: len(stream) for name, stream in learner.streams.items()}))
    log.info("%s of %s parameters move; %s", f"{sizes['model/moving_parameters']:,}", f"{sizes['model/parameters']:,}", how)
    if start is not None:
        log.info("going on from %s", display(start))


def _train(trainer: pl.Trainer, learner: Learner, start: Path | None, run: Run) -> None:
    """Train from the checkpoint `start`, or from the beginning. Raises `UserError` where it is damaged or of other settings."""
    try:
        trainer.fit(learner, ckpt_path=start, weights_only=True)
    except Exception as e:
        if isinstance(e, RuntimeError) and "state_dict" in str(e):
            raise UserError(f"the checkpoint of {run} does not fit these settings: go on with those it was made with") from e
        if start is None or isinstance(e, UserError) or not _of_restoring(e):
            raise
        raise UserError(
            f"the checkpoint {start} is damaged ({type(e).__name__}: {first_line(e)}): delete it to go on from the one before"
        ) from e


def _ended(learner: Learner, curves: Curves, budget: Budget, sizes: dict[str, int], kind: str) -> dict[str, Any]:
    """What a training that ended leaves in `metrics.json`."""
    rate = round(curves.throughput, 2)
    last = {"train/loss": learner.scalars()["loss"], "throughput/samples_per_second": rate} if learner.last else {}
    return {
        **last,
        "train/steps": learner.batches_seen,
        "train/epochs": round(learner.epoch_position, 4),
        "train/seconds": round(budget.elapsed, 2),
        **sizes,
        "train/peak_memory_bytes": peak_memory(kind),
        **({} if learner.average is None else {"encoder/is": "average"}),
    }


def bounds(cfg: Any, streams: dict[str, Stream], sampling: Sampling, least_steps: int = 0, most_epochs: int | None = None) -> Budget:
    """How long the run lasts, from `trainer.max_*` or by default; arguments as of `fit`."""
    _check_numbers(cfg)
    per_epoch = sampling.epoch({k: len(s) for k, s in streams.items()})
    default = max(cfg.default_max_epochs, -(-least_steps * cfg.trainer.accumulate_grad_batches // per_epoch))
    return _budget(cfg.trainer, default, most_epochs)


def learner_of(
    cfg: Any,
    encoder: Encoder,
    terms: dict[str, Term],
    streams: dict[str, Stream],
    adaptation: Adaptation,
    sampling: Sampling,
    budget: Budget,
) -> Learner:
    """What trains for as long as `budget` says. Objectives are prepared and the adaptation takes hold of the encoder.

    Raises `UserError` where these do not go together.
    """
    kind, world = accelerator(cfg.trainer), distributed.world_size()
    number_format = precision.resolve(cfg.trainer.precision, kind)
    mesh = sharded.mesh_of(cfg.trainer, kind) if sharded.chosen(cfg.trainer, number_format) else None
    if common.starts_fresh(cfg):
        encoder.begin(next(iter(streams.values())).samples)
    for term in terms.values():
        if isinstance(term.stream, str):
            part = streams[term.stream]
            check(cfg, encoder, adaptation, term.objective, part.views, part.batch_size)
            term.objective.prepare(encoder, part.samples, part.batch_size * world)
    if cfg.trainer.sync_batchnorm and world > 1 and (kind == "cpu" or mesh is not None):
        # torch's own refuses CPU tensors, and Lightning would put it where parts of weights are known to lie already
        for module in (encoder, *(t.objective for t in terms.values())):
            distributed.span_batch_norm(module)
    adaptation.total_steps = total_steps(cfg, streams, sampling, budget)
    return Learner(
        encoder,
        terms,
        streams,
        adaptation,
        build(_optimizer(cfg.optimizer, number_format, mesh), _partial_=True),
        build(cfg.schedule),
        sampling=sampling,
        weight_decay=float(cfg.optimizer.get("weight_decay", 0.0)),
        progress=budget.progress,
        seed=int(cfg.seed),
        log_every=cfg.trainer.log_every_n_steps,
        ema=cfg.ema,
        mesh=mesh,
        lanes=cfg.trainer.get("lanes"),
    )


def trainer_of(cfg: Any, learner: Learner, budget: Budget, callbacks: list[pl.Callback], loggers: list[Any], folder: Path) -> pl.Trainer:
    """Lightning's Trainer by the settings of `trainer=`. `budget` has to be one of the callbacks, and `Signals` the first."""
    kind, world = accelerator(cfg.trainer), distributed.world_size()
    settings = _trainer_settings(dict(cfg.trainer))
    settings["sync_batchnorm"] = settings["sync_batchnorm"] and world > 1 and kind != "cpu" and learner.whole is None
    try:
        trainer = pl.Trainer(
            **settings,
            accelerator=kind,
            devices=distributed.local_world_size(),
            num_nodes=world // distributed.local_world_size(),
            strategy=Sharded() if learner.whole is not None else _strategy(world, _varies(learner)),
            plugins=[StreamedCheckpoints(), TorchElasticEnvironment() if world > 1 else LightningEnvironment()],  # never SLURM's
            precision=precision.resolve(cfg.trainer.precision, kind),  # type: ignore[arg-type]
            max_epochs=budget.max_epochs or -1,
            max_steps=-1 if budget.max_steps is None else budget.max_steps,
            logger=loggers or False,
            callbacks=callbacks,
            default_root_dir=folder,
            **_OFF,
        )
    except (ValueError, TypeError, MisconfigurationException) as e:
        raise UserError(f"trainer: {str(e).splitlines()[0]}") from e
    trainer.fit_loop = of_kind(trainer.fit_loop, _WholeFit)
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]  # they are ours from the first second
    return trainer


def _of_restoring(e: Exception) -> bool:
    """Whether an error is of taking up what a checkpoint holds."""
    frames = traceback.extract_tb(e.__traceback__)
    return any(f.filename.endswith("checkpoint_connector.py") and f.name.startswith("restore") for f in frames)


class _WholeFit(_FitLoop):
    """Starts and ends training also where nothing is left to train: a run that was killed at its end is probed and saved as any other."""

    @property
    def skip(self) -> bool:
        return False


def _check_numbers(cfg: Any) -> None:
    """Raise `UserError` for a number that nothing can be made of."""
    for key, least in (("trainer.accumulate_grad_batches", 1), ("trainer.log_every_n_steps", 1)):
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or value < least:
            raise UserError(f"{key}={value}: give a whole number, {least} or more")


def _tell_unused(cfg: Any, run: Run) -> None:
    """Say which `encoder=` settings do nothing, because the encoder comes from elsewhere as it is."""
    if cfg["from"] in (None, "scratch"):
        return
    given = [o for o in run.info.get("overrides", []) if re.match(r"\+*encoder[.=]", o)]
    # how much of a text is read can be said of what other libraries have made
    own = is_own(str(cfg["from"]))
    if unused := [o for o in given if own or "processor.max_length" not in o]:
        log.warning("from=%s brings its own encoder, so that %s does nothing", cfg["from"], " ".join(unused))


def check(cfg: Any, encoder: Encoder, adaptation: Adaptation, objective: Objective, views: Any, batch_size: int) -> None:
    """Raise `UserError` if an objective cannot work with the encoder or with what a step has; no sample is needed to know."""
    if isinstance(views, Views):
        views.check(encoder)
        objective.check_views(views)
        if views.n < objective.least_views:
            more = f"set {views.n_setting}={objective.least_views}, or choose" if views.n_setting else "choose"
            raise UserError(
                f"{cfg.get('name') or 'this objective'} compares {objective.least_views} views of a sample, and views= makes "
                f"{views.n}: {more} views=simclr (images) or plain with views.n={objective.least_views} (texts)"
            )
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: give at least 1")
    together = distributed.world_size() if cfg.trainer.sync_batchnorm else 1
    if batch_size * together < 2 and any(_has_batch_norm(m) for m in (encoder, objective)):
        raise UserError("batch_size=1: BatchNorm has nothing to compare a single sample with, so give at least 2")
    if isinstance(adaptation, Adapter) and any(isinstance(m, Teacher) for m in objective.modules()):
        raise UserError(
            f"{cfg.get('name') or 'this objective'} has a teacher that follows every weight, and an adapter leaves weights where they are: "
            f"choose adaptation=full or partial"
        )
    if cfg.ema is not None and isinstance(adaptation, AdaLoRA):
        raise UserError("adaptation=adalora sets singular values to zero for good, which an average of weights undoes: leave out ema=")


def _has_batch_norm(module: nn.Module) -> bool:
    """Whether a BatchNorm in it computes statistics and learns."""
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(m.training and any(p.requires_grad for p in m.parameters()) for m in norms)


# What Lightning would do that sslt does itself.
_OFF: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}
_REFUSED = {*_OFF, "logger", "callbacks", "default_root_dir", "limit_train_batches", "fast_dev_run", "overfit_batches"}


def _trainer_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What goes to Lightning's Trainer as it is."""
    for key in settings.keys() & _REFUSED:
        raise UserError(
            f"trainer.{key} is not yours to set: sslt does this itself (bounds: trainer.max_steps, loggers: logger=, callbacks=)"
        )
    ours = ("_target_", "accelerator", "devices", "num_nodes", "precision", "max_epochs", "max_steps", "max_time", *OURS)
    return {k: v for k, v in settings.items() if k not in ours}


def _budget(settings: Any, default_max_epochs: int, most_epochs: int | None) -> Budget:
    """The bounds of a run by the trainer's settings; -1 is none, as in Lightning. most_epochs: where time is the only one."""
    epochs, steps = (None if settings[k] in (None, -1) else settings[k] for k in ("max_epochs", "max_steps"))
    time = seconds(settings["max_time"])
    for key, value in (("max_epochs", epochs), ("max_steps", steps), ("max_time", time)):
        if value is not None and value <= 0:
            raise UserError(f"trainer.{key}={value}: give more than 0, or null for no such bound")
    if not (epochs or steps):
        epochs = most_epochs if time else default_max_epochs
        if time and most_epochs:
            log.info("this recipe gains nothing from more than %d epochs, and ends there if time is left (most_epochs=null)", most_epochs)
    return Budget(epochs, steps, time)


def _optimizer(node: Any, number_format: str, mesh: Any) -> dict[str, Any]:
    """The optimizer's node; a fused one would unscale float16 gradients itself, after they are clipped, and AdamW's alone knows
    parts of weights."""
    refused = number_format.startswith("16") or (mesh is not None and not node["_target_"].endswith("AdamW"))
    return {**node, **({"fused": False} if refused and "fused" in node else {})}


def total_steps(cfg: Any, streams: dict[str, Stream], sampling: Sampling, budget: Budget) -> int | None:
    """Optimizer steps of a run that is bounded by epochs or steps; None where time alone bounds it."""
    found = [budget.max_steps] if budget.max_steps else []
    if budget.max_epochs:
        per_epoch = sampling.epoch({k: len(s) for k, s in streams.items()})
        found.append(budget.max_epochs * -(-per_epoch // cfg.trainer.accumulate_grad_batches))
    return min(found) if found else None


def _varies(learner: Learner) -> bool:
    """Whether not every parameter gets a gradient in every step."""
    several = distributed.world_size() > 1
    return learner.adaptation.changes or learner.sampling.alone or (several and _leaves_out(learner))


def _strategy(world: int, varies: bool) -> str:
    """Lightning's name of it; `varies` as of `_varies`."""
    if world == 1:
        return "auto"
    return "ddp_find_unused_parameters_true" if varies else "ddp"


def _leaves_out(learner: Learner) -> bool:
    """Whether a weight of the encoder that moves gets no gradient from any term."""
    return all(term.objective.leaves_out(learner.encoder) for term in learner.terms.values())


def _bound(budget: Budget, steps_per_epoch: int) -> str:
    parts = []
    if budget.max_epochs:
        parts.append(f"{budget.max_epochs} epochs of {steps_per_epoch} steps")
    if budget.max_steps:
        parts.append(f"{budget.max_steps} steps")
    if budget.max_time:
        parts.append(f"{budget.max_time:g} s")
    return " or ".join(parts)


def peak_memory(accelerator: str) -> int:
    """Most bytes: of the GPU while this model trained ("gpu"), or of the machine's since this process began ("cpu")."""
    if accelerator == "gpu":
        return torch.cuda.max_memory_allocated()
    return most_resident()
