"""Protects who resumes a folder made by somebody else: what it says is data, nothing in it runs, and nothing outside it is written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import TINY_IMAGES, working_in
from omegaconf import OmegaConf

from sslt import config
from sslt.cli import main
from sslt.resume import restored
from sslt.runs import Run

START = ["pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=1", "batch_size=64", "online_probe.every_n_epochs=0"]
CODE = "from pathlib import Path\ndependencies = []\nPath('owned').write_text('x')\ndef x(*args, **kwargs): ...\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache) -> Path:
    """A finished run that claims to be unfinished, which `resume=` therefore takes up."""
    with working_in(tmp_path_factory.mktemp("trained"), cache) as folder:
        assert main([*START, "hydra.run.dir=run"]) == 0
        Run(folder / "run").update(status="running")
    return folder / "run"


@pytest.fixture
def run(trained: Path, here: Path) -> Path:
    """A copy of that run, which no other test has changed."""
    return shutil.copytree(trained, here / "run")


def config_of(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_group_options_with_a_path_are_never_composed(sslt, here, capsys):
    """Stored overrides that lead Hydra to any YAML on the disk, which names any function: the folder runs nothing."""
    bad = here / "bad"
    (bad / "h").mkdir(parents=True)
    up = "../" * 12
    stored = {"verb": "pretrain", "status": "running", "overrides": ["+task=simclr", f"+target={up}proc/self/cwd/bad/x"]}
    (bad / "run.json").write_text(json.dumps(stored))
    (bad / "x.yaml").write_text(
        "# @package _global_\ncallbacks: [{_target_: torch.hub.load, repo_or_dir: bad/h, model: x, source: local}]\n"
    )
    (bad / "h" / "hubconf.py").write_text(CODE)
    for verb in ("pretrain", "run"):
        (bad / "run.json").write_text(json.dumps({**stored, "verb": verb}))
        for content in (None, "name: simclr\n"):
            if content is not None:
                (bad / "config.yaml").write_text(content)
            sslt(verb, "resume=bad", code=2)
            assert "Traceback" not in capsys.readouterr().err and not (here / "owned").exists()


def test_stored_overrides_are_only_a_record(sslt, here, run):
    """They can neither set up Hydra's logging over a file, nor name a class; the saved config alone says how to go on."""
    victim = here / "victim.txt"
    victim.write_text("mine")
    logging = "{version:1,handlers:{f:{class:logging.FileHandler,filename:victim.txt,mode:w}},root:{handlers:[f]}}"
    more = [f"++hydra.job_logging={logging}", "callbacks=[{_target_: os.system, command: touch owned}]", "hydra/launcher=../../x", 3]
    Run(run).update(overrides=[*Run(run).info["overrides"], *more])
    sslt("pretrain", "resume=run")
    assert Run(run).finished and victim.read_text() == "mine" and not (here / "owned").exists()
    assert not (run / "config.0.yaml").exists()  # nothing is set otherwise


HOSTILE = {
    "a callback that is none": {"callbacks": [{"_target_": "torch.hub.load", "repo_or_dir": "h", "model": "x", "source": "local"}]},
    "a callback that writes": {"callbacks": [{"_target_": "pytorch_lightning.callbacks.ModelCheckpoint", "dirpath": "elsewhere"}]},
    "sslt's own that writes": {"callbacks": [{"_target_": "sslt.callbacks.checkpoint.Checkpoint", "folder": "x", "every_minutes": 0.0}]},
    "pickles of torch": {"data": {"_target_": "torch.load", "f": "h/x.pt", "weights_only": False}},
    "pickles of numpy": {"data": {"_target_": "numpy.load", "file": "h/x.npy", "allow_pickle": True}},
    "another kind": {"objective": {"_target_": "sslt.data.views.base.Plain", "n": 1}},
    "no class at all": {"data": {"_target_": "sslt.data.cache.write_atomic", "path": "x", "text": "y"}},
    "nested": {"views": {"_target_": "sslt.data.views.base.Plain", "n": {"_target_": "os.system", "command": "touch owned"}}},
    "where none stands": {"name": {"_target_": "sslt.data.sources.docs.Docs", "val_fraction": 0.1, "test_fraction": 0.2}},
    "half a call": {"schedule": {"_target_": "sslt.schedules.Constant", "warmup": 0.1, "_partial_": True}},
    "an interpolation": {"name": "${oc.create:{_target_:os.system}}"},
    "trust in itself": {"trust": ["os"], "data": {"_target_": "os.system", "command": "touch owned"}},
    "settings of Hydra": {"hydra": {"job_logging": {"version": 1}}},
    "a key nothing reads": {"optimiser": {"lr": 1}},
    "a profiler with a path": {"trainer": {"profiler": {"_target_": "pytorch_lightning.profilers.SimpleProfiler", "dirpath": ".."}}},
    "a logger that leads out": {"logger": {"csv": {"_target_": "pytorch_lightning.loggers.CSVLogger", "name": "../../x", "version": "v"}}},
    "a logger's own folder": {"logger": {"csv": {"_target_": "pytorch_lightning.loggers.CSVLogger", "name": "", "prefix": "/x"}}},
}


