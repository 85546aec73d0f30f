"""Protects the writing of checkpoints: in little memory, and with a full disk known as one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY_IMAGES

from sslt.callbacks.checkpoint import StreamedCheckpoints
from sslt.execute import _disk_is_full, _find

MEMORY = """
import sys
from pathlib import Path

import torch

from sslt.callbacks.checkpoint import StreamedCheckpoints
from sslt.stages.fitting import peak_memory

weights = {f"layer{i}": torch.ones(5, 2**20) for i in range(10)}
StreamedCheckpoints().save_checkpoint({"little": torch.ones(1)}, sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is a new one
before = peak_memory("cpu")
StreamedCheckpoints().save_checkpoint(weights, sys.argv[1])
print((peak_memory("cpu") - before) // 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to ask for peak memory")
def test_saving_makes_no_copy(tmp_path):
    """200 MiB of weights take less than a tenth of that on their way to the disk."""
    code = [sys.executable, "-c", MEMORY, str(tmp_path / "a.ckpt")]
    assert int(subprocess.run(code, check=True, capture_output=True, text=True).stdout) < 20
    assert sum(x.numel() for x in torch.load(tmp_path / "a.ckpt", mmap=True).values()) == 50 * 2**20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("size", [10, 2**20])
def test_a_full_disk_is_known_as_one(size):
    """Whether it is met while tensors are written or only at the end."""
    with pytest.raises((OSError, RuntimeError)) as caught:
        StreamedCheckpoints().save_checkpoint({"x": torch.ones(size)}, "/dev/full")
    assert _find(caught.value, _disk_is_full)


def test_a_run_saves_so(sslt, here, monkeypatch):
    """The Trainer of a run has it, and resuming reads what it wrote."""
    written, save = [], StreamedCheckpoints.save_checkpoint

    def noted(self, checkpoint, path, **settings):
        written.append(path)
        save(self, checkpoint, path, **settings)

    monkeypatch.setattr(StreamedCheckpoints, "save_checkpoint", noted)
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=1", "hydra.run.dir=a")
    sslt("pretrain", "resume=a", "trainer.max_steps=2")
    assert [Path(path).name for path in written] == [".last.ckpt.tmp"] * 2
