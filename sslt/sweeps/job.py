"""One cell of a sweep, run in this process or in another one that a launcher starts: what comes back are plain values."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslt import signals
from sslt.errors import AGAIN, INTERRUPTED, RankLost, UserError, printable
from sslt.runs import Run, display

STOPPED = (INTERRUPTED, AGAIN)
WATCHERS = "SSLT_WATCHERS"  # read by stages/fitting.py


class Job:
    """Called with the composed config of a cell; gives `{"code", "error", "told"}`: how it ended, why, and whether that was printed.

    Launchers send it to their processes, so that it holds nothing but text. An error comes back as text, since a sweep goes on;
    `KeyboardInterrupt` is raised in the sweep's own process alone. pruning: the node of a callback that may end the run early.
    """

    def __init__(self, verb: str, config_dir: str | None):
        self.verb, self.config_dir, self.pid = verb, config_dir, os.getpid()
        self.pruning: dict[str, Any] | None = None

    def __call__(self, cfg: Any) -> dict[str, Any]:
        from hydra.core.hydra_config import HydraConfig

        hydra_cfg = HydraConfig.get()
        folder, overrides = Path(hydra_cfg.runtime.output_dir), list(hydra_cfg.overrides.task)
        error, code, told = None, 1, _has_terminal()
        with _saving_first() as requeue:
            try:
                code = self._run(cfg, folder, overrides)
            except (KeyboardInterrupt, signals.Stopped):
                code = INTERRUPTED
            except Exception as e:
                error, code = said(e), 2 if isinstance(e, UserError) else 1
                if os.environ.get("SSLT_DEBUG", "0") not in ("", "0"):
                    traceback.print_exc()
        if code in STOPPED and os.getpid() == self.pid:
            raise KeyboardInterrupt  # meant for the whole sweep
        if code in STOPPED and requeue:
            requeue[0](signal.SIGTERM, None)  # puts the job into the queue again, where it may, and ends this process
        if error is not None and told:
            tell(folder, error)
        return {"code": code, "error": error, "told": told}

    def _run(self, cfg: Any, folder: Path, overrides: list[str]) -> int:
        from sslt import config, execute

        config.note_own_rate(cfg, self.verb, overrides, self.config_dir)
        config.check(cfg, self.verb, self.config_dir)
        run = Run(folder)
        with self._watched(folder):
            code = execute.execute(self.verb, cfg, folder, overrides, self.config_dir, resuming=bool(run.info))
        if code == INTERRUPTED and "pruned" in run.info:
            run.update(status="pruned")
            return 0
        return code

    @contextlib.contextmanager
    def _watched(self, folder: Path) -> Iterator[None]:
        """The callback that may end a run early is no setting of the run: all its processes get it by their environment."""
        if self.pruning is None:
            yield
            return
        os.environ[WATCHERS] = json.dumps([{**self.pruning, "run": str(folder.absolute())}])
        try:
            yield
        finally:
            del os.environ[WATCHERS]


def tell(folder: Path, error: str) -> None:
    """Say what a job ended by."""
    print(f"sslt: {display(folder)}: {printable(error)}; the sweep goes on", file=sys.stderr, flush=True)


def said(e: BaseException) -> str:
    """An error as one line; of a defect also where it came up."""
    if isinstance(e, (UserError, RankLost)):
        return str(e)
    frame = traceback.extract_tb(e.__traceback__)[-1:]
    where = f" ({Path(frame[0].filename).name}:{frame[0].lineno})" if frame else ""
    return f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}{where}"


def _has_terminal() -> bool:
    """Whether this process writes where the user looks: jobs of submitit write into files."""
    return "SUBMITIT_EXECUTOR" not in os.environ


@contextlib.contextmanager
def _saving_first() -> Iterator[list[Any]]:
    """Signals that would end the job reach the run, which saves first; gives what submitit would have done at once, to be done then.

    submitit leaves SIGTERM alone, and puts a job that its own signal comes to into the queue again where it is.
    """
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    theirs = {n: h for n, h in before.items() if type(getattr(h, "__self__", None)).__module__.startswith("submitit.")}
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in theirs:
            signal.signal(number, signal.SIG_DFL)
    try:
        with signals.Watch():
            yield [h for h in theirs.values() if getattr(h, "__name__", "") == "checkpoint_and_try_requeue"]
    finally:
        with contextlib.suppress(ValueError):
            for number, handler in theirs.items():
                signal.signal(number, handler)
