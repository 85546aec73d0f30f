"""The measurements of the stages: a classifier on a split, an encoder by probes on its features."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from sslt import distributed
from sslt.config import build
from sslt.data.base import Samples
from sslt.data.subsets import label_subset
from sslt.encoders.base import Encoder, fingerprint
from sslt.errors import UserError
from sslt.evaluation.classification import classification_metrics, confusion_matrix
from sslt.evaluation.features import MEASURED, cached_features, logits_of
from sslt.runs import Run
from sslt.stages import common

log = logging.getLogger("sslt")


def classifier(
    encoder: Encoder, objective: Any, samples: Samples, device: torch.device, batch: int, split: str,
    *, detail: bool = True, plots: Run | None = None, number_format: str = MEASURED,
) -> dict[str, float]:  # fmt: skip
    """Metrics of a classifier over a whole split, named `<split>/accuracy` and so on; with `plots`, its confusion matrix."""
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
    return {f"{split}/{k}": float(v) for k, v in found.items() if detail or k in ("accuracy", "f1", "nll")}


def corrupted(cfg: Any, encoder: Encoder, samples: Samples) -> Samples:
    """The samples under `corruption=`."""
    from sslt.data.corruptions import Corrupted

    corruption = build(cfg.corruption)
    if corruption.modality != encoder.modality:
        raise UserError(f"corruption {corruption.name} is for {corruption.modality}s, but from={cfg['from']} reads {encoder.modality}s")
    if encoder.modality == "text":
        corruption.unknown = encoder.processor.unknown_id
    return Corrupted(samples, corruption, cfg.seed)


def test_time(cfg: Any, encoder: Encoder, objective: Any, samples: Samples, device: torch.device) -> dict[str, float]:
    """Metrics, named `test_time/…`, of a classifier that adapts to the split as a stream of batches in shuffled order.

    Each rank would adapt to its share alone: one process only.
    """
    if distributed.active():
        raise UserError("test_time= follows one stream: set trainer.devices=1")
    adapter = build(cfg.test_time)
    adapter.start(encoder.to(device), lambda e, inputs: objective.logits(e(inputs).pooled).float())
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


def encoder_probes(cfg: Any, run: Run, encoder: Encoder, source: Any, device: torch.device, batch: int) -> dict[str, float]:
    """kNN, linear and k-shot probes, spectrum, alignment and uniformity, all from one feature pass a split."""
    from sslt.evaluation import few_shot, knn, label_curve, linear, spectrum

    key = fingerprint(encoder)

    def features(split: str) -> tuple[torch.Tensor, Any]:
        samples = (common.prepare if source.classes is None else common.prepare_labelled)(encoder, source, split)
        if not len(samples):
            raise UserError(f"{source.name} has no samples in its '{split}' split")
        if split == "train":
            samples = label_subset(samples, cfg.label_fraction, cfg.labels_per_class, cfg.seed)
        x = cached_features(encoder, samples, device, batch, key=key)
        return x, (None if samples.labels is None else common.labels_of(samples))

    if source.classes is None:
        x, _ = features("unlabeled")
        if not run.is_main:
            return {}
        log.info("%s has no labels: only the spectrum of the features is measured", source.name)
        _map(run, x, None, None)
        return _named("features", spectrum.collapse_report(x)) | {"features/uniformity": spectrum.uniformity(x)}
    (x, y), (vx, vy), (tx, ty) = features("train"), features("val"), features("test")
    if not run.is_main:
        return {}
    n = len(source.classes)
    found: dict[str, float] = {"knn/accuracy": float(knn.knn_accuracy(x, y, tx, ty, n, k=cfg.knn.k, temperature=cfg.knn.temperature))}
    probe = linear.linear_probe(x, y, vx, vy, tx, ty, n)
    found |= {"linear/accuracy": float(probe.accuracy), "linear/val_accuracy": float(probe.val_accuracy), "linear/l2": float(probe.l2)}
    found |= {"linear/labels": len(x)}
    found |= label_curve.linear_curve((x, y), (vx, vy), (tx, ty), n, [f for f in cfg.curve.fractions if f != 1], cfg.seed)
    found |= few_shot.few_shot_probe(x, y, tx, ty, n, shots=tuple(cfg.shots), draws=cfg.draws, seed=cfg.seed)
    found |= _named("features", spectrum.collapse_report(tx))
    found["features/uniformity"] = float(spectrum.uniformity(tx))
    found["features/alignment"] = float(spectrum.class_alignment(tx, ty, cfg.seed))
    _map(run, tx, ty, source.classes)
    return found


def _named(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{k}": float(v) for k, v in values.items()}


def _map(run: Run, x: torch.Tensor, labels: Any, classes: list[str] | None) -> None:
    """Draw the features."""
    from sslt.report.plots import embedding_map

    (run / "plots").mkdir(exist_ok=True)
    embedding_map(x, labels, classes, run / "plots" / "embeddings.png", seed=0)
