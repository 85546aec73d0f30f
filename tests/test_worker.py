"""Protects how a rank ends: whatever comes while it says why, it says it and leaves with the code of that."""

from __future__ import annotations

import json
import os
import signal

from omegaconf import OmegaConf

from sslt import worker


def test_a_signal_does_not_tear_a_rank_from_what_it_says(here, cache, monkeypatch):
    """Another rank died: this one fails by it, and the launcher's SIGTERM comes while it looks for the words."""

    def stage(*_: object) -> None:
        raise RuntimeError("Connection closed by peer")

    def explained(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sslt.processes.stage", stage)
    monkeypatch.setattr("sslt.execute.explained", explained)
    code = worker.work("pretrain", OmegaConf.create({"cache_dir": str(cache), "shards": None}), str(here / "run"))
    assert code not in (0, None)
    assert json.loads((here / "run" / "logs" / "rank0.json").read_text())["said"] == "RuntimeError: Connection closed by peer"
    assert "Connection closed by peer" in (here / "run" / "logs" / "rank0.log").read_text()
