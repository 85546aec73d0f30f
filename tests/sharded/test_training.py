"""Protects sharded training: commands on two ranks leave what they leave where each rank has a copy, and a run goes on bit for bit.

All runs are made by two processes, one after the other, as a launcher would start them.
"""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1]))  # a rank knows nothing of pytest's paths
import two_processes
from conftest import TINY_IMAGES, TINY_TEXT, TINY_VIT

from sslt import distributed, float8
from sslt.callbacks.checkpoint import LAST, Checkpoint, Damaged, _remove_unused, read
from sslt.runs import Run
from sslt.sharded import checkpoint as parts
from sslt.signals import Interrupted

VIT = ["encoder=vit_small", *TINY_VIT, "trainer.precision=32", "trainer.accelerator=cpu"]
SGD = ["optimizer=sgd", "optimizer.lr=0.05"]  # AdamW makes steps of a gradient's rounding where it has nothing else
STEPS = ["trainer.max_steps=3", "batch_size=16"]
TUNE = ["+target=digits", "from=scratch", "labels_per_class=20", "baseline=false", "late_fusion=false", *STEPS]
CASES = {
    "contrast": ["pretrain", "+task=simclr", *VIT, *STEPS, "trainer.max_steps=6", *SGD, "trainer.gradient_clip_val=5", "ema=0.5"],
    "teacher": ["pretrain", "+task=byol", *TINY_IMAGES, *STEPS, "optimizer=sgd", "optimizer.lr=0.005"],  # ten times that magnifies rounding
    "recomputed": ["pretrain", "+task=mae", *VIT, *STEPS, "trainer.activation_checkpointing=true"],
    "parts": ["pretrain", "+task=simclr", *VIT, *STEPS, "chunk_size=8"],
    "eight bits": ["pretrain", "+task=mae", *VIT, *STEPS, "trainer.precision=fp8-mixed"],
    "tied": ["pretrain", "+task=mlm", *TINY_TEXT, *STEPS],
    "accumulated": ["pretrain", "+task=mae", *VIT, *STEPS, "trainer.accumulate_grad_batches=2"],
    "gradual": ["finetune", *TUNE, *TINY_IMAGES, "adaptation=gradual", "adaptation.every=progress", "report=best"],
    "low rank": ["finetune", *TUNE, *VIT, "adaptation=lora", "trainer.gradient_clip_val=0.1"],
    "near the start": ["finetune", *TUNE, *VIT, "adaptation=l2sp", "adaptation.strength=0.1"],
}
STOPPED = "contrast"  # the one that is also stopped and gone on with
AT = 2  # steps after which a signal comes; ranks agree on it after the third or fourth, were it later perhaps not before the last


def command(args: list[str], folder: Path, rank: int) -> None:
    verb, *overrides = args
    if verb == "pretrain" and "ema=0.5" not in args:  # that one is probed, too
        overrides.append("online_probe.every_n_epochs=0")
    two_processes.command(verb, overrides, folder, rank)


def made(rank: int) -> dict[str, Any]:
    float8.EMULATED = True
    for name, args in CASES.items():
        for strategy in ("ddp", "fsdp"):
            command([*args, f"trainer.strategy={strategy}"], Path(strategy) / name, rank)
    before = Checkpoint.on_train_batch_end

    def stop(callback: Any, trainer: Any, learner: Any, *rest: Any) -> None:
        if learner.batches_seen == AT:
            callback.watch.came = signal.SIGTERM
        before(callback, trainer, learner, *rest)

    stopped = [*CASES[STOPPED], "trainer.strategy=fsdp"]
    Checkpoint.on_train_batch_end = stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        command(stopped, Path("stopped"), rank)
    Checkpoint.on_train_batch_end = before  # type: ignore[method-assign]
    distributed.barrier()
    if rank == 0:
        for name in ("alone", "copied"):
            shutil.copytree("stopped", name)
    distributed.barrier()
    command(stopped, Path("stopped"), rank)
    command([*CASES[STOPPED], "trainer.strategy=ddp"], Path("copied"), rank)
    return {}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SSLT_CACHE", str(cache))
        patch.setenv("WANDB_MODE", "offline")
        two_processes.run(made, folder, 1200)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = sorted(file for part in ("encoder", "student", "teacher", "raw", "head") for file in (run / part).glob("*.safetensors"))
    assert files
    return {f"{file.parent.name}/{name}": x for file in files for name, x in load_file(file).items()}


