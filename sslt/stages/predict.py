"""`sslt predict`: answers for new files, or features where there is no head."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from sslt import groups, moved, stored
from sslt.config import build
from sslt.data.answers import Answers, Class, Tags, Texts
from sslt.data.sources.to_reply import ToReply
from sslt.encoders.base import require
from sslt.errors import UserError
from sslt.evaluation.alike import alike_on
from sslt.evaluation.features import encode, predicted
from sslt.report.answers import answer_rows, row_names, said_of, write_files, write_rows
from sslt.runs import RUN_FILE, Run, display
from sslt.stages import common
from sslt.stages.evaluate import load
from sslt.targets.base import Target
from sslt.trusted import check_trusted

TAG_FILES = (".jsonl", ".json", ".ndjson", ".conll", ".bio", ".iob", ".iob2", ".bioes")  # that may have tags
FEW_NAMES = 20  # up to which each has a column of its own


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Write predictions.jsonl (row, name, split, prediction, score, truth), of what is flat as predictions.csv too.

    For an encoder without a head features.npy [N, D]. Where the input has answers (folders of classes, a column), they stand beside as
    `truth`, and how many are right is said.
    All that is in `input=` is predicted, one split after the other where it has several; then there is a column `split`, too.
    """
    if cfg.probabilities not in (True, False, "auto"):
        raise UserError(f"probabilities={cfg.probabilities}: give true, false or auto")
    changed = {k: v for k, v in cfg.objective.items() if v is not None}
    encoder, head = load(cfg, None if cfg.data is None else build(cfg.data).modality, changed)
    if changed and head is None:
        raise UserError(f"objective.{next(iter(changed))}= is for a head, and from={cfg['from']} has none: give a fine-tuned run")
    source = _source(cfg, encoder.modality, head)
    if head is not None and source.space is None:
        source.answer = head.answer  # so that what its answers are places in is prepared with such
    require(encoder.modality, source, f"from={cfg['from']}")
    splits = source.own_splits() if cfg.input is not None else (cfg.split,)
    parts = {split: common.prepare(encoder, source, split) for split in splits}
    device, batch = common.device_of(cfg), int(cfg.batch_size)
    alike = alike_on(device)  # so that a row is answered as it is anywhere else
    if head is None:
        x = torch.cat([encode(encoder, samples, device, batch, alike=alike) for samples in parts.values()])
        out = run / "features.npy"
        if run.is_main:
            np.save(out, x.numpy())
            print(f"features of {len(x)} samples, {x.shape[1]} numbers each: {display(out)}")
        return {}
    predictions = [predicted(encoder, head, samples, device, batch, alike=alike) for samples in parts.values()]
    rows = [row for (split, samples), found in zip(parts.items(), predictions, strict=True)
            for row in answer_rows(head, found, samples, split if len(parts) > 1 else None, row_names(source, split, samples))]  # fmt: skip
    truths = [name for split, samples in parts.items() for name in _truth(cfg, head, source, split, samples)]
    metrics: dict[str, Any] = {"predict/rows": len(rows)} | _measured(head, parts, predictions, rows, truths)
    if run.is_main:
        for row, truth in zip(rows, truths, strict=True) if "predict/labelled" in metrics else ():
            row["truth"] = truth
        _files(run, head, parts, predictions, rows)
        write_rows(run / "predictions.jsonl", rows)
        table = _table(cfg, head, predictions, rows)
        out = run / ("predictions.jsonl" if table is None else "predictions.csv")
        if table is not None:
            with out.open("w", newline="", encoding="utf-8") as f:
                writer = csv.writer(f)
                writer.writerow(table)
                writer.writerows(zip(*table.values(), strict=True))
        print(f"{len(rows)} predictions: {display(out)}")
        if table is not None:
            counts = Counter(str(row["prediction"]) for row in rows if isinstance(row["prediction"], str))
            print("  " + "  ".join(f"{name} {n}" for name, n in sorted(counts.items()))[:200])
        if f"predict/{head.primary}" in metrics:
            share, labelled = metrics[f"predict/{head.primary}"], metrics["predict/labelled"]
            print(f"  {head.primary} on the {labelled} whose answer is known, of those that the head has: {100 * share:.1f}")
        run.add_metrics(metrics)
    return metrics


