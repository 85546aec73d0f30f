"""Protects the start of a run folder: killed at any point, it is one that can be gone on with or one that a new run may take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sslt import runs
from sslt.errors import UserError
from sslt.runs import Run, open_run, refuse_overwrite


class Killed(BaseException):
    pass


def killed_at(monkeypatch: pytest.MonkeyPatch, name: str, run: Run, config: dict) -> None:
    """Start a run and end when the file `name` would come into place."""

    def replace(tmp: Path, place: Path) -> None:
        if Path(place).name == name:
            raise Killed
        os.rename(tmp, place)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runs.os, "replace", replace)
        run.start("pretrain", OmegaConf.create(config), ["+task=simclr"])


def test_a_start_that_is_killed_leaves_nothing_that_is_in_the_way(here, monkeypatch):
    run = Run(here / "r")
    killed_at(monkeypatch, "run.json", run, {"seed": 0})
    refuse_overwrite(run.path)  # a new run may take it
    for name in ("config.yaml", "versions.json"):
        killed_at(monkeypatch, name, run, {"seed": 0})
        assert open_run("r", "resume").info["status"] == "running"
        with pytest.raises(UserError, match="resume=r"):
            refuse_overwrite(run.path)
    run.start("pretrain", OmegaConf.create({"seed": 0}), ["+task=simclr"])
    assert run.config == {"seed": 0} and (run / "versions.json").exists() and (run / "command.txt").exists()


def test_going_on_with_other_settings_always_leaves_whole_ones(here, monkeypatch):
    """The former config stays beside the new one; a kill between the two leaves the former in its place."""
    run = Run(here / "r")
    run.start("pretrain", OmegaConf.create({"seed": 0}), [])
    killed_at(monkeypatch, "config.yaml", run, {"seed": 1})
    assert run.config == {"seed": 0}
    run.start("pretrain", OmegaConf.create({"seed": 2}), [])
    assert run.config == {"seed": 2}
    assert [OmegaConf.load(p) for p in sorted(run.path.glob("config.*.yaml"))] == [{"seed": 0}] * 2
    assert not list(run.path.glob(".*.tmp"))
