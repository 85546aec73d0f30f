"""Commands in processes of their own that kill themselves at a named point, started from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["sslt.stages.pretrain", "sslt.stages.finetune", "sslt.cli", "timm", "matplotlib.pyplot", "sklearn.metrics"]
)


def command(args: list[str], point: str | None = None, sends: int = signal.SIGKILL) -> int:
    """Run `sslt ARGS` in the present folder; it sends itself a signal when it comes to `point`. Returns the exit code."""
    process = _context.Process(target=_run, args=(args, str(Path.cwd()), dict(os.environ), point, sends))
    process.start()
    process.join(300)
    assert process.exitcode is not None, f"{args} hangs"
    return process.exitcode


def _run(args: list[str], folder: str, env: dict[str, str], point: str | None, sends: int) -> None:
    os.chdir(folder)
    os.environ.update(env)
    sys.stdout = sys.stderr = open("output.txt", "a")  # noqa: SIM115
    import torch

    from sslt.cli import main

    torch.set_num_threads(1)
    if point is not None:
        POINTS[point](lambda: os.kill(os.getpid(), sends))
    sys.exit(main(args))


def _instead(owner: Any, name: str, replace: Callable[[Any], Any]) -> None:
    setattr(owner, name, replace(getattr(owner, name)))


def _at(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True, after: bool = False) -> Callable[[Callable[[], None]], None]:
    """Die as a method is called (or when it is done), if `when` says so of its arguments."""

    def arm(die: Callable[[], None]) -> None:
        def replace(before: Any) -> Any:
            def changed(*args: Any, **kwargs: Any) -> Any:
                dies = when(*args)
                if dies and not after:
                    die()
                out = before(*args, **kwargs)
                if dies and after:
                    die()
                return out

            return changed

        _instead(_found(owner), name, replace)

    return arm


def _found(dotted: str) -> Any:
    from hydra.utils import get_object

    return get_object(dotted)


def _half_a_checkpoint(die: Callable[[], None]) -> None:
    def replace(before: Any) -> Any:
        def changed(self: Any, checkpoint: dict, path: Any, **kwargs: Any) -> None:
            before(self, checkpoint, path, **kwargs)
            if checkpoint["batches_seen"] == 3:
                os.truncate(path, Path(path).stat().st_size // 2)
                die()

        return changed

    _instead(_found("sslt.callbacks.checkpoint.StreamedCheckpoints"), "save_checkpoint", replace)


def _between_renames(die: Callable[[], None]) -> None:
    seen = []

    def replace(before: Any) -> Any:
        def changed(source: Any, target: Any) -> None:
            seen.extend([1] if Path(target).name == "last.ckpt" else [])
            if len(seen) == 3 and Path(target).name == "last.ckpt":
                die()
            before(source, target)

        return changed

    _instead(os, "replace", replace)


def _step(n: int) -> Callable[..., bool]:
    return lambda self, trainer, learner, *_: learner.batches_seen == n


POINTS: dict[str, Callable[[Callable[[], None]], None]] = {
    "preparing the data": _at("sslt.data.image_processor.ImageProcessor", "_chunk"),
    "the first probe": _at("sslt.callbacks.probes.OnlineProbe", "measure", _step(0), after=True),
    "before the first step": _at("sslt.learner.Learner", "training_step"),
    "a step": _at("sslt.learner.Learner", "training_step", lambda self, *_: self.batches_seen == 3),
    "half a checkpoint": _half_a_checkpoint,
    "between two renames": _between_renames,
    "the probe after an epoch": _at("sslt.callbacks.probes.OnlineProbe", "measure", _step(5), after=True),
    "validation after an epoch": _at("sslt.callbacks.probes.Validation", "_measure", _step(4), after=True),
    "before the last probe": _at("sslt.callbacks.probes.OnlineProbe", "on_train_end"),
    "the last probe": _at("sslt.callbacks.probes.OnlineProbe", "on_train_end", after=True),
    "before the last validation": _at("sslt.callbacks.probes.Validation", "on_train_end"),
    "the last validation": _at("sslt.callbacks.probes.Validation", "on_train_end", after=True),
    "the last checkpoint": _at("sslt.callbacks.checkpoint.Checkpoint", "on_train_end", after=True),
    "measuring": _at("sslt.stages.measure", "classification_metrics"),
    "the weights of the result": _at("sslt.encoders.image.ImageEncoder", "save_weights", after=True),
    "the metrics": _at("sslt.runs.Run", "add_metrics", after=True),
    "the plots": _at("sslt.report.plots", "curves", after=True),
    "the status": _at("sslt.execute", "perform", after=True),
}
