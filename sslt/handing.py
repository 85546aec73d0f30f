"""How the first process of a command that was started several times (`places.py`) tells the others what to do: by torch's store.

It alone reads the command line, composes the config and names the run folder; whatever it runs, a stage of a chain or a job of a sweep,
it hands over first. The others (`following.py`) end when it says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from sslt.errors import RankLost
from sslt.places import Place
from sslt.runs import Run

LISTEN = 0.2  # seconds between two looks at the store, so that signals are heard
_leader: Leader | None = None


class Leader:
    """The first process."""

    def __init__(self, place: Place):
        self.place, self._store, self._told = place, None, 0

    @property
    def store(self) -> Any:
        self._store = self._store or connect(self.place)
        return self._store

    def hand(self, verb: str, cfg: Any, run: Run, **more: Any) -> None:
        """Have all others run a stage in a run folder."""
        from omegaconf import OmegaConf

        config = OmegaConf.to_yaml(cfg, resolve=True)
        self._tell({"verb": verb, "config": config, "folder": str(run.path.absolute()), **more})

    def await_all(self) -> None:
        """Wait for all others to be there, as long as that may take. Raises `RankLost`."""
        from sslt.distributed import ARRIVAL

        until = time.monotonic() + ARRIVAL.total_seconds()
        while (there := self.store.add("there", 0)) < self.place.count - 1:
            if time.monotonic() > until:
                raise RankLost(
                    f"{self.place.count - 1 - there} of {self.place.count} nodes did not come to {self.place.address}:{self.place.port} "
                    f"within {ARRIVAL.total_seconds() / 60:g} minutes: start the same command on each, with its own trainer.node="
                )
            time.sleep(LISTEN)

    def end(self, code: int) -> None:
        """Let the others go, with an exit code; those that hear of it by this process's own store are waited for a little."""
        with contextlib.suppress(Exception):  # a store that is gone tells them as well
            self._tell({"end": code})
            until = time.monotonic() + 10
            while self.store.add("heard", 0) < self.place.count - 1 and time.monotonic() < until:
                time.sleep(0.05)

    def _tell(self, order: dict[str, Any]) -> None:
        self.store.set(f"order{self._told}", json.dumps(order))
        self._told += 1


def leader() -> Leader | None:
    """The first of several processes, where this is it."""
    return _leader


@contextlib.contextmanager
def leading(place: Place | None) -> Iterator[list[int]]:
    """Within, other processes do what this one does; what its exit code is goes into the list that this gives."""
    global _leader
    codes: list[int] = []
    if place is None:
        yield codes
        return
    os.environ.update(place.environment)
    _leader = Leader(place)
    try:
        yield codes
    finally:
        ending, _leader = _leader, None
        ending.end(codes[-1] if codes else 1)


def connect(place: Place) -> Any:
    """The store of all processes of a command. Raises `RankLost` where it cannot be reached."""
    import torch.distributed as dist

    from sslt import distributed

    try:
        if not place.nodes:
            return dist.PrefixStore("orders", distributed.meeting())
        return dist.TCPStore(place.address, place.port, is_master=place.index == 0, timeout=distributed.ARRIVAL, wait_for_workers=False)
    except RuntimeError as e:
        where = f"{place.address}:{place.port}"
        way = "it cannot be listened at there" if place.index == 0 else "nobody answers there"
        print(f"sslt: {e}", file=sys.stderr) if os.environ.get("SSLT_DEBUG") else None
        raise RankLost(f"the processes of this command meet at {where}, but {way}: {str(e).splitlines()[0][:150]}") from e
