"""What only a process of its own can tell of a variant: how long it takes from nothing to the first answer, and its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sslt.errors import UserError
from sslt.machine import most_resident

_CODE = "import sys; sys.path[:] = {!r}; from sslt.deploy.fresh import main; main()"
PATIENCE = 600  # seconds


def measured(job: Mapping[str, Any], batches: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """Open a variant in a fresh process, have it answer `batches` (prepared ones, by name, in order), and tell what that took.

    job: what `load_variant` takes, and `threads`, `device`. Gives `load_seconds` (reading the folder until the model is ready; the files
    may be in the system's cache), `start_seconds` (from the start of Python, libraries imported, to the first answer), `memory_bytes`
    (the most that the process had resident) and `libraries_bytes` (what of it was there before the folder was opened).
    Raises `UserError` where the process fails.
    """
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.safetensors"
        save_file({f"{name}/{k}": x.cpu().contiguous() for name, batch in batches.items() for k, x in batch.items()}, path)
        threads = {k: str(job["threads"]) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} if job.get("threads") else {}
        handed = json.dumps({**job, "batches": str(path), "order": list(batches), "started": time.time()})
        env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        done = subprocess.run(
            [sys.executable, "-c", _CODE.format(sys.path), handed], capture_output=True, text=True, env={**env, **threads}, timeout=PATIENCE
        )
    if done.returncode or not done.stdout.strip():
        said = (done.stderr.strip() or f"code {done.returncode}").splitlines()[-1]
        raise UserError(f"{job['what']} cannot be opened in a process of its own: {said[:300]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """The fresh process."""
    job = json.loads(sys.argv[1])
    import torch
    from safetensors.torch import load_file

    from sslt.deploy.variants import load_variant
    from sslt.encoders.base import evaluating

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    before = most_resident()
    start = time.perf_counter()
    variant = load_variant(job["what"], job["trust"], base=job["base"], windows=job["windows"])
    device = torch.device(job["device"])
    variant.encoder.to(device)
    variant.target.to(device)
    opened = time.perf_counter() - start
    tensors = load_file(job["batches"])
    first = 0.0
    with evaluating(variant.encoder), evaluating(variant.target):
        for name in job["order"]:
            variant.predict({k.partition("/")[2]: x.to(device) for k, x in tensors.items() if k.partition("/")[0] == name})
            first = first or time.time() - job["started"]
    print(json.dumps({"load_seconds": opened, "start_seconds": first, "memory_bytes": most_resident(), "libraries_bytes": before}))
