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


def steps(cfg: dict, run: Run) -> dict:
    """What `keep_steps` makes of a config."""
    made = OmegaConf.create({"trainer": {"lanes": None}, **cfg})
    processes.keep_steps(made, run)
    return OmegaConf.to_container(made)


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
    (run := Run(tmp_path)).update(step=before)
    made = steps({"batch_size": typed, "batch_tokens": None}, run)
    assert (made["batch_size"], made["batch_tokens"]) == (size, None) and run.info["step"] == before


def test_a_step_has_as_many_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    (run := Run(tmp_path)).update(step={"ranks": 2, "batch_size": 8, "episodes.training.per_step": 3})
    assert steps({"episodes": {"training": {"per_step": 3}}}, run)["episodes"]["training"]["per_step"] == 6


@pytest.mark.parametrize(("typed", "lanes"), [(None, 2), (2, 2), (8, 8)])
def test_a_run_notes_the_steps_that_it_begins_with(typed, lanes, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    made = steps({"trainer": {"lanes": typed}, "batch_size": 8, "batch_tokens": 512}, run := Run(tmp_path))
    assert run.info["step"] == {"ranks": 2, "lanes": lanes, "batch_size": 8, "batch_tokens": 512} and made["trainer"]["lanes"] == lanes


@pytest.mark.parametrize(("lanes", "world", "expected"), [(4, 1, 4), (4, 2, 4), (4, 4, 4), (4, 3, 3), (4, 8, 8), (None, 2, 4), ("4", 2, 2)])
def test_lanes_are_those_of_the_run_where_ranks_can_share_them(lanes, world, expected, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    (run := Run(tmp_path)).update(step={"ranks": 4, "batch_size": 8} | ({} if lanes is None else {"lanes": lanes}))
    with caplog.at_level("INFO", "sslt"):
        assert steps({"batch_size": 8}, run)["trainer"]["lanes"] == expected
    assert ("drawn anew" in caplog.text) == (expected != 4)


def test_lanes_that_cannot_be_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for typed in (3, 1, 0, -2):
        with pytest.raises(UserError, match=f"trainer.lanes={typed} cannot be shared by 2 ranks: give a multiple of 2"):
            steps({"trainer": {"lanes": typed}, "batch_size": 8}, Run(tmp_path))
    (run := Run(tmp_path)).update(step={"ranks": 2, "lanes": 4})
    with pytest.raises(UserError, match=r"trainer\.lanes=8: the run began with 4"):
        steps({"trainer": {"lanes": 8}, "batch_size": 8}, run)
