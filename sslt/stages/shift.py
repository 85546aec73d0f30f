"""A new domain: learning from labelled sources for a target whose labels nothing but the final test looks at."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from sslt.adaptation.base import Adaptation, Probe
from sslt.callbacks.probes import Validation
from sslt.config import build
from sslt.data.base import Samples, Source
from sslt.data.streams.joined import Joined
from sslt.data.streams.subsets import label_subset, some
from sslt.encoders.base import Encoder
from sslt.errors import UserError, nearest
from sslt.evaluation.selection import distance_weights
from sslt.learner import Term
from sslt.objectives.parts.layers import check_layer, layer_width
from sslt.stages import common, domains
from sslt.stages.domains import Domains, Meter

log = logging.getLogger("sslt")

CHOSEN_BY = {"source_val": "val/accuracy", "entropy": "shift/entropy", "importance": "shift/importance", "last": None}
POOLING = ("pooled", "per_domain", "weighted")


def read(cfg: Any, source: Source) -> Domains:
    """The domains of `shift=`, every setting of it checked."""
    o = cfg.shift
    for key, known in (("select", CHOSEN_BY), ("pooling", POOLING), ("labels", ("source", "target"))):
        if o[key] not in known:
            raise UserError(f"shift.{key}={o[key]}{nearest(str(o[key]), known)}")
    for key in ("weight", "temperature"):
        if not isinstance(o[key], (int, float)) or o[key] <= 0:
            raise UserError(f"shift.{key}={o[key]}: give a number above 0")
    for key in ("samples", "target_samples"):
        if (o[key] is not None or key == "samples") and (not isinstance(o[key], int) or o[key] < 10):
            raise UserError(f"shift.{key}={o[key]}: give a whole number, 10 or more")
    if cfg.report != "last":
        raise UserError(
            f"report={cfg.report}: with +shift= the epoch that is reported is picked by shift.select (source_val is what best is)"
        )
    found = domains.read(o, source)
    if o.labels == "target" and found.target.classes is None:
        raise UserError(f"shift.labels=target: {found.target_name} has no labels to learn from")
    return found


def add(cfg: Any, encoder: Encoder, objective: Any, adaptation: Adaptation, found: Domains, views: Any, parts: common.Supervised) -> None:
    """Put the sources' terms in the place of the task's, with an alignment each; validate and test on the target.

    Every source is a stream and a term of its own, of weight 1/K or by its distance to the target, or all are pooled into one.
    The alignments come first, for one that reads a layer must be there when the source is encoded.
    """
    o = cfg.shift
    first, *more = found.sources
    train = {first: parts.streams["finetune"].samples, **{name: _labelled(cfg, encoder, found.sources[name]) for name in more}}
    target = common.prepare(encoder, found.target, "train" if o.labels == "target" else "unlabeled")
    target = target if o.target_samples is None else some(target, o.target_samples, cfg.seed)
    meter = _meter(cfg, encoder, objective, found, train, target)
    before = meter.geometry("before")
    taught = _streams(cfg, found, train, target, meter)
    size = max(common.batch_size(cfg, next(iter(taught.values()))[0]) // len(taught), 1)
    parts.terms, parts.streams = {}, {}
    for name, (samples, weight) in taught.items():
        parts.streams[name] = common.stream(cfg, samples, size, views, drop_last=o.objective is not None or objective.needs_full_batches)
        parts.terms[name] = Term(objective, name, weight)
    if o.objective is not None:
        _align(cfg, encoder, objective, adaptation, target, views, parts)
    parts.labels = sum(len(samples) for samples, _ in taught.values())
    parts.validate, parts.chosen_by = meter.validate, CHOSEN_BY[o.select]
    parts.unlabelled = [*(common.prepare(encoder, found.sources[name], "unlabeled") for name in more), target]
    if meter.target_test is not None:
        parts.test = meter.target_test
    else:
        log.info("%s has no labels: test/… is measured on %s", found.target_name, first)

    def after(metrics: dict[str, float], validation: Validation) -> dict[str, float]:
        best = {k: v for k, v in validation.highest.items() if k.startswith("oracle/")}
        epoch = validation.best_epoch if validation.best_epoch is not None else metrics["train/epochs"]
        chosen = {"shift/selected_epoch": epoch, "shift/source_val_accuracy": metrics["val/accuracy"]}
        return {**chosen, **meter.accuracies(), **before, **meter.geometry("after"), **best}

    parts.after = after


def _labelled(cfg: Any, encoder: Encoder, source: Source) -> Samples:
    return label_subset(common.prepare(encoder, source, "train"), cfg.label_fraction, cfg.labels_per_class, cfg.seed)


def _streams(cfg: Any, found: Domains, train: dict[str, Samples], target: Samples, meter: Meter) -> dict[str, tuple[Samples, float]]:
    """Stream → what teaches in it, and the weight of its term; the first is the task's own."""
    o = cfg.shift
    if o.labels == "target":
        return {"finetune": (target, 1.0)}
    if len(train) == 1 or o.pooling == "pooled":
        every = list(train.values())
        return {"finetune": (every[0] if len(every) == 1 else Joined(every), 1.0)}
    weights = [1 / len(train)] * len(train)
    if o.pooling == "weighted":
        distances = meter.distances()
        weights = distance_weights(list(distances.values()), o.temperature)
        for (name, distance), weight in zip(distances.items(), weights, strict=True):
            log.info("source %s: distance %.2f to %s, weight %.2f", name, distance, found.target_name, weight)
    names = ["finetune", *(f"source_{name}" for name in list(train)[1:])]
    return {name: (samples, weight) for name, samples, weight in zip(names, train.values(), weights, strict=True)}


