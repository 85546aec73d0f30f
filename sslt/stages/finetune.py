"""`sslt finetune`: carry an encoder to a task that has answers."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from hydra.utils import get_object

from sslt import distributed
from sslt.adaptation.base import Full
from sslt.callbacks.probes import Validation
from sslt.config import RATE, build, searched_around
from sslt.data.answers import Answers
from sslt.data.base import Samples
from sslt.data.streams.features import FeatureSamples
from sslt.data.streams.subsets import label_subset, some
from sslt.data.views.base import Plain
from sslt.encoders.base import Encoder, fingerprint
from sslt.encoders.precomputed import Precomputed
from sslt.errors import UserError
from sslt.evaluation.beside import cheap, compared
from sslt.evaluation.features import MEASURED, cached_features, encode, predicted
from sslt.learner import Term
from sslt.report.answers import write_answers
from sslt.report.end import say_next, write_map, write_plots
from sslt.runs import Run
from sslt.stages import common, episodes, fitting, heads, joint, measure, rates, shift, weights
from sslt.stages.between import Between
from sslt.stages.common import Supervised

log = logging.getLogger("sslt")
MAPPED = 600  # test samples on the map of features
PASSES = 3  # over a sample that is learned from, in the cost of one that is validated on
LEAST_HELD = 500  # validation samples that choose between start and end, however few were learned from


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Train on labels, measure on the test split once; write encoder/, head/, metrics.json, plots/. Returns the metrics."""
    _check(cfg)
    if cfg.episodes is not None:
        return episodes.main(cfg, run)
    source = build(cfg.data)
    run.update(data=source.fingerprint())
    common.refuse_new_answers(source)
    if source.space is None:
        raise UserError(f"{source.name} has no labels to fine-tune on{common.label_hint(source)}")
    node = common.target_node(cfg, source, run.info.get("config_dir"))
    common.check_target(source, node, run.info.get("config_dir"))
    adaptation = build(cfg.adaptation)
    domains = None if cfg.shift is None else shift.read(cfg, source)
    encoder = common.starting_encoder(cfg, source, None if domains is None else domains.corpus)
    splits = _splits(cfg, encoder, source, node)
    target = common.build_target(node, encoder, source)
    run.update(primary=target.primary)
    views = build(cfg.views)
    device, batch = common.device_of(cfg), common.eval_batch_size(cfg)
    alone = cfg.joint is None and domains is None and target.reads == "pooled"
    fixed = encoder.fixed and isinstance(adaptation, Full) and alone
    frozen = (adaptation.frozen and alone) or fixed
    fuse = cfg.late_fusion and target.fuses and (fixed or not frozen) and domains is None
    started = not str(cfg["from"] or "scratch").startswith("scratch") and domains is None and target.reads == "pooled"
    trained, seen, solved = encoder, splits, False
    if frozen or (started and cfg.head == "probe"):
        features = _features(cfg, encoder, splits, test=frozen and not fuse)
        if cfg.head == "probe":
            solved = target.solve(*features.parts())
    if frozen:
        trained, views, seen = Precomputed(encoder), Plain(1), features
        how = "the head on its features is solved, not trained" if solved else "its features are computed once, without augmentation"
        log.info("the encoder stands still%s: %s", " (adaptation=partial adaptation.blocks=1 would move its filters)" if fixed else "", how)

    def validate(number_format: str, samples: Samples | None = None) -> dict[str, float]:
        samples = seen.val if samples is None else samples
        if samples is None:
            return {}
        return measure.measured(trained, target, samples, device, batch, "val", detail=False, number_format=number_format).metrics

    stream = common.stream(cfg, seen.train, common.batch_size(cfg, seen.train), views, drop_last=target.needs_full_batches)
    chosen_by = f"val/{target.primary}" if cfg.report == "best" else None
    parts = Supervised(
        {"finetune": Term(target, "finetune")},
        {"finetune": stream},
        labels=len(seen.train),
        validate=validate,
        chosen_by=chosen_by,
        test=splits.test if fuse else seen.test,
    )
    if domains is not None:
        shift.add(cfg, encoder, target, adaptation, domains, views, parts)
    if cfg.joint is not None:
        joint.add(cfg, encoder, source, parts)

    shortest, idle = int(cfg.default_min_steps), frozen and solved
    cfg, rate_search = rates.settled(
        cfg, run, trained, parts, adaptation, seen.val, least_steps=shortest, nothing_to_train=idle
    )  # fmt: skip
    best = run / "checkpoints" / "best.safetensors"
    keep = lambda: common.save_best(best, trained, target, run)  # noqa: E731
    watchers: list[Validation] = []
    start: list[Between] = []

    def watch(curves: Any) -> list[Validation]:
        if cfg.interpolate and solved and not frozen and splits.val is not None:
            start.append(
                Between({"encoder": encoder, "objective": target}, target.sign)
            )  # an adapter is in its place now, and nothing has moved
        watchers.append(Validation(curves, parts.validate, _val_every(cfg, splits), parts.chosen_by, keep, target.sign))
        return watchers

    learner = fitting.fit(
        cfg, run, trained, parts.terms, parts.streams, adaptation, watch, build(cfg.sampling),
        least_steps=shortest, nothing_to_train=idle,
    )  # fmt: skip
    if watchers[0].best_epoch is not None:
        distributed.barrier()  # they are written by one rank
        common.load_best(best, trained, target)

    save_head = lambda beside: heads.save(beside, target, node)  # noqa: E731
    weights.save_raw(run, learner, encoder, cfg, source, learner.run_metrics, save_head)
    weighed: dict[str, Any] = {}
    if start and splits.val is not None:
        read = learner.batches_seen * stream.batch_size * distributed.world_size()
        held = some(splits.val, max(LEAST_HELD, PASSES * read // len(cfg.interpolate)), int(cfg.seed))
        weighed["train/interpolated"] = start[0].choose(cfg.interpolate, lambda: validate(MEASURED, held)[f"val/{target.primary}"])
    if fuse:
        own = predicted(trained, target, seen.train if seen.val is None else seen.val, device, batch)
        weighed |= target.fuse(encoder, own, splits.train, splits.val, device)
        trained, seen = encoder, splits
    metrics = {**learner.run_metrics, **rate_search, **weighed, "train/labels": parts.labels} | (
        {"data/skipped": splits.train.skipped} if splits.train.skipped else {}
    )
    metrics |= parts.validate(MEASURED)
    scored = measure.measured(trained, target, parts.test, device, batch, "test", figures=run)
    metrics |= scored.metrics
    metrics |= parts.after(metrics, watchers[0])
    remarks: list[str] = []
    if run.is_main and domains is None:
        labels = (cfg.label_fraction, cfg.labels_per_class, cfg.seed)
        found, theirs = cheap(cfg, target, source, splits._asdict(), labels)
        metrics |= found
        others = {str(found.get("baseline/method")): theirs}
        remarks = compared(target, target.called, scored.predictions, others, splits.test.answers)
    common.save_result(run, encoder, cfg, source, metrics)
    save_head(run)
    metrics["model/stored_bytes"] = common.stored_bytes(run)
    run.add_metrics(metrics)
    common.log_final(learner, metrics)
    write_plots(run, learner)
    shown = some(parts.test, MAPPED, int(cfg.seed))
    write_map(run, encode(trained, shown, device, batch), shown)
    write_answers(run, encoder, target, splits.test, scored.predictions)
    if cfg.compare is None:
        say_next(run, metrics, [f"sslt evaluate from={run}", f"sslt predict from={run} input=FILE"], remarks=remarks)
    return metrics


def _check(cfg: Any) -> None:
    """Raise `UserError` for settings that do not go together."""
    if cfg.data is None:
        raise UserError("which task? Choose a target: +target=digits, +target=imdb, +target=text_csv data.path=FILE (`sslt list targets`)")
    if cfg.compare not in (None, "scratch", "baseline"):
        raise UserError(f"compare={cfg.compare}: what can be compared with is 'scratch'")
    for part in ("episodes", "shift"):
        if cfg[part] is not None and searched_around(cfg.optimizer.lr) is not None:
            raise UserError(f"{RATE}=auto chooses by the loss on validation samples, which +{part}= has no use for: give a number")
    if cfg.compare == "scratch" and str(cfg["from"]).startswith("scratch"):
        raise UserError("compare=scratch compares a start from weights with fresh ones: give from=RUN")
    if cfg.report not in ("last", "best"):
        raise UserError(f"report={cfg.report}: 'last' reports the last epoch's weights, 'best' those of the best epoch on validation")
    if cfg.head not in ("probe", "fresh"):
        raise UserError(f"head={cfg.head}: 'probe' starts from the linear probe of the encoder, 'fresh' at random")


class _Splits(NamedTuple):
    """What is learned from, chosen by and measured on."""

    train: Samples
    val: Samples | None
    test: Samples

    def parts(self) -> tuple[tuple[torch.Tensor, Answers], tuple[torch.Tensor, Answers] | None]:
        """Features and answers of train and val, where these are `FeatureSamples`."""
        assert isinstance(self.train, FeatureSamples) and self.train.answers is not None
        held = (self.val.features, self.val.answers) if isinstance(self.val, FeatureSamples) and self.val.answers is not None else None
        return (self.train.features, self.train.answers), held


def _splits(cfg: Any, encoder: Encoder, source: Any, node: Any) -> _Splits:
    train = label_subset(common.prepare(encoder, source, "train"), cfg.label_fraction, cfg.labels_per_class, cfg.seed)
    get_object(node["_target_"]).check(source, train.answers)
    test = common.prepare_labelled(encoder, source, "test")
    val = common.prepare_labelled(encoder, source, "val") if "val" in source.splits() else None
    if val is None and (cfg.report == "best" or cfg.shift is not None):
        raise UserError("there is no validation split to pick an epoch on: set data.val_fraction=0.1, or report=last")
    if val is None and searched_around(cfg.optimizer.lr) is not None:
        raise UserError(f"there is no validation split for {RATE}=auto to choose by: set data.val_fraction=0.1, or give a number")
    return _Splits(train, val, test)


def _features(cfg: Any, encoder: Encoder, splits: _Splits, test: bool) -> _Splits:
    """The splits as features of the encoder as it is now, from one pass that is kept on disk; `test` only where it is asked for."""
    key = fingerprint(encoder)

    def of(samples: Samples) -> Samples:
        return FeatureSamples(cached_features(encoder, samples, common.device_of(cfg), common.eval_batch_size(cfg), key=key), samples)

    val = None if splits.val is None else of(splits.val)
    return _Splits(of(splits.train), val, of(splits.test) if test else splits.test)


def _val_every(cfg: Any, splits: _Splits) -> int:
    """Epochs from one validation to the next: as asked for, or so many that validating costs less than training.

    A sample that is learned from costs about `PASSES` passes, one that is validated on one.
    """
    if cfg.val_every_n_epochs is not None:
        return int(cfg.val_every_n_epochs)
    return 0 if splits.val is None else -(-len(splits.val) // (PASSES * len(splits.train)))
