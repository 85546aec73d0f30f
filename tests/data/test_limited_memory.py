"""Protects training on a set that is larger than the memory a process may have: under a limit on its address space, as `ulimit -v` sets it.

What torch and the libraries take before any data are read (some GB of addresses) is left out: the limit is what the process has then and
`ROOM` more. Memory maps count against it.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE, IMAGES = 320, 1400  # prepared: 430 MB
ROOM = 330 << 20

SCRIPT = """
import resource, sys
import sslt.cli, sslt.stages.pretrain, timm, sklearn.metrics, matplotlib.pyplot, torch
torch.set_num_threads(1)
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]), resource.RLIM_INFINITY))
code = sslt.cli.main(sys.argv[2:])
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmPeak")) * 1024
print("grew by", (peak - size) >> 20, "MB")
sys.exit(code)
"""


def run(folder: Path, *settings: str) -> tuple[int, str]:
    args = [
        "pretrain", "+task=rotation", "encoder=vit_small", "+encoder.args.embed_dim=16", "+encoder.args.num_heads=2",
        "encoder.args.depth=1", "encoder.args.patch_size=32", f"encoder.processor.size={SIDE}", "data=webdataset", "data.path=set.tar",
        "trainer.precision=32", "trainer.accelerator=cpu", "batch_size=2", "trainer.max_steps=4", "online_probe.samples=64", *settings,
    ]  # fmt: skip
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "SSLT_CACHE": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(ROOM), *args], cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the address space are Linux's")
def test_a_set_larger_than_the_limit(tmp_path):
    """Prepared and trained on in shards; as one array, which is memory-mapped, the same run does not fit."""
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for i in range(IMAGES):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "bmp")
            about = tarfile.TarInfo(f"{i:05}.bmp")
            about.size = file.tell()
            file.seek(0)
            tar.addfile(about, file)
    code, said = run(tmp_path, "hydra.run.dir=many", "shards.from_bytes=1e7", "shards.shard_bytes=4e6")
    assert code == 0, said
    prepared = sum(p.stat().st_size for p in (tmp_path / "cache" / "images").glob("*/shards/*.npy"))
    assert prepared > ROOM
    code, said = run(tmp_path, "hydra.run.dir=one", "shards.from_bytes=1e12")
    assert code != 0 and "memory" in said.lower(), said
