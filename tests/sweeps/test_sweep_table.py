"""Protects the end of a sweep: every cell is a row, validation says which is best, seeds are averaged."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import pytest

from sslt.errors import UserError
from sslt.sweeps import metric
from sslt.sweeps.table import label

TUNE = ["finetune", "-m", "+target=digits", "from=scratch"]


def result(folder="sweep"):
    return json.loads(Path(folder, "sweep.json").read_text())


def test_the_best_comes_first_by_validation(sslt, here, fake, capsys):
    """Rows, best cell and files; the test metric, which says the opposite here, is not looked at."""
    sslt(*TUNE, "optimizer.lr=0.1,0.01,0.001", "batch_size=32,64", "hydra.sweep.dir=sweep")
    said, found = capsys.readouterr().out, result()
    assert found["status"] == "finished" and found["metric"] == "val/accuracy"
    assert found["best"]["swept"] == {"optimizer.lr": "0.01", "batch_size": "32"} and found["best"]["folder"] == "sweep/2"
    values = [r["value"] for r in found["results"]]
    assert values == sorted(values, reverse=True) and len(values) == 6 and found["seeds"] == []
    with Path("sweep/sweep.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["number", "optimizer.lr", "batch_size", "val/accuracy", "status", "folder", "error"]
    assert [r["number"] for r in rows] == [str(r["number"]) for r in found["results"]]
    assert "best by val/accuracy: optimizer.lr=0.01 batch_size=32 → sweep/2" in said and "sslt predict from=sweep/2" in said


def test_the_lowest_is_best_where_the_target_says_so(sslt, here, fake):
    fake.about = {"primary": "mae", "higher_is_better": False}
    fake.metrics = lambda value: {"val/mae": -value, "val/accuracy": 1.0}
    sslt(*TUNE, "optimizer.lr=0.1,0.01", "hydra.sweep.dir=sweep")
    assert result()["best"]["swept"] == {"optimizer.lr": "0.01"} and result()["direction"] == "minimize"
    sslt(*TUNE, "optimizer.lr=0.1,0.01", "hydra.sweeper.direction=maximize", "hydra.sweep.dir=other")
    assert result("other")["best"]["swept"] == {"optimizer.lr": "0.1"}


def test_seeds_are_averaged(sslt, here, fake, capsys):
    """Mean and sample standard deviation for each setting, the best mean first: its best seed alone does not make it that."""
    scores = {(0.1, 0): 0.9, (0.1, 1): 0.1, (0.1, 2): 0.2, (0.01, 0): 0.5, (0.01, 1): 0.6, (0.01, 2): 0.8}
    fake.score = lambda cfg: scores[cfg.optimizer.lr, cfg.seed]
    sslt(*TUNE, "optimizer.lr=0.1,0.01", "seed=0,1,2", "hydra.sweep.dir=sweep")
    best, other = result()["seeds"]
    assert best["swept"] == {"optimizer.lr": "0.01"} and other["runs"] == 3
    for group, rate in ((best, 0.01), (other, 0.1)):
        values = [v for (r, _), v in scores.items() if r == rate]
        assert group["mean"] == pytest.approx(sum(values) / 3) and group["spread"] == pytest.approx(statistics.stdev(values))
    assert result()["best"]["swept"] == {"optimizer.lr": "0.1", "seed": "0"}
    assert "63.33 ± 15.3 %" in capsys.readouterr().out


def test_a_mistake_in_one_cell_is_a_row(sslt, here, fake, capsys):
    """One line when it comes up, the others run, and the exit code tells; a defect is worse than a mistake."""

    def hook(cfg, folder):
        if cfg.seed == 1:
            raise UserError("there is no such thing")
        if cfg.seed == 2:
            raise ZeroDivisionError("by nothing")

    fake.hook = hook
    sslt(*TUNE, "seed=0,1,3", "hydra.sweep.dir=sweep", code=2)
    said = capsys.readouterr().err.splitlines()
    assert said == ["sslt: sweep/1: there is no such thing; the sweep goes on"]
    assert [(r["number"], r["status"], r["error"]) for r in result()["results"]][-1] == (1, "failed", "there is no such thing")
    assert result()["status"] == "failed" and [n for n, _ in fake.ran] == ["0", "1", "2"]
    sslt(*TUNE, "seed=0,1,2", "hydra.sweep.dir=worse", code=1)
    (line,) = [s for s in capsys.readouterr().err.splitlines() if "worse/2" in s]
    assert line.startswith("sslt: worse/2: ZeroDivisionError: by nothing (test_sweep_table.py:") and line.endswith("; the sweep goes on")


def test_a_cell_that_composing_accepts_and_checking_refuses(sslt, here, fake):
    """It never began, and is a row all the same."""
    sslt(*TUNE, "optimizer.lr=0.1,fast", "hydra.sweep.dir=sweep", code=2)
    last = result()["results"][-1]
    assert last["status"] == "failed" and "wrong type" in last["error"] and not Path("sweep/1/run.json").exists()


def test_keys_are_those_that_were_typed():
    """Of a chain, whose settings Hydra has below its stages."""
    assert label("optimizer.lr") == "optimizer.lr" and label("+task") == "task"
    shared = ["++stages.pretrain.values.seed=1", "++stages.finetune.values.seed=${stages.pretrain.values.seed}"]
    assert label("++stages.pretrain.values.seed", shared) == "seed"
    assert label("++stages.finetune.values.optimizer.lr", []) == "finetune.optimizer.lr"


@pytest.mark.parametrize(
    "name",
    ["test/accuracy", "finetune/test/f1", "knn/accuracy", "linear_10pct/accuracy", "evaluate/5_shot/accuracy", "shift/accuracy/usps"],
)
def test_nothing_is_chosen_by_the_test_split(name):
    """Whoever asks for it is told why not; probes are measured on it, too."""
    with pytest.raises(UserError, match="test split"):
        metric.check(name, None)


@pytest.mark.parametrize("name", ["val/accuracy", "linear/val_accuracy", "online/knn_accuracy", "train/loss", "eval/perplexity", "mine"])
def test_other_numbers_may_be_chosen_by(name):
    metric.check(name, None)


def test_pretraining_without_labels_is_chosen_by_the_rank_of_features(sslt, here, fake):
    """RankMe stands in for kNN where there is nothing to classify."""
    fake.metrics = lambda value: {"online/rankme": 10 + value, "train/loss": 1.0}
    sslt("pretrain", "-m", "+task=simclr", "optimizer.lr=0.1,0.01", "hydra.sweep.dir=sweep")
    assert result()["metric"] == "online/rankme" and result()["best"]["swept"] == {"optimizer.lr": "0.01"}
    fake.metrics = lambda value: {"train/loss": 1.0}
    sslt("pretrain", "-m", "+task=simclr", "optimizer.lr=0.1,0.01", "hydra.sweep.dir=other")
    assert result("other")["best"] is None and result("other")["status"] == "finished"


def test_numbers_of_different_metrics_are_not_compared(sslt, here, fake):
    """Of a sweep over data, those with the metric of most cells are ordered, and the others stand below them."""
    fake.metrics = lambda value: {"online/rankme": 500.0} if value < -3 else {"online/knn_accuracy": 0.5 + value / 100}
    sslt("pretrain", "-m", "+task=simclr", "optimizer.lr=0.00001,0.1,0.01", "hydra.sweep.dir=sweep")
    found = result()["results"]
    assert [r["number"] for r in found] == [2, 1, 0] and found[2]["value"] is None and result()["metric"] == "online/knn_accuracy"
