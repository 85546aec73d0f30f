"""A rank other than 0 of a run on several devices: `main()` with VERB CONFIG RUN as arguments. Started by `processes`."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path


def main() -> int:
    from omegaconf import OmegaConf

    from sslt import distributed
    from sslt.data import cache
    from sslt.errors import UserError, cause
    from sslt.execute import _logs, explained
    from sslt.processes import LEFT_ALONE, stage
    from sslt.runs import Run
    from sslt.signals import Interrupted

    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    verb, config, folder = sys.argv[1:4]
    cfg = OmegaConf.load(config)
    cache.set_cache_dir(cfg.cache_dir)
    run = Run(Path(folder), is_main=False)
    try:
        with _logs(run, console=True):
            stage(verb, cfg, run)
    except Interrupted:
        return 0
    except BaseException as e:
        if not isinstance(e, UserError):
            traceback.print_exc()
        said = explained(e, run)
        print(f"sslt: {said or f'{type(e).__name__}: {e}'.splitlines()[0]}", flush=True)
        return 2 if said else LEFT_ALONE if cause(e, distributed.connection_lost) else 1
    return 0


def _end_with_rank_0() -> None:
    """Rank 0 holds the other end of standard input: when it is gone, this rank ends, whatever it waits for."""
    from sslt.processes import LEFT_ALONE

    while os.read(0, 1):
        pass
    os.write(1, b"sslt: rank 0 is gone\n")
    os._exit(LEFT_ALONE)
