"""`sslt evaluate`: measure a run or an encoder."""

from __future__ import annotations

import logging
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from sslt import groups, stored
from sslt.config import build, check_stored
from sslt.data.base import Samples, many
from sslt.data.streams.subsets import label_subset
from sslt.deploy import exported
from sslt.encoders.base import Encoder
from sslt.encoders.load import fresh_like, load_encoder
from sslt.encoders.windows import set_windows
from sslt.errors import UserError, nearest
from sslt.evaluation import language, probes
from sslt.evaluation.beside import cheap, compared
from sslt.evaluation.features import predicted
from sslt.report.answers import row_names, write_answers
from sslt.report.end import say_next
from sslt.runs import Run, run_of
from sslt.stages import common, labels, measure
from sslt.targets import heads
from sslt.targets.base import Target
from sslt.targets.classification import Classification
from sslt.trusted import check_trusted

log = logging.getLogger("sslt")


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Test metrics of a fine-tuned run, probes of an encoder. Returns the metrics, which are also in metrics.json."""
    data = data_of(cfg)
    source = build(data)
    run.update(data=source.fingerprint())
    encoder, head = load(cfg, source.modality)
    if cfg.episodes is not None:
        if cfg.corruption is not None or cfg.test_time is not None:
            raise UserError("+episodes= measures an encoder as it is on data as they are: leave out +corruption= and +test_time=")
        from sslt.stages import episodes  # with what trains by them, and so Lightning

        return episodes.evaluate(cfg, run, encoder, source)
    common.refuse_new_answers(source)
    device, remarks = common.device_of(cfg), []
    batch = int(cfg.batch_size)
    if cfg.objective is not None and not cfg.probes:
        head = _without_training(cfg, run, encoder, source)
    if head is not None and not cfg.probes:
        if cfg.curve.target is not None:
            raise UserError("curve.target compares probes of an encoder with training from scratch: add probes=true")
        if cfg.label_fraction != 1 or cfg.labels_per_class is not None:
            raise UserError("label_fraction and labels_per_class are of the probes' labels: add probes=true")
        if source.answer.kind != head.answer.kind or not head.answer.fits(head.space, source.space):
            raise UserError(_mismatch(head, source))
        head.check(source)
        samples = common.prepare_labelled(encoder, source, cfg.split)
        if cfg.corruption is not None:
            samples = measure.corrupted(cfg, encoder, samples)
        metrics, predictions = measure.measured(encoder, head, samples, device, batch, cfg.split, figures=run)
        if cfg.corruption is None:
            remarks = _beside(cfg, run, encoder, source, samples, metrics, head, predictions)
        if cfg.test_time is not None:
            metrics |= measure.test_time(cfg, encoder, head, samples, device)
            metrics["test_time/gain"] = metrics[f"test_time/{head.primary}"] - metrics[f"{cfg.split}/{head.primary}"]
        if run.is_main:
            write_answers(run, encoder, head, samples, predictions, names=row_names(source, cfg.split, samples))
    elif cfg.corruption is not None or cfg.test_time is not None:
        raise UserError("corruption and test_time measure a classifier: give a fine-tuned run as from=, without probes=true")
    elif source.space is None:
        log.info("%s has no labels: only the spectrum of the features is measured", source.name)
        metrics = probes.features_alone(run, encoder, source, common.prepare(encoder, source, "unlabeled"), device, batch)
    else:
        splits = _for_probes(cfg, encoder, source)
        metrics, remarks = probes.encoder_probes(cfg, run, encoder, source, splits, device, batch)
        if metrics:
            metrics |= labels.saved(cfg, run, data, source, metrics)
    if head is None and encoder.writes == "causal" and encoder.modality == "text":
        train, held, what = language.streams(encoder, source, cfg.split)
        log.info("perplexity on %s", what)
        metrics |= language.language_metrics(encoder, train, held, device, batch)
    run.add_metrics(metrics)
    say_next(run, metrics, [], remarks=remarks)
    return metrics


def _for_probes(cfg: Any, encoder: Encoder, source: Any) -> dict[str, Samples]:
    """The splits that probes learn from, choose by and are measured on."""
    if source.answer is not Classification.answer:
        named = [o for o in source.answer.learned_by if not get_object(groups.own_values("objective", o)["_target_"]).trains]
        raise UserError(
            f"the samples of {source.name} have {source.answer.words}, which probes do not tell apart: fine-tune on them, `sslt finetune`"
            + (f", or measure the encoder as it is by +objective={' or '.join(named)}" if named else "")
        )
    Classification.check(source)
    if cfg.split != "test":
        raise UserError(f"split={cfg.split}: probes learn from train, choose on val and are measured on test: leave out split=")
    splits = {s: common.prepare_labelled(encoder, source, s) for s in ("train", "val", "test")}
    splits["train"] = label_subset(splits["train"], cfg.label_fraction, cfg.labels_per_class, cfg.seed)
    return splits


def _without_training(cfg: Any, run: Run, encoder: Encoder, source: Any) -> Target:
    """The target of `+target=` or `objective=`, which has nothing to train."""
    config_dir = run.info.get("config_dir")
    common.check_target(source, cfg.objective, config_dir)
    if get_object(cfg.objective["_target_"]).trains:
        raise UserError(
            f"{cfg.objective['_target_']} has weights to train: sslt finetune +target=NAME from={cfg['from']} first, then sslt evaluate "
            f"from= that run"
        )
    target, batch = common.build_target(cfg.objective, encoder, source), int(cfg.batch_size)
    if target.shows:
        target.prepare(encoder, common.prepare_labelled(encoder, source, "train"), batch)
    if target.calibrates and "val" in source.splits():
        val = common.prepare_labelled(encoder, source, "val")
        target.calibrate(predicted(encoder, target, val, common.device_of(cfg), batch), val.answers)
    return target


def _beside(
    cfg: Any, run: Run, encoder: Encoder, source: Any, samples: Any, metrics: dict[str, Any], target: Target, predictions: Any
) -> list[str]:
    """Add the cheap methods to the metrics of a fine-tuned run, on the rows that it learned from; what they say of it, in words."""
    if cfg.split == "train":
        log.info("no cheap method stands beside what was learned from: it would be asked about its own rows")
        return []
    found_in = run_of(stored.located(str(cfg["from"])))
    made = {} if found_in is None else common.labels_of(found_in)
    labels = (made.get("label_fraction", 1.0), made.get("labels_per_class"), made.get("seed", 0))
    train = label_subset(common.prepare(encoder, source, "train"), *labels)
    val = common.prepare(encoder, source, "val") if "val" in source.splits() else None
    if train.answers is None or not run.is_main:
        return []
    if cfg.split == "val" and cfg.baseline:
        log.info("the cheap method was picked on the validation split, on which it is measured here: that favours it")
    found, theirs = cheap(cfg, target, source, {"train": train, "val": val, cfg.split: samples}, labels, cfg.split)
    metrics |= found
    return compared(target, target.called, predictions, {str(found.get("baseline/method")): theirs}, samples.answers)


def data_of(cfg: Any) -> Any:
    """The config of the data set of `data=`, else of the one the run was made on, with `data_overrides`."""
    if cfg.data is not None:
        return cfg.data
    path = stored.located(str(cfg["from"]).removeprefix("scratch:"))
    run = run_of(path)
    if run is None:
        raise UserError(f"from={cfg['from']} is no run, so its data are not known: say data=… (`sslt list data`)")
    node = run.config.get("data")
    if node is None:
        raise UserError(f"from={cfg['from']} names no data set: say data=…")
    where = stored.shown(run / "config.yaml")
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    check_trusted({"data": plain}, list(cfg.trust), where)
    check_stored("data", plain, where)
    for key, value in (cfg.data_overrides or {}).items():
        if key not in node:
            raise UserError(f"data_overrides.{key}: the data of {path} have no such setting{nearest(key, node)}")
        node[key] = value
    return node


def load(cfg: Any, modality: str | None, changed: dict[str, Any] | None = None) -> tuple[Encoder, Target | None]:
    """The encoder of `from=`, and the target of a fine-tuned run; changed: its settings in place of its own."""
    what = str(cfg["from"])
    trust = list(cfg.trust)
    if what == "scratch":
        raise UserError("from=scratch names no architecture to measure: from=scratch:RUN is that of RUN, untrained")
    if what.startswith("scratch:"):
        import torch

        torch.manual_seed(int(cfg.seed))
        encoder = fresh_like(what.partition(":")[2], trust)
        set_windows(encoder, cfg.windows)
        return encoder, None
    if exported.is_exported(stored.located(what)):
        if cfg.windows is not None or changed:
            raise UserError(f"from={what} is an exported file, in which nothing can be changed any more: leave out windows= and objective.")
        return exported.load(stored.located(what), trust)
    encoder = load_encoder(what, modality, trust, base=cfg.base)
    set_windows(encoder, cfg.windows)
    if modality not in (None, encoder.modality):
        raise UserError(f"from={what} reads {many(encoder.modality)}, but the data are {many(modality)}: choose another data=")
    folder = stored.located(what) / "head"
    return encoder, (heads.load(folder, encoder, trust, changed) if stored.is_file(folder / "head.json") else None)


def _mismatch(head: Target, source: Any) -> str:
    def some(space: dict[str, Any]) -> str:
        names = next((v for v in space.values() if isinstance(v, list)), None)
        return f"{len(names)} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" if names is not None else str(space)

    again = "fine-tune on it first, or measure the encoder alone by probes=true"
    if source.answer.kind != head.answer.kind:
        return f"the head answers with {head.answer.words}, but the samples of {source.name} have {source.answer.words}: {again}"
    what = next((k for k, v in head.space.items() if isinstance(v, list)), "values")
    new = [n for n in (source.space or {}).get(what, ()) if n not in set(head.space.get(what, ()))]
    if what == "items":  # an encoder of histories ranks whatever items it knows
        named = f", and never saw {', '.join(new[:5])}{', …' if len(new) > 5 else ''}" if new else ""
        return (
            f"the head ranks {len(head.space[what])} items{named}: {source.name} has {len((source.space or {}).get(what, ()))}. "
            f"Fine-tune on it first, or rank by the encoder alone, +target=next_item with the same from="
        )
    return f"the head knows {some(head.space)} {what}, but {source.name} has {some(source.space or {})}: {again}"
