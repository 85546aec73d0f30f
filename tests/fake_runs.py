"""Runs that take no time, so that sweeps over many cells can be watched."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sslt.runs import Run


class Died(BaseException):
    """Ends a sweep as a kill does: nobody on the way takes it for a mistake."""


class Fake:
    """Stands in for `execute`. ran: (folder's name, whether it went on) of every call; score: config → metric; hook: before a run ends."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, bool]] = []
        self.score: Callable[[Any], float] = lambda cfg: -((math.log10(cfg.optimizer.lr) + 2) ** 2)
        self.hook: Callable[[Any, Path], None] = lambda cfg, folder: None
        self.about: dict[str, Any] = {"primary": "accuracy", "higher_is_better": True}
        self.metrics: Callable[[float], dict[str, float]] = lambda value: {"val/accuracy": value, "test/accuracy": -value}

    def __call__(
        self, verb: str, cfg: Any, folder: Path, overrides: list[str], config_dir: str | None = None, resuming: bool = False
    ) -> int:  # fmt: skip
        self.ran.append((folder.name, resuming))
        run = Run(folder)
        run.start(verb, cfg, overrides, config_dir)
        try:
            self.hook(cfg, folder)
        except Exception as e:
            run.update(status="failed", error=f"{type(e).__name__}: {e}")
            raise
        run.update(status="finished", **self.about)
        run.add_metrics(self.metrics(self.score(cfg)))
        return 0
