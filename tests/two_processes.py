"""Real processes, joined by gloo: two, unless more are asked for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from killed_runs import CONTEXT


def run(function: Callable[[int], Any], folder: Path, seconds: int = 300, world: int = 2) -> list[Any]:
    """function(rank) in processes that know each other; what each returned, as `torch.save` keeps it.

    Where one does not end in time, what each of them was at a little before.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = [CONTEXT.Process(target=_rank, args=(function, r, world, port, str(folder), 0.9 * seconds)) for r in range(world)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(seconds)
        if p.is_alive():  # and none of the others can end without it
            for each in processes:
                each.kill()
    stacks = "\n".join(f"rank {file.stem}: {file.read_text()}" for file in sorted(folder.glob("*.stacks")))
    assert [p.exitcode for p in processes] == [0] * world, stacks
    return [torch.load(folder / f"{r}.pt") for r in range(world)]


def _rank(function: Callable[[int], Any], rank: int, world: int, port: int, folder: str, late: float) -> None:
    import faulthandler

    import quick_pictures

    from sslt import distributed

    torch.set_num_threads(1)
    quick_pictures.roughly()
    os.environ.update(WORLD_SIZE=str(world), RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init("cpu")
    with (Path(folder) / f"{rank}.stacks").open("w") as file:
        faulthandler.dump_traceback_later(late, file=file)
        try:
            out = function(rank)
        finally:
            distributed.close()
            faulthandler.cancel_dump_traceback_later()
    torch.save(out, Path(folder) / f"{rank}.pt")


def command(verb: str, overrides: list[str], folder: Path, rank: int = 0) -> None:
    """What a rank does of a command, in processes that are there already (or in this one, as the only rank)."""
    from sslt import distributed
    from sslt.config import compose
    from sslt.processes import stage
    from sslt.runs import Run

    run, cfg = Run(folder, is_main=rank == 0), compose(verb, overrides)
    if rank == 0:
        run.start(verb, cfg, overrides)
    distributed.barrier()
    stage(verb, cfg, run)
