"""The command line as a user meets it: it teaches, and each mistake ends in one clear line and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sslt import config, groups, guide
from sslt.cli import main

SSLT = str(Path(sys.executable).parent / "sslt")


def console(*args: str, **env: str) -> subprocess.CompletedProcess:
    """The real console script."""
    return subprocess.run([SSLT, *args], capture_output=True, text=True, env={**os.environ, **env}, timeout=120)


def test_overview_help_and_lists_need_no_heavy_import(here):
    """`sslt`, `sslt VERB --help` and `sslt list` are read before anything heavy is imported."""
    code = (
        "import sys; from sslt.cli import main\n"
        "for a in ([], ['pretrain', '--help'], ['list'], ['list', 'tasks'], ['__complete', 'sslt pre']): main(a)\n"
        "print([m for m in ('torch', 'hydra', 'omegaconf', 'numpy', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out.strip().endswith("[]")
    assert "sslt pretrain" in out and "+task=" in out and "simclr" in out


@pytest.mark.parametrize("verb", ["evaluate", "predict", "export", "serve", "bench", "merge"])
def test_what_trains_nothing_does_not_wait_for_lightning(verb):
    """Lightning, with torchmetrics and all that this imports, takes seconds."""
    code = f"import sys, sslt.stages.{verb}; print([m for m in ('pytorch_lightning', 'torchmetrics') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_console_script_composes_without_torch(here):
    """`--cfg job` prints the config and does not import torch."""
    done = console("pretrain", "+task=simclr", "optimizer.lr=0.5", "--cfg", "job")
    assert done.returncode == 0 and "lr: 0.5" in done.stdout and not (here / "runs").exists()


@pytest.mark.parametrize("verb", guide.VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"sslt {verb}" in shown and guide.VERBS[verb][1] in shown


def test_lists_are_tables(capsys):
    """Of what can be listed, asked for or not, and of the options of one kind: what is said begins in one column."""
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"sslt list {kind} " in shown for kind in (*guide.KINDS, "runs"))
    assert main(["list", "--help"]) == 0
    assert capsys.readouterr().out == shown
    assert main(["list", "tasks"]) == 0
    tasks = groups.options("task")
    start = max(map(len, tasks)) + 2
    assert capsys.readouterr().out.splitlines() == [name.ljust(start) + what for name, what in tasks.items()]


def test_what_is_shown_has_the_values_of_the_chosen_part(here, capsys):
    """`--cfg job` of a recipe with another optimizer: that one's own rate, as composing gives it."""
    for args in (["+task=simclr"], ["+task=simclr", "optimizer=lars"]):
        assert main(["pretrain", *args, "--cfg", "job"]) == 0
        assert OmegaConf.create(capsys.readouterr().out).optimizer == config.compose("pretrain", args).optimizer


def test_every_option_has_one_line(capsys):
    """A list without a description teaches nothing."""
    for kind, group in guide.KINDS.items():
        for name, what in groups.options(group).items():
            assert what, f"configs/{group}/{name}.yaml has no comment (sslt list {kind})"


