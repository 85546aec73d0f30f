"""Protects how many processes train, as many as were asked for; and that on another number of them a step has as many samples."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from sslt import distributed, processes
from sslt.errors import UserError
from sslt.processes import devices
from sslt.runs import Run


@pytest.mark.parametrize(("wanted", "expected"), [("auto", 1), (-1, 1), (1, 1), (3, 3), ("2", 2)])
def test_a_processor_has_one_process_unless_told(wanted, expected):
    assert devices(SimpleNamespace(accelerator="cpu", devices=wanted)) == expected


@pytest.mark.parametrize("wanted", [0, -2, "many", None])
def test_what_no_number_of_devices_is(wanted):
    with pytest.raises(UserError, match=f"trainer.devices={wanted}: give a number"):
        devices(SimpleNamespace(accelerator="cpu", devices=wanted))


@pytest.mark.parametrize(
    ("before", "world", "typed", "size"),
    [
        ({"ranks": 2, "batch_size": 32}, 1, 32, 64),
        ({"ranks": 2, "batch_size": 32}, 4, 32, 16),
        ({"ranks": 2, "batch_size": 32}, 3, 32, 21),  # as near as it can come
        ({"ranks": 64, "batch_size": 1}, 128, 1, 1),
        ({"ranks": 2, "batch_size": 32}, 1, 48, 48),  # typed for these ranks
        ({"ranks": 2, "batch_size": 32}, 2, 32, 32),
        ({"ranks": "2", "batch_size": 32}, 1, 32, 32),  # somebody has written into the file
    ],
)
def test_other_ranks_make_steps_of_as_many_samples(before, world, typed, size, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    run, cfg = Run(tmp_path), OmegaConf.create({"batch_size": typed, "batch_tokens": None})
    run.update(step=before)
    processes.keep_steps(cfg, run)
    assert cfg == {"batch_size": size, "batch_tokens": None} and run.info["step"] == before


def test_a_run_notes_the_steps_that_it_begins_with(tmp_path):
    run = Run(tmp_path)
    processes.keep_steps(OmegaConf.create({"batch_size": 8, "batch_tokens": 512}), run)
    assert run.info["step"] == {"ranks": 1, "batch_size": 8, "batch_tokens": 512}
