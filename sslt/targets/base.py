"""The target's interface: an objective that answers."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sslt.data.answers import Answers, Space
from sslt.data.base import Samples, Source
from sslt.data.views.base import Views
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Objective, Picture
from sslt.targets.metrics.intervals import bootstrap

A = TypeVar("A", bound=Answers)


class Rows(NamedTuple):
    """What a cheap method learns from or answers: texts (pairs as tuples), or images as `Samples`; and the answers."""

    items: Any
    answers: Any

    @property
    def one_each(self) -> Any:
        """The items, of texts of several parts one text each: what counts words takes no pairs."""
        paired = isinstance(self.items, list) and bool(self.items) and isinstance(self.items[0], tuple)
        return [" ".join(parts) for parts in self.items] if paired else self.items


class Cheap(NamedTuple):
    """What the strongest cheap method answers on test, and its score on validation, NaN where there was none.

    more: further metrics of test, by the name of the method (or of an upper line) and the metric.
    """

    method: str
    predictions: Answers
    val_score: float
    more: Mapping[str, float] = MappingProxyType({})


class Target(Objective, abc.ABC, Generic[A]):
    """An objective whose loss teaches to answer, and that answers: predictions are of the kind of the answers.

    The constructor takes the encoder for its shapes, the `space` of the answers, and settings from the target's YAML. A subclass says
    which kind of answers it learns, what it reads of an encoder, and by which metric an epoch is chosen.
    """

    answer: ClassVar[type[Answers]]
    reads: ClassVar[str] = "pooled"  # or tokens, or maps
    primary: ClassVar[str]  # of what `measure` gives, the one that counts
    higher_is_better: ClassVar[bool] = True
    watched: ClassVar[tuple[str, ...]] = ()  # what is measured while training, beside `primary`
    called: ClassVar[str] = "this model"  # in sentences
    watched_rows: ClassVar[int | None] = None  # where answering is slow: so many rows are answered while training, all judged
    trains: ClassVar[bool] = True  # False: it has no weights, so that an encoder can be measured by it as it is
    fuses: ClassVar[bool] = False  # whether cheap methods can stand beside the encoder in it
    calibrates: bool = False  # whether something in it is set on validation once it is trained
    reads_beside: ClassVar[bool] = False  # whether shapes that a row is computed in depend on the rows beside it (windows, what is written)
    shows: int = 0  # training samples that it has from `prepare`, though it has no weights

    def __init__(self, encoder: Encoder, space: Space):
        super().__init__()
        self.space = space

    def predict(self, encoder: Encoder, batch: dict[str, Any]) -> A:
        """Answers to a batch of prepared samples as they are, in the samples' own coordinates (characters, pixels).

        Here `read` of `outputs`. A target whose answers are not read from one pass through the encoder has this alone.
        """
        return self.read(self.outputs(encoder, batch), batch)

    def outputs(self, encoder: Encoder, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What of answering is a function of the batch's tensors alone, by name, [B, ...] each: what an exported file computes."""
        raise NotImplementedError(f"{type(self).__name__} has neither `predict` nor `outputs`")

    def read(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> A:
        """The answers to a batch whose `outputs`, wherever they were computed, are these."""
        raise NotImplementedError(f"{type(self).__name__} has neither `predict` nor `read`")

    @classmethod
    def is_read_from_outputs(cls) -> bool:
        """Whether answers are `read` of `outputs`, so that something else than the encoder may compute these."""
        return cls.outputs is not Target.outputs and cls.predict is Target.predict

    @abc.abstractmethod
    def measure(self, predictions: A, answers: A) -> dict[str, float]:
        """Metrics over a whole split. Those of a part of it have more than one `/` in their names."""

    def judge(self, encoder: Encoder, batch: dict[str, Any]) -> A:
        """What is known of the true answers to a batch without answering it (`scores`); asked where `watched_rows` is set."""
        raise NotImplementedError

    def judged(self, judged: A) -> dict[str, float]:
        """What is watched of a whole split by what `judge` gave."""
        raise NotImplementedError

    def notes(self, answers: A) -> dict[str, str]:
        """What there is to say of the metrics on these answers, by name: how they are counted."""
        return {}

    def score(self, predictions: A, answers: A) -> float:
        """The primary metric alone."""
        return self.measure(predictions, answers)[self.primary]

    @abc.abstractmethod
    def errors(self, predictions: A, answers: A) -> np.ndarray:
        """How wrong each row is, float [N], 0 where nothing is: rows are shown in this order, the worst first."""

    @abc.abstractmethod
    def rows(self, predictions: A) -> list[dict[str, Any]]:
        """What `predictions.jsonl` says of each row: `prediction`, and `score` where there is one."""

    def quote(self, prediction: Any, text: str) -> Any:
        """A `prediction` of `rows` with the words that it points to, of an answer that is places in `text`."""
        return prediction

    # ---------------------------------------------------------------- answers that read earlier ones
    def rounds(self, samples: Samples) -> list[np.ndarray] | None:
        """Rows of `samples` that are answered one after the other, since an answer is read with those before it; None: all at once.

        Asked whenever a split is to be answered; what was heard before is forgotten.
        """
        return None

    def hear(self, predictions: A) -> None:
        """What was answered to one of `rounds`, by all ranks."""

    # ---------------------------------------------------------------- before training
    @classmethod
    def check(cls, source: Source, answers: A | None = None) -> None:
        """Raise `UserError` where there is nothing to learn: in the answers of `source` as a whole, or in these of its training split."""

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise `UserError` where the encoder does not give what this target reads."""
        if self.reads not in encoder.offers:
            name = encoder.args.get("name") or encoder.args.get("model_type") or type(encoder).__name__
            raise UserError(f"this target reads {_READS[self.reads]}, and {name} gives none: choose {_OTHERS[self.reads]}")

    def check_views(self, views: Views) -> None:
        """Raise `UserError` where answers that lie in an image cannot follow it into these views."""
        if self.answer.in_image and not views.tells_frames:
            raise UserError(f"views={type(views).__name__} do not say which part of an image they show: choose views=plain, light or crop")

    def leaves_out(self, encoder: Encoder) -> bool:
        return super().leaves_out(encoder) or (self.reads == "maps" and bool(encoder.unread_by_maps()))

    def solve(self, train: tuple[Tensor, A], val: tuple[Tensor, A] | None) -> bool:
        """Set the head to the best one on features [N, D] as they are, chosen on `val`; False where it cannot be solved for."""
        return False

    def soften(self, encoder: Encoder, batches: Iterable[dict[str, Any]]) -> None:
        """Make a head that was solved for as sure as `batches` of training views have it; asked where it goes on to be trained."""

    def calibrate(self, predictions: A, answers: A) -> None:
        """Set what turns scores into answers (thresholds) by `predictions` on `val`; asked of trained targets that have `calibrates`."""

    # ---------------------------------------------------------------- beside it
    def fuse(self, encoder: Encoder, predictions: A, train: Samples, val: Samples | None, device: torch.device) -> dict[str, float]:
        """Let cheap methods answer with the encoder; `predictions` are its own on `val`, or on `train` without."""
        return {}

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap | None:
        """The strongest method that takes seconds and no encoder, chosen on `val`; None where none is known."""
        return None

    @property
    def cheap_settings(self) -> list[Any]:
        """What the answers of `cheapest` hang on beside the rows."""
        return []

    def trivial(self, train: A, test: A) -> dict[str, float]:
        """What whoever sees no sample reaches on `test`, by the name of the method and the metric."""
        return {}

    def difference(self, a: A, b: A, answers: A) -> tuple[float, float, float]:
        """By how much `a` is ahead of `b` in the primary metric, with its 95 % interval: paired bootstrap over rows, seeded."""

        def ahead(index: np.ndarray) -> float:
            ours, theirs, truth = (part.take(index) for part in (a, b, answers))
            return self.sign * (self.score(ours, truth) - self.score(theirs, truth))

        return bootstrap(len(answers), ahead)

    # ---------------------------------------------------------------- what is watched and shown
    @property
    def names(self) -> list[str]:
        """What the space names: classes, types."""
        return next((v for v in self.space.values() if isinstance(v, list)), [])

    @property
    def sign(self) -> float:
        return 1.0 if self.higher_is_better else -1.0

    def loss(self, predictions: A, answers: A) -> float:
        """What a search over settings makes small on validation."""
        return -self.sign * self.score(predictions, answers)

    def columns(self, predictions: A) -> dict[str, list[str]] | None:
        """`predictions` as columns of a table; None where they are no flat things."""
        return None

    def figures(self, folder: Path, split: str, predictions: A, answers: A) -> None:
        """Draw into `folder`/plots what there is to see of a whole split."""

    def write(self, folder: Path, answers: A) -> list[str] | None:
        """Write answers that are no text (maps) into `folder`, a file each; their names, or None where `rows` says all."""
        return None

    def show(self, encoder: Encoder, samples: Samples, predictions: A) -> dict[str, Picture]:
        """A few samples with truth and prediction, to look at."""
        return {}


_READS = {"tokens": "each word or patch by itself", "maps": "maps of features"}
_OTHERS = {"tokens": "a transformer, encoder=bert_tiny or vit_small", "maps": "another encoder=, such as resnet_small or vit_small"}


def as_tensors(part: tuple[Tensor, Answers]) -> tuple[Tensor, Tensor]:
    """Features and answers of a split, the latter as a tensor, too."""
    return part[0], torch.from_numpy(np.asarray(part[1].values))


def other_answers(target: type[Target], source: Source, option: str) -> UserError:
    """What to say where the answers of `source` are not what the target of `option` learns."""
    fits = " or ".join(f"objective={name}" for name in source.answer.learned_by)
    advice = f"choose {fits}" if fits else "no target learns these yet"
    return UserError(f"the samples of {source.name} have {source.answer.words}, and {option} learns {target.answer.words}: {advice}")
