"""Where contenders run, and in which number format."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(precision: str) -> Any:
    """Lightning's precision names as a context."""
    if precision.startswith("32"):
        return contextlib.nullcontext()
    return torch.autocast(device().type, dtype=torch.bfloat16 if precision.startswith("bf16") else torch.float16)
