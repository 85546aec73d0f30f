"""A callback that counts what the ranks of this machine send each other in a step, by the loopback device, and what there is to send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback
from torch import nn

DEVICES = Path("/proc/net/dev")
WARM = 2  # steps before which DDP arranges its buckets anew


class Sent(Callback):
    """After the last step `file` has bytes a step, parameters that move, channels and number of BatchNorms.

    The count is of the whole device, so that nothing else may go by it: in a network namespace nothing does.
    """

    def __init__(self, file: str):
        self.file, self.before, self.first = Path(file), 0, 0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_rank == 0 and trainer.global_step == WARM:
            self.before, self.first = loopback(), trainer.global_step

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """In order before whatever is measured or saved at the end."""
        if trainer.global_rank:
            return
        steps = trainer.global_step - self.first
        norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        found = {
            "bytes": (loopback() - self.before) / steps,
            "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
            "channels": sum(m.num_features for m in norms),
            "norms": len(norms),
        }
        self.file.write_text(json.dumps(found))


def loopback() -> int:
    """Bytes that have gone by the loopback device of this network namespace, headers included."""
    line = next(line for line in DEVICES.read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.partition(":")[2].split()[8])
