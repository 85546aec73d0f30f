"""`sslt finetune`: carry an encoder to a task that has answers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sslt import distributed
from sslt.callbacks.probes import Validation
from sslt.config import RATE, build, searched_around
from sslt.data.base import Samples
from sslt.data.streams.streams import Stream
from sslt.data.streams.subsets import some
from sslt.errors import UserError
from sslt.evaluation.beside import cheap, compared
from sslt.evaluation.features import MEASURED, encode, predicted
from sslt.groups import command, starting
from sslt.learner import Learner, Term
from sslt.report.answers import row_names, write_answers
from sslt.report.end import say_next, write_map, write_plots
from sslt.runs import Run
from sslt.stages import common, episodes, fitting, joint, measure, rates, shift, task, weights
from sslt.stages.between import Between
from sslt.stages.common import Supervised
from sslt.stages.task import PASSES, Plan, Splits, Task
from sslt.targets import heads

MAPPED = 600  # test samples on the map of features
SOFTENED_BY = 512  # training samples on each rank that say how sure the head may be
LEAST_HELD = 500  # validation samples that choose between start and end, however few were learned from


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Train on labels, measure on the test split once; write encoder/, head/, metrics.json, plots/. Returns the metrics."""
    _check(cfg)
    if cfg.episodes is not None:
        return episodes.main(cfg, run)
    about = task.read(cfg, run)
    plan = task.plan(cfg, about)
    parts = _parts(cfg, about, plan)
    fitted = _fit(cfg, run, about, plan, parts)

    def save_head(beside: Run) -> None:
        heads.save(beside, about.target, about.node)

    weights.save_raw(run, fitted.learner, about.encoder, cfg, about.source, fitted.learner.run_metrics, save_head)
    metrics = {**fitted.learner.run_metrics, **fitted.search, **_settle(cfg, about, plan, fitted), "train/labels": parts.labels}
    metrics |= {"data/skipped": about.splits.train.skipped} if about.splits.train.skipped else {}
    metrics |= parts.validate(MEASURED)
    scored = measure.measured(plan.trained, about.target, parts.test, plan.device, plan.batch, "test", figures=run)
    metrics |= scored.metrics
    metrics |= parts.after(metrics, fitted.watched)
    remarks = _beside(cfg, run, about, metrics, scored.predictions)
    common.save_result(run, about.encoder, cfg, about.source, metrics)
    save_head(run)
    metrics["model/stored_bytes"] = common.stored_bytes(run)
    run.add_metrics(metrics)
    common.log_final(fitted.learner, metrics)
    write_plots(run, fitted.learner)
    shown = some(parts.test, MAPPED, int(cfg.seed))
    write_map(run, encode(plan.trained, shown, plan.device, plan.batch), shown)
    names = None if about.domains is not None else row_names(about.source, "test", about.splits.test)
    write_answers(run, about.encoder, about.target, parts.test, scored.predictions, names=names)
    if cfg.compare is None:
        say_next(run, metrics, [command("evaluate", starting(run)), command("predict", starting(run), "input=FILE")], remarks=remarks)
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
    if cfg.compare == "scratch" and common.starts_fresh(cfg):
        raise UserError("compare=scratch compares a start from weights with fresh ones: give from=RUN")
    if cfg.report not in ("last", "best"):
        raise UserError(f"report={cfg.report}: 'last' reports the last epoch's weights, 'best' those of the best epoch on validation")
    if cfg.head not in ("probe", "fresh"):
        raise UserError(f"head={cfg.head}: 'probe' starts from the linear probe of the encoder, 'fresh' at random")


def _parts(cfg: Any, about: Task, plan: Plan) -> Supervised:
    """What is minimised and on what: the target's loss, and what `shift=` and `joint=` add or put in its place."""
    size, full = common.batch_size(cfg, plan.seen.train), about.target.needs_full_batches
    parts = Supervised(
        {"finetune": Term(about.target, "finetune")},
        {"finetune": common.stream(cfg, plan.seen.train, size, plan.views, drop_last=full, tokens=cfg.batch_tokens)},
        labels=len(plan.seen.train),
        validate=plan.validate,
        chosen_by=f"val/{about.target.primary}" if cfg.report == "best" else None,
        test=about.splits.test if plan.fuses else plan.seen.test,
    )
    if plan.solved and not plan.frozen:
        _soften(cfg, plan, parts.streams["finetune"])
    if about.domains is not None:
        shift.add(cfg, about.encoder, about.target, about.adaptation, about.domains, plan.views, parts)
    if cfg.joint is not None:
        joint.add(cfg, about.encoder, about.source, parts)
    return parts


