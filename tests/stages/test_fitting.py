"""Protects small things that every stage uses: memory in bytes, the batch of measuring."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sslt.stages.common import eval_batch_size
from sslt.stages.fitting import peak_memory


def test_peak_memory_is_in_bytes_and_never_falls():
    """More than Python with torch needs, less than a large machine has; at least what is held at once, after it is gone too."""
    before = peak_memory("cpu")
    assert 50e6 < before < 1e12
    held = np.ones(300 << 20, np.uint8)
    now = peak_memory("cpu")
    del held
    assert now >= max(before, 300 << 20) and peak_memory("cpu") > now - (8 << 20)  # the kernel counts a little late


@pytest.mark.parametrize(("batch", "measured"), [(16, 64), (64, 256), (100, 256), (256, 256), (1000, 1000)])
def test_small_batches_are_measured_in_larger_ones(batch, measured):
    """Four times as large, up to 256; larger ones as they are."""
    assert eval_batch_size(SimpleNamespace(batch_size=batch)) == measured
