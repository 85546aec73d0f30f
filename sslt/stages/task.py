"""What fine-tuning is about: data, encoder and target that fit each other, and whether the encoder moves or only its features are read."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NamedTuple

import torch
from hydra.utils import get_object
from torch import nn

from sslt.adaptation.base import Adaptation, Full
from sslt.config import RATE, build, searched_around
from sslt.data.answers import Answers
from sslt.data.base import Samples
from sslt.data.streams.features import FeatureSamples
from sslt.data.streams.subsets import label_subset
from sslt.data.views.base import Plain
from sslt.encoders.base import Encoder, fingerprint
from sslt.encoders.precomputed import Precomputed
from sslt.errors import UserError
from sslt.evaluation.features import cached_features
from sslt.runs import Run
from sslt.stages import common, measure, shift
from sslt.stages.domains import Domains
from sslt.targets.base import Target

log = logging.getLogger("sslt")
PASSES = 3  # over a sample that is learned from, in the cost of one that is validated on


class Splits(NamedTuple):
    """What is learned from, chosen by and measured on."""

    train: Samples
    val: Samples | None
    test: Samples

    def parts(self) -> tuple[tuple[torch.Tensor, Answers], tuple[torch.Tensor, Answers] | None]:
        """Features and answers of train and val, where these are `FeatureSamples`."""
        assert isinstance(self.train, FeatureSamples) and self.train.answers is not None
        held = (self.val.features, self.val.answers) if isinstance(self.val, FeatureSamples) and self.val.answers is not None else None
        return (self.train.features, self.train.answers), held


def _splits(cfg: Any, encoder: Encoder, source: Any, node: Any) -> Splits:
    if cfg.late_fusion and "words" in encoder.side_models:
        encoder.processor.spell()
    train = label_subset(common.prepare(encoder, source, "train"), cfg.label_fraction, cfg.labels_per_class, cfg.seed)
    get_object(node["_target_"]).check(source, train.answers)
    test = common.prepare_labelled(encoder, source, "test")
    val = common.prepare_labelled(encoder, source, "val") if "val" in source.splits() else None
    if val is None and (cfg.report == "best" or cfg.shift is not None):
        raise UserError("there is no validation split to pick an epoch on: set data.val_fraction=0.1, or report=last")
    if val is None and searched_around(cfg.optimizer.lr) is not None:
        raise UserError(f"there is no validation split for {RATE}=auto to choose by: set data.val_fraction=0.1, or give a number")
    return Splits(train, val, test)


def _features(cfg: Any, encoder: Encoder, splits: Splits, test: bool) -> Splits:
    """The splits as features of the encoder as it is now, from one pass that is kept on disk; `test` only where it is asked for."""
    key = fingerprint(encoder)

    def of(samples: Samples) -> Samples:
        return FeatureSamples(cached_features(encoder, samples, common.device_of(cfg), common.eval_batch_size(cfg), key=key), samples)

    val = None if splits.val is None else of(splits.val)
    return Splits(of(splits.train), val, of(splits.test) if test else splits.test)


@dataclasses.dataclass
class Task:
    """Data, an encoder and a target that fit each other; `node` is the target's config, `domains` those of `shift=`."""

    source: Any
    encoder: Encoder
    splits: Splits
    target: Target
    node: Any
    adaptation: Adaptation
    domains: Domains | None


def read(cfg: Any, run: Run) -> Task:
    """Raises `UserError` for data, an encoder and a target that do not go together, before anything is prepared where that can be known."""
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
    run.update(primary=target.primary, higher_is_better=target.higher_is_better)
    return Task(source, encoder, splits, target, node, adaptation, domains)


@dataclasses.dataclass
class Plan:
    """Who trains on what: the encoder on samples, or a head on the features of one that stands still.

    solved: whether the head starts as the best one on the features. fuses: whether cheap methods come beside it in the end.
    """

    target: Target
    trained: Encoder
    seen: Splits
    views: nn.Module
    frozen: bool
    solved: bool
    fuses: bool
    device: torch.device
    batch: int

    @property
    def idle(self) -> bool:
        """Whether nothing is left to train."""
        return self.frozen and self.solved

    def validate(self, number_format: str, samples: Samples | None = None) -> dict[str, float]:
        """What is watched, of the model as it is, on `samples` or the validation split; nothing where there is none."""
        samples = self.seen.val if samples is None else samples
        if samples is None:
            return {}
        if number_format != measure.MEASURED:
            return measure.watched(self.trained, self.target, samples, self.device, self.batch, "val", number_format)
        found = measure.measured(
            self.trained, self.target, samples, self.device, self.batch, "val", detail=False, number_format=number_format
        )
        return found.metrics


def plan(cfg: Any, task: Task) -> Plan:
    """Decide what moves, and set the head to the probe of the encoder where it starts from that."""
    encoder, target, splits = task.encoder, task.target, task.splits
    alone = cfg.joint is None and task.domains is None and target.reads == "pooled"
    fixed = encoder.fixed and isinstance(task.adaptation, Full) and alone
    frozen = (task.adaptation.frozen and alone) or fixed
    fuses = cfg.late_fusion and target.fuses and (fixed or not frozen) and task.domains is None
    started = not common.starts_fresh(cfg) and task.domains is None and target.reads == "pooled"
    made = Plan(
        target, encoder, splits, build(cfg.views), frozen, False, fuses, common.device_of(cfg), common.eval_batch_size(cfg)
    )  # fmt: skip
    if frozen or (started and cfg.head == "probe"):
        features = _features(cfg, encoder, splits, test=frozen and not fuses)
        if cfg.head == "probe":
            made.solved = target.solve(*features.parts())
    if frozen:
        made.trained, made.views, made.seen = Precomputed(encoder), Plain(1), features
        how = "the head on its features is solved, not trained" if made.solved else "its features are computed once, without augmentation"
        log.info("the encoder stands still%s: %s", " (adaptation=partial adaptation.blocks=1 would move its filters)" if fixed else "", how)
    return made