def _soften(cfg: Any, plan: Plan, stream: Stream) -> None:
    """Have the head as sure as it may be of what training shows, by some of it; the same in a run that goes on."""
    steps = range(min(len(stream), -(-SOFTENED_BY // stream.batch_size)))
    plan.trained.to(plan.device)
    plan.target.to(plan.device)
    with torch.random.fork_rng(devices=[plan.device] if plan.device.type == "cuda" else []):
        torch.manual_seed(int(cfg.seed))
        samples = ({k: v.to(plan.device) for k, v in stream.at(step).items()} for step in steps)
        plan.target.soften(plan.trained, (plan.views(batch, plan.trained) for batch in samples))


class _Fitted(NamedTuple):
    """A training that ended: what watched it, what it started from (None: nothing to go back to), what a search for its rate found."""

    learner: Learner
    watched: Validation
    start: Between | None
    search: dict[str, Any]


def _fit(cfg: Any, run: Run, about: Task, plan: Plan, parts: Supervised) -> _Fitted:
    """Train; afterwards the model is that of the epoch that is reported."""
    shortest = int(cfg.default_min_steps)
    cfg, search = rates.settled(
        cfg, run, plan.trained, parts, about.adaptation, plan.seen.val, least_steps=shortest, nothing_to_train=plan.idle
    )  # fmt: skip
    best = run / "checkpoints" / "best.safetensors"
    watched: list[Validation] = []
    start: list[Between] = []

    def keep() -> None:
        common.save_best(best, plan.trained, about.target, run)

    def watch(curves: Any) -> list[Validation]:
        answered = plan.solved or not about.target.trains  # what has no weights answers from the start
        if cfg.interpolate and answered and not plan.frozen and about.splits.val is not None:
            # an adapter is in its place now, and nothing has moved
            start.append(Between({"encoder": about.encoder, "objective": about.target}, about.target.sign))
        watched.append(Validation(curves, parts.validate, _val_every(cfg, about.splits), parts.chosen_by, keep, about.target.sign))
        return watched

    learner = fitting.fit(
        cfg, run, plan.trained, parts.terms, parts.streams, about.adaptation, watch, build(cfg.sampling),
        least_steps=shortest, nothing_to_train=plan.idle,
    )  # fmt: skip
    if watched[0].best_epoch is not None:
        distributed.barrier()  # they are written by one rank
        common.load_best(best, plan.trained, about.target)
    return _Fitted(learner, watched[0], start[0] if start else None, search)


def _val_every(cfg: Any, splits: Splits) -> int:
    """Epochs from one validation to the next: as asked for, or so many that validating costs less than training.

    A sample that is learned from costs about `PASSES` passes, one that is validated on one.
    """
    if cfg.val_every_n_epochs is not None:
        return int(cfg.val_every_n_epochs)
    return 0 if splits.val is None else -(-len(splits.val) // (PASSES * len(splits.train)))


def _settle(cfg: Any, about: Task, plan: Plan, fitted: _Fitted) -> dict[str, Any]:
    """What validation chooses once training is over: how far from the start the weights lie, and what stands beside the encoder."""
    found: dict[str, Any] = {}
    val, target = about.splits.val, about.target
    if fitted.start is not None and val is not None:
        read = fitted.learner.batches_seen * next(iter(fitted.learner.streams.values())).batch_size * distributed.world_size()
        held: Samples = some(val, max(LEAST_HELD, PASSES * read // len(cfg.interpolate)), int(cfg.seed))
        score = lambda: plan.validate(MEASURED, held)[f"val/{target.primary}"]  # noqa: E731
        found["train/interpolated"] = fitted.start.choose(cfg.interpolate, score)
    if plan.fuses:
        own = predicted(plan.trained, target, plan.seen.train if plan.seen.val is None else plan.seen.val, plan.device, plan.batch)
        found |= target.fuse(about.encoder, own, about.splits.train, val, plan.device)
        plan.trained, plan.seen = about.encoder, about.splits
    if target.calibrates and plan.seen.val is not None and plan.seen.val.answers is not None:
        target.calibrate(predicted(plan.trained, target, plan.seen.val, plan.device, plan.batch), plan.seen.val.answers)
    return found


def _beside(cfg: Any, run: Run, about: Task, metrics: dict[str, Any], predictions: Any) -> list[str]:
    """Add the cheapest methods to the metrics; what they say of this result, in words. Of another domain there are none."""
    if not run.is_main or about.domains is not None:
        return []
    labels = (cfg.label_fraction, cfg.labels_per_class, cfg.seed)
    found, theirs = cheap(cfg, about.target, about.source, about.splits._asdict(), labels)
    metrics |= found
    return compared(about.target, about.target.called, predictions, {str(found.get("baseline/method")): theirs}, about.splits.test.answers)
