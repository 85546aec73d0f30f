"""Protects what comes from elsewhere: splits without labels, damaged weights, folders of other libraries, a full disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_IMAGES, TINY_TEXT

from sslt.execute import _disk_is_full
from sslt.runs import Run

TUNE = ["finetune", *TINY_IMAGES, "trainer.max_steps=1", "batch_size=32"]


@pytest.fixture
def run(sslt, here):
    """A pretrained run, tiny."""
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=1", "online_probe.every_n_epochs=0", "hydra.run.dir=run")
    return here / "run"


def said(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sslt: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_test_split_without_labels_is_named_before_training(sslt, here, capsys):
    """It is there to be predicted; nothing is trained that could not be measured. Pretraining does without labels of a val split."""
    rng = np.random.default_rng(0)
    images = {f"{s}_images": rng.integers(0, 255, (n, 12, 12), dtype=np.uint8) for s, n in (("train", 80), ("test", 20), ("val", 20))}
    np.savez("own.npz", **images, train_labels=np.arange(80) % 2)
    data = ["data=arrays", "data.path=own.npz"]
    sslt(*TUNE, "+target=image_folder", "from=scratch", *data, "hydra.run.dir=out", code=2)
    assert "'test' split of own has no labels" in said(capsys) and not (here / "out" / "checkpoints").exists()
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, *data, "batch_size=32", "trainer.max_steps=1", "hydra.run.dir=pre")


def table(name: str) -> list[str]:
    """Settings of a fine-tuning on a table of 80 texts, which is written."""
    rows = [f"{word} room number {i},{label}" for i in range(40) for word, label in (("good", "pos"), ("bad", "neg"))]
    Path(name).write_text("text,label\n" + "\n".join(rows) + "\n")
    small = [*[s for s in TINY_TEXT if "vocab" not in s], "encoder.processor.vocab_size=60", "trainer.max_steps=1", "batch_size=8"]
    return ["finetune", "+target=text_csv", "from=scratch", f"data.path={name}", *small]


def test_all_labels_may_be_learned_from(sslt, here):
    """Without a validation split there is nothing to watch, and nothing to pick an epoch by."""
    tune = [*table("tickets.csv"), "data.val_fraction=0"]
    sslt(*tune, "hydra.run.dir=out")
    found = Run(here / "out").metrics
    assert found["train/labels"] == 64 and "test/accuracy" in found and "val/accuracy" not in found
    sslt(*tune, "report=best", code=2)


def test_damaged_weights_are_named(sslt, run, capsys):
    """A file cut short, or git-lfs's pointer to it."""
    weights = run / "encoder" / "model.safetensors"
    for content in (weights.read_bytes()[:5000], b"version https://git-lfs.github.com/spec/v1\n"):
        weights.write_bytes(content)
        sslt(*TUNE, "+target=digits", "from=run", code=2)
        assert "is no whole safetensors file" in said(capsys)


def test_timms_folders_are_needed_once(sslt, here):
    """An encoder taken from a folder of timm's is whole in its own run."""
    pretrain = ["pretrain", "+task=simclr", *TINY_IMAGES, "encoder.stem=standard", "trainer.max_steps=1", "online_probe.every_n_epochs=0"]
    sslt(*pretrain, "data=digits", "encoder.processor.size=32", "hydra.run.dir=run")
    shutil.move(here / "run" / "encoder", here / "theirs")
    (here / "theirs" / "sslt.json").unlink()
    cpu = ["trainer.accelerator=cpu", "baseline=false"]
    sslt(*TUNE[:1], "+target=digits", "from=theirs", "trainer.max_steps=1", *cpu, "hydra.run.dir=tuned")
    shutil.rmtree(here / "theirs")
    assert not json.loads((here / "tuned" / "encoder" / "sslt.json").read_text())["args"]["name"].startswith("local-dir")
    sslt("evaluate", "from=tuned", *cpu, "hydra.run.dir=measured")
    assert Run(here / "measured").metrics["test/accuracy"] == Run(here / "tuned").metrics["test/accuracy"]


def test_a_chain_names_its_stages(sslt, run, here, capsys):
    """A folder without an encoder says where there is one."""
    for verb, status, says in (("run", "finished", "from=other/finetune"), ("evaluate", "finished", "the run it measured")):
        (here / "other").mkdir(exist_ok=True)
        (here / "other" / "run.json").write_text(json.dumps({"verb": verb, "status": status, "from": "run"}))
        sslt(*TUNE, "+target=digits", "from=other", code=2)
        assert says in said(capsys)


def test_a_stored_command_cannot_widen_trust(sslt, here, capsys):
    """Whoever made a run folder would otherwise say whom its user trusts."""
    (here / "x").mkdir()
    (here / "x" / "run.json").write_text(json.dumps({"verb": "finetune", "status": "finished"}))
    (here / "x" / "config.yaml").write_text("data: {_target_: os.system, command: touch owned}\n")
    (here / "r").mkdir()
    (here / "r" / "run.json").write_text(json.dumps({"verb": "evaluate", "status": "failed", "overrides": ["from=x", "trust=[os]"]}))
    sslt("evaluate", "resume=r", code=2)
    said(capsys)
    whole = {"from": "x", "trust": ["os"], "data": {"_target_": "os.system", "command": "touch owned"}}
    (here / "r" / "config.yaml").write_text(json.dumps(whole))
    sslt("evaluate", "resume=r", code=2)
    assert "trust=[os]" in said(capsys) and not (here / "owned").exists()


def test_prediction_needs_no_labels(sslt, here):
    """An empty column that is called like labels is none of its business; a folder in place of a file is a line."""
    sslt(*table("tickets.csv"), "hydra.run.dir=run")
    (here / "new.csv").write_text("text,label\ngood room,\nbad room,\n")
    sslt("predict", "from=run", "input=new.csv", "trainer.accelerator=cpu", "hydra.run.dir=out")
    assert len((here / "out" / "predictions.csv").read_text().splitlines()) == 3
    sslt("predict", "from=run", "input=.", "trainer.accelerator=cpu", code=2)
    sslt("predict", "from=run", "data=text_lines", "data.path=nothing.txt", "trainer.accelerator=cpu", code=2)


@pytest.mark.parametrize(
    "setting",
    ["trainer.accumulate_grad_batches=0", "trainer.log_every_n_steps=0", "seed=-1"],
)
def test_numbers_that_nothing_can_be_made_of(setting, sslt, here, capsys):
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=1", setting, code=2)
    assert setting in said(capsys)


def test_what_says_that_a_disk_is_full():
    """The system's number, and the texts of libraries that lose it."""
    assert _disk_is_full(OSError(28, "No space left on device"))
    assert _disk_is_full(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert _disk_is_full(OSError("4096 requested and 512 written"))
    assert not _disk_is_full(OSError(2, "No such file or directory"))
