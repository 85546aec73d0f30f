"""`sslt finetune`: carry an encoder to a labelled task."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from sslt import distributed
from sslt.callbacks.probes import Validation
from sslt.config import build
from sslt.data.base import Samples, stratified
from sslt.data.features import FeatureSamples
from sslt.data.views import Plain
from sslt.encoders.base import Encoder, fingerprint
from sslt.encoders.precomputed import Precomputed
from sslt.errors import UserError
from sslt.evaluation.features import cached_features
from sslt.learner import Term
from sslt.report.end import say_next, write_plots
from sslt.runs import Run
from sslt.stages import common, episodes, joint, measure
from sslt.stages.common import Parts

log = logging.getLogger("sslt")


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Train on labels, measure on the test split once; write encoder/, head/, metrics.json, plots/. Returns the metrics."""
    if cfg.data is None:
        raise UserError("which task? Choose a target: +target=digits, +target=imdb, +target=text_csv data.path=FILE (`sslt list targets`)")
    if cfg.compare not in (None, "scratch", "baseline"):
        raise UserError(f"compare={cfg.compare}: what can be compared with is 'scratch'")
    if cfg.compare == "scratch" and str(cfg["from"]).startswith("scratch"):
        raise UserError("compare=scratch compares a start from weights with fresh ones: give from=RUN")
    if cfg.report not in ("last", "best"):
        raise UserError(f"report={cfg.report}: 'last' reports the last epoch's weights, 'best' those of the best validation accuracy")
    if cfg.episodes is not None:
        return episodes.main(cfg, run)
    source = build(cfg.data)
    run.update(data=source.fingerprint())
    common.refuse_new_classes(source)
    if source.classes is None:
        raise UserError(f"{source.name} has no labels to fine-tune on: for text_csv name the column, data.label=…")
    adaptation = build(cfg.adaptation)
    encoder = common.starting_encoder(cfg, source)
    train = label_subset(common.prepare(encoder, source, "train"), cfg.label_fraction, cfg.labels_per_class, cfg.seed)
    val = common.prepare(encoder, source, "val")
    objective = build(cfg.objective, encoder, n_classes=len(source.classes))
    views = build(cfg.views)
    test = common.prepare(encoder, source, "test")
    trained: Encoder = encoder
    if adaptation.frozen and cfg.joint is None:
        log.info("the encoder stands still: its features are computed once, without augmentation")
        trained, views, (train, val, test) = Precomputed(encoder), Plain(1), _features(cfg, encoder, train, val, test)
    parts = Parts({"finetune": Term(objective, "finetune")}, {})
    parts.streams["finetune"] = common.stream(cfg, train, _batch_size(cfg, train), views, drop_last=objective.needs_full_batches)
    if cfg.joint is not None:
        joint.add(cfg, encoder, source, parts)
    best = run / "checkpoints" / "best.safetensors"
    keep = (lambda: common.save_best(best, trained, objective, run)) if cfg.report == "best" else None
    batch = common.eval_batch_size(cfg)
    watchers = lambda curves: [Validation(curves, val, objective, cfg.val_every_n_epochs, batch, keep)]  # noqa: E731
    learner = common.fit(cfg, run, trained, parts.terms, parts.streams, adaptation, watchers, build(cfg.sampling))
    if cfg.report == "best" and best.exists():
        common.load_best(best, trained, objective)

    device = common.device_of(cfg)
    metrics = {**learner.run_metrics, "train/labels": len(train)} | ({"data/skipped": train.skipped} if train.skipped else {})
    metrics |= measure.classifier(trained, objective, val, device, batch, "val", detail=False)
    metrics |= measure.classifier(trained, objective, test, device, batch, "test", plots=run)
    common.save_result(run, encoder, cfg, source, metrics)
    common.save_head(run, objective, cfg.objective, source.classes)
    run.add_metrics(metrics)
    common.log_final(learner, metrics)
    write_plots(run, learner)
    if cfg.compare is None:
        say_next(run, metrics, [f"sslt evaluate from={run}", f"sslt predict from={run} input=FILE"])
    return metrics


def _features(cfg: Any, encoder: Encoder, *splits: Samples) -> list[Samples]:
    """The splits as features of a frozen encoder, from one pass that is kept on disk."""
    device, key = common.device_of(cfg), fingerprint(encoder)
    return [FeatureSamples(cached_features(encoder, s, device, common.eval_batch_size(cfg), key=key), s) for s in splits]


def label_subset(samples: Samples, fraction: float, per_class: int | None, seed: int) -> Samples:
    """The seeded, stratified part of the labels that may be used."""
    if per_class is not None and (not isinstance(per_class, int) or per_class < 1):
        raise UserError(f"labels_per_class={per_class}: give a whole number from 1")
    if per_class is not None and fraction != 1:
        raise UserError(f"label_fraction={fraction} and labels_per_class={per_class}: give one of the two")
    if per_class is None and fraction == 1:
        return samples
    assert samples.labels is not None
    labels = np.asarray(samples.labels)
    index = stratified(labels, per_class=per_class, seed=seed) if per_class else stratified(labels, fraction=fraction, seed=seed)
    log.info("%d of %d labels are used", len(index), len(samples))
    return samples.subset(index)


def _batch_size(cfg: Any, train: Samples) -> int:
    share = max(len(train) // distributed.world_size(), 1)
    if cfg.batch_size > share:
        log.info("batch_size=%d is larger than the %d labelled samples: batches of %d are used", cfg.batch_size, len(train), share)
    return min(cfg.batch_size, share)
