"""Protects pruning: a trial that falls behind ends early, as no error, and can still be gone on with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_IMAGES

from sslt.callbacks.budget import Budget
from sslt.runs import Run
from sslt.sweeps.folder import Sweep
from sslt.sweeps.study import open_study

optuna = pytest.importorskip("optuna")


def pruning(folder, number, **settings):
    from sslt.sweeps.pruning import Pruning

    run = Run(folder / str(number))
    run.path.mkdir(exist_ok=True)
    run.update(verb="finetune", primary="accuracy", higher_is_better=True, status="running")
    usual = {"pruner": "median", "pruner_trials": 2, "warmup_epochs": 2, "metric": None, "direction": None}
    return Pruning(folder=str(folder), run=str(run.path), **usual | settings)


def train(callback, values, epochs=6):
    """Epochs whose validation gives `values` (None: there was none); gives the epoch after which the run was stopped, or None."""
    learner = SimpleNamespace(interrupted=False, steps_per_epoch=5, batches_seen=0, epoch_position=0.0, global_step=0)
    trainer = SimpleNamespace(
        default_root_dir=str(callback.run.path), should_stop=False, callback_metrics={}, callbacks=[Budget(epochs, None, None)]
    )  # fmt: skip
    for epoch, value in enumerate(values, 1):
        learner.batches_seen, learner.epoch_position = 5 * epoch, float(epoch)
        if value is not None:
            trainer.callback_metrics["val/accuracy"] = torch.tensor(value)
        callback.on_train_epoch_end(trainer, learner)
        if learner.interrupted:
            assert trainer.should_stop
            return epoch
    return None


@pytest.fixture
def folder(tmp_path):
    """A sweep with two finished trials and a third that was asked for."""
    study = open_study(tmp_path)
    for curve in ([0.2, 0.4, 0.6, 0.7], [0.3, 0.5, 0.7, 0.8]):
        trial = study.ask()
        for epoch, value in enumerate(curve, 1):
            trial.report(value, epoch)
        study.tell(trial, curve[-1])
    study.ask()
    Sweep(tmp_path).update(cells=[{"number": n, "folder": str(n)} for n in range(3)])
    return tmp_path


def test_a_trial_below_the_median_ends(folder):
    """Not before the epochs it is given, and by its best number so far: 0.45 against (0.4 + 0.5) / 2 is not below, 0.449 is."""
    assert train(pruning(folder, 2), [0.0, 0.449, 0.9]) == 2
    assert Run(folder / "2").info["pruned"] == {"epoch": 2, "values": {"val/accuracy": pytest.approx(0.449)}}


def test_one_that_keeps_up_goes_on(folder):
    assert train(pruning(folder, 2), [0.0, 0.46, None, 0.76]) is None
    assert open_study(folder).get_trials()[2].intermediate_values == pytest.approx({1: 0.0, 2: 0.46, 4: 0.76})
    assert "pruned" not in Run(folder / "2").info


def test_what_is_to_be_small(folder):
    """The sign of what is told changes: to be small, -0.46 is better than -0.4."""
    assert train(pruning(folder, 2, direction="minimize"), [0.0, -0.46]) is None
    assert open_study(folder).get_trials()[2].intermediate_values[2] == pytest.approx(0.46)
    assert train(pruning(folder, 2, direction="minimize"), [None, None, -0.4]) == 3


def test_the_last_epoch_prunes_nothing(folder):
    """All that would be saved by it is the result."""
    assert train(pruning(folder, 2), [0.0, 0.0], epochs=2) is None


def test_a_run_that_goes_on_tells_nothing_twice(folder):
    """A kill between a measurement and its checkpoint: the first report stands."""
    assert train(pruning(folder, 2), [0.5]) is None
    assert train(pruning(folder, 2), [0.1, 0.6]) is None
    assert open_study(folder).get_trials()[2].intermediate_values == pytest.approx({1: 0.5, 2: 0.6})


def test_what_is_trained_beside_the_trial_is_left_alone(folder):
    callback = pruning(folder, 2)
    trainer = SimpleNamespace(default_root_dir=str(folder / "2" / "scratch"), callback_metrics={"val/accuracy": torch.tensor(0.0)})
    callback.on_train_epoch_end(trainer, SimpleNamespace(interrupted=False))
    assert open_study(folder).get_trials()[2].intermediate_values == {}


def test_a_pruned_run_in_a_search(sslt, here, capsys):
    """No error and no encoder, but a checkpoint: the trial is a row, the study knows, and the run can be ended by itself."""
    args = ["finetune", "-m", "hydra/sweeper=optuna", "+target=digits", "from=scratch", *TINY_IMAGES, "trainer.max_epochs=3"]
    args += ["late_fusion=false", "baseline=false", "interpolate=[]", "val_every_n_epochs=1", "optimizer.lr=0.03,0.0000001"]
    search = {"pruner": "median", "pruner_trials": 1, "n_trials": 3, "seed": 5}
    args += [*(f"hydra.sweeper.{k}={v}" for k, v in search.items()), "hydra.sweep.dir=sweep"]
    sslt(*args)
    rows = {r["number"]: r for r in json.loads(Path("sweep/sweep.json").read_text())["results"]}
    states = [t.state.name for t in open_study(here / "sweep").get_trials()]
    pruned = [n for n, r in rows.items() if r["status"] == "pruned"]
    assert pruned and rows[0]["status"] == "finished" and all(r["status"] in ("finished", "pruned") for r in rows.values())
    assert sorted(rows) == [0, 1] and states == ["COMPLETE", "PRUNED", "COMPLETE"]  # the last has the values of the first
    run = Run(here / "sweep" / str(pruned[0]))
    assert run.info["status"] == "pruned" and run.info["pruned"]["epoch"] == 1
    assert "error" not in run.info and rows[pruned[0]]["error"] == ""
    assert not (run / "encoder").exists() and (run / "checkpoints" / "last.ckpt").exists()
    assert "callbacks: []" in (run / "config.yaml").read_text()
    assert "SSLT_WATCHERS" not in os.environ and "pruned after epoch 1" in capsys.readouterr().err
    sslt("finetune", f"resume={run}")
    assert run.finished and run.metrics["train/epochs"] == 3
