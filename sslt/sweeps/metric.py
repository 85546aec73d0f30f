"""By which number the cells of a sweep are compared: the run's own validation metric, never one of the test split."""

from __future__ import annotations

import math
import re
from typing import Any

from sslt.errors import UserError, nearest
from sslt.runs import Run

# Of the split that a choice must not look at: by its name, and what `sslt evaluate` measures on it by probes, episodes and the like.
NEVER = re.compile(r"(?!.*/val_\w+$)(.+/)?(test|knn|linear(_\w+)?|\w+_shot|episodes|shift|test_time|scratch_\w+|labels_saved\w*)/.+")
DIRECTIONS = ("maximize", "minimize")


def check(metric: str | None, direction: str | None) -> None:
    """Raise `UserError` for settings of a sweep that are none."""
    if metric is not None and NEVER.fullmatch(metric):
        raise UserError(
            f"hydra.sweeper.metric={metric}: a sweep that chooses by the test split leaves nothing to measure its choice on: give a metric "
            f"of validation, or null for the run's own"
        )
    if direction not in (None, *DIRECTIONS):
        raise UserError(f"hydra.sweeper.direction={direction}{nearest(str(direction), DIRECTIONS)}")


def own(run: Run) -> tuple[list[str], bool]:
    """Names of the metric that a run is chosen by, the first of which it has; and whether the highest is best.

    Fine-tuning: what its target is judged by, on validation. Pretraining: kNN of the online probe, or, without labels, the effective rank
    of the features (RankMe, Garrido et al., 2023). A chain: that of its fine-tuning. Of an evaluation only `split=val` has one.
    """
    info = run.info
    verb = info.get("verb")
    if verb == "pretrain":
        return ["online/knn_accuracy", "online/rankme"], True
    if verb == "run":
        names, higher = own(Run(run / "finetune"))
        return [f"finetune/{name}" for name in names], higher
    return [f"val/{info.get('primary') or 'accuracy'}"], bool(info.get("higher_is_better", True))


def of(run: Run, metric: str | None, direction: str | None, values: dict[str, Any] | None = None) -> tuple[str, bool, float | None]:
    """(name, whether the highest is best, value) of what a run is compared by; values: in place of its metrics.json; None: it has none."""
    names, higher = own(run)
    if metric is not None:
        names = [metric]
    if direction is not None:
        higher = direction == "maximize"
    found = run.metrics if values is None else values
    name = next((n for n in names if n in found), names[0])
    value = found.get(name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return name, higher, float(value) if number else None  # type: ignore[arg-type]
