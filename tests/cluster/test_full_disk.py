"""Protects a run of two ranks whose disk is full when a checkpoint is written: a small disk of its own, which needs root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY_IMAGES
from killed_runs import command

from sslt.callbacks.checkpoint import LAST, read
from sslt.runs import Run

TRAIN = ["pretrain", "+task=simclr", *TINY_IMAGES, "online_probe.every_n_epochs=0", "batch_size=128", "trainer.max_steps=6"]
TRAIN += ["checkpoint.every_minutes=1e-9", "trainer.devices=2"]  # one after every step
FILLS = """
import os
from pathlib import Path
from pytorch_lightning import Callback

class Filled(Callback):
    def on_train_batch_end(self, trainer, *_):
        \"\"\"After a few steps, and before the checkpoint of that step, nothing is left of the disk.\"\"\"
        if trainer.global_step == 4 and trainer.global_rank == 0 and os.environ.get("FILL"):
            with open("disk/filled", "wb", buffering=0) as f:
                try:
                    while f.write(bytes(2**12)):
                        pass
                except OSError:
                    pass
"""


@pytest.fixture
def disk(here: Path) -> Iterator[Path]:
    """A disk of 24 MiB in the working folder."""
    if not sys.platform.startswith("linux") or os.geteuid():
        pytest.skip("a disk that a test fills needs Linux and root")
    (here / "disk").mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", "disk"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk to fill: {done.stderr.strip()}")
    try:
        yield here / "disk"
    finally:
        subprocess.run(["umount", "--lazy", str(here / "disk")], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_from_the_checkpoint_before(disk, here, own_code, monkeypatch):
    """Nothing that was there is damaged; with room, resume= ends by the bytes of a run that had it."""
    (here / "filled.py").write_text(FILLS)
    monkeypatch.setenv("FILL", "1")
    assert command([*TRAIN, "callbacks=[{_target_: filled.Filled}]", "hydra.run.dir=disk/run"]) == 2, Path("output.txt").read_text()
    said = Path("output.txt").read_text()
    (line,) = [x for x in said.splitlines() if x.startswith("sslt: ")]
    assert line.startswith("sslt: the disk is full (") and line.endswith("resume=disk/run") and "Traceback" not in said, said
    assert read(disk / "run" / "checkpoints" / LAST)["batches_seen"] == 3

    (disk / "filled").unlink()
    monkeypatch.delenv("FILL")
    assert command(["pretrain", "resume=disk/run", "trust=[filled]"]) == 0, Path("output.txt").read_text()
    assert Run(disk / "run").finished
    assert command([*TRAIN, "hydra.run.dir=whole"]) == 0, Path("output.txt").read_text()
    assert (disk / "run/encoder/model.safetensors").read_bytes() == Path("whole/encoder/model.safetensors").read_bytes()
