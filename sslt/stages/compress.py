"""`sslt compress`: make a fine-tuned run smaller or faster, and say what it costs."""

from __future__ import annotations

from typing import Any

from sslt import distributed, groups
from sslt.config import build
from sslt.data.base import Samples
from sslt.data.streams.subsets import label_subset
from sslt.deploy import table, timing
from sslt.deploy.measured import Settings, measure, with_threads
from sslt.deploy.method import Method
from sslt.deploy.variants import Variant, load_variant, refuse_other_answers
from sslt.encoders import inserted
from sslt.encoders.base import Encoder, fingerprint
from sslt.errors import UserError
from sslt.learner import Term
from sslt.report.end import say_next
from sslt.report.tables import print_table
from sslt.runs import Run, open_run
from sslt.stages import common, fitting
from sslt.stages.evaluate import data_of
from sslt.targets import heads

_TIMED = {"latency": "prepared samples", "raw": "from raw input"}


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Write `encoder/` and `head/` of the compressed run, and the rows `before/…`, `after/…` with `kept`. Returns the metrics."""
    if cfg.method is None:
        raise UserError(f"compress how? Choose a method: {', '.join(f'method={name}' for name in groups.options('method'))}")
    parent, node, settings = open_run(cfg["from"]), data_of(cfg), Settings.of(cfg)
    method, start = build(cfg.method), _load(cfg, parent.path)
    assert isinstance(method, Method)
    if start.answers is not None:
        made_from = parent.info.get("from")
        raise UserError(
            f"from={cfg['from']} is an exported file, in which nothing can be changed: compress the run it was made from, {made_from}"
        )
    if start.encoder.adapter is not None:
        inserted.merge(start.encoder)
    if start.encoder.quantization is not None:
        kind = start.encoder.quantization.kind
        raise UserError(f"from={cfg['from']} is quantized ({kind}), which comes last: compress the run that it was made from")
    method.check(start.encoder, start.target)
    source, labels = build(node), common.labels_of(parent)
    identity = {"from": str(parent.path.resolve()), "fingerprint": fingerprint(start.encoder)}
    run.update(data=source.fingerprint(), primary=start.target.primary, labels=labels, parent=identity)
    refuse_other_answers(start, source)
    common.refuse_new_answers(source)
    common.prepare_labelled(start.encoder, source, "test")

    train, val = _to_learn_from(method, start.encoder, source, labels)
    method.fit, method.term = fitting.fit, Term
    method.fresh = lambda own: common.starting_encoder(own, source)
    method.samples_for = lambda other: _to_learn_from(method, other, source, labels)
    encoder, target = method.apply(start.encoder, start.target, train, val, cfg, run)
    common.keep_data(run, node)
    if method.saves:
        common.save_result(run, encoder, cfg, source, {})
        heads.save(run, target, heads.node_of(parent / "head"))
    distributed.barrier()  # it is read by all ranks

    with with_threads(settings.threads):
        variants = [_load(cfg, parent.path, "before"), _load(cfg, run.path, "after")]  # what is measured is what is stored
    device, batch = common.device_of(cfg), common.eval_batch_size(cfg)
    common.prepare_labelled(variants[1].encoder, source, "test")
    found = measure(variants, source, "test", device, batch, settings, _opening(cfg), timed=run.is_main)
    target, (before, after) = variants[1].target, found.rows
    moved = table.Change(*(after[k] for k in ("difference", "difference_low", "difference_high")))
    speeds = {where: timing.speed(*seconds) for where, seconds in found.seconds.items()}
    metrics: dict[str, Any] = {f"test/{k}": float(v) for k, v in target.measure(found.predictions[1], found.answers).items()}
    metrics |= {f"{row['variant']}/{k}": v for row in found.rows for k, v in row.items() if k != "variant" and v is not None}
    for (what, size), ratio in speeds.items():
        metrics |= {f"faster/{what}/{size}{end}": v for end, v in zip(("", "/low", "/high"), ratio, strict=True)}
    metrics |= {"kept": moved.kept(cfg.tolerance), "tolerance": float(cfg.tolerance), "threads": found.threads, **method.found}
    run.add_metrics(metrics)
    if run.is_main:
        lines = [line for line in table.rows(before, after) if not line["metric"].endswith(("variant", "/rounds"))]
        print_table(f"{parent} → {run}", lines)
    said = [table.sentence(target, moved, cfg.tolerance)]
    said += [f"{_TIMED[what]}, batches of {size}: {s.words}" for (what, size), s in speeds.items()]
    next_steps = [groups.command("bench", groups.starting(parent, run)), groups.command("predict", groups.starting(run), "input=FILE")]
    say_next(run, {}, next_steps, remarks=[*said, *method.remarks])
    return metrics


def _opening(cfg: Any) -> dict[str, Any]:
    return {"trust": list(cfg.trust), "base": cfg.base, "windows": cfg.windows}


def _load(cfg: Any, folder: Any, name: str | None = None) -> Variant:
    return load_variant(folder, **_opening(cfg), name=name)


def _to_learn_from(method: Method, encoder: Encoder, source: Any, labels: dict[str, Any]) -> tuple[Samples | None, Samples | None]:
    """The training samples that the run learned from and its validation samples, for methods that look at some."""
    if not method.reads_train:
        return None, None
    fraction, per_class, seed = labels["label_fraction"], labels["labels_per_class"], labels["seed"]
    train = label_subset(common.prepare(encoder, source, "train"), fraction, per_class, seed)
    return train, common.prepare_labelled(encoder, source, "val") if "val" in source.splits() else None
