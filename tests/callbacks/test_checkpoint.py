"""Protects checkpoints: written in little memory, with a full disk known as one; read only where they are as they were written."""

from __future__ import annotations

import logging
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY_IMAGES

from sslt.callbacks.checkpoint import LAST, PREVIOUS, Checkpoint, Damaged, StreamedCheckpoints, _check_moments, newest, read
from sslt.errors import UserError, cause
from sslt.execute import _disk_is_full
from sslt.runs import Run
from sslt.signals import Stopped

MEMORY = """
import sys
from pathlib import Path

import torch

from sslt.callbacks.checkpoint import StreamedCheckpoints
from sslt.stages.fitting import peak_memory

weights = {f"layer{i}": torch.ones(5, 2**20) for i in range(10)}
StreamedCheckpoints().save_checkpoint({"little": torch.ones(1)}, sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is a new one
before = peak_memory("cpu")
StreamedCheckpoints().save_checkpoint(weights, sys.argv[1])
print((peak_memory("cpu") - before) // 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to ask for peak memory")
def test_saving_makes_no_copy(tmp_path):
    """200 MiB of weights take less than a tenth of that on their way to the disk."""
    code = [sys.executable, "-c", MEMORY, str(tmp_path / "a.ckpt")]
    assert int(subprocess.run(code, check=True, capture_output=True, text=True).stdout) < 20
    assert sum(x.numel() for x in torch.load(tmp_path / "a.ckpt", mmap=True).values()) == 50 * 2**20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("size", [10, 2**20])
def test_a_full_disk_is_known_as_one(size):
    """Whether it is met while tensors are written or only at the end."""
    with pytest.raises((OSError, RuntimeError)) as caught:
        StreamedCheckpoints().save_checkpoint({"x": torch.ones(size)}, "/dev/full")
    assert cause(caught.value, _disk_is_full)


def test_a_run_saves_so(sslt, here, monkeypatch):
    """The Trainer of a run has it, and resuming reads what it wrote."""
    written, save = [], StreamedCheckpoints.save_checkpoint

    def noted(self, checkpoint, path, **settings):
        written.append(path)
        save(self, checkpoint, path, **settings)

    monkeypatch.setattr(StreamedCheckpoints, "save_checkpoint", noted)
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=1", "hydra.run.dir=a")
    sslt("pretrain", "resume=a", "trainer.max_steps=2")
    assert [Path(path).name for path in written] == [".last.ckpt.tmp"] * 2


class Trainer:
    """Saves twelve bytes, in two halves; `between` is called between them."""

    is_global_zero = True

    def __init__(self, content: bytes, between=lambda: None):
        self.content, self.between = content, between

    def save_checkpoint(self, path):
        with open(path, "wb") as f:
            f.write(self.content)
            self.between()
            f.write(self.content)


def one_weight(value: float = 1.0) -> torch.nn.Module:
    module = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(module.weight, value)
    module.batches_seen = 3
    return module


def test_no_signal_cuts_a_save(tmp_path):
    """Not even two Ctrl-C, of which the second ends everything else at once."""
    checkpoint = Checkpoint(tmp_path, 1)
    checkpoint.watch.start()
    try:
        checkpoint.save(Trainer(b"whole!", lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(3)]), one_weight())
        assert checkpoint.watch.came == signal.SIGINT and (tmp_path / LAST).read_bytes() == b"whole!" * 2
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        checkpoint.watch.stop()


def test_what_cannot_be_saved_costs_nothing(tmp_path):
    """A disk that is full, or weights that are no numbers any more: both checkpoints stay, and no half of one."""
    checkpoint = Checkpoint(tmp_path, 1)
    for content in (b"first", b"second"):
        checkpoint.save(Trainer(content), one_weight())

    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.save(Trainer(b"third", full), one_weight())
    with pytest.raises(UserError, match=r"weights of weight are no longer finite at step 3; the last good checkpoint is kept"):
        checkpoint.save(Trainer(b"fourth"), one_weight(float("nan")))
    partly = one_weight()
    partly.weight = torch.nn.Parameter(torch.tensor([[1.0, float("inf")]]))  # one number among good ones
    with pytest.raises(UserError, match="no longer finite"):
        checkpoint.save(Trainer(b"fifth"), partly)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {LAST: b"second" * 2, PREVIOUS: b"first" * 2}
    assert not checkpoint.watch.writing


def test_kept_copies_leave_the_others_alone(tmp_path):
    checkpoint = Checkpoint(tmp_path, 1)
    for name in (LAST, LAST, "epoch=1.ckpt", "epoch=1.ckpt"):
        checkpoint.save(Trainer(name.encode()), one_weight(), name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch=1.ckpt", LAST, PREVIOUS]
    assert (tmp_path / PREVIOUS).read_bytes() == LAST.encode() * 2


def test_so_many_epochs_are_kept(tmp_path):
    """A copy of every second epoch, at its end only; without the setting none."""
    for every, kept in ((2, ["epoch=2.ckpt", "epoch=4.ckpt"]), (0, [])):
        checkpoint, module = Checkpoint(tmp_path / str(every), 1, every), one_weight()
        module.steps_per_epoch, module.interrupted, module.device = 3, False, torch.device("cpu")
        for module.batches_seen in range(3, 14):
            checkpoint.on_train_epoch_end(Trainer(b"x"), module)
        assert sorted(p.name for p in (tmp_path / str(every)).glob("epoch=*")) == kept


# ---------------------------------------------------------------- what is damaged
ONE = ["pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=2", "checkpoint.every_minutes=1e-9", "online_probe.every_n_epochs=0"]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory, cache):
    """The bytes of last.ckpt (step 2) and previous.ckpt (step 1) of a run."""
    from sslt.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        patch.setenv("SSLT_CACHE", str(cache))
        assert main([*ONE, "hydra.run.dir=a"]) == 0
        return {name: Path("a/checkpoints", name).read_bytes() for name in (LAST, PREVIOUS)}


@pytest.fixture
def folder(two_checkpoints, tmp_path):
    for name, content in two_checkpoints.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": lambda p: flip(p, p.stat().st_size // 2),
    "cut short": lambda p: os.truncate(p, p.stat().st_size - 1000),
    "empty": lambda p: os.truncate(p, 0),
    "garbage": lambda p: p.write_bytes(b"garbage" * 1000),
    "a pickle": lambda p: p.write_bytes(pickle.dumps({"state_dict": 1})),
    "code": lambda p: torch.save({"state_dict": Evil()}, p),
    "something else": lambda p: torch.save([1, 2], p),
    "another's checkpoint": lambda p: torch.save({"state_dict": {}}, p),
    "a pipe": lambda p: (p.unlink(), os.mkfifo(p)),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_falls_back(folder, monkeypatch, caplog, what):
    """To the one before it, with a line that says what is lost; where that is damaged, too, it ends in one line."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(logging.getLogger("sslt"), "propagate", True)
    assert newest(folder) == folder / LAST
    DAMAGES[what](folder / LAST)
    assert newest(folder) == folder / PREVIOUS
    (line,) = {r.getMessage() for r in caplog.records}
    assert "last.ckpt.damaged is damaged" in line and "of step 1" in line and "weights_only" not in line
    assert newest(folder) == folder / PREVIOUS and not (folder / LAST).exists()
    DAMAGES[what](folder / PREVIOUS)
    with pytest.raises(UserError, match=r"previous\.ckpt is damaged") as caught:
        newest(folder)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert not (folder / "owned").exists() and (folder / PREVIOUS).exists()


