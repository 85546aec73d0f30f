"""Protects runs on shards as users start them: killed in preparation and in training they end as if never, wherever the shards are."""

from __future__ import annotations

import signal
from pathlib import Path

from conftest import TINY_IMAGES
from killed_runs import command, differing, outputs

from sslt.runs import Run

ARGS = [
    "pretrain", "+task=simclr", *TINY_IMAGES, "checkpoint.every_minutes=1e-9", "trainer.log_every_n_steps=2", "batch_size=256",
    "trainer.max_steps=7", "online_probe.samples=100", "shards.from_bytes=2e4", "shards.shard_bytes=2e3",  # 31 digits a shard
]  # fmt: skip


def shards(folder: Path) -> dict[str, int]:
    """Name → when it was written, of all shards in a cache."""
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("images/*/shards/*.npy")}


def test_killed_runs_go_on_and_the_store_changes_nothing(here, monkeypatch):
    """SIGKILL in the fourth shard and in the fourth step: shards are not written twice, files are those of a whole run, byte for byte;
    so are those of a run whose cache is an object store, with room for a part of the shards on its own disk.
    """
    assert command([*ARGS, "cache_dir=whole_cache", "hydra.run.dir=whole"]) == 0, Path("output.txt").read_text()
    whole = outputs(here / "whole")
    assert len(shards(here / "whole_cache")) == 58

    assert command([*ARGS, "cache_dir=own", "hydra.run.dir=run"], "preparing the fourth shard") == -signal.SIGKILL
    before = shards(here / "own")
    assert len(before) == 3
    assert command(["pretrain", "resume=run", "cache_dir=own"], "a step") == -signal.SIGKILL
    assert not Run("run").finished and before.items() <= shards(here / "own").items()
    assert command(["pretrain", "resume=run", "cache_dir=own"]) == 0, Path("output.txt").read_text()
    assert differing(whole, outputs(here / "run")) == []

    monkeypatch.setenv("SSLT_LOCAL_CACHE", str(here / "local"))
    store = [f"cache_dir=file://{here}/store", f"shards.keep_bytes={50 * 2112}"]
    assert command([*ARGS, *store, "hydra.run.dir=far"]) == 0, Path("output.txt").read_text()
    assert differing(whole, outputs(here / "far")) == []
    kept = [p.stat().st_size for p in (here / "local").glob("stores/*/kept/*.npy")]
    assert 0 < sum(kept) <= 50 * 2112 and len(shards(here / "store")) == 58
