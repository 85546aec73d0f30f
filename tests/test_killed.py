"""A run that was killed in any of its phases, not only in training, leaves after `resume=` all that one leaves that never was."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from conftest import TINY_IMAGES
from killed_runs import command, differing, outputs

from sslt.callbacks.checkpoint import LAST, read
from sslt.runs import Run

COMMON = [*TINY_IMAGES, "checkpoint.every_minutes=1e-9", "trainer.log_every_n_steps=2"]  # a checkpoint after every step
PRETRAIN = ["pretrain", "+task=simclr", *COMMON, "batch_size=256", "trainer.max_steps=7", "online_probe.samples=100"]  # 5 steps an epoch
FINETUNE = ["finetune", "+target=digits", "from=scratch", *COMMON, "labels_per_class=20", "batch_size=64", "trainer.max_steps=5"]
FINETUNE += ["report=best"]  # 4 steps an epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """Outputs of the uninterrupted runs."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SSLT_CACHE", str(cache))
        for args in (PRETRAIN, FINETUNE):
            assert command([*args, f"hydra.run.dir={args[0]}"]) == 0, Path("output.txt").read_text()
    return {verb: outputs(folder / verb) for verb in ("pretrain", "finetune")}


CASES = [
    (PRETRAIN, "preparing the data"), (PRETRAIN, "the first probe"), (PRETRAIN, "a step"), (PRETRAIN, "half a checkpoint"),
    (PRETRAIN, "between two renames"), (PRETRAIN, "the probe after an epoch"), (PRETRAIN, "before the last probe"),
    (PRETRAIN, "the last probe"), (PRETRAIN, "the last checkpoint"), (PRETRAIN, "the weights of the result"), (PRETRAIN, "the metrics"),
    (PRETRAIN, "the status"), (FINETUNE, "before the first step"), (FINETUNE, "validation after an epoch"),
    (FINETUNE, "before the last validation"), (FINETUNE, "the last validation"), (FINETUNE, "measuring"),
    (FINETUNE, "the weights of the result"), (FINETUNE, "the plots"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "point"), CASES, ids=[f"{args[0]}-{point}".replace(" ", "-") for args, point in CASES])
def test_killed_anywhere(args, point, whole, here):
    """SIGKILL at the point, then resume: files, numbers, curves and pictures, byte for byte."""
    own = ["cache_dir=own"] if point == "preparing the data" else []
    assert command([*args, *own, "hydra.run.dir=run"], point) == -signal.SIGKILL
    assert not Run("run").finished
    assert command([args[0], "resume=run", *own]) == 0, Path("output.txt").read_text()
    assert Run("run").finished and differing(whole[args[0]], outputs(here / "run")) == []


@pytest.mark.parametrize(
    ("args", "point", "step"), [(PRETRAIN, "in the probe", 5), (FINETUNE, "in validation", 4)], ids=["probe", "validation"]
)
def test_a_signal_does_not_wait_for_the_end_of_measuring(args, point, step, whole, here):
    """The run is saved at the step that was to be measured; gone on with, it measures first and ends as if nothing had happened."""
    assert command([*args, "hydra.run.dir=run"], f"{point} after an epoch", signal.SIGTERM) == 130
    assert read(Path("run/checkpoints") / LAST)["batches_seen"] == step
    log = Path("run/logs/sslt.log").read_text()
    assert f"measuring is left for whoever goes on: the run is saved and ends after step {step}" in log
    assert f"SIGTERM came: stopped at step {step}; go on with: sslt {args[0]} resume=run" in log
    assert command([args[0], "resume=run"]) == 0, Path("output.txt").read_text()
    assert differing(whole[args[0]], outputs(here / "run")) == []
