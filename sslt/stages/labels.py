"""How many labels pretraining saves: training from scratch beside the probes of an encoder."""

from __future__ import annotations

import collections
import logging
import math
from typing import Any

from omegaconf import OmegaConf, open_dict

from sslt import config, distributed, groups
from sslt.errors import UserError, nearest
from sslt.evaluation.label_curve import SCORE, labels_needed, name_of, named_points
from sslt.processes import perform
from sslt.runs import Run

log = logging.getLogger("sslt")


def saved(cfg: Any, run: Run, data: Any, source: Any, metrics: dict[str, float]) -> dict[str, float]:
    """Draw score against labels; with `curve.target`, train the same architecture from scratch on each share of the labels.

    data: the config of the data set `source`. `labels_saved/<n>_labels` is how many labels the training from scratch needs beyond the
    probe's n to match its score (`labels_saved_at_least/…`, where all the labels there are do not do); of several probes with as many
    labels with the probe's name.
    """
    points = named_points(metrics, source.space)
    ours = sorted(points.values())
    several = collections.Counter(n for n, _ in ours)
    scratch = _from_scratch(cfg, run, data) if cfg.curve.target is not None else {}
    theirs = sorted((int(v["train/labels"]), v[SCORE]) for v in scratch.values())
    found = {f"scratch_{name}/{k.rpartition('/')[2]}": v[k] for name, v in scratch.items() for k in ("train/labels", SCORE)}
    if theirs:
        for probe, (n, score) in points.items():
            need, name = labels_needed(theirs, score), f"{n}_labels" + (f"_{probe}" if several[n] > 1 else "")
            if math.isfinite(need):
                found[f"labels_saved/{name}"] = round(max(need - n, 0.0), 1)
            else:
                found[f"labels_saved_at_least/{name}"] = theirs[-1][0] - n
    if run.is_main and ours:
        from sslt.report.plots import label_curves

        (run / "plots").mkdir(exist_ok=True)
        shots = sorted(point for probe, point in points.items() if probe.endswith("_shot"))
        lines = {"linear probe": [p for p in ours if p not in shots], "k-shot probe": shots, "from scratch": theirs}
        label_curves({name: points for name, points in lines.items() if points}, run / "plots" / "labels.png")
    return found


def _from_scratch(cfg: Any, run: Run, data: Any) -> dict[str, dict[str, float]]:
    start, target = str(cfg["from"]).removeprefix("scratch:"), str(cfg.curve.target)
    config_dir = run.info.get("config_dir")
    if target not in (there := groups.options("target", config_dir)):
        raise UserError(f"curve.target={target}: there is no such target{nearest(target, there)}")
    if distributed.active():
        raise UserError("curve.target trains in this process alone: set trainer.devices=1")
    out = {}
    for fraction in sorted({*cfg.curve.fractions, 1.0}):
        name = name_of(fraction).removeprefix("linear_").replace("linear", "100pct")
        inner = Run(run / "scratch" / name, run.is_main)
        settings = [f"+target={target}", f"from='scratch:{start}'", f"label_fraction={fraction}", f"seed={cfg.seed}", *cfg.curve.overrides]
        composed = config.compose("finetune", [*settings, f"trust=[{','.join(cfg.trust)}]"], config_dir)
        with open_dict(composed):
            composed.data = OmegaConf.create(data)
            composed.cache_dir, composed.trainer.devices, composed.windows = cfg.cache_dir, cfg.trainer.devices, cfg.windows
        if not inner.finished:
            log.info("from scratch on %g %% of the labels → %s", 100 * fraction, inner)
            if inner.is_main:
                inner.start("finetune", composed, settings, config_dir)
            perform("finetune", composed, inner)
            inner.update(status="finished")
        out[name] = inner.metrics
    return out
