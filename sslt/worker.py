"""A rank other than 0 of a run on several devices: `python -m sslt.worker VERB CONFIG RUN`. Started by `execute`."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path


def main() -> int:
    from omegaconf import OmegaConf

    from sslt.data import cache
    from sslt.errors import UserError
    from sslt.execute import Interrupted, _logs, stage
    from sslt.runs import Run

    verb, config, folder = sys.argv[1:4]
    cfg = OmegaConf.load(config)
    cache.set_cache_dir(cfg.cache_dir)
    run = Run(Path(folder), is_main=False)
    try:
        with _logs(run, console=True):
            stage(verb, cfg, run)
    except Interrupted:
        return 0
    except UserError as e:
        print(f"sslt: {e}")
        return 2
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
