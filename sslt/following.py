"""Being another than the first of several processes of a command (`places.py`): doing what that says (`handing.py`) until it ends."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from sslt.errors import INTERRUPTED, RankLost
from sslt.handing import LISTEN, connect
from sslt.places import Place
from sslt.runs import Run


def follow(place: Place) -> int:
    """Take part in whatever the first process runs; returns the exit code, which is its own where this process made no other."""
    from omegaconf import OmegaConf

    os.environ.update(place.environment)
    store = connect(place)
    store.add("there", 1)
    told = code = 0
    while True:
        try:
            order = _next(store, f"order{told}")
        except RankLost:
            if code:
                return code
            raise
        if "end" in order:
            with contextlib.suppress(Exception):
                store.add("heard", 1)
            return int(order["end"])
        verb, cfg = order["verb"], OmegaConf.create(order["config"])
        if place.nodes:
            from sslt.launch import launch

            code = launch(verb, cfg, Run(Path(order["folder"]), is_main=False), order["devices"], place, order["port"])
        else:
            from sslt.worker import work

            code = work(verb, cfg, order["folder"])
        if code not in (0, INTERRUPTED):  # what an interrupted command ends with the first process knows
            return code
        told += 1


def _next(store: Any, key: str) -> dict[str, Any]:
    """What stands in the store under a key, when it does. Raises `RankLost` where the store is gone."""
    try:
        while not store.check([key]):
            time.sleep(LISTEN)  # so that signals are heard
        return json.loads(store.get(key))  # type: ignore[no-any-return]
    except RuntimeError as e:  # torch's errors of the network
        raise RankLost(f"the first process of this command is gone: see there ({(str(e).splitlines() or [''])[0][:100]})") from e
