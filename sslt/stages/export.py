"""`sslt export`: write a run in a format that other programs open, and keep it only if it answers as the run does."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from sslt import distributed, stored
from sslt.config import build
from sslt.data.base import Samples
from sslt.data.prepare.parts import part_names
from sslt.deploy import exported
from sslt.deploy.description import ABOUT, columns
from sslt.deploy.exported import MODEL
from sslt.deploy.formats import FORMATS
from sslt.deploy.formats.base import Format, Model
from sslt.deploy.formats.folders import HuggingFace, Safetensors, Timm
from sslt.deploy.graph import beside_reading, without
from sslt.deploy.verified import Verified, verify
from sslt.encoders import inserted
from sslt.encoders.base import Encoder, evaluating, fingerprint
from sslt.encoders.seals import seal
from sslt.errors import UserError, nearest
from sslt.evaluation.features import predicted
from sslt.groups import command, quoted, starting
from sslt.report.end import say_next
from sslt.runs import Run, run_of
from sslt.stages import common
from sslt.stages.evaluate import data_of, load
from sslt.targets import heads
from sslt.targets.base import Target

log = logging.getLogger("sslt")


class Cost(NamedTuple):
    """What leaving something out costs: by how much the primary metric falls, with its 95 % interval, and what it was."""

    what: str
    mean: float
    low: float
    high: float
    whole: float


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Write `model/` (of safetensors `encoder/` and `head/`), and `export/…` into metrics.json. Returns the metrics."""
    if cfg.format not in FORMATS:
        raise UserError(f"format={cfg.format}: give {', '.join(FORMATS)}{nearest(str(cfg.format), FORMATS)}")
    start = stored.located(str(cfg["from"]))
    if exported.is_exported(start):
        raise UserError(f"from={cfg['from']} is an exported file already: export the run it was made of, {Run(start).info.get('from')}")
    node = data_of(cfg)
    source = build(node)
    run.update(data=source.fingerprint(), format=cfg.format)
    encoder, target = load(cfg, source.modality)
    if encoder.adapter is not None:
        inserted.merge(encoder)
    samples = _samples(cfg, encoder, target, source)
    cost, metrics = _left_out(cfg, encoder, target, source, samples), {}
    if run.is_main:  # one process exports
        if target is not None and not cfg.late_fusion and getattr(target, "beside", None):
            target = without(target)
        head = None if target is None else heads.node_of(start / "head")
        model = Model(encoder, target, samples.batch(np.arange(min(2, len(samples)))), head)
        metrics = _export(cfg, run, node, model, samples, cost)
    distributed.barrier()
    return metrics


def _export(cfg: Any, run: Run, node: Any, model: Model, samples: Samples, cost: Cost | None) -> dict[str, Any]:
    """Write under another name, verify, and only then give it its own."""
    target, parent = model.target, run_of(stored.located(str(cfg["from"])))
    primary = None if target is None else target.primary
    said = {k: v for k, v in ({} if parent is None else parent.metrics).items() if primary and k == f"{cfg.split}/{primary}"}
    about = {"parent": {"from": str(cfg["from"]), "fingerprint": fingerprint(model.encoder), **said}, "format_name": cfg.format}
    if model.encoder.modality == "text":
        about["columns"] = columns(node, part_names(model.batch))
    made, kind = run / f".{MODEL}.tmp", FORMATS[cfg.format]()
    if isinstance(kind, Safetensors):
        kind.trust = list(cfg.trust)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        with evaluating(model.encoder):
            if target is not None:
                target.eval()
            kind.write(model, made, about)
        found = verify(model, kind.open(model, made), samples, int(cfg.batch_size), int(cfg.seed))
        found.require(f"{kind.words} of {cfg['from']}", float(cfg.max_error), float(cfg.tolerance), primary)
        _keep(run, made, kind, model, found, cfg.split)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    _note(run, node, about)
    metrics = _metrics(cfg, run, found, target, samples, cost)
    run.add_metrics(metrics)
    say_next(run, metrics, _next(cfg, run, target), remarks=_remarks(cfg, found, primary, cost))
    return metrics


def _keep(run: Run, made: Path, kind: Format, model: Model, found: Verified, split: str) -> None:
    """Give the files their names: what was verified is what stays."""
    if isinstance(kind, Safetensors):  # an ordinary run, which every verb takes
        for part in sorted(made.iterdir()):
            part.rename(run / part.name)
        return
    said = {"split": split, "score": found.score, "run_score": found.run_score, "errors": found.errors}
    seal(made, ABOUT, {**stored.json_object(made / ABOUT), "verified": said})
    exported.save_reader(run, model.encoder, model.target, model.node)
    made.rename(run / MODEL)


def _samples(cfg: Any, encoder: Encoder, target: Target | None, source: Any) -> Samples:
    """What the file is held against the run on: the split, of an encoder without a head any that there is."""
    if target is None:
        split = cfg.split if cfg.split in source.splits() else source.splits()[0]
        return common.prepare(encoder, source, split)
    if source.answer.kind != target.answer.kind or not target.answer.fits(target.space, source.space):
        raise UserError(
            f"from={cfg['from']} answers with {target.answer.words} that the samples of {source.name} do not have: leave out data="
        )
    return common.prepare_labelled(encoder, source, cfg.split)


