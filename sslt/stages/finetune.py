"""`sslt finetune`: carry an encoder to a labelled task."""

from __future__ import annotations

import logging
from typing import Any

from sslt import distributed
from sslt.callbacks.probes import Validation
from sslt.config import build
from sslt.data.base import Samples
from sslt.data.features import FeatureSamples
from sslt.data.subsets import label_subset, some
from sslt.data.views import Plain
from sslt.encoders.base import Encoder, fingerprint
from sslt.encoders.precomputed import Precomputed
from sslt.errors import UserError
from sslt.evaluation.features import MEASURED, cached_features, encode
from sslt.learner import Term
from sslt.report.end import say_next, write_map, write_plots
from sslt.runs import Run
from sslt.stages import common, episodes, fitting, joint, measure, shift, weights
from sslt.stages.common import Supervised

log = logging.getLogger("sslt")
MAPPED = 600  # test samples on the map of features


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
        raise UserError(f"{source.name} has no labels to fine-tune on{common.label_hint(source)}")
    common.require_two_classes(source)
    adaptation = build(cfg.adaptation)
    domains = None if cfg.shift is None else shift.read(cfg, source)
    encoder = common.starting_encoder(cfg, source, None if domains is None else domains.corpus)
    train = label_subset(common.prepare(encoder, source, "train"), cfg.label_fraction, cfg.labels_per_class, cfg.seed)
    common.require_two_classes(source, train)
    test = common.prepare_labelled(encoder, source, "test")
    val = common.prepare_labelled(encoder, source, "val") if "val" in source.splits() else None
    if val is None and (cfg.report == "best" or cfg.shift is not None):
        raise UserError("there is no validation split to pick an epoch on: set data.val_fraction=0.1, or report=last")
    objective = build(cfg.objective, encoder, n_classes=len(source.classes))
    views = build(cfg.views)
    device, batch = common.device_of(cfg), common.eval_batch_size(cfg)
    trained: Encoder = encoder
    if adaptation.frozen and cfg.joint is None and domains is None:
        log.info("the encoder stands still: its features are computed once, without augmentation")
        trained, views = Precomputed(encoder), Plain(1)
        key = fingerprint(encoder)
        train, test = _features(cfg, encoder, key, train), _features(cfg, encoder, key, test)
        val = None if val is None else _features(cfg, encoder, key, val)

    def validate(number_format: str) -> dict[str, float]:
        if val is None:
            return {}
        return measure.classifier(trained, objective, val, device, batch, "val", detail=False, number_format=number_format)

    stream = common.stream(cfg, train, common.batch_size(cfg, train), views, drop_last=objective.needs_full_batches)
    chosen_by = "val/accuracy" if cfg.report == "best" else None
    parts = Supervised(
        {"finetune": Term(objective, "finetune")},
        {"finetune": stream},
        labels=len(train),
        validate=validate,
        chosen_by=chosen_by,
        test=test,
    )
    if domains is not None:
        shift.add(cfg, encoder, objective, adaptation, domains, views, parts)
    if cfg.joint is not None:
        joint.add(cfg, encoder, source, parts)

    best = run / "checkpoints" / "best.safetensors"
    keep = lambda: common.save_best(best, trained, objective, run)  # noqa: E731
    watchers: list[Validation] = []

    def watch(curves: Any) -> list[Validation]:
        watchers.append(Validation(curves, parts.validate, cfg.val_every_n_epochs, parts.chosen_by, keep))
        return watchers

    learner = fitting.fit(cfg, run, trained, parts.terms, parts.streams, adaptation, watch, build(cfg.sampling))
    if watchers[0].best_epoch is not None:
        distributed.barrier()  # they are written by one rank
        common.load_best(best, trained, objective)

    metrics = {**learner.run_metrics, "train/labels": parts.labels} | ({"data/skipped": train.skipped} if train.skipped else {})
    metrics |= parts.validate(MEASURED)
    metrics |= measure.classifier(trained, objective, parts.test, device, batch, "test", plots=run)
    metrics |= parts.after(metrics, watchers[0])
    save_head = lambda beside: common.save_head(beside, objective, cfg.objective, source.classes)  # noqa: E731
    weights.save_raw(run, learner, encoder, cfg, source, metrics, save_head)
    common.save_result(run, encoder, cfg, source, metrics)
    save_head(run)
    metrics["model/stored_bytes"] = common.stored_bytes(run)
    run.add_metrics(metrics)
    common.log_final(learner, metrics)
    write_plots(run, learner)
    shown = some(parts.test, MAPPED, int(cfg.seed))
    write_map(run, encode(trained, shown, device, batch), shown)
    if cfg.compare is None:
        say_next(run, metrics, [f"sslt evaluate from={run}", f"sslt predict from={run} input=FILE"])
    return metrics


def _features(cfg: Any, encoder: Encoder, key: str, samples: Samples) -> Samples:
    """A split as features of a frozen encoder with fingerprint `key`, from one pass that is kept on disk."""
    x = cached_features(encoder, samples, common.device_of(cfg), common.eval_batch_size(cfg), key=key)
    return FeatureSamples(x, samples)
