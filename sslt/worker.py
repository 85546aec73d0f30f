"""One rank of a run on several devices: `main()` where `launch` starts it, `work()` where a launcher has started the whole command."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> int:
    from omegaconf import OmegaConf

    from sslt import deferred, machine

    machine.collect_rarely()
    deferred.few_metrics()
    del os.environ["SSLT_PATH"]
    verb, config, folder = json.loads(os.environ.pop("SSLT_RUN"))
    return work(verb, OmegaConf.load(config), folder, watched=True)


def work(verb: str, cfg: Any, folder: str, watched: bool = False) -> int:
    """This rank's part of a stage; returns its exit code, and leaves it with what there is to say in the run folder (`ends.py`).

    watched: end when another rank of this machine is gone; otherwise the launcher ends this one.
    """
    from sslt import ends, signals
    from sslt.data import cache
    from sslt.errors import INTERRUPTED, MISTAKE, UserError, cause
    from sslt.execute import _logs, explained
    from sslt.processes import stage
    from sslt.runs import Run

    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    run = Run(Path(folder), is_main=rank == 0)
    (run / "logs").mkdir(parents=True, exist_ok=True)
    if rank:
        _say_to(run / "logs" / f"rank{rank}.log")
    ends.note(run, rank, pid=os.getpid())
    if watched:
        first = rank - local
        ends.watch_others(run, range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", world))), rank)
    cache.set_cache_dir(cfg.cache_dir, cfg.get("shards"))
    code, said, number = 0, "", None
    with signals.Watch() as watch:
        try:
            with _logs(run):
                stage(verb, cfg, run)
        except signals.Stopped as e:
            code, said, number = INTERRUPTED, f"{e} came: stopped at once", e.number
        except signals.Interrupted as e:
            code, said, number = INTERRUPTED, str(e), e.number
        except BaseException as e:
            watch.writing = True  # where another rank died, the agent's SIGTERM comes while this one says what it saw
            from sslt import distributed

            mend = explained(e, run)
            code = MISTAKE if isinstance(mend, UserError) else ends.LEFT_ALONE if cause(e, distributed.connection_lost) else 1
            said = str(mend) if mend else (f"{type(e).__name__}: {e}".splitlines() or [""])[0]
            if not isinstance(e, UserError) or os.environ.get("SSLT_DEBUG"):
                _print_traceback(run / "logs" / f"rank{rank}.log")
        watch.writing = True  # signals that come from here on change nothing
        if rank and said:
            print(f"sslt: {said}", flush=True)
        sys.stdout.flush()
        ends.note(run, rank, code=code, said=said, signal=number)
    return code


def _print_traceback(path: Path) -> None:
    """To this rank's log; rank 0 has the terminal for its own, where a line is enough."""
    with contextlib.suppress(OSError), path.open("a") as f:  # a disk that is full has no room for it either
        traceback.print_exc(file=f)


def _say_to(path: Path) -> None:
    """Have all output of this process, and of those that it starts, go to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("a") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