def test_a_changed_config_executes_nothing(sslt, here, run, capsys):
    """Every place of the saved config, with what must not stand there: one line, exit code 2, and no marker."""
    whole = config_of(run)
    (here / "h").mkdir()
    (here / "h" / "hubconf.py").write_text(CODE)
    for what, change in HOSTILE.items():
        inside = {k: {**whole[k], **v} if k == "trainer" else v for k, v in change.items()}
        merged = {**whole, **inside}
        (run / "config.yaml").write_text(yaml.safe_dump(merged))
        sslt("pretrain", "resume=run", code=2)
        said = capsys.readouterr().err
        assert "config.yaml" in said or "nothing reads" in said, (what, said)
        assert not (here / "owned").exists() and not (here / "elsewhere").exists(), what
    (run / "config.yaml").write_text("a: &a [x, x]\nb: &b [*a, *a]\nname: [*b, *b]\n")
    sslt("pretrain", "resume=run", code=2)
    assert "alias" in capsys.readouterr().err


def test_downloads_are_asked_for_by_who_types(here):
    """A folder does not say that data are fetched, and to where."""
    (here / "run").mkdir()
    sets = {"_target_": "sslt.data.sources.images.ImageSet", "name": "cifar10", "root": "/tmp/x", "download": True}
    whole = ["+task=simclr", "data=cifar10"]
    plain = OmegaConf.to_container(config.compose("pretrain", whole), resolve=True)
    (here / "run" / "config.yaml").write_text(yaml.safe_dump({**plain, "data": sets}))
    place = here / "run" / "config.yaml"
    assert restored(place, "pretrain", [], None, Run(here / "run")).data.download is False
    assert restored(place, "pretrain", ["data.download=true"], None, Run(here / "run")).data.download is True


def test_links_and_pipes_of_a_run_folder_are_refused(sslt, here, run, capsys):
    """A run goes on by writing into its folder: through a link it would overwrite what somebody else's folder points to."""
    victim = here / "thesis.tex"
    victim.write_text("mine")
    for name in ("command.txt", "metrics.csv", "logs/sslt.log", ".lock", "plots/curves.png"):
        shutil.copytree(run, here / "bad")
        (here / "bad" / name).unlink(missing_ok=True)
        (here / "bad" / name).symlink_to(victim)
        sslt("pretrain", "resume=bad", code=2)
        assert "leads out of the run folder" in capsys.readouterr().err and victim.read_text() == "mine"
        shutil.rmtree(here / "bad")
    (here / "mine").mkdir()
    shutil.rmtree(run / "encoder")
    (run / "encoder").symlink_to(here / "mine")
    sslt("pretrain", "resume=run", code=2)
    assert not list((here / "mine").iterdir())
    (run / "encoder").unlink()
    os.mkfifo(run / "metrics.jsonl")
    sslt("pretrain", "resume=run", code=2)
    assert "a pipe" in capsys.readouterr().err


def test_what_is_typed_beside_resume_goes_on_top(sslt, here, run, capsys):
    """Values, added values, options of groups and what is taken away; mistakes among them are said as anywhere."""
    sslt("pretrain", "resume=run", "trainer.max_steps=2", "schedule=linear", "optimizer.lr=0.003", "+trainer.benchmark=false", "logger=csv")
    now = Run(run).config
    assert (now.trainer.max_steps, now.schedule._target_, now.optimizer.lr) == (2, "sslt.schedules.Linear", 0.003)
    assert now.optimizer.weight_decay == 0.0005 and "csv" in now.logger and Run(run).metrics["train/steps"] == 2
    assert Run(run).info["overrides"][-1] == "logger=csv"
    for typed, says in {
        "optimizer.lrr=1": "did you mean 'lr'",
        "optimizer=adamww": "did you mean 'adamw'",
        "seed=0,1": "one value",
        "hydra.verbose=true": "Hydra has no part",
        "batch_size=many": "wrong type",
        "data@shift.target=usps": "repeat the whole command",
    }.items():
        sslt("pretrain", "resume=run", typed, code=2)
        assert says in capsys.readouterr().err, typed
    sslt("pretrain", "resume=run", "--cfg", "job")
    assert "max_steps: 2" in capsys.readouterr().out
    sslt("pretrain", "resume=run", "-m", code=2)


