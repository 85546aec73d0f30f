"""The measurements of the stages: a classifier on a split, an encoder by probes on its features."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from sslt import distributed
from sslt.config import build
from sslt.data.base import Samples
from sslt.data.streams.subsets import label_subset
from sslt.encoders.base import Encoder, fingerprint
from sslt.errors import UserError
from sslt.evaluation.classification import classification_metrics, confusion_matrix
from sslt.evaluation.features import MEASURED, cached_features, logits_of
from sslt.runs import Run
from sslt.stages import common
from sslt.stages.beside import cheap, compared

log = logging.getLogger("sslt")


class Scored(NamedTuple):
    """What was measured, and which rows of the split were right (bool [N])."""

    metrics: dict[str, Any]
    right: np.ndarray


def classifier(
    encoder: Encoder, objective: Any, samples: Samples, device: torch.device, batch: int, split: str,
    *, detail: bool = True, plots: Run | None = None, number_format: str = MEASURED,
) -> Scored:  # fmt: skip
    """A classifier over a whole split, its metrics named `<split>/accuracy` and so on; with `plots`, its confusion matrix."""
    objective.to(device)
    logits, labels = logits_of(encoder, objective, samples, device, batch, number_format), common.labels_of(samples)
    assert samples.classes is not None
    found = classification_metrics(logits, labels, samples.classes)
    if plots is not None and plots.is_main:
        from sslt.report.plots import confusion, reliability

        (plots / "plots").mkdir(exist_ok=True)
        matrix = confusion_matrix(logits.argmax(1), labels, len(samples.classes))
        confusion(matrix, samples.classes, plots / "plots" / "confusion.png")
        reliability(logits, labels, plots / "plots" / "reliability.png")
        from sslt.runs import write_json

        write_json(plots / f"confusion_{split}.json", {"classes": samples.classes, "rows_true_columns_predicted": matrix.tolist()})
    named = {f"{split}/{k}": float(v) for k, v in found.items() if detail or k in ("accuracy", "f1", "nll")}
    return Scored(named, (logits.argmax(1) == labels).numpy())


def corrupted(cfg: Any, encoder: Encoder, samples: Samples) -> Samples:
    """The samples under `corruption=`."""
    from sslt.data.views.corruptions import Corrupted

    corruption = build(cfg.corruption)
    if corruption.modality != encoder.modality:
        raise UserError(f"corruption {corruption.name} is for {corruption.modality}s, but from={cfg['from']} reads {encoder.modality}s")
    if encoder.modality == "text":
        corruption.unknown, corruption.window = encoder.processor.unknown_id, encoder.processor.max_length
    return Corrupted(samples, corruption, cfg.seed)


def test_time(cfg: Any, encoder: Encoder, objective: Any, samples: Samples, device: torch.device) -> dict[str, float]:
    """Metrics, named `test_time/…`, of a classifier that adapts to the split as a stream of batches in shuffled order.

    Each rank would adapt to its share alone: one process only.
    """
    if distributed.active():
        raise UserError("test_time= follows one stream: set trainer.devices=1")
    adapter = build(cfg.test_time)
    adapter.start(encoder.to(device), lambda e, inputs: objective.scores(e, inputs).float())
    order = np.random.default_rng([cfg.seed, 0x7E57]).permutation(len(samples))
    parts = []
    objective.to(device).eval()
    for i in range(0, len(order), cfg.batch_size):
        batch = {k: v.to(device) for k, v in samples.batch(order[i : i + cfg.batch_size]).items()}
        parts.append(adapter.predict(encoder.inputs(batch)).cpu())
    labels = common.labels_of(samples)[torch.from_numpy(order)]
    assert samples.classes is not None
    adapted = classification_metrics(torch.cat(parts), labels, samples.classes)
    return {f"test_time/{k}": float(adapted[k]) for k in ("accuracy", "f1", "nll", "ece")}


def encoder_probes(cfg: Any, run: Run, encoder: Encoder, source: Any, device: torch.device, batch: int) -> tuple[dict[str, Any], list[str]]:
    """kNN, linear and k-shot probes, spectrum, alignment and uniformity, all from one feature pass a split; with remarks in words.

    `baseline`: beside them the cheap methods, and the same encoder with fresh weights, on the same rows.
    """
    from sslt.evaluation import few_shot, label_curve, spectrum

    n = len(source.classes or [])
    if source.classes is None:
        samples = common.prepare(encoder, source, "unlabeled")
        x = _features(encoder, source, {"unlabeled": samples}, device, batch)["unlabeled"][0]
        if not run.is_main:
            return {}, []
        log.info("%s has no labels: only the spectrum of the features is measured", source.name)
        _map(run, x, None, None)
        return _named("features", spectrum.collapse_report(x)) | {"features/uniformity": spectrum.uniformity(x)}, []
    splits = {s: common.prepare_labelled(encoder, source, s) for s in ("train", "val", "test")}
    splits["train"] = label_subset(splits["train"], cfg.label_fraction, cfg.labels_per_class, cfg.seed)
    features = _features(encoder, source, splits, device, batch)
    fresh = None
    if cfg.baseline and not str(cfg["from"]).startswith("scratch"):
        fresh = _features(untrained(encoder, int(cfg.seed)), source, splits, device, batch)
    if not run.is_main:
        return {}, []
    (x, y), (vx, vy), (tx, ty) = (features[s] for s in ("train", "val", "test"))
    found, right = _probes(cfg, features, n)
    found["linear/labels"] = len(x)
    beside, theirs = cheap(cfg, source, splits, (cfg.label_fraction, cfg.labels_per_class, cfg.seed))
    others = {str(beside.get("baseline/method")): theirs}
    if fresh is not None:
        before, right_before = _probes(cfg, fresh, n)
        beside |= {f"untrained/{k}": v for k, v in before.items() if k.endswith("/accuracy")}
        others["that of the untrained encoder"] = right_before
    found |= beside
    found |= label_curve.linear_curve((x, y), (vx, vy), (tx, ty), n, [f for f in cfg.curve.fractions if f != 1], cfg.seed)
    found |= few_shot.few_shot_probe(x, y, tx, ty, n, shots=tuple(cfg.shots), draws=cfg.draws, seed=cfg.seed)
    found |= _named("features", spectrum.collapse_report(tx))
    found["features/uniformity"] = float(spectrum.uniformity(tx))
    found["features/alignment"] = float(spectrum.class_alignment(tx, ty, cfg.seed))
    _map(run, tx, ty, source.classes)
    return found, compared("the linear probe", right, others)


def untrained(encoder: Encoder, seed: int) -> Encoder:
    """The same architecture and processor with fresh weights."""
    torch.manual_seed(seed)
    return type(encoder)(encoder.processor, **encoder.args)


def _features(
    encoder: Encoder, source: Any, splits: Mapping[str, Samples], device: torch.device, batch: int
) -> dict[str, tuple[torch.Tensor, Any]]:
    """Features and labels (None where there are none) by split."""
    key = fingerprint(encoder)
    found = {}
    for split, samples in splits.items():
        if not len(samples):
            raise UserError(f"{source.name} has no samples in its '{split}' split")
        x = cached_features(encoder, samples, device, batch, key=key)
        found[split] = x, (None if samples.labels is None else common.labels_of(samples))
    return found


def _probes(cfg: Any, features: Mapping[str, tuple[torch.Tensor, Any]], n: int) -> tuple[dict[str, Any], np.ndarray]:
    """kNN and the linear probe, and which test rows the latter has right."""
    from sslt.targets import knn, linear

    (x, y), (vx, vy), (tx, ty) = (features[s] for s in ("train", "val", "test"))
    near = float(knn.knn_accuracy(x, y, tx, ty, n, k=cfg.knn.k, temperature=cfg.knn.temperature))
    probe = linear.linear_probe(x, y, vx, vy, tx, ty, n)
    found = {"knn/accuracy": near, "linear/accuracy": probe.accuracy, "linear/val_accuracy": probe.val_accuracy, "linear/l2": probe.l2}
    return found, (probe.logits_test.argmax(1).cpu() == ty.cpu()).numpy()


def _named(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{k}": float(v) for k, v in values.items()}


def _map(run: Run, x: torch.Tensor, labels: Any, classes: list[str] | None) -> None:
    """Draw the features."""
    from sslt.report.plots import embedding_map

    (run / "plots").mkdir(exist_ok=True)
    embedding_map(x, labels, classes, run / "plots" / "embeddings.png", seed=0)
