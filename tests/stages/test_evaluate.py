"""Protects `sslt evaluate` beyond its probes: worse data, adapting at test time, and labels saved."""

from __future__ import annotations

import pytest
from conftest import TINY_IMAGES, TINY_TEXT, working_in

from sslt.cli import main
from sslt.runs import Run

CPU = "trainer.accelerator=cpu"
LEARNS = ["optimizer.lr=0.02", "batch_size=64", "trainer.max_epochs=8"]
QUICK = ["trainer.max_steps=3", "baseline=false"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, cache) -> str:
    """`from=` a classifier of digits, which nothing here changes."""
    args = ["finetune", "+target=digits", "from=scratch", *TINY_IMAGES, *LEARNS, "baseline=false"]
    with working_in(tmp_path_factory.mktemp("tuned"), cache) as folder:
        assert main([*args, "late_fusion=false", "hydra.run.dir=tuned"]) == 0  # what stands beside it has no statistics to adapt
    return f"from={folder / 'tuned'}"


def test_batch_statistics_mend_lost_contrast(tuned, sslt, here):
    """Fog shifts every statistic: scores fall without labels' fault, and come back by the test batches' own statistics."""
    sslt("evaluate", tuned, CPU, "hydra.run.dir=clean")
    for name in ("bn", "tent"):
        sslt("evaluate", tuned, CPU, "+corruption=contrast", "corruption.severity=5", f"+test_time={name}", f"hydra.run.dir={name}")
    clean = Run(here / "clean").metrics["test/accuracy"]
    for name in ("bn", "tent"):
        found = Run(here / name).metrics
        assert found["test/accuracy"] < clean - 0.1
        assert found["test_time/gain"] == pytest.approx(found["test_time/accuracy"] - found["test/accuracy"])
        assert found["test_time/gain"] > 0.1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["+corruption=dropped_words"], "reads images"),
        (["+test_time=tent", "test_time.lr=0"], "test_time.lr"),
        (["+test_time=tent", "probes=true"], "measure a classifier"),
        (["+corruption=fgo"], "corruption 'fgo'"),
        (["curve.target=digits"], "add probes=true"),
        (["labels_per_class=5"], "add probes=true"),
        (["data_overrides={rot: here}"], "data_overrides.rot"),
    ],
)
def test_mistakes(args, words, tuned, sslt, here, capfd):
    """One line each."""
    sslt("evaluate", tuned, CPU, *args, "hydra.run.dir=run", code=2)
    err = capfd.readouterr().err
    assert words in err and "Traceback" not in err


def test_text_is_adapted_by_its_layer_norms(sslt, here):
    """The same command on words that are missing."""
    sslt("finetune", "+target=docs", "from=scratch", *TINY_TEXT, "labels_per_class=8", *QUICK, "hydra.run.dir=text")
    sslt("evaluate", "from=text", CPU, "baseline=false", "+corruption=dropped_words", "+test_time=tent", "hydra.run.dir=run")
    assert "test_time/accuracy" in Run(here / "run").metrics
    sslt("evaluate", "from=text", CPU, "+test_time=bn", "hydra.run.dir=none", code=2)  # no BatchNorm in BERT


def test_labels_saved_are_measured_against_training_from_scratch(sslt, here):
    """Training from scratch on each share of the labels, in folders of its own; taken up where it stopped."""
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=3", "hydra.run.dir=pre")
    args = ["evaluate", "from=pre", CPU, "curve.target=digits", "curve.fractions=[0.1]", "shots=[5]", "draws=2",
            'curve.overrides=["trainer.max_steps=3","trainer.precision=32","trainer.accelerator=cpu"]']  # fmt: skip
    sslt(*args, "hydra.run.dir=run")
    found = Run(here / "run").metrics
    assert found["linear_10pct/labels"] == found["scratch_10pct/labels"] == 129
    assert {k.split("/")[1] for k in found if k.startswith("labels_saved")} == {"50_labels", "129_labels", "1294_labels"}
    assert (here / "run" / "plots" / "labels.png").exists()
    assert Run(here / "run" / "scratch" / "100pct").finished


def test_probes_of_some_of_the_labels(tuned, sslt, here):
    """The bank and the linear probe have these labels only; the test split is whole."""
    args = ["evaluate", tuned, CPU, "probes=true", "shots=[]", "curve.fractions=[]"]
    sslt(*args, "hydra.run.dir=all")
    sslt(*args, "labels_per_class=4", "hydra.run.dir=few")
    whole, few = Run(here / "all").metrics, Run(here / "few").metrics
    assert few["linear/labels"] == 40 < whole["linear/labels"]
    assert few["knn/accuracy"] != whole["knn/accuracy"] and few["features/rankme"] == whole["features/rankme"]


def test_nothing_is_measured_from_scratch_alone(sslt, here, capsys):
    """An architecture is that of a run."""
    sslt("evaluate", "from=scratch", "data=digits", "trainer.accelerator=cpu", code=2)
    assert "scratch:RUN" in capsys.readouterr().err


@pytest.mark.parametrize(("split", "told"), [("val", "was picked on the validation split"), ("train", "would be asked about its own rows")])
def test_the_cheap_method_learns_from_what_the_run_had(tuned, sslt, here, capfd, split, told):
    """Whichever split is measured, one after another; beside what was learned from there is none."""
    sslt("evaluate", tuned, CPU, "split=test", "hydra.run.dir=first")
    sslt("evaluate", tuned, CPU, f"split={split}", "hydra.run.dir=run")
    found = Run(here / "run").metrics
    assert told in capfd.readouterr().err and ("baseline/accuracy" in found) == (split == "val")
    if split == "val":
        assert found["baseline/accuracy"] == pytest.approx(found["baseline/val_accuracy"])


def test_probes_are_measured_on_the_test_split(tuned, sslt, here, capfd):
    """Another one would be ignored."""
    sslt("evaluate", tuned, CPU, "probes=true", "split=val", "hydra.run.dir=run", code=2)
    assert "leave out split=" in capfd.readouterr().err


def test_a_prior_is_a_number_of_samples():
    """As the advice has it that is given where there is none."""
    from sslt import config

    assert config.compose("evaluate", ["from=x", "+test_time=bn", "test_time.reset=false", "test_time.prior=16"]).test_time.prior == 16
