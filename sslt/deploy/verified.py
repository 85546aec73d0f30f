"""What an exported file answers, held against the run that it was made of: the score on a whole split, and the largest difference."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslt.data.answers import Answers
from sslt.data.base import Samples
from sslt.deploy.formats.base import Model, Outputs
from sslt.encoders.base import evaluating
from sslt.errors import UserError

SIZES = (1, 3, 8)  # of batches: wrong graphs are often right for the size that they were traced with
TRIES = 3  # batches of each


@dataclasses.dataclass
class Verified:
    """errors: the largest difference of outputs, of the largest output there is, over the split ("all") and by size of a batch.

    ours, theirs: answers of the run and of the file, in the order of the samples; None of an encoder without a head. `score` and
    `run_score` are their primary metrics, None where there is nothing to measure by.
    """

    errors: dict[str, float]
    ours: Any = None
    theirs: Any = None
    score: float | None = None
    run_score: float | None = None

    @property
    def worst(self) -> tuple[str, float]:
        """Where outputs differ most, and by how much; what is no number differs most of all."""
        return max(self.errors.items(), key=lambda pair: np.inf if np.isnan(pair[1]) else pair[1])

    def require(self, what: str, max_error: float, tolerance: float, primary: str | None) -> None:
        """Raise `UserError` where the file is not the run."""
        where, error = self.worst
        if not error <= max_error:
            at = "over the whole split" if where == "all" else f"in batches of {where}"
            raise UserError(
                f"{what} gives other numbers than the run: up to {error:.2g} of the largest output, {at} (max_error={max_error:g} is "
                f"allowed); it was not kept"
            )
        if self.score is not None and self.run_score is not None and not abs(self.score - self.run_score) <= tolerance:
            raise UserError(
                f"{what} has {primary} {self.score:.4f}, and the run {self.run_score:.4f} (tolerance={tolerance:g} is allowed); "
                f"it was not kept"
            )


def verify(model: Model, outputs: Outputs, samples: Samples, batch_size: int, seed: int) -> Verified:
    """Compare on all samples, in batches as evaluation has them, then in small ones of rows drawn by `seed`."""
    encoder, target = model.encoder, model.target
    modules = [encoder] if target is None else [encoder, target]
    ours, theirs, rows, largest, scale = [], [], [], 0.0, 0.0
    with contextlib.ExitStack() as stack:
        for module in modules:
            module.to("cpu")
            stack.enter_context(evaluating(module))
        for index in samples.ordered_batches(batch_size, encoder.reading.get("max_length")):
            batch = samples.batch(index)
            wanted, found = model.outputs(batch), outputs(batch)
            largest, scale = float(np.maximum(largest, _apart(wanted, found))), max(scale, *(float(x.abs().max()) for x in wanted.values()))
            if target is not None and np.isfinite(largest):  # else the file is refused, and may have no answers to read
                ours.append(target.read(wanted, batch))
                theirs.append(target.read(found, batch))
            rows.append(np.asarray(index))
        errors = {"all": largest}
        order = np.random.default_rng(seed).permutation(len(samples))
        for size in SIZES:
            apart = [0.0]
            for i in range(TRIES):
                part = np.take(order, np.arange(i * size, (i + 1) * size), mode="wrap")
                batch = samples.batch(part)
                apart.append(_apart(model.outputs(batch), outputs(batch)))
            errors[str(size)] = float(np.max(apart))  # NaN stays
    errors = {k: v / (scale or 1.0) for k, v in errors.items()}
    if target is None or not np.isfinite(list(errors.values())).all():
        return Verified(errors)
    back = np.argsort(np.concatenate(rows))
    a, b = (Answers.join(parts).take(back) for parts in (ours, theirs))
    if samples.answers is None:
        return Verified(errors, a, b)
    return Verified(errors, a, b, target.score(b, samples.answers), target.score(a, samples.answers))


def _apart(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """The largest difference of outputs; NaN where one is no number, infinite where shapes or names differ."""
    if wanted.keys() != found.keys() or any(wanted[k].shape != found[k].shape for k in wanted):
        return float("inf")
    pairs = [(wanted[k].double().cpu(), found[k].double().cpu()) for k in wanted]
    worst = [torch.where(a == b, 0.0, (a - b).abs()).max() for a, b in pairs if a.numel()]
    return float(torch.stack(worst).max()) if worst else 0.0
