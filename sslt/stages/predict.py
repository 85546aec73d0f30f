"""`sslt predict`: labels with their probabilities for new files, or features where there is no head."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from sslt import groups, stored
from sslt.config import build
from sslt.encoders.base import require
from sslt.errors import UserError
from sslt.evaluation.features import encode, logits_of
from sslt.runs import RUN_FILE, Run, display
from sslt.stages import common
from sslt.stages.evaluate import load

log = logging.getLogger("sslt")
FEW_CLASSES = 20  # up to which each has a column of its own


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Write predictions.csv (row, name, truth, label, probability, …), or features.npy [N, D] for an encoder without a head.

    Where the input has labels (folders of classes, a column), they stand beside as `truth`, and the accuracy is said.
    All that is in `input=` is predicted, one split after the other where it has several; then there is a column `split`, too.
    """
    if cfg.probabilities not in (True, False, "auto"):
        raise UserError(f"probabilities={cfg.probabilities}: give true, false or auto")
    encoder, head = load(cfg, None if cfg.data is None else build(cfg.data).modality)
    source = _source(cfg, encoder.modality)
    require(encoder.modality, source, f"from={cfg['from']}")
    splits = source.own_splits() if cfg.input is not None else (cfg.split,)
    parts = {split: common.prepare(encoder, source, split) for split in splits}
    device, batch = common.device_of(cfg), int(cfg.batch_size)
    if head is None:
        x = torch.cat([encode(encoder, samples, device, batch) for samples in parts.values()])
        out = run / "features.npy"
        if run.is_main:
            np.save(out, x.numpy())
            print(f"features of {len(x)} samples, {x.shape[1]} numbers each: {display(out)}")
        return {}
    objective, classes = head
    objective.to(device)
    probabilities = torch.cat([logits_of(encoder, objective, samples, device, batch) for samples in parts.values()]).softmax(1)
    best, label = probabilities.max(1)
    truths = [name for split, samples in parts.items() for name in _truth(cfg, source, split, samples)]
    metrics: dict[str, Any] = {"predict/rows": len(label)} | _scores(label.tolist(), truths, classes)
    out = run / "predictions.csv"
    if run.is_main:
        columns = {"row": [str(i) for samples in parts.values() for i in range(len(samples))]}
        if len(parts) > 1:
            columns["split"] = [split for split, samples in parts.items() for _ in range(len(samples))]
        if cfg.input is not None and (names := [_names(source, split, samples) for split, samples in parts.items()])[0] is not None:
            columns["name"] = [name for part in names for name in part or []]
        if "predict/accuracy" in metrics:
            columns["truth"] = [name or "" for name in truths]
        columns |= {"label": [classes[i] for i in label.tolist()], "probability": [f"{p:.4f}" for p in best.tolist()]}
        if len(classes) <= FEW_CLASSES if cfg.probabilities == "auto" else cfg.probabilities:
            columns |= {f"probability/{c}": [f"{p:.4f}" for p in probabilities[:, i].tolist()] for i, c in enumerate(classes)}
        with out.open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        counts = np.bincount(label.numpy(), minlength=len(classes))
        print(f"{len(label)} predictions: {display(out)}")
        print("  " + "  ".join(f"{c} {n}" for c, n in zip(classes, counts, strict=True) if n)[:200])
        if "predict/accuracy" in metrics:
            share, labelled = metrics["predict/accuracy"], metrics["predict/labelled"]
            print(f"  {100 * share:.1f} % of the {labelled} that have a label of these classes are right")
        run.add_metrics(metrics)
    return metrics


def _truth(cfg: Any, source: Any, split: str, samples: Any) -> list[str | None]:
    """The labels of the rows by name, None where there is none: folders of classes, a column of a table."""
    if samples.labels is not None:
        return [samples.classes[i] for i in samples.labels.tolist()]
    column = None if cfg.input is None else _data_of_run(cfg).get("label")
    found = source.truth(split, column or None) if cfg.input is not None else None
    return found if found is not None and len(found) == len(samples) else [None] * len(samples)


def _scores(label: list[int], truths: list[str | None], classes: list[str]) -> dict[str, Any]:
    """How many of the rows whose true class the head knows are right; nothing where there is no such row."""
    right = [classes[i] == name for i, name in zip(label, truths, strict=True) if name in classes]
    return {"predict/labelled": len(right), "predict/accuracy": sum(right) / len(right)} if right else {}


def _names(source: Any, split: str, samples: Any) -> list[str] | None:
    """Names of the rows that could be read, where rows have names."""
    names, kept = source.row_names(split), getattr(samples, "rows", None)
    return [names[i] for i in kept] if names and kept is not None else names


def _source(cfg: Any, modality: str) -> Any:
    """The data of `data=`, or a source made for the file or folder `input=`."""
    if cfg.data is not None:
        return build(cfg.data)
    if cfg.input is None:
        raise UserError("predict what? input=FILE_OR_FOLDER, or data=… with its settings")
    path = stored.located(str(cfg.input))
    if not stored.is_file(path) and not stored.is_folder(path):
        raise UserError(f"input={cfg.input}: there is no such file or folder")
    if path.is_file() and path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp"):
        raise UserError(f"input={cfg.input} is one picture: give the folder it is in")
    node = OmegaConf.load(groups.CONFIG_DIR / f"{_group_for(path, modality)}.yaml")
    whole: dict[str, Any] = {k: 0.0 for k in ("val_fraction", "test_fraction") if k in node}  # every row is predicted, none held out
    whole |= {"label": ""} if "label" in node else {}  # and no row has to have a label
    return build(OmegaConf.merge(node, {"path": str(path)}, whole, _text_column(cfg, node)))


def _text_column(cfg: Any, node: Any) -> dict[str, str]:
    """The column of the text that the run was made with, where it named one."""
    column = _data_of_run(cfg).get("text") if "text" in node else None
    return {"text": str(column)} if column else {}


def _data_of_run(cfg: Any) -> Any:
    """The config of the data that the run was made with; {} where that is not known."""
    run = stored.located(str(cfg["from"]))
    data = Run(run).config.get("data") if stored.is_file(run / RUN_FILE) else None
    return data if OmegaConf.is_dict(data) else {}


def _group_for(path: Path, modality: str) -> str:
    stem = path.name.removesuffix(".xz").removesuffix(".gz")
    if modality == "image":
        return "data/arrays" if stem.endswith(".npz") else "data/image_folder"
    return "data/text_csv" if stem.endswith((".csv", ".tsv", ".jsonl", ".json", ".parquet")) else "data/text_lines"
