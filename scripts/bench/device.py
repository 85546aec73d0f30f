"""Where contenders run, and in which number format."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def number_format(precision: str) -> torch.dtype:
    """What Lightning's precision name has networks compute in."""
    if precision.startswith("32"):
        return torch.float32
    return torch.bfloat16 if precision.startswith("bf16") else torch.float16


def autocast(precision: str) -> Any:
    """Lightning's precision names as a context."""
    dtype = number_format(precision)
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device().type, dtype=dtype)
