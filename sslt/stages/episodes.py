"""Few-shot episodes: `sslt finetune +episodes=` learns from them, `sslt evaluate +episodes=` measures any encoder by them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from omegaconf import OmegaConf

from sslt import distributed, stored
from sslt.callbacks.episodes import EpisodeValidation
from sslt.config import build
from sslt.data.base import many
from sslt.data.streams.episodes import ClassSet, Episodes, EpisodeStream, split_classes, test_draws
from sslt.encoders.base import Encoder
from sslt.encoders.batch_norm import recalibrate
from sslt.encoders.files import fill, write_tensors
from sslt.encoders.seals import check_seal, seal
from sslt.errors import UserError
from sslt.evaluation.episodes import episode_accuracies, episode_metrics
from sslt.groups import command, starting
from sslt.learner import Term
from sslt.objectives.base import Objective
from sslt.report.end import say_next, write_plots
from sslt.runs import Run
from sslt.stages import common, fitting, joint, weights
from sslt.stages.common import Parts
from sslt.trusted import check_trusted

log = logging.getLogger("sslt")
FOLDER = "episodes"  # of a run: what was learned beside the encoder
_RECALIBRATION = 10  # batches for running statistics


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Learn from episodes of some classes, measure on episodes of others; write encoder/, episodes/, metrics.json, plots/."""
    plan = _plan(cfg)
    _check(cfg, plan)
    source = build(cfg.data)
    run.update(data=source.fingerprint())
    adaptation = build(cfg.adaptation)
    encoder = common.starting_encoder(cfg, source)
    sets = _class_sets(encoder, source, plan)
    method = build(cfg.episodes.method, encoder, n_classes=plan.way)
    if adaptation.frozen and not list(method.parameters()):
        raise UserError("this +episodes= has no weights beside the encoder's, which adaptation=probe freezes: choose another adaptation=")
    stream = _stream(cfg, plan, source, sets["train"], method)
    if method.own_statistics and cfg.trainer.sync_batchnorm:  # an episode is one rank's own
        cfg = OmegaConf.merge(cfg, {"trainer": {"sync_batchnorm": False}})
    parts = Parts({"finetune": Term(method, "finetune")}, {"finetune": stream})
    if cfg.joint is not None:
        joint.add(cfg, encoder, source, parts, own=sets["train"].samples)  # never one of a class that is tested on

    best = run / "checkpoints" / "best.safetensors"
    keep = (lambda: common.save_best(best, encoder, method, run)) if cfg.report == "best" else None
    watchers: list[EpisodeValidation] = []

    def watch(curves: Any) -> list[EpisodeValidation]:
        watchers.extend(_validation(cfg, plan, method, sets["val"], curves, keep))
        return watchers

    learner = fitting.fit(cfg, run, encoder, parts.terms, parts.streams, adaptation, watch, build(cfg.sampling))
    if cfg.report == "best" and best.exists():
        common.load_best(best, encoder, method)
    device = common.device_of(cfg)
    if method.own_statistics:
        _recalibrate(encoder, stream, device)
        if learner.average is not None:
            with learner.average.applied(learner):
                _recalibrate(encoder, stream, device)
    metrics = {**learner.run_metrics, "train/classes": len(sets["train"]) * stream.turns}
    if watchers:
        metrics |= {"val/accuracy": watchers[0].best} if cfg.report == "best" else watchers[0].last
    metrics |= _measured(cfg, plan, method, encoder, sets["test"], device)
    save_head = lambda beside: _save(beside, method, encoder, cfg.episodes.method, plan.way)  # noqa: E731
    weights.save_raw(run, learner, encoder, cfg, source, metrics, save_head)
    common.save_result(run, encoder, cfg, source, metrics)
    save_head(run)
    metrics["model/stored_bytes"] = common.stored_bytes(run)
    run.add_metrics(metrics)
    common.log_final(learner, metrics)
    write_plots(run, learner)
    if cfg.compare is None:
        asked = ["+episodes=centroid", f"episodes.way={plan.way}", f"episodes.shot={plan.shot}"]
        say_next(run, metrics, [command("evaluate", starting(run), *asked)])
    return metrics


def evaluate(cfg: Any, run: Run, encoder: Encoder, source: Any) -> dict[str, Any]:
    """Measure an encoder on episodes of the classes that are to be tested on. Returns the metrics."""
    plan = _plan(cfg)
    sets = _class_sets(encoder, source, plan)
    method = build(cfg.episodes.method, encoder, n_classes=plan.way)
    _load(cfg, method, encoder, plan)
    metrics = _measured(cfg, plan, method, encoder, sets["test"], common.device_of(cfg))
    run.add_metrics(metrics)
    say_next(run, metrics, [])
    return metrics


def _plan(cfg: Any) -> Episodes:
    return build(OmegaConf.merge(cfg.episodes, {"method": None}))  # the method needs the encoder


def _check(cfg: Any, plan: Episodes) -> None:
    if plan.training is None:
        raise UserError("this +episodes= has nothing to learn: measure an encoder with it by sslt evaluate, or learn by +episodes=protonet")
    if cfg.report == "best" and not plan.training.val_every_n_steps:
        raise UserError("report=best picks by validation episodes, and there are none: set episodes.training.val_every_n_steps")
    if cfg.shift is not None:
        raise UserError("+episodes= and +shift= cannot be joined: choose one of them")
    if cfg.label_fraction != 1 or cfg.labels_per_class is not None:
        raise UserError("label_fraction and labels_per_class are for batches: the labels of episodes are episodes.shot of each class")


