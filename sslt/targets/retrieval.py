"""What is found by an encoder's features: nothing is learned, and nothing of it has weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sslt.data import copies
from sslt.data.answers import Class
from sslt.data.base import Samples, Source
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss
from sslt.targets import baselines
from sslt.targets.base import Cheap, Rows, Target
from sslt.targets.classification import Classification
from sslt.targets.metrics.retrieval import nearest_rows, per_query, retrieval_metrics

WIDTH = 256  # of the cheap method's features of texts
PIXELS = 4096  # of the cheap method's features of images, at most


class Retrieval(Target[Class]):
    """Every row of a split searches all others but copies of itself, by the cosine of pooled features; relevant are those of its class.

    Predictions hold the features as `scores` [N, D] and what rows are copies of one another as `groups`; their `values` say nothing.
    """

    answer = Class
    primary = "map"
    trains = False
    called = "the cosine of this encoder's features"

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        raise UserError(
            "objective=retrieval has nothing to train: measure an encoder by it, sslt evaluate objective=retrieval from=ENCODER"
        )

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        self.forward(encoder, {})

    def predict(self, encoder: Encoder, batch: dict[str, Any]) -> Class:
        inputs = encoder.inputs(batch)
        features = encoder(inputs).pooled.float().cpu().numpy()
        return Class(np.zeros(len(features), np.int64), self.space, scores=features, groups=copies.contents_of_inputs(inputs))

    def measure(self, predictions: Class, answers: Class) -> dict[str, float]:
        return retrieval_metrics(*_features(predictions), np.asarray(answers.values))

    def difference(self, a: Class, b: Class, answers: Class) -> tuple[float, float, float]:
        """Of the average precisions of the queries, by the normal approximation of the paired differences."""
        found = [per_query(*_features(p), np.asarray(answers.values))[:, 0] for p in (a, b)]
        asked = ~np.isnan(found[0]) & ~np.isnan(found[1])
        return baselines.difference(found[0][asked], found[1][asked])

    def errors(self, predictions: Class, answers: Class) -> np.ndarray:
        """The share of the nearest rows that are of another class."""
        labels = np.asarray(answers.values)
        near = nearest_rows(*_features(predictions))
        return np.array([np.mean(labels[found] != label) if len(found) else 1.0 for found, label in zip(near, labels, strict=True)])

    def rows(self, predictions: Class) -> list[dict[str, Any]]:
        """Of predictions the rows that are found first; of answers the class."""
        if predictions.scores is None:
            return [{"prediction": predictions.classes[i]} for i in np.asarray(predictions.values)]
        return [{"prediction": found.tolist()} for found in nearest_rows(*_features(predictions))]

    @classmethod
    def check(cls, source: Source, answers: Class | None = None) -> None:
        Classification.check(source, answers)

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap | None:
        """TF-IDF in 256 directions (LSA: Deerwester et al., 1990), or pixels less their mean."""
        if modality == "text":
            from sklearn.decomposition import TruncatedSVD
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.pipeline import make_pipeline

            from sslt.data.prepare.bag_processor import words_of

            texts, asked = train.one_each, test.one_each
            counts = TfidfVectorizer(analyzer=words_of, sublinear_tf=True, min_df=min(2, len(texts)), max_features=50_000).fit(texts)
            width = min(WIDTH, len(counts.vocabulary_) - 1, len(texts) - 1)
            model = make_pipeline(counts, TruncatedSVD(max(width, 1), random_state=0)).fit(texts)
            name, features = f"TF-IDF, {max(width, 1)} directions (LSA)", model.transform(asked)
        else:
            asked = _pixels(test.items)
            name, features = "pixels", asked - _pixels(train.items).mean(0)
        values, groups = np.zeros(len(features), np.int64), copies.contents_of(asked).view(np.int64)
        return Cheap(name, Class(values, self.space, scores=features.astype(np.float32), groups=groups), float("nan"))

    @property
    def cheap_settings(self) -> list[Any]:
        return ["but copies"]


def _features(predictions: Class) -> tuple[np.ndarray, np.ndarray]:
    """What rows are compared by, and which are copies; a class that is told is a direction of its own."""
    values = np.asarray(predictions.values)
    features = np.eye(max(len(predictions.classes), 1))[values] if predictions.scores is None else np.asarray(predictions.scores)
    return features, np.arange(len(values)) if predictions.groups is None else np.asarray(predictions.groups)


def _pixels(samples: Samples) -> np.ndarray:
    """float32 [N, ≤ PIXELS · channels]: the images, made small where they are large."""
    parts = []
    for start in range(0, len(samples), 1024):
        x = samples.batch(np.arange(start, min(start + 1024, len(samples))))["image"].float()
        if x.shape[-1] * x.shape[-2] > PIXELS:
            x = torch.nn.functional.adaptive_avg_pool2d(x, int(PIXELS**0.5))
        parts.append(x.flatten(1).numpy())
    return np.concatenate(parts)
