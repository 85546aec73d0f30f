"""What the stages share: the device, the encoder to start from, one fit, the result folders."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from sslt import distributed, precision
from sslt.adaptation.base import Adaptation
from sslt.callbacks.budget import Budget, seconds
from sslt.callbacks.checkpoint import Checkpoint, NaNGuard
from sslt.callbacks.curves import Curves
from sslt.callbacks.progress import Progress
from sslt.config import build
from sslt.data.base import Samples
from sslt.data.streams import Stream
from sslt.encoders.base import Encoder
from sslt.encoders.load import build_encoder, fresh_like, load_encoder
from sslt.errors import UserError
from sslt.execute import Interrupted, accelerator
from sslt.learner import Learner, Term
from sslt.runs import Run

log = logging.getLogger("sslt")
for _name in ("pytorch_lightning", "lightning_fabric"):  # they set their own level when imported
    logging.getLogger(_name).setLevel(logging.ERROR)


def device_of(cfg: Any) -> torch.device:
    """This process's device."""
    import os

    if accelerator(cfg.trainer) == "gpu":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def starting_encoder(cfg: Any, source: Any) -> Encoder:
    """The encoder of `from=`: an existing one, `scratch` (fresh, by `encoder=`), or `scratch:RUN` (fresh, as RUN's)."""
    start = cfg["from"]
    trust = list(cfg.trust)
    if start in (None, "scratch"):
        encoder = build_encoder(cfg.encoder, source)
    elif str(start).startswith("scratch:"):
        encoder = fresh_like(str(start).partition(":")[2], trust)
    else:
        wanted = cfg.encoder.get("processor", {}).get("max_length") if cfg.encoder is not None else None
        encoder = load_encoder(str(start), source.modality, trust, wanted)
    if encoder.modality != source.modality:
        raise UserError(f"from={start} reads {encoder.modality}s, but {source.name} holds {source.modality}s: choose another data=")
    return encoder


def prepare(encoder: Encoder, source: Any, split: str) -> Samples:
    """A split made ready for an encoder; one process of a node prepares, the others then find it in the cache."""
    if distributed.rank() != 0:
        distributed.barrier()
    try:
        samples = encoder.processor.prepare(source, split)
    finally:
        if distributed.rank() == 0:
            distributed.barrier()
    if samples.skipped:
        log.warning("%s: %d unreadable or empty samples of '%s' were skipped (data.on_error=skip)", source.name, samples.skipped, split)
    return samples


def fit(
    cfg: Any,
    run: Run,
    encoder: Encoder,
    terms: dict[str, Term],
    streams: dict[str, Stream],
    adaptation: Adaptation,
    watchers: Any = None,
) -> Learner:
    """Train, or go on training, in a run folder. `watchers(curves)` gives the stage's own callbacks.

    Raises `Interrupted` when somebody stopped the run (its checkpoint is written).
    """
    t = dict(cfg.trainer)
    t.pop("_target_", None)
    kind = accelerator(cfg.trainer)
    world = distributed.world_size()
    number_format = precision.resolve(t.pop("precision"), kind)
    max_time = seconds(t.pop("max_time"))
    max_epochs, max_steps = t.pop("max_epochs"), t.pop("max_steps")
    max_epochs = None if max_epochs == -1 else max_epochs
    max_steps = None if max_steps == -1 else max_steps
    if not (max_epochs or max_steps or max_time):
        max_epochs = cfg.default_max_epochs
    budget = Budget(max_epochs, max_steps, max_time)
    primary = next(iter(streams.values()))
    log_every = t.pop("log_every_n_steps")
    sync_batchnorm = t.pop("sync_batchnorm") and world > 1
    if sync_batchnorm and kind == "cpu":
        for term in terms.values():
            distributed.span_batch_norm(term.objective)
        distributed.span_batch_norm(encoder)
        sync_batchnorm = False
    optimizer = dict(cfg.optimizer)
    if number_format.startswith("16") and "fused" in optimizer:
        optimizer["fused"] = False  # a fused optimizer unscales float16 gradients itself, after they would be clipped
    learner = Learner(
        encoder,
        terms,
        streams,
        adaptation,
        build(optimizer, _partial_=True),
        build(cfg.schedule),
        weight_decay=float(cfg.optimizer.get("weight_decay", 0.0)),
        progress=budget.progress,
        seed=int(cfg.seed),
        log_every=log_every,
    )
    curves = Curves(run, primary.batch_size * world)
    checkpoint = Checkpoint(run / "checkpoints", cfg.checkpoint.every_minutes, cfg.checkpoint.keep_every_n_epochs)
    progress = Progress(budget, curves, str(cfg.get("name") or run.info.get("verb", "train")))
    own = watchers(curves) if watchers else []
    extra = [build(c) for c in cfg.callbacks]
    loggers = [build(node, save_dir=str(run.path)) for node in (cfg.logger or {}).values()] if distributed.rank() == 0 else []
    for key in ("strategy", "devices", "accelerator"):
        t.pop(key, None)
    trainer = pl.Trainer(
        **t,
        accelerator=kind,
        devices=world if world > 1 else 1,
        strategy="ddp" if world > 1 else "auto",
        precision=number_format,  # type: ignore[arg-type]
        max_epochs=max_epochs or -1,
        max_steps=max_steps or -1,
        sync_batchnorm=sync_batchnorm,
        logger=loggers or False,
        callbacks=[curves, budget, *own, *extra, progress, NaNGuard(checkpoint), checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=run.path,
        log_every_n_steps=log_every,
    )
    for logger in loggers:
        from omegaconf import OmegaConf

        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    moving = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in learner.parameters())
    log.info(
        "%s samples, batches of %d%s, %s; %s of %s parameters move; %s on %s",
        f"{len(primary.samples):,}", primary.batch_size, f" × {world} ranks" if world > 1 else "", _bound(budget, primary),
        f"{moving:,}", f"{whole:,}", number_format, kind,
    )  # fmt: skip
    started = time.perf_counter()
    ckpt = run.checkpoint
    if ckpt is not None:
        log.info("going on from %s", ckpt)
    try:
        trainer.fit(learner, ckpt_path=ckpt, weights_only=True)
    finally:
        checkpoint.restore_signals()
        progress.close()
    if checkpoint.signal is not None:
        raise Interrupted(learner.batches_seen)
    learner.run_metrics = {
        "train/loss": float(learner.last["loss"]) if learner.last else math.nan,
        "train/steps": learner.batches_seen,
        "train/epochs": round(learner.epoch_position, 4),
        "train/seconds": round(budget.elapsed, 2),
        "throughput/samples_per_second": round(curves.throughput, 2),
        "model/parameters": whole,
        "model/moving_parameters": moving,
    }
    learner.loggers_used = loggers
    log.debug("fit took %.1f s", time.perf_counter() - started)
    return learner


