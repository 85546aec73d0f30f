"""Loggers that need more than their own constructor."""

from __future__ import annotations

import netrc
import os
from typing import Any


def wandb_logger(project: str, name: str | None, offline: bool | None, save_dir: str) -> Any:
    """Lightning's WandbLogger; with `offline` null it is online only where wandb has an account on this machine."""
    from pytorch_lightning.loggers import WandbLogger

    if offline is None:
        offline = os.environ.get("WANDB_MODE") == "offline" or not _has_account()
    return WandbLogger(project=project, name=name, offline=offline, save_dir=save_dir)


def _has_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
