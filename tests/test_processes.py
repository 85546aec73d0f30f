"""Protects how many processes train: as many as were asked for, each knowing which it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sslt.errors import UserError
from sslt.processes import devices


@pytest.mark.parametrize(("wanted", "expected"), [("auto", 1), (-1, 1), (1, 1), (3, 3), ("2", 2)])
def test_a_processor_has_one_process_unless_told(wanted, expected):
    assert devices(SimpleNamespace(accelerator="cpu", devices=wanted)) == expected


@pytest.mark.parametrize("wanted", [0, -2, "many", None])
def test_what_no_number_of_devices_is(wanted):
    with pytest.raises(UserError, match=f"trainer.devices={wanted}: give a number"):
        devices(SimpleNamespace(accelerator="cpu", devices=wanted))