@pytest.mark.parametrize("case", CASES)
def test_sharded_is_copied(runs, case):
    """Averages, teachers, clipping, tied words, blocks that are freed later, adapters, penalties: the same weights are left."""
    a, b = (weights(runs / strategy / case) for strategy in ("ddp", "fsdp"))
    assert a.keys() == b.keys() and len(a) > 3
    for name, x in a.items():
        assert torch.allclose(x, b[name], rtol=1e-4, atol=1e-6 + 1e-5 * float(x.abs().max())), name
    assert (runs / "fsdp" / case / "checkpoints" / "shards").is_dir() and not (runs / "ddp" / case / "checkpoints" / "shards").exists()


def test_goes_on_bit_for_bit(runs):
    whole = weights(runs / "fsdp" / STOPPED)
    assert {k: x.tolist() for k, x in weights(runs / "stopped").items()} == {k: x.tolist() for k, x in whole.items()}


def test_copies_go_on_with_shards(runs):
    """Of ranks that have a copy each."""
    whole = weights(runs / "fsdp" / STOPPED)
    for name, x in weights(runs / "copied").items():
        assert torch.allclose(x, whole[name], rtol=1e-4, atol=1e-6 + 1e-5 * float(x.abs().max())), name


def test_one_process_goes_on_with_shards(runs, sslt, monkeypatch):
    """With steps of as many samples, and afterwards no parts are left over."""
    monkeypatch.chdir(runs)
    sslt("pretrain", "resume=alone", "trainer.devices=1")
    run = Run("alone")
    assert run.finished and run.metrics["train/steps"] == 6
    assert read(Path("alone/checkpoints") / LAST)["step_size"] == [1, 1, 32]


def test_no_rank_wrote_all(runs):
    """Each file has about half of the numbers; what no checkpoint names any more is gone."""
    folder = runs / "fsdp" / STOPPED / "checkpoints"
    about = torch.load(folder / LAST, weights_only=True)[parts.KEY]
    assert [p.name for p in (folder / parts.FOLDER).iterdir()] == [about["folder"]]
    sizes = [size for size, _ in about["files"].values()]
    assert len(sizes) == 2 and max(sizes) < 1.3 * min(sizes) and (folder / LAST).stat().st_size < sum(sizes) / 2


def test_parts_of_a_checkpoint_that_cannot_be_read_now_stay(runs, tmp_path, monkeypatch):
    """A disk that does not answer for a moment is no reason to delete."""
    folder = shutil.copytree(runs / "fsdp" / STOPPED / "checkpoints", tmp_path / "checkpoints")
    (folder / parts.FOLDER / "older").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **more: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
        _remove_unused(folder)
    assert len(list((folder / parts.FOLDER).iterdir())) == 2
    _remove_unused(folder)
    assert len(list((folder / parts.FOLDER).iterdir())) == 1 and read(folder / LAST)


@pytest.mark.parametrize("about", [None, {"folder": "..", "files": {"a": [1, 2]}}, {"folder": "last-6", "files": {}}])
def test_what_is_said_of_parts_may_be_anything(about, tmp_path):
    assert parts.damage(tmp_path / LAST, about) == "what it says of its parts makes no sense"


def test_sums_may_be_anything(tmp_path):
    (tmp_path / parts.FOLDER / "x").mkdir(parents=True)
    (tmp_path / parts.FOLDER / "x" / "a").write_bytes(b"1")
    for wanted in (None, 5, [1], ["1", 2]):
        assert parts.damage(tmp_path / LAST, {"folder": "x", "files": {"a": wanted}}) == "shards/x/a is not as it was written"


def test_damaged_parts_are_damage(runs, tmp_path):
    """A checkpoint one of whose parts is gone or changed is none, and the file runs nothing."""
    for how in (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x01")):
        folder = shutil.copytree(runs / "fsdp" / STOPPED / "checkpoints", tmp_path / "checkpoints", dirs_exist_ok=True)
        read(folder / LAST)
        how(next((folder / parts.FOLDER).glob("*/*.safetensors")))
        with pytest.raises(Damaged, match="shards/last-6/shard-"):
            read(folder / LAST)
