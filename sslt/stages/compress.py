"""`sslt compress`: make a fine-tuned run smaller or faster, and say what it costs."""

from __future__ import annotations

import copy
import logging
from typing import Any

from omegaconf import OmegaConf, open_dict

from sslt import distributed, groups
from sslt.config import build
from sslt.data.base import Samples
from sslt.data.streams.subsets import label_subset
from sslt.deploy import table
from sslt.deploy.method import Method
from sslt.deploy.variants import Variant, load_variant, parameters, refuse_other_answers, stored_bytes
from sslt.encoders import inserted
from sslt.encoders.base import fingerprint
from sslt.errors import UserError
from sslt.report.end import say_next
from sslt.report.tables import print_table
from sslt.runs import Run, open_run
from sslt.stages import common, fitting
from sslt.stages.evaluate import data_of
from sslt.targets import heads

log = logging.getLogger("sslt")


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Write `encoder/` and `head/` of the compressed run, `before/…`, `after/…`, `change/…` and `kept`. Returns the metrics."""
    if cfg.method is None:
        raise UserError(f"compress how? Choose a method: {', '.join(f'method={name}' for name in groups.options('method'))}")
    parent, node = open_run(cfg["from"]), data_of(cfg)
    method, before = build(cfg.method), _load(cfg, parent.path)
    assert isinstance(method, Method)
    if before.encoder.adapter is not None:
        inserted.merge(before.encoder)
    method.check(before.encoder, before.target)
    source = build(node)
    labels = labels_of(parent)
    run.update(data=source.fingerprint(), primary=before.target.primary, labels=labels, parent=_identity(parent, before))
    refuse_other_answers(before, source)
    common.refuse_new_answers(source)
    device, batch = common.device_of(cfg), common.eval_batch_size(cfg)
    samples = common.prepare_labelled(before.encoder, source, "test")
    was = before.predictions(samples, device, batch)
    sizes = {"parameters": parameters(before.encoder, before.target), "bytes": stored_bytes(parent.path)}

    train, val = _to_learn_from(method, before, source, labels)
    method.fit = fitting.fit
    encoder, target = method.apply(before.encoder, before.target, train, val, cfg, run)
    _note(run, node, cfg)
    if method.saves:
        common.save_result(run, encoder, cfg, source, {})
        heads.save(run, target, heads.node_of(parent / "head"))
    distributed.barrier()  # it is read by all ranks
    after = _load(cfg, run.path)  # what is measured is what is stored
    own = common.prepare_labelled(after.encoder, source, "test")
    now = after.predictions(own, device, batch)
    assert samples.answers is not None and own.answers is not None
    found = table.change(after.target, was, now, own.answers)
    rows = {
        "before": {before.target.primary: before.target.score(was, samples.answers), **sizes},
        "after": {
            after.target.primary: after.target.score(now, own.answers),
            "parameters": parameters(after.encoder, after.target),
            "bytes": stored_bytes(run.path),
        },
    }
    metrics: dict[str, Any] = {f"test/{k}": float(v) for k, v in after.target.measure(now, own.answers).items()}
    metrics |= {f"{when}/{k}": v for when, row in rows.items() for k, v in row.items()}
    metrics |= {f"change/{k}": v for k, v in zip((after.target.primary, "low", "high"), found, strict=True)}
    metrics |= {"kept": found.kept(cfg.tolerance), "tolerance": float(cfg.tolerance), **method.found}
    run.add_metrics(metrics)
    if run.is_main:
        print_table(f"{parent} → {run}", table.rows(rows["before"], rows["after"]))
    said = [table.sentence(after.target, found, cfg.tolerance), *method.remarks]
    say_next(run, {}, [f"sslt bench from={parent},{run}", f"sslt predict from={run} input=FILE"], remarks=said)
    return metrics


def labels_of(parent: Run) -> dict[str, Any]:
    """Which part of the training labels a run has learned from; of one that was compressed, the run it was made from."""
    known = parent.info.get("labels")
    if isinstance(known, dict):
        return {str(k): v for k, v in known.items()}
    made = parent.config
    return {
        "label_fraction": made.get("label_fraction", 1.0),
        "labels_per_class": made.get("labels_per_class"),
        "seed": made.get("seed", 0),
    }


def _load(cfg: Any, folder: Any) -> Variant:
    return load_variant(folder, list(cfg.trust), base=cfg.base, windows=cfg.windows)


def _identity(parent: Run, variant: Variant) -> dict[str, Any]:
    """What the parent is known by, wherever it is moved."""
    return {"from": str(parent.path.resolve()), "fingerprint": fingerprint(variant.encoder)}


def _to_learn_from(method: Method, variant: Variant, source: Any, labels: dict[str, Any]) -> tuple[Samples | None, Samples | None]:
    """The training samples that the run learned from and its validation samples, for methods that look at some."""
    if not method.reads_train:
        return None, None
    fraction, per_class, seed = labels["label_fraction"], labels["labels_per_class"], labels["seed"]
    train = label_subset(common.prepare(variant.encoder, source, "train"), fraction, per_class, seed)
    return train, common.prepare_labelled(variant.encoder, source, "val") if "val" in source.splits() else None


def _note(run: Run, node: Any, cfg: Any) -> None:
    """Keep in the run's config which data it is about, as `from=` the run asks for them."""
    if not run.is_main:
        return
    config = copy.deepcopy(OmegaConf.load(run / "config.yaml"))
    with open_dict(config):
        config.data = node
    OmegaConf.save(config, run / "config.yaml")