def _files(run: Run, head: Target, parts: dict[str, Any], predictions: list[Any], rows: list[dict[str, Any]]) -> None:
    """What is no text (maps), predicted and true, as files that the rows name; of several splits each in a folder of its own."""
    start = 0
    for (split, samples), found in zip(parts.items(), predictions, strict=True):
        own, within = rows[start : start + len(found)], f"/{split}" if len(parts) > 1 else ""
        start += len(found)
        write_files(run.path, head, found, own, "prediction", f"predictions{within}")
        if "truth" in own[0] and samples.answers is not None:
            write_files(run.path, head, samples.answers, own, "truth", f"truths{within}")


def _table(cfg: Any, head: Target, predictions: list[Any], rows: list[dict[str, Any]]) -> dict[str, list[str]] | None:
    """The rows as columns: of what is flat. Each name's probability has a column of its own where these are few."""
    made = [head.columns(found) for found in predictions]
    if any(part is None for part in made):
        return None
    wide = len(head.names) <= FEW_NAMES if cfg.probabilities == "auto" else cfg.probabilities
    columns = {"row": [str(row["row"]) for row in rows]}
    columns |= {k: [_flat(row.get(k)) for row in rows] for k in ("split", "name", "truth") if rows and k in rows[0]}
    for part in made:
        for k, values in (part or {}).items():
            if wide or not k.startswith("probability/"):
                columns.setdefault(k, []).extend(values)
    return columns


def _flat(value: Any) -> str:
    return "" if value is None else "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def _truth(cfg: Any, head: Target, source: Any, split: str, samples: Any) -> list[Any]:
    """What the rows really are, as `predictions.jsonl` writes it; None where that is not known: folders of classes, a column of a table."""
    if samples.answers is not None and samples.answers.kind == head.answer.kind:
        return [row["prediction"] for row in said_of(head, samples.answers, samples)]
    if head.answer is not Class:  # a file that is given as it is tells of its rows by names of classes alone
        return [None] * len(samples)
    column = None if cfg.input is None else _data_of_run(cfg).get("label")
    found = source.truth(split, column or None) if cfg.input is not None else None
    return found if found is not None and len(found) == len(samples) else [None] * len(samples)


def _measured(head: Target, parts: Any, predictions: list[Any], rows: list[dict[str, Any]], truths: list[Any]) -> dict[str, Any]:
    """How good the rows are whose answer is known and one that the head knows; nothing where there is no such row."""
    known = [samples.answers for samples in parts.values()]
    if all(a is not None and a.kind == head.answer.kind and head.answer.fits(head.space, a.space) for a in known):
        answers = Answers.join(known)
        if not (labelled := int(answers.known.sum())):
            return {}
        found = head.measure(Answers.join(predictions), answers)
        return {"predict/labelled": labelled, f"predict/{head.primary}": found[head.primary]}
    right = [row["prediction"] == name for row, name in zip(rows, truths, strict=True) if isinstance(name, str) and name in head.names]
    return {"predict/labelled": len(right), f"predict/{head.primary}": sum(right) / len(right)} if right else {}


def _source(cfg: Any, modality: str, head: Target | None) -> Any:
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
    if head is not None and head.answer is Texts and (dialogues := _to_reply(path, cfg)) is not None:
        return dialogues
    if head is not None and head.answer.read_by is not None:
        group = f"data/{head.answer.read_by}"
    else:
        group = "data/text_pairs" if _of_pairs(cfg) else _group_for(path, modality, head)
    node = OmegaConf.load(groups.CONFIG_DIR / f"{group}.yaml")
    whole: dict[str, Any] = {k: 0.0 for k in ("val_fraction", "test_fraction") if k in node}  # every row is predicted, none held out
    whole |= {"hold_out": False} if "hold_out" in node else {}
    if "label" in node:
        whole |= {"label": ""}  # and no row has to have a label
    elif "answer" in node:  # arrays of answers are found by their names, whatever is in them
        whole |= {"answer": _data_of_run(cfg).get("answer", node.answer)}
    whole |= {k: head.space[k] for k in ("types", "scorer") if k in node and k in head.space} if head is not None else {}
    whole |= {"history": _data_of_run(cfg).get("history", node.history)} if "history" in node else {}
    node = OmegaConf.merge(node, {"path": str(path)}, whole, _text_column(cfg, node), _same_layout(cfg, node))
    return build(node) if head is None or head.answer is not Texts or "target" not in node else _to_write_of(node, cfg)