def test_every_byte_counts(folder, two_checkpoints):
    """A flipped bit anywhere is noticed, or stands where nothing reads it (in a zip's padding and time stamps)."""
    path, whole = folder / LAST, two_checkpoints[LAST]
    before = pickle.dumps(_plain(read(path)))
    noticed = 0
    for at in random.Random(0).sample(range(len(whole)), 60):
        flip(path, at)
        try:
            assert pickle.dumps(_plain(read(path))) == before, f"byte {at}"
        except Damaged:
            noticed += 1
        path.write_bytes(whole)
    assert noticed > 40


def _plain(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def test_resuming_from_the_one_before(sslt, here, two_checkpoints):
    """Ends with the same weights; without any checkpoint that can be read the command ends with 2."""
    sslt(*ONE, "hydra.run.dir=a")
    run, whole = here / "a", (here / "a" / "encoder" / "model.safetensors").read_bytes()
    Run(run).update(status="interrupted")
    flip(run / "checkpoints" / LAST, 5000)
    (run / "encoder" / "model.safetensors").unlink()
    sslt("pretrain", "resume=a")
    assert (run / "encoder" / "model.safetensors").read_bytes() == whole
    assert read(run / "checkpoints" / LAST)["batches_seen"] == 2
    assert read(run / "checkpoints" / PREVIOUS)["batches_seen"] == 1
    Run(run).update(status="interrupted")
    for name in (LAST, PREVIOUS):
        (run / "checkpoints" / name).write_bytes(b"garbage")
    sslt("pretrain", "resume=a", code=2)


def test_a_damaged_best_epoch_is_noticed(tmp_path):
    from torch import nn

    from sslt.stages.common import load_best, save_best

    best, parts = tmp_path / "c" / "best.safetensors", [nn.Linear(3, 4), nn.Linear(2, 2)]
    save_best(best, *parts, Run(tmp_path))
    load_best(best, *parts)
    flip(best, -3)
    with pytest.raises(UserError, match="report=last"):
        load_best(best, *parts)


def test_moments_of_other_weights_are_refused(tmp_path):
    """A checkpoint that is whole by its digests can still be made up: no step is taken with what fits no weights."""
    weights = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    optimizer = torch.optim.AdamW(weights)
    for p in weights:
        p.grad = torch.ones_like(p)
    optimizer.step()
    _check_moments(optimizer, tmp_path)
    state = optimizer.state[weights[0]]
    for name, value in (("exp_avg", -1.0), ("exp_avg_sq", torch.zeros(3)), ("step", "x"), ("step", torch.zeros(2)), ("exp_avg", ...)):
        whole = dict(state)
        state.pop(name) if value is ... else state.update({name: value})
        with pytest.raises(UserError, match=f"'{name}' of its optimizer"):
            _check_moments(optimizer, tmp_path)
        state.update(whole)
    optimizer = torch.optim.SGD(weights)  # without momentum it holds None
    optimizer.step()
    _check_moments(optimizer, tmp_path)


def test_state_of_sparse_gradients_stands_beside_that_of_dense_ones(tmp_path):
    """A table's rows and a layer's weights are two kinds of state in one optimizer, and each is checked as what it is."""
    from sslt.optimizers import AdamW

    table, layer = torch.nn.Embedding(5, 3, sparse=True), torch.nn.Linear(3, 2)
    optimizer = AdamW([*table.parameters(), *layer.parameters()], 0.1, 0.0, (0.9, 0.99), 1e-8, False)
    layer(table(torch.tensor([1, 4]))).sum().backward()
    optimizer.step()
    _check_moments(optimizer, tmp_path)
    for parameter, name in ((table.weight, "row_square"), (table.weight, "row_steps"), (layer.bias, "exp_avg")):
        whole = dict(optimizer.state[parameter])
        for value in (torch.zeros(7), -1.0):
            optimizer.state[parameter][name] = value
            with pytest.raises(UserError, match=f"'{name}' of its optimizer"):
                _check_moments(optimizer, tmp_path)
        optimizer.state[parameter].update(whole)


def test_what_cannot_be_taken_up_is_the_checkpoints_fault(sslt, here, two_checkpoints, capsys):
    sslt(*ONE, "hydra.run.dir=a")
    Run(here / "a").update(status="interrupted")
    for change in (lambda c: c["loops"]["fit_loop"].update(state_dict="x"), lambda c: c["optimizer_states"][0].update(state="x")):
        (here / "a" / "checkpoints" / LAST).write_bytes(two_checkpoints[LAST])
        found = torch.load(here / "a" / "checkpoints" / LAST, weights_only=True)
        change(found)
        torch.save(found, here / "a" / "checkpoints" / LAST)
        sslt("pretrain", "resume=a", code=2)
        assert "last.ckpt is damaged" in capsys.readouterr().err


def test_copies_stand_for_no_checkpoint(sslt, here):
    """What is kept of every epoch is not gone on from: the last one is written as without them, and says where a killed run was."""
    sslt(
        "pretrain",
        "+task=simclr",
        *TINY_IMAGES,
        "batch_size=256",
        "trainer.max_epochs=2",
        "checkpoint.keep_every_n_epochs=1",
        "hydra.run.dir=a",
    )
    assert {p.name for p in Path("a/checkpoints").glob("*.ckpt")} == {LAST, "epoch=1.ckpt", "epoch=2.ckpt"}
    assert read(Path("a/checkpoints") / LAST)["batches_seen"] == 10
    checkpoint = Checkpoint(here / "b", 1, 1)
    checkpoint.save(Trainer(b"copy"), one_weight(), "epoch=1.ckpt")
    assert (checkpoint._last, checkpoint._saved_at) == (0.0, -1)
    checkpoint.save(Trainer(b"last"), one_weight())
    assert checkpoint._last > 0 and checkpoint._saved_at == 3
