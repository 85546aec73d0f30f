"""The domains of a shift: which data they are, and what is measured on each of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from sslt.config import build
from sslt.data.base import Samples, Source, many
from sslt.data.streams.joined import Corpus
from sslt.data.streams.subsets import labels_of
from sslt.encoders.base import Encoder, evaluating
from sslt.errors import UserError
from sslt.evaluation import selection
from sslt.evaluation.features import cached_features, encode
from sslt.targets.knn import knn_accuracy
from sslt.targets.linear import accuracy
from sslt.targets.metrics.classes import classification_metrics


@dataclasses.dataclass
class Domains:
    """sources: labelled data by name, the task's own first. target: where to go; its name in the results is `target_name`."""

    sources: dict[str, Source]
    target: Source
    target_name: str

    @property
    def corpus(self) -> Source | None:
        """What a tokenizer is trained on: the unlabelled texts of all domains. Of images, nothing but the source's are looked at."""
        every = [*self.sources.values(), self.target]
        return Corpus(every) if self.target.modality == "text" else None


def read(o: Any, source: Source) -> Domains:
    """The domains of a `shift` node. Raises `UserError` where they do not fit together."""
    if o.target is None:
        raise UserError("shift to which domain? Give its data: data@shift.target=usps (and its settings: shift.target.root=…)")
    for key, node in [("target", o.target), *((f"sources.{k}", v) for k, v in o.sources.items())]:
        if not hasattr(node, "items"):
            plus = "" if key == "target" else "+"
            raise UserError(f"shift.{key}={node}: a data set is chosen by {plus}data@shift.{key}={node}")
    target = build(o.target)
    target.val_fraction = 0.0  # the target needs no validation split, and one drawn in class proportions would look at its labels
    sources = {source.name: source}
    for name, node in o.sources.items():
        if name in sources:
            raise UserError(f"shift.sources.{name}: there is a source of this name already: choose another")
        sources[str(name)] = build(node)
    for name, domain in [*sources.items(), (target.name, target)]:
        if domain.space is not None and not domain.has_classes:
            raise UserError(f"+shift= carries classes to another domain, and the samples of {name} have {domain.answer.words}")
        if domain.modality != source.modality:
            raise UserError(
                f"{name} holds {many(domain.modality)}, but {source.name} holds {many(source.modality)}: domains are of one kind"
            )
        if domain is not target and domain.classes is None:
            raise UserError(f"shift.sources.{name} has no labels: a source teaches by its labels")
        if domain.classes is not None and domain.classes != source.classes:
            raise UserError(_difference(name, domain.classes, source))
    return Domains(sources, target, target.name if target.name not in sources else "target")


def _difference(name: str, classes: list[str], source: Source) -> str:
    known = source.classes or []

    def some(names: list[str]) -> str:
        return f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"

    lacks, more = [c for c in known if c not in classes], [c for c in classes if c not in known]
    parts = ([f"{name} lacks {some(lacks)}"] if lacks else []) + ([f"only {name} has {some(more)}"] if more else [])
    what = "; ".join(parts) or f"{name} has them in another order ({some(classes)} instead of {some(known)})"
    return f"source and target must have the same classes: {what} ({source.name} has {len(known)}, {name} {len(classes)})"


@dataclasses.dataclass
class Meter:
    """Measures encoder and classifier on all domains.

    banks: labelled training samples of each source; target: samples of the target without labels; val: held-out samples of the
    sources; tests: test splits by domain, the target's among them where it has labels. At most `samples` of a domain are used for
    distances, neighbours and validation, drawn by the seed without a look at labels.
    """

    encoder: Encoder
    objective: Any
    device: torch.device
    batch: int
    seed: int
    banks: dict[str, Samples]
    target: Samples
    val: Samples
    tests: dict[str, Samples]
    target_test: Samples | None
    queries: dict[str, Samples]  # of `tests`, for neighbours

    def distances(self) -> dict[str, float]:
        """Proxy A-distance of each source to the target, on the features as they are."""
        target = self._kept(self.target)
        return {name: selection.proxy_a_distance(self._kept(bank), target, self.seed) for name, bank in self.banks.items()}

    def geometry(self, when: str) -> dict[str, float]:
        """How far source and target are apart, and how well the sources' labels reach each domain by nearest neighbours."""
        banks, target = {name: self._kept(bank) for name, bank in self.banks.items()}, self._kept(self.target)
        x, y = torch.cat(list(banks.values())), torch.cat([labels_of(bank) for bank in self.banks.values()])
        found = {f"shift/proxy_a_distance_{when}": selection.proxy_a_distance(x, target, self.seed)}
        if len(banks) > 1:
            for name, bank in banks.items():
                found[f"shift/proxy_a_distance_{when}/{name}"] = selection.proxy_a_distance(bank, target, self.seed)
        for name, query in self.queries.items():
            n = len(query.classes or [])
            found[f"shift/knn_accuracy_{when}/{name}"] = knn_accuracy(x, y, self._kept(query), labels_of(query), n)
        return found

    def validate(self, number_format: str) -> dict[str, float]:
        """What picks the epoch: accuracy on held-out source samples, and criteria that need no labels of the target.

        `shift/entropy`: H(mean p) - mean H(p) on the target; `shift/importance`: minus its cross-entropy as DEV estimates it. The
        accuracy on the target's test labels is recorded as `oracle/test/accuracy`. In float32 whatever `number_format` says, so that
        what picks an epoch, what is reported of it and the oracle are the same measurement.
        """
        held, target = self._encode(self.val), self._encode(self.target)
        train = torch.cat([self._encode(bank) for bank in self.banks.values()])
        logits, labels = self._logits(held), labels_of(self.val)
        scores = classification_metrics(logits, labels, self.val.classes or [])
        found = {f"val/{k}": float(scores[k]) for k in ("accuracy", "f1", "nll")}
        found["shift/entropy"] = selection.information_maximisation(self._logits(target))
        found["shift/importance"] = -selection.target_risk(train, target, held, logits, labels)
        if self.target_test is not None:
            found["oracle/test/accuracy"] = self._accuracy(self.target_test)
        return found

    def accuracies(self) -> dict[str, float]:
        """Test accuracy of the classifier on every domain."""
        return {f"shift/accuracy/{name}": self._accuracy(test) for name, test in self.tests.items()}

    def _accuracy(self, samples: Samples) -> float:
        return accuracy(self._logits(self._encode(samples)), labels_of(samples))

    def _encode(self, samples: Samples) -> Tensor:
        return encode(self.encoder, samples, self.device, self.batch)

    def _kept(self, samples: Samples) -> Tensor:
        return cached_features(self.encoder, samples, self.device, self.batch)

    def _logits(self, features: Tensor) -> Tensor:
        self.objective.to(self.device)
        with evaluating(self.objective):
            return self.objective.logits(features.to(self.device)).float().cpu()