def _to_write_of(node: Any, cfg: Any) -> Any:
    """A table of texts, with what is to be written of each where it has that, too."""
    named = {k: v for k, v in _data_of_run(cfg).items() if k in ("source", "target", "language") and v is not None}
    for more in (named, {}, {k: named[k] for k in named if k != "target"} | {"target": ""}):
        source = build(OmegaConf.merge(node, more))
        try:
            source.own_splits()
        except UserError:
            continue
        return source
    return build(OmegaConf.merge(node, named))  # whose mistake is the one to say


def _text_column(cfg: Any, node: Any) -> dict[str, str]:
    """The columns of the text (or of who took what) that the run was made with, where it named some."""
    named = _data_of_run(cfg)
    return {k: str(named[k]) for k in ("text", "a", "b", "user", "item", "time") if k in node and named.get(k)}


def _of_pairs(cfg: Any) -> bool:
    """Whether the run was made on samples of several parts."""
    return bool(_parts_of_data(cfg))


def parts_of_run(cfg: Any, head: Target | None) -> tuple[str, ...]:
    """Names of the parts of the samples that a run reads; () where each is one. Of questions those of earlier turns are among them."""
    if head is None or head.answer.read_by is None:
        return _parts_of_data(cfg)
    turns = int(_data_of_run(cfg).get("history") or 0) if "domains" in head.space else 0
    return ("question", "context", *(f"{what}_{i + 1}" for i in range(turns) for what in ("question", "answer")))


def _parts_of_data(cfg: Any) -> tuple[str, ...]:
    made = moved.up_to_date(OmegaConf.to_container(OmegaConf.create(_data_of_run(cfg)), resolve=False))
    if "_target_" not in made:
        return ()
    try:
        check_trusted({"data": made}, list(cfg.trust), stored.shown(stored.located(str(cfg["from"]))))
    except UserError:  # a class of others, which is not asked: what is read now is read by one of sslt's own
        return ()
    return tuple(get_object(made["_target_"]).parts)


def _same_layout(cfg: Any, node: Any) -> dict[str, Any]:
    """How the run's own file was read, where this one is read by the same source of texts with tags, or is such a log of items."""
    data = _data_of_run(cfg)
    if data.get("_target_") != node["_target_"]:
        return {}
    keys: tuple[str, ...] = ("ends", "overlaps", "token_column", "tag_column", "join") if "ends" in node else ()
    if "layout" in node and _suffix(data.get("path")) == _suffix(cfg.input):  # histories may come otherwise than the log did
        keys = ("layout", "user", "item", "time")
    return {k: data[k] for k in keys if k in data}


def _suffix(path: Any) -> str:
    return Path(str(path).removesuffix(".xz").removesuffix(".gz")).suffix.lower()


def _to_reply(path: Path, cfg: Any) -> ToReply | None:
    """Dialogues for a run that learned to reply in such; None for anything else."""
    data = _data_of_run(cfg)
    if not str(data.get("_target_")).startswith("sslt.data.sources.dialogues."):
        return None
    found = ToReply(str(path), data.get("turns"), data.get("history"))
    return found if found.are_there else None


def _data_of_run(cfg: Any) -> Any:
    """The config of the data that the run was made with; {} where that is not known."""
    run = stored.located(str(cfg["from"]))
    data = Run(run).config.get("data") if stored.is_file(run / RUN_FILE) else None
    return data if OmegaConf.is_dict(data) else {}


def _group_for(path: Path, modality: str, head: Target | None) -> str:
    stem = path.name.removesuffix(".xz").removesuffix(".gz")
    if head is not None and head.answer is Tags and (path.is_dir() or stem.endswith(TAG_FILES)):
        return "data/text_tags"
    if modality == "items":
        return "data/interactions"
    tables = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
    if head is not None and head.answer is Texts and stem.endswith(tables):
        return "data/text_to_text"
    if modality == "image":
        return "data/arrays" if stem.endswith(".npz") else "data/image_folder"
    return "data/text_csv" if stem.endswith(tables) else "data/text_lines"
