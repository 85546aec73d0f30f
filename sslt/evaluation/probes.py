"""An encoder by probes on its features, beside cheap methods and the same encoder untrained, on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sslt.data.answers import Class
from sslt.data.base import Samples
from sslt.data.streams.subsets import labels_of
from sslt.encoders.base import Encoder, fingerprint
from sslt.errors import UserError
from sslt.evaluation import few_shot, label_curve, spectrum
from sslt.evaluation.beside import cheap, compared
from sslt.evaluation.features import cached_features
from sslt.report.end import write_map
from sslt.runs import Run
from sslt.targets import knn, linear
from sslt.targets.classification import Classification


def features_alone(run: Run, encoder: Encoder, source: Any, samples: Samples, device: torch.device, batch: int) -> dict[str, Any]:
    """Of samples without classes: the spectrum of the features."""
    x = _features(encoder, source, {"all": samples}, device, batch)["all"][0]
    if not run.is_main:
        return {}
    write_map(run, x, samples)
    return _named("features", spectrum.collapse_report(x)) | {"features/uniformity": spectrum.uniformity(x)}


def encoder_probes(
    cfg: Any, run: Run, encoder: Encoder, source: Any, splits: dict[str, Samples], device: torch.device, batch: int
) -> tuple[dict[str, Any], list[str]]:
    """kNN, linear and k-shot probes, spectrum, alignment and uniformity, all from one feature pass a split; with remarks in words.

    splits: train, val and test, of which train may be a part (`label_fraction`). `baseline`: beside them the cheap methods, and the same
    encoder with fresh weights, on the same rows.
    """
    n = len(source.classes)
    features = _features(encoder, source, splits, device, batch)
    fresh = None
    if cfg.baseline and not str(cfg["from"]).startswith("scratch"):
        fresh = _features(untrained(encoder, int(cfg.seed)), source, splits, device, batch)
    if not run.is_main:
        return {}, []
    (x, y), (vx, vy), (tx, ty) = (features[s] for s in ("train", "val", "test"))
    found, right = _probes(cfg, features, source.space)
    found["linear/labels"] = len(x)
    target = Classification(encoder, source.space, 0.0, 0.0)
    beside, theirs = cheap(cfg, target, source, splits, (cfg.label_fraction, cfg.labels_per_class, cfg.seed))
    others: dict[str, Any] = {str(beside.get("baseline/method")): theirs}
    if fresh is not None:
        before, right_before = _probes(cfg, fresh, source.space)
        beside |= {f"untrained/{k}": v for k, v in before.items() if k.endswith("/accuracy")}
        others["that of the untrained encoder"] = right_before
    found |= beside
    found |= label_curve.linear_curve((x, y), (vx, vy), (tx, ty), n, [f for f in cfg.curve.fractions if f != 1], cfg.seed)
    found |= few_shot.few_shot_probe(x, y, tx, ty, n, shots=tuple(cfg.shots), draws=cfg.draws, seed=cfg.seed)
    found |= _named("features", spectrum.collapse_report(tx))
    found["features/uniformity"] = float(spectrum.uniformity(tx))
    found["features/alignment"] = float(spectrum.class_alignment(tx, ty, cfg.seed))
    write_map(run, tx, splits["test"])
    return found, compared(target, "the linear probe", right, others, splits["test"].answers)


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
        found[split] = x, (None if samples.labels is None else labels_of(samples))
    return found


def _probes(cfg: Any, features: Mapping[str, tuple[torch.Tensor, Any]], space: Any) -> tuple[dict[str, Any], Class]:
    """kNN and the linear probe, and what the latter says of the test rows."""
    n = len(space["classes"])
    (x, y), (vx, vy), (tx, ty) = (features[s] for s in ("train", "val", "test"))
    near = float(knn.knn_accuracy(x, y, tx, ty, n, k=cfg.knn.k, temperature=cfg.knn.temperature))
    probe = linear.linear_probe(x, y, vx, vy, tx, ty, n)
    found = {"knn/accuracy": near, "linear/accuracy": probe.accuracy, "linear/val_accuracy": probe.val_accuracy, "linear/l2": probe.l2}
    logits = probe.logits_test.cpu()
    return found, Class(logits.argmax(1).numpy(), space, scores=logits.numpy())


def _named(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{k}": float(v) for k, v in values.items()}