def _class_sets(encoder: Encoder, source: Any, plan: Episodes) -> dict[str, ClassSet]:
    if not source.has_classes:
        if source.space is not None:
            raise UserError(f"episodes are made of classes, and the samples of {source.name} have {source.answer.words}")
        raise UserError(f"{source.name} has no labels to make episodes of{common.label_hint(source)}")
    parts = {split: common.prepare(encoder, source, split) for split in source.splits() if split != "unlabeled"}
    sets = split_classes({split: part for split, part in parts.items() if part.labels is not None}, plan, source.name)
    sets["test"].check(plan.way, plan.shot, plan.query)
    learn, watch, test = (len(sets[s]) for s in ("train", "val", "test"))
    log.info("%s classes: %d to learn from, %d to validate on, %d to test on", source.name, learn, watch, test)
    return sets


def _stream(cfg: Any, plan: Episodes, source: Any, classes: ClassSet, method: Any) -> EpisodeStream:
    t = plan.training
    assert t is not None
    turns = 4 if (source.turned_is_another_class if t.rotations is None else t.rotations) else 1
    if turns > 1 and source.modality != "image":
        raise UserError(f"episodes.training.rotations=true turns images, but {source.name} holds {source.modality}")
    way, shot = plan.way if t.way is None else t.way, plan.shot if t.shot is None else t.shot
    if method.one_way and way != plan.way:
        raise UserError(f"episodes.training.way={way}: this method has a head for episodes.way={plan.way} classes, in training too")
    there = len(classes) * turns
    if t.way is not None and way > there:
        log.info("%d classes to learn from: episodes of training are %d-way, not %d-way", there, there, way)
        way = there
    classes.check(way, shot, t.query, turns)
    views = build(cfg.views)
    if getattr(views, "n", 1) != 1:
        raise UserError(f"views.n={views.n}: episodes take one view of each sample")
    if views.modality not in (None, source.modality):
        raise UserError(f"views= makes views of {many(views.modality)}, but {source.name} holds {many(source.modality)}")
    rank, world = distributed.rank(), distributed.world_size()
    return EpisodeStream(classes, way, shot, t.query, t.per_step, seed=cfg.seed, rank=rank, world=world, turns=turns, views=views)


def _validation(cfg: Any, plan: Episodes, method: Any, classes: ClassSet, curves: Any, keep: Any) -> list[EpisodeValidation]:
    """Episodes like those of the tests; of as many classes as there are, where these are fewer: they are for the curve alone."""
    t = plan.training
    assert t is not None
    if not t.val_every_n_steps:
        return []
    way = min(plan.way, len(classes))
    classes.check(way, plan.shot, plan.query)
    if way < plan.way:
        log.info("%d classes to validate on: episodes of validation are %d-way, not %d-way", way, way, plan.way)
    draws = test_draws(classes, way, plan.shot + plan.query, t.val_episodes, int(cfg.seed))
    batch = common.eval_batch_size(cfg)
    return [EpisodeValidation(curves, method, classes, draws, plan.shot, t.val_every_n_steps, batch, keep)]


def _measured(cfg: Any, plan: Episodes, method: Any, encoder: Encoder, classes: ClassSet, device: torch.device) -> dict[str, float]:
    draws = test_draws(classes, plan.way, plan.shot + plan.query, plan.test_episodes, int(cfg.seed))
    found = episode_accuracies(method, encoder, classes, draws, plan.shot, device, common.eval_batch_size(cfg))
    return episode_metrics(found, plan.way, plan.shot)


def _recalibrate(encoder: Encoder, stream: EpisodeStream, device: torch.device) -> None:
    """Running statistics of the classes that were learned from, the same on every rank: the encoder then works by itself."""
    s = EpisodeStream(stream.classes, stream.way, stream.shot, stream.query, stream.per_step, seed=stream.seed, turns=stream.turns)
    encoder.to(device)
    batches = ({k: v.to(device) for k, v in s.at(step).items()} for step in range(_RECALIBRATION))
    recalibrate(encoder, (encoder.inputs(batch) for batch in batches))


def _save(run: Run, method: Objective, encoder: Encoder, node: Any, way: int) -> None:
    """Write `episodes/`: the head that is adapted to every episode, and what of the encoder is not. Nothing, where there is no head."""
    if not run.is_main or not method.state_dict():
        return
    (run / FOLDER).mkdir(exist_ok=True)
    write_tensors(run / FOLDER / "model.safetensors", method.state_dict())
    frozen = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    about = {"method": OmegaConf.to_container(node, resolve=True), "way": way, "frozen": frozen}
    seal(run / FOLDER, "episodes.json", about)


def _load(cfg: Any, method: Any, encoder: Encoder, plan: Episodes) -> None:
    """Give a method that has learned something what the run learned, and freeze what was frozen while it did."""
    if not isinstance(method, Objective) or not method.state_dict():
        return
    folder = stored.located(str(cfg["from"])) / FOLDER
    file = folder / "episodes.json"
    if not stored.is_file(file):
        raise UserError(
            f"from={cfg['from']} has not learned what this +episodes= starts from: learn it by sslt finetune with the same +episodes=, or "
            f"measure the encoder by +episodes=centroid, logistic or finetune"
        )
    about = stored.json_object(file)
    way, kind = stored.value(about, "way", int, file), stored.value(stored.value(about, "method", dict, file), "_target_", str, file)
    frozen = set(map(str, stored.value({"frozen": [], **about}, "frozen", list, file)))
    check_trusted(about, list(cfg.trust), str(folder))
    check_seal(folder, "episodes.json", about)
    if way != plan.way:
        raise UserError(f"from={cfg['from']} has learned {way}-way episodes: set episodes.way={way}")
    if kind != cfg.episodes.method["_target_"]:
        raise UserError(f"from={cfg['from']} has learned by {kind}: choose the same +episodes=")
    fill(method, folder / "model.safetensors")
    for name, p in encoder.named_parameters():
        p.requires_grad_(name not in frozen)