def test_a_run_of_an_earlier_version_goes_on(sslt, here, run):
    """Settings that came since have their defaults."""
    saved = config_of(run)
    for key in ("windows", "ema", "most_epochs"):
        del saved[key]
    (run / "config.yaml").write_text(yaml.safe_dump(saved, sort_keys=False))
    sslt("pretrain", "resume=run", "trainer.max_steps=2")
    assert Run(run).metrics["train/steps"] == 2 and Run(run).config.windows is None


def test_the_whole_command_can_be_repeated(sslt, here, run):
    """Then the folder is not asked for settings, whatever its config says; what is left out has its default again."""
    (run / "config.yaml").write_text("callbacks: [{_target_: os.system, command: touch owned}]\n")
    sslt(*START, "trainer.max_steps=2", "resume=run")
    assert Run(run).finished and Run(run).metrics["train/steps"] == 2 and not (here / "owned").exists()


def test_a_users_own_class_goes_on_where_the_user_names_it(sslt, own_code, capsys):
    """By the same --config-dir, or by trust=; not because the folder says so."""
    (own_code / "mylab").mkdir()
    (own_code / "mylab" / "views.py").write_text("from sslt.data.views.image_views import ImageViews\nclass Twice(ImageViews): ...\n")
    (own_code / "mine" / "views").mkdir(parents=True)
    (own_code / "mine" / "views" / "twice.yaml").write_text("# mine\ndefaults: [simclr, _self_]\n_target_: mylab.views.Twice\n")
    sslt(*START, "views=twice", "--config-dir", "mine", "hydra.run.dir=run")
    Run(own_code / "run").update(status="running")
    sslt("pretrain", "resume=run", code=2)
    assert "--config-dir mine" in capsys.readouterr().err
    sslt("pretrain", "resume=run", "--config-dir", "mine")
    Run(own_code / "run").update(status="running", config_dir=None)
    sslt("pretrain", "resume=run", code=2)
    assert "trust=[mylab]" in capsys.readouterr().err
    sslt("pretrain", "resume=run", "trust=[mylab]")


def test_a_chain_goes_on_from_what_it_saved(sslt, here, capsys):
    """Its stages' settings are data as well, also of stages that have not begun; a moved chain finds its own stages."""
    chain = ["run", "+task=simclr", "+target=digits", *TINY_IMAGES, "trainer.max_steps=1", "batch_size=64", "shots=[1]", "draws=1"]
    sslt(*chain, "hydra.run.dir=first")
    (here / "first").rename(here / "chain")
    shutil.rmtree(here / "chain" / "evaluate")
    Run(here / "chain").update(status="running")
    whole = config_of(here / "chain")
    up = "../" * 12
    for stage, change in {
        "evaluate": {"data": {"_target_": "os.system", "command": "touch owned"}},
        "finetune": {"callbacks": [{"_target_": "os.system", "command": "touch owned"}]},
        "pretrain": {"hydra": {}},
    }.items():
        bad = json.loads(json.dumps(whole))
        bad["stages"][stage]["config"] |= change
        (here / "chain" / "config.yaml").write_text(yaml.safe_dump(bad))
        sslt("run", "resume=chain", code=2)
        assert not (here / "owned").exists()
    bad = json.loads(json.dumps(whole))
    bad["stages"]["evaluate"]["choices"]["data"] = f"{up}proc/self/cwd/x"
    (here / "chain" / "config.yaml").write_text(yaml.safe_dump(bad))
    capsys.readouterr()
    sslt("run", "resume=chain", "evaluate.draws=2")
    measured = Run(here / "chain" / "evaluate").config
    assert measured.draws == 2 and Run(here / "chain").finished
    assert Path(measured["from"]).resolve() == here / "chain" / "finetune"