MISTAKES = [
    (["pretrian"], "did you mean 'pretrain'"),
    (["pretrain", "+task=simlcr"], "did you mean 'simclr'"),
    (["pretrain", "+task=simclr", "optimizer.lrr=0.1"], "did you mean 'lr'"),
    (["pretrain", "+task=simclr", "+optimizer.lrr=0.1"], "did you mean 'lr'"),
    (["pretrain", "+taks=simclr"], "did you mean 'task'"),
    (["pretrain", "+task=simclr", "optimizer.lr=fast"], "optimizer.lr='fast' is of the wrong type"),
    (["pretrain", "+task=simclr", "data=digts"], "did you mean 'digits'"),
    (["pretrain", "+task=simclr", "trainer.max_epoch=3"], "did you mean 'max_epochs'"),
    (["pretrain", "simclr"], "key=value"),
    (["pretrain"], "+task=simclr"),
    (["finetune", "+target=digits"], "from=…"),
    (["finetune", "+target=digits", "from=nowhere/at/all"], "no such folder"),
    (["finetune", "+target=digits", "from=resnet81"], "no timm model"),
    (["pretrain", "+task=mlm", "word_vectors=nowhere/at/all"], "word_vectors=nowhere/at/all: there"),
    (["pretrain", "+task=distill", "objective.teacher=nowhere/at/all"], "objective.teacher=nowhere/at/all: there"),
    (["finetune", "+target=text_csv", "from=scratch", "data.path=nothing.csv"], "nothing.csv"),
    (["finetune", "+target=digits", "from=scratch", "label_fraction=2"], "label_fraction"),
    (["finetune", "+target=digits", "from=scratch", "adaptation=partial", "adaptation.blocks=99"], "blocks"),
    (["finetune", "from=scratch"], "+target="),
    (["evaluate", "from=nothing"], "data="),
    (["pretrain", "resume=nothing"], "no run folder"),
    (["pretrain", "+task=simclr", "data=docs"], "docs holds text"),
    (["pretrain", "+task=mlm", "data=digits"], "digits holds images"),
    (["pretrain", "+task=simclr", "batch_size=5000"], "larger than the data set"),
    (["pretrain", "+task=simclr", "data=cifar10", "data.root=nowhere"], "data.download=true"),
    (["pretrain", "+task=simclr", "trainer.max_time=soon"], "HH:MM:SS"),
    (["pretrain", "+task=simclr", "trainer.devices=0"], "trainer.devices"),
    (["pretrain", "+task=simclr", "+trainer.limit_train_batches=2"], "trainer.max_steps"),
    (["pretrain", "+task=simclr", "trainer.max_epochs=-5"], "more than 0"),
    (["pretrain", "+task=simclr", "trainer.precision=7"], "trainer: "),
    (["pretrain", "+task=simclr", "optimizer.lr=-1"], "optimizer: "),
    (["pretrain", "+task=simclr", "optimizer.lr=0.1,0.2"], "add -m"),
    (["finetune", "+target=docs", "from=x", "+shift.target=[1]"], "choose one of +shift=cdan"),
    (["pretrain", "+task=simclr", "encoder.processor=2"], "encoder.processor=2 is of the wrong type"),
    (["pretrain", "+task=simclr", "batch_size=0"], "batch_size=0 is out of range"),
    (["pretrain", "+task=simclr", "+checkpoint.foo=3"], "checkpoint.foo"),
    (["pretrain", "+task=simclr", "checkpoint.every_minutes=often"], "checkpoint.every_minutes"),
    (["pretrain", "+task=simclr", "trust=mylab"], "it takes a list"),
    (["pretrain", "-m", "+task=simclr", "seed=0,1", "resume=somewhere"], "no sweep folder"),
    (["pretrain", "-m", "+task=simclr", "optimizer.lr=interval(0,1)"], "hydra/sweeper=optuna"),
    (["pretrain", "-m", "+task=simclr", "seed=0,1", "hydra.sweeper.metric=test/accuracy"], "test split"),
    (["pretrain", "+task=simclr", "data=image_folder", "data.path=~/photos"], "$HOME"),
    (["evaluate", "from=x", "data=digits", "trainer.precision=32"], "does not take 'precision'"),
    (["evaluate", "from=x", "data=digits", "data_overrides.root=y"], "data_overrides"),
    (["evaluate", "from=x", "data=digits", "knn.k=many"], "knn.k"),
    (["evaluate", "from=x", "data=digits", "shots=5"], "shots"),
    (["finetune", "+target=digits", "from=scratch", "compare=scrach"], "'scratch'"),
    (["finetune", "+target=digits", "from=scratch", "compare=scratch"], "from=RUN"),
    (["finetune", "+target=digits", "from=scratch", "labels_per_class=0"], "labels_per_class=0 is out of range"),
    (["finetune", "+target=digits", "from=scratch", "labels_per_class=5", "label_fraction=0.1"], "one of the two"),
    (["pretrain", "+task=simclr", "hydra.run.dir=/proc/no/such"], "run folder"),
    (["run", "+task=simclr"], "both"),
    (["run", "+task=simclr", "+target=digits", "finetune.optimizer.lrr=1"], "lr"),
    (["list", "taks"], "did you mean 'tasks'"),
    (["pretrain", "+task=simclr", "--config-dir", "nowhere"], "no such folder"),
    (["pretrain", "+task=simclr", "--config-dir", "x" * 3000], "File name too long"),
    (["pretrain", "+task=simclr", "from=./" + "x" * 3000], "File name too long"),
    (["pretrain", "+task=simclr", "hydra.run.dir=" + "x" * 3000], "File name too long"),
    (["pretrain", "+task=simclr", "--config-dir"], "--config-dir DIR"),
    (["pretrain", "+task=simclr", "--run", "--cfg", "job"], "cannot be joined"),
    (["pretrain", "+task=simclr", "-m", "--cfg", "job"], "cannot be joined"),
    (["pretrain", "+task=simclr", "--cfg", "jib"], "'job'"),
    (["pretrain", "+task=simclr", "optimizer.lr=fast", "--cfg", "job"], "optimizer.lr='fast' is of the wrong type"),
    (["pretrain", "+task=simclr", "--shell-completion"], "no option"),
    (["pretrain", "+task=simclr", "--experimental-rerun", "x"], "no option"),
    (["pretrain", "+task=simclr", "name=a\0b"], "UTF-8"),
    (["pretrain", "+task=simclr", "name=\udcff"], "UTF-8"),
    (["pretrain", "+task=simclr", "logger=true"], "logger=true"),
    (["pretrain", "+task=simclr", "adaptation=null"], "adaptation=null"),
    (["pretrain", "+task=simclr", "views=3"], "views=3"),
    (["pretrain", "+task=simclr", "-m", "seed=range(0,3,0)"], "range()"),
    (["pretrain", "+task=simclr", "cache_dir=/proc/x"], "cache_dir="),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=lambda v: " ".join(v)[:80] if isinstance(v, list) else None)
