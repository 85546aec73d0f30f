"""Protects the working folder: a command that is refused leaves nothing behind, and takes nothing with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY_IMAGES

from sslt.runs import Run, remove_refused

REFUSED = {
    "a value": ["pretrain", "+task=simclr", "trainer.max_steps=0"],
    "a key": ["pretrain", "+task=simclr", "batchsize=3"],
    "the data": ["pretrain", "+task=simclr", "data=image_folder", "data.path=nothing"],
    "where to start": ["finetune", "+target=digits", "from=nothing"],
    "a chain's stage": ["run", "+task=mlm", "+target=digits", *TINY_IMAGES[2:]],
    "what to predict": ["predict", "from=nothing", "input=nothing"],
}


@pytest.mark.parametrize("args", REFUSED.values(), ids=list(REFUSED))
def test_a_refused_command_leaves_nothing(args, sslt, here):
    """In the usual place, in a folder that was asked for, and not the folders above that were there."""
    (here / "mine").mkdir()
    sslt(*args, code=2)
    sslt(*args, "hydra.run.dir=mine/inner/run", code=2)
    assert [p.name for p in here.rglob("*")] == ["mine"]


def test_folders_that_were_there_stay(sslt, here):
    """An empty one of the user's, one with files, and other runs of the day."""
    (here / "empty").mkdir()
    sslt("pretrain", "+task=simclr", "trainer.max_steps=0", "hydra.run.dir=empty", code=2)
    assert (here / "empty").is_dir()
    (here / "runs").mkdir()
    sslt("pretrain", "+task=simclr", "trainer.max_steps=0", code=2)
    assert (here / "runs").is_dir() and not list((here / "runs").iterdir())


def test_what_trained_or_is_a_users_stays(here):
    """A run folder with anything of its own in it."""
    for name, extra in (("a", "notes.txt"), ("b", "logs/notes.txt"), ("c", ".hydra/notes.txt"), ("d", "checkpoints/last.ckpt")):
        run = here / name
        (run / extra).parent.mkdir(parents=True)
        (run / extra).write_text("mine")
        (run / "run.json").write_text("{}")
        remove_refused(run, [run])
        assert (run / extra).exists() and (run / "run.json").exists()
    trained = Run(here / "e")
    trained.path.mkdir()
    trained.update(training="2026-01-01T00:00:00+0000")
    remove_refused(trained.path, [trained.path])
    assert trained.info


def test_a_job_of_a_sweep_stays(sslt, here):
    """Its number and its neighbours are somebody's."""
    sslt("pretrain", "-m", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=0,1", "hydra.sweep.dir=sweep", code=2)
    assert Path("sweep/0").is_dir() and Run(here / "sweep" / "1").finished