def _bound(budget: Budget, stream: Stream) -> str:
    parts = []
    if budget.max_epochs:
        parts.append(f"{budget.max_epochs} epochs of {len(stream)} steps")
    if budget.max_steps:
        parts.append(f"{budget.max_steps} steps")
    if budget.max_time:
        parts.append(f"{budget.max_time:g} s")
    return " or ".join(parts)


def log_final(learner: Learner, metrics: dict[str, Any]) -> None:
    """Hand the final numbers to every logger and close it."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and not k.startswith(("class/", "test/class/"))}
    for logger in learner.loggers_used:
        logger.log_metrics(numbers, step=learner.batches_seen)
        logger.finalize("success")
        if type(logger).__name__ == "WandbLogger":
            logger.experiment.finish(quiet=True)


def save_result(run: Run, encoder: Encoder, cfg: Any, source: Any, metrics: dict[str, Any]) -> None:
    """Write `encoder/` with its model card."""
    if not run.is_main:
        return
    from sslt.report.cards import model_card

    encoder.save(run / "encoder", model_card(run, encoder, cfg, source, metrics))
    run.update(data=source.fingerprint())


def save_head(run: Run, objective: Any, node: Any, classes: list[str]) -> None:
    """Write `head/`: the classifier that belongs to the encoder."""
    if not run.is_main:
        return
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    (run / "head").mkdir(exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in objective.state_dict().items()}, run / "head" / "model.safetensors")
    about = {"objective": OmegaConf.to_container(node, resolve=True), "classes": classes}
    (run / "head" / "head.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def load_head(folder: Path, encoder: Encoder, trust: list[str]) -> tuple[Any, list[str]]:
    """The classifier in `folder` (a run's `head/`) and its class names."""
    from omegaconf import OmegaConf
    from safetensors.torch import load_file

    from sslt.config import check_trusted

    about = json.loads((folder / "head.json").read_text())
    check_trusted(about["objective"], trust, str(folder))
    objective = build(OmegaConf.create(about["objective"]), encoder, n_classes=len(about["classes"]))
    objective.load_state_dict(load_file(folder / "model.safetensors"))
    return objective, about["classes"]


def eval_batch_size(cfg: Any) -> int:
    """Batch size where nothing is kept for a backward pass."""
    return max(int(cfg.batch_size), 256)


def labels_of(samples: Samples) -> torch.Tensor:
    """Labels [N] as a tensor."""
    return torch.as_tensor(np.asarray(samples.labels)).long()