# -------------------------------------------------------------------- what is left out
def _left_out(cfg: Any, encoder: Encoder, target: Target | None, source: Any, samples: Samples) -> Cost | None:
    """What the exported file will lack of the run, and what that costs. Raises `UserError` where it lacks what it was not told to.

    Asked on every rank, which share the work.
    """
    if target is None:
        return None
    what, whole, whole_samples, bare = [], encoder, samples, target
    held = getattr(target, "beside", None) and _holds_nothing_beside(cfg.format, target)
    if getattr(target, "beside", None) and (held or not cfg.late_fusion):
        what.append("what stands beside the encoder")
        bare = without(target)
    if cfg.windows is not None:
        whole, _ = load(OmegaConf.merge(cfg, {"windows": None}), source.modality)
        if getattr(whole.processor, "windows", 1) != getattr(encoder.processor, "windows", 1):
            what.append(f"all windows but {cfg.windows}")
            whole_samples = common.prepare_labelled(whole, source, cfg.split)
        else:
            whole = encoder
    if not what:
        return None
    with_it, without_it = _answers(cfg, whole, target, whole_samples), _answers(cfg, encoder, bare, samples)
    answers = samples.answers
    cost = Cost(" and ".join(what), *target.difference(with_it, without_it, answers), target.score(with_it, answers))
    if held and cfg.late_fusion:
        raise UserError(
            f"{held} beside the encoder: late_fusion=false leaves it out, which costs {_told(target.primary, cost)} on {cfg.split}"
        )
    return cost


def _holds_nothing_beside(name: str, target: Target) -> str:
    """Why a format cannot hold what stands beside the encoder; "" where it can."""
    if FORMATS[name] in (Timm, HuggingFace):
        return f"{FORMATS[name].words} holds nothing"
    tagger = beside_reading(target)
    return f"{FORMATS[name].words} does not hold the {tagger}" if tagger and FORMATS[name] is not Safetensors else ""


def _answers(cfg: Any, encoder: Encoder, target: Target, samples: Samples) -> Any:
    return predicted(encoder, target, samples, common.device_of(cfg), int(cfg.batch_size))


def _told(primary: str, cost: Cost) -> str:
    """The cost in words."""
    mean, low, high, whole = (100 * v for v in cost[1:])
    return f"{mean:.2f} points of {primary} (95 %: {low:.2f} to {high:.2f}; it is {whole:.2f} with it)"


# -------------------------------------------------------------------- what is said
def _metrics(cfg: Any, run: Run, found: Verified, target: Target | None, samples: Samples, cost: Cost | None) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    if target is not None and found.theirs is not None and samples.answers is not None:
        metrics |= {f"{cfg.split}/{k}": float(v) for k, v in target.measure(found.theirs, samples.answers).items()}
        metrics[f"run/{target.primary}"] = found.run_score
    metrics |= {f"export/max_error{'' if k == 'all' else f'_batch_{k}'}": v for k, v in found.errors.items()}
    files = [p for part in (MODEL, "encoder", "head") for p in (run / part).rglob("*") if p.is_file()]
    metrics["export/bytes"] = sum(p.stat().st_size for p in files if part_of(p, run) == MODEL) or sum(p.stat().st_size for p in files)
    if cost is not None and target is not None:
        metrics |= {f"left_out/{target.primary}": cost.mean, "left_out/low": cost.low, "left_out/high": cost.high}
    return metrics


def part_of(path: Path, run: Run) -> str:
    """Which folder of the run a file is in."""
    return path.relative_to(run.path).parts[0]


def _remarks(cfg: Any, found: Verified, primary: str | None, cost: Cost | None) -> list[str]:
    where, error = found.worst
    at = "over the split" if where == "all" else f"in batches of {where}"
    said = [f"its outputs differ from the run's by {error:.1e} of the largest at most, {at}"]
    if found.score is not None and found.run_score is not None:
        same = "as the run" if found.score == found.run_score else f"the run {found.run_score:.4f}"
        said.append(f"{cfg.split}/{primary} {found.score:.4f}, {same}")
    if cost is not None and primary is not None:
        said.append(f"left out: {cost.what}, which costs {_told(primary, cost)}")
    return said


def _next(cfg: Any, run: Run, target: Target | None) -> list[str]:
    trust = ["trust=[torch]"] if cfg.format in exported.RUNS_CODE else []
    alone = [f"python {quoted(f'{run}/{MODEL}/predict.py')} FILE"] if (run / MODEL / "predict.py").exists() else []
    beside = [command("bench", starting(cfg["from"], run), *trust)] if target is not None else []
    return [*alone, command("predict", starting(run), "input=FILE", *trust), *beside]


def _note(run: Run, node: Any, about: dict[str, Any]) -> None:
    """Keep which data the run is about, and what it was made from."""
    common.keep_data(run, node)
    parent = run_of(stored.located(about["parent"]["from"]))
    run.update(parent=about["parent"], **({} if parent is None else {"labels": common.labels_of(parent)}))