def _align(cfg: Any, encoder: Encoder, objective: Any, adaptation: Adaptation, target: Samples, views: Any, parts: common.Parts) -> None:
    """The target's stream, and before each term of a source the one that brings its features to the target's."""
    o = cfg.shift
    if isinstance(adaptation, Probe):
        raise UserError("the encoder is frozen (adaptation=probe), so that no features can be aligned: choose another adaptation=")
    if build(cfg.sampling).alone:
        raise UserError("an alignment compares source and target within a step: sampling=together")
    check_layer(encoder, o.layer)
    first = next(iter(parts.streams.values()))
    width = layer_width(encoder, encoder.inputs(first.samples.batch(np.arange(min(2, len(first.samples))))), o.layer)
    aligned = {}
    for name, term in parts.terms.items():
        made = build(o.objective, encoder, width=width, task=objective, layer=o.layer)
        aligned[f"align_{name}".removesuffix("_finetune")] = Term(made, (name, "target"), o.weight * term.weight_at(0.0))
    parts.terms = {**aligned, **parts.terms}
    size = min(o.batch_size or first.batch_size, max(len(target) // first.world, 1))
    parts.streams["target"] = common.stream(cfg, target, size, views, drop_last=True)


def _meter(cfg: Any, encoder: Encoder, objective: Any, found: Domains, train: dict[str, Samples], target: Samples) -> Meter:
    n, seed = int(cfg.shift.samples), int(cfg.seed)
    tests = {name: common.prepare_labelled(encoder, source, "test") for name, source in found.sources.items()}
    if found.target.classes is not None:
        tests[found.target_name] = common.prepare_labelled(encoder, found.target, "test")
    val = [some(common.prepare(encoder, source, "val"), n, seed) for source in found.sources.values()]
    return Meter(
        encoder,
        objective,
        common.device_of(cfg),
        common.eval_batch_size(cfg),
        seed,
        banks={name: some(samples, n, seed) for name, samples in train.items()},
        target=some(target, n, seed),
        val=val[0] if len(val) == 1 else Joined(val),
        tests=tests,
        target_test=tests.get(found.target_name),
        queries={name: some(test, n, seed) for name, test in tests.items()},
    )
