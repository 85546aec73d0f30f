"""The objective's interface."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sslt.data.base import Samples
from sslt.data.views.base import Views
from sslt.encoders import chunks
from sslt.encoders.base import Encoder, Features
from sslt.errors import UserError


class Loss(NamedTuple):
    """`value`: scalar mean over `Objective.units` of the batch. `logs`: scalars to record, detached."""

    value: Tensor
    logs: dict[str, Tensor]


class Picture(NamedTuple):
    """Rows of images to look at, a column each: name of the row → [N, C, H, W] as the encoder normalises them.

    captions: what stands under the columns, N lines.
    """

    rows: dict[str, Tensor]
    captions: list[str] | None = None


class Objective(nn.Module, abc.ABC):
    """(encoder, batch) → `Loss`. Parameters of an objective (heads, projectors) train with the encoder and stay behind.

    The constructor takes the encoder for its shapes and keeps no reference to it. One that compares several streams gets a
    dictionary of their batches by name.
    """

    needs_full_batches = False  # True where samples of a batch are compared with each other
    least_views = 1  # of a sample
    only_pooled = False  # True where all that it reads of a trained encoder is `encode_views(...).pooled`: `chunk_size=` asks for it
    needs_labels = False  # True where pretraining reads `label`
    modality: str | None = None  # "image", "text" or "items" where it knows one only
    holds_out = False  # whether it is measured by its own loss on text that it did not learn from
    writes = False  # whether it trains what reads words out of the encoder
    evaluated = "student"  # which of `encoders` its authors evaluate
    advice = "try a lower learning rate, a longer schedule.warmup or a longer training"  # where its features say little
    # Set by the learner before every step:
    logs_now = True  # False in steps whose logs nobody reads: what is only shown need not be computed
    progress = 0.0  # share of the run's budget that is used up, 0..1

    @abc.abstractmethod
    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        """The loss on a batch that the stream's views have made."""

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        """Called once before training, with what is learned from and how many samples a step has on all ranks together.

        Raises `UserError` where they do not fit, and sizes what depends on them. Equal on every rank and when a run is resumed,
        whose checkpoint is loaded afterwards.
        """
        if self.needs_full_batches and batch_size < 2:
            raise UserError(f"batch_size={batch_size}: this objective compares the samples of a batch, so give at least 2")

    def check_views(self, views: Views) -> None:
        """Raise `UserError` where these views leave nothing to learn; called before training."""

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        """Pictures of what was learned, by name, from a small batch; called in eval mode without gradients at the end of a run."""
        return {}

    def trouble(self) -> str | None:
        """What to tell the user of a collapse that features do not show, or None; asked whenever the features are probed."""
        return None

    def encoders(self, encoder: Encoder) -> dict[str, Encoder]:
        """What pretraining leaves behind, by name: `student`, the encoder that learned, and any other that came of it."""
        return {"student": encoder}

    def made_from(self) -> dict[str, Any]:
        """What `run.json` says of what it was made from beside its settings: a teacher's fingerprint."""
        return {}

    def after_step(self, encoder: Encoder) -> None:
        """Called after every optimizer step: what moves without a gradient (a momentum teacher) moves now."""

    def finish(self, encoder: Encoder) -> None:
        """Called once when the run's bound is reached, before anything is measured or saved: what is fitted to the trained encoder."""

    def leaves_out(self, encoder: Encoder) -> bool:
        """Whether some weights of the encoder that move get no gradient from this loss, which several processes have to know."""
        return not self.writes and bool(encoder.unread())

    def units(self, batch: dict) -> int | Tensor:
        """Over how many samples (or tokens) of `batch` the loss is a mean.

        By these the learner weighs batches of different size when gradients are accumulated or averaged over ranks.
        """
        return n_samples(batch)


def encode_views(encoder: Encoder, batch: dict) -> Features:
    """Encode `batch["views"]`, each tensor [V, B, ...], in one forward; features come back as [V·B, ...], view by view.

    Several objectives on one stream share this forward: what an encoder gave stays with the batch.
    """
    known = batch.setdefault("encoded", {})
    if encoder not in known:
        known[encoder] = chunks.encoded(encoder, {name: x.flatten(0, 1) for name, x in batch["views"].items()})
    return known[encoder]


def n_views(views: dict[str, Tensor]) -> int:
    """V."""
    return len(next(iter(views.values())))


def n_samples(batch: dict) -> int:
    """B of a batch that views have made; of the first stream where there are several."""
    if "views" in batch:
        return next(iter(batch["views"].values())).shape[1]
    if "inputs" in batch:
        return len(next(iter(batch["inputs"].values())))
    return n_samples(next(iter(batch.values())))


def mlp(dim: int, hidden: int, out: int, *, norm: bool = True, layers: int = 2, last_norm: bool = False) -> nn.Sequential:
    """(Linear → BatchNorm → ReLU) × (layers - 1) → Linear, the projector of most joint-embedding methods.

    last_norm: a BatchNorm without scale and shift at the end (SimSiam, MoCo v3).
    """
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(dim, hidden, bias=not norm), *([nn.BatchNorm1d(hidden)] if norm else []), nn.ReLU(inplace=True)]
        dim = hidden
    parts.append(nn.Linear(dim, out, bias=not last_norm))
    return nn.Sequential(*parts, *([nn.BatchNorm1d(out, affine=False)] if last_norm else []))


def wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 if that is what it is: the precision of losses."""
    return x if x.dtype == torch.float64 else x.float()


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Within, similarities and log-sums are computed in float32 whatever the trainer's precision, on a GPU and beside one."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