def test_a_mistake_is_one_clear_line(args, says, here, capsys):
    """Exit code 2, at most two lines, no traceback, and the line names what to do."""
    assert main(args) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    said = [line for line in shown if line.startswith("sslt: ")]
    assert says in "\n".join(shown), shown
    assert len(said) == 1 and "Traceback" not in "".join(shown)


def test_debug_shows_the_traceback(here, capsys):
    assert main(["pretrain", "+task=simlcr", "debug=true"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_users_own_config_dir_is_listed_and_completed(here, capsys):
    (here / "mine" / "task").mkdir(parents=True)
    (here / "mine" / "task" / "my_task.yaml").write_text("# @package _global_\n# what I try\ndefaults: [/task/simclr, _self_]\n")
    assert main(["list", "tasks", "--config-dir", "mine"]) == 0
    assert "what I try" in capsys.readouterr().out
    assert guide.complete(["sslt pretrain --config-dir mine +task=my"]) == ["+task=my_task"]


def test_completion():
    """Words are completed from the config folders: verbs, options, sweeps over options, keys."""
    assert guide.complete(["sslt pre"]) == ["pretrain", "predict"] or guide.complete(["sslt pret"]) == ["pretrain"]
    assert guide.complete(["sslt pretrain +task=simc"]) == ["+task=simclr", "+task=simcse"]
    assert guide.complete(["sslt pretrain +task=simclr,ml"]) == ["+task=simclr,mlm"]
    assert "optimizer.lr=" in guide.complete(["sslt pretrain optimizer.l"])
    for shell in ("bash", "zsh", "fish"):
        assert "__complete" in guide.completion_script([shell])


def test_a_long_value_does_not_fill_the_message(here, capsys):
    """Beginning and end are there, with what to do."""
    assert main(["pretrain", "+task=simclr", f"trainer.sync_batchnorm={{{','.join(f'k{i}:{i}' for i in range(500))}}}"]) == 2
    said = capsys.readouterr().err
    assert "…" in said and len(said) < 600 and "is of the wrong type" in said


@pytest.mark.parametrize("verb", ["run", "pretrain"])
def test_a_package_that_is_not_there_is_our_line(verb, here, capsys):
    assert main([verb, "+task=simclr", *(["+target=digits"] if verb == "run" else []), "-p", "nothing", "-c", "job"]) == 2
    assert capsys.readouterr().err.splitlines() == [f"sslt: package 'nothing' not found in config of `sslt {verb}`"]


def test_a_home_of_nobody_is_one_line(here, capsys):
    assert main(["pretrain", "+task=simclr", "hydra.run.dir=~nobodyatall/x"]) == 2
    assert "~nobodyatall/x" in capsys.readouterr().err


def test_a_mistake_that_shows_late_ends_the_process(here):
    """By the console script: a folder with one image a class leaves nothing for the test split; nobody waits for a thread."""
    from PIL import Image

    for name in ("cat", "dog"):
        (here / "one" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(here / "one" / name / "a.png")
    done = console("finetune", "+target=image_folder", "data.path=one", "from=scratch")
    assert done.returncode == 2 and "nothing is left for the 'test' split" in done.stderr
