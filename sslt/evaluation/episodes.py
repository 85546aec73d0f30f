"""Few-shot classification measured on episodes: how often a classifier is right, episode by episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslt import distributed
from sslt.data.streams.episodes import ClassSet
from sslt.encoders.base import Encoder, evaluating
from sslt.evaluation.features import MEASURED, cached_features, encode
from sslt.evaluation.few_shot import mean_interval
from sslt.objectives.episodic import AdaptingClassifier, FeatureClassifier

_CHUNK = 64  # episodes that are classified at a time


def episode_accuracies(
    method: Any,
    encoder: Encoder,
    classes: ClassSet,
    draws: np.ndarray,
    shot: int,
    device: torch.device,
    batch_size: int,
    *,
    number_format: str = MEASURED,
    cached: bool = True,
) -> Tensor:
    """Accuracy [E], 0..1, on episodes of rows `draws` [E, N, shot + Q] of `classes`; the first `shot` of a class are its support.

    A `FeatureClassifier` (`on_features`) gets features from one pass over all samples of the classes (kept on disk, if `cached`; otherwise
    over those that occur). An `AdaptingClassifier` works in float32, and ranks share its episodes. All ranks get all accuracies.
    """
    if isinstance(method, torch.nn.Module):
        method.to(device)
    if method.on_features:
        rows = np.arange(len(classes.samples)) if cached else np.unique(draws)
        read = cached_features if cached else encode
        x = read(encoder, classes.samples.subset(rows), device, batch_size, number_format).to(device)
        return _on_features(method, x, torch.from_numpy(np.searchsorted(rows, draws)).to(device), shot)
    return _adapting(method, encoder, classes, draws, shot, device)


def _on_features(method: FeatureClassifier, x: Tensor, places: Tensor, shot: int) -> Tensor:
    found = []
    with torch.inference_mode():
        for part in places.split(_CHUNK):
            features = x[part]  # [e, N, K + Q, D]
            logits = method.classify(features[:, :, :shot], features[:, :, shot:].flatten(1, 2))
            found.append(_right(logits, part.shape[1]))
    return torch.cat(found)


def _adapting(
    method: AdaptingClassifier, encoder: Encoder, classes: ClassSet, draws: np.ndarray, shot: int, device: torch.device
) -> Tensor:
    rank, world = distributed.rank(), distributed.world_size()
    count, way = draws.shape[:2]
    labels = torch.arange(way, device=device).repeat_interleave(shot)
    found = torch.zeros(count, device=device)
    encoder.to(device)
    with evaluating(encoder):
        for e in range(rank, count, world):
            support, query = (_inputs(encoder, classes, part, device) for part in (draws[e, :, :shot], draws[e, :, shot:]))
            found[e] = _right(method.solve(encoder, support, labels, query).unsqueeze(0), way)[0]
    distributed.barrier()  # one may have had other things to do before
    return distributed.sum_over_ranks(found).cpu()


def _inputs(encoder: Encoder, classes: ClassSet, rows: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    batch = classes.samples.batch(rows.reshape(-1))
    return encoder.inputs({k: v.to(device, non_blocking=True) for k, v in batch.items()})


def _right(logits: Tensor, way: int) -> Tensor:
    """Accuracy [E] of logits [E, N·Q, C] whose rows go class by class; of C ≥ N classes the episode has the first N."""
    labels = torch.arange(way, device=logits.device).repeat_interleave(logits.shape[1] // way)
    return (logits[..., :way].argmax(-1) == labels).float().mean(1).cpu()


def episode_metrics(accuracies: Tensor, way: int, shot: int) -> dict[str, float]:
    """Mean accuracy over episodes and the half-width of its 95 % interval, with what was measured."""
    mean, interval = mean_interval(accuracies.tolist())
    return {
        "episodes/accuracy": mean,
        "episodes/interval": interval,
        "episodes/way": way,
        "episodes/shot": shot,
        "episodes/count": len(accuracies),
    }
