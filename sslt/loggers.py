"""Loggers that need more than their own constructor."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any


def wandb_logger(project: str, name: str | None, offline: bool | None, save_dir: str) -> Any:
    """Lightning's WandbLogger; with `offline` null it is online only where wandb has an account on this machine."""
    from pytorch_lightning.loggers import WandbLogger

    if offline is None:
        offline = os.environ.get("WANDB_MODE") == "offline" or not _has_account()
    return WandbLogger(project=project, name=name, offline=offline, save_dir=save_dir)


def log_picture(logger: Any, name: str, path: Path, step: int) -> None:
    """Hand a PNG to wandb or TensorBoard; other loggers take numbers only."""
    kind = type(logger).__name__
    if kind == "WandbLogger":
        logger.log_image(f"pictures/{name}", [str(path)], step=step)
    elif kind == "TensorBoardLogger":
        import numpy as np
        from PIL import Image

        logger.experiment.add_image(f"pictures/{name}", np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")


def _has_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
