"""`sslt pretrain`: learn an encoder from unlabelled data."""

from __future__ import annotations

import logging
from typing import Any

from hydra.utils import get_object

from sslt.callbacks.budget import seconds
from sslt.callbacks.probes import OnlineProbe
from sslt.config import build
from sslt.data.base import Samples, many
from sslt.data.prepare.text_samples import PackedSamples, TextSamples
from sslt.data.streams.joined import Joined
from sslt.data.views.base import Views
from sslt.errors import UserError
from sslt.evaluation.language import before_end, divided
from sslt.groups import command, starting
from sslt.learner import Term
from sslt.processes import accelerator
from sslt.report.end import say_next, write_map, write_pictures, write_plots
from sslt.report.next_steps import after_pretraining, with_labels
from sslt.runs import Run
from sslt.stages import common, fitting, weights

log = logging.getLogger("sslt")
SHORT = 3600.0  # seconds on a CPU for which a shallow recipe is the better use
WIDE = 256  # samples a step that a GPU is not too large for
FEW = 2000  # samples, of which deep recipes see every one often within minutes
# modality → the recipe that learns most within minutes on a CPU, and what was measured (docs/results)
QUICK = {
    "image": (
        "patch_kmeans",
        "after a minute on CIFAR-10 kNN has 71 % by it, after ten of SimCLR 58 %; fine-tuned on 4,500 labels they have 66 and 69 %",
    ),
    "text": ("crops", "after three minutes on IMDB a linear probe has 89 % by it, after fifteen of masked words 69 %"),
    "items": ("sasrec", "it learns from every item of a history at once"),
}


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Train; write encoder/ (and what `stages/weights.py` puts beside it), metrics.json and plots/. Returns the metrics."""
    if cfg.objective is None:
        raise UserError("what shall be learned? Choose a task: +task=simclr (images), +task=crops or +task=mlm (text)")
    source = build(cfg.data)
    run.update(data=source.fingerprint())
    views: Views = build(cfg.views)
    kind = get_object(cfg.objective["_target_"])
    if views.modality not in (None, source.modality):
        way = "choose another data= (`sslt list data`) or +task="
        if source.modality == "text" and kind.modality is None and kind.least_views > 1:
            way = f"add encoder=bag views=crops{'' if kind.least_views == 2 else f' views.n={kind.least_views}'}, or {way}"
        raise UserError(
            f"{cfg.get('name') or 'this task'} makes views of {many(views.modality)}, but {source.name} holds "
            f"{many(source.modality)}: {way}"
        )
    if kind.modality not in (None, source.modality):
        raise UserError(
            f"+task={cfg.name} learns from {many(kind.modality)}, but {source.name} holds {many(source.modality)}: choose another data="
        )
    if kind.needs_labels and not source.has_classes:
        raise UserError(f"+task={cfg.name} learns from labels, and {source.name} has none: choose another data= or +task=")
    encoder = common.starting_encoder(cfg, source)
    objective, adaptation = build(cfg.objective, encoder), build(cfg.adaptation)
    fitting.check(cfg, encoder, adaptation, objective, views, int(cfg.batch_size))  # before the data are read
    run.update(**objective.made_from())
    encoders = weights.of_objective(cfg, objective, encoder)
    samples = _samples(encoder, source, objective.needs_labels)
    batch_given = any(o.lstrip("+").startswith("batch_size=") for o in run.info.get("overrides", []))
    _say_what_to_expect(cfg, source.modality, len(samples), batch_given)
    held_out = objective.holds_out and not {"val", "test"} & set(source.splits())
    if cfg.pack:
        samples = samples.packed(encoder.processor.max_length)
        if held_out and isinstance(samples, PackedSamples):
            samples, _ = divided(samples)
    elif held_out and isinstance(samples, TextSamples) and int(samples.sizes.sum()) >= encoder.processor.max_length:
        samples = before_end(samples, samples.packed(encoder.processor.max_length))
    stream = common.stream(cfg, samples, cfg.batch_size, views, drop_last=True)
    probes: list[OnlineProbe] = []

    def watchers(curves: Any) -> list[Any]:
        probe = _probe(cfg, next(iter(encoders.values())), source, curves)
        probes.extend(probe)
        return list(probe)

    terms, streams = {"pretrain": Term(objective, "pretrain")}, {"pretrain": stream}
    learner = fitting.fit(cfg, run, encoder, terms, streams, adaptation, watchers, most_epochs=cfg.most_epochs)
    skipped = {"data/skipped": samples.skipped} if samples.skipped else {}
    metrics = {**learner.run_metrics, **skipped, **(probes[0].last if probes else {})}
    beside = weights.save(run, learner, encoders, cfg, source, metrics)
    run.add_metrics(metrics)
    common.log_final(learner, metrics, write_pictures(run, learner))
    write_plots(run, learner)
    if probes and probes[0].features is not None:
        write_map(run, probes[0].features, probes[0].bank)
    commands = [*(command("evaluate", starting(f"{run}/{name}")) for name in beside), *after_pretraining(cfg, source, run)]
    say_next(run, metrics, commands, None if source.space else with_labels(source, run))
    return metrics


def _say_what_to_expect(cfg: Any, modality: str, n: int, batch_given: bool) -> None:
    """Point to the recipe that gives more, where a run on a CPU and more than `FEW` samples has less than `SHORT` or no limit of time; and
    to larger batches on a GPU, where the recipe's own were taken."""
    limit = seconds(cfg.trainer.max_time)
    if accelerator(cfg.trainer) == "gpu" and not batch_given and int(cfg.batch_size) < WIDE:
        log.info("batches of %d suit a processor's minutes: batch_size=512, or more, uses this GPU better", cfg.batch_size)
    recipe, measured = QUICK[modality]
    if n > FEW and accelerator(cfg.trainer) == "cpu" and cfg.name != recipe and cfg["from"] is None and (limit is None or limit < SHORT):
        log.info("on a CPU this recipe wants hours; +task=%s wants minutes: %s (docs/results/first.md)", recipe, measured)


def _samples(encoder: Any, source: Any, labelled: bool) -> Samples:
    """What is learned from: with `labelled` the training split, otherwise all there is but for what is validated and tested on."""
    if labelled:
        return common.prepare(encoder, source, "train")
    unlabelled = common.prepare(encoder, source, "unlabeled")
    if {"train", "unlabeled"} <= set(source.own_splits()) and not source.parts:
        return Joined([unlabelled, common.prepare(encoder, source, "train")])
    return unlabelled


def _probe(cfg: Any, encoder: Any, source: Any, curves: Any) -> list[OnlineProbe]:
    o = cfg.online_probe
    if not o.every_n_epochs:
        return []
    labelled = source.space is not None and "val" in source.splits() and not source.parts
    bank = common.prepare(encoder, source, "train" if labelled else "unlabeled")
    queries = common.prepare(encoder, source, "val") if labelled else None
    if queries is not None and queries.answers is None:
        queries = None
    limit = seconds(cfg.trainer.max_time)
    return [OnlineProbe(curves, encoder, bank, queries, o.every_n_epochs, o.samples, common.eval_batch_size(cfg), limit)]
