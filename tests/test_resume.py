"""A run that was interrupted anywhere ends with the weights, bit for bit, of one that never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_IMAGES, TINY_TEXT
from safetensors.torch import load_file

from sslt.callbacks.checkpoint import LAST, read
from sslt.cli import main
from sslt.encoders.image import ImageEncoder
from sslt.runs import Run

SSLT = str(Path(sys.executable).parent / "sslt")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the encoder, of others beside it and of what stands on them."""
    parts = ("encoder", "student", "teacher", "raw", "head", "raw/head", "episodes")
    files = [file for part in parts for file in (folder / part).glob("*.safetensors")]
    assert files
    return {f"{file.relative_to(folder)}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def same(a: Path, b: Path) -> bool:
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


class StopAt:
    """A signal handler's work without a signal: asks the checkpoint callback to stop after a step."""

    def __init__(self, step: int, monkeypatch: pytest.MonkeyPatch):
        from sslt.callbacks.checkpoint import Checkpoint

        before = Checkpoint.on_train_batch_end

        def stop(callback, trainer, learner, *rest):
            if learner.batches_seen == step:
                callback.watch.came = signal.SIGTERM
            before(callback, trainer, learner, *rest)

        monkeypatch.setattr(Checkpoint, "on_train_batch_end", stop)


def in_two_parts(sslt, args: list[str], step: int, name: str = "part") -> None:
    """Run `args` in the folder `name`, stopped after `step` and gone on with."""
    with pytest.MonkeyPatch.context() as patch:
        StopAt(step, patch)
        sslt(*args, f"hydra.run.dir={name}", code=130)
    sslt(args[0], f"resume={name}")


IMAGES = ["pretrain", "+task=simclr", *TINY_IMAGES, "batch_size=256", "trainer.max_epochs=3"]  # 5 steps an epoch
TEXT = ["pretrain", "+task=mlm", *TINY_TEXT, "trainer.max_steps=8", "batch_size=16"]
ALONE = ["baseline=false", "late_fusion=false"]  # "finetune-partial" has what stands beside an encoder, which is solved for after training
FUSED = ["finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "labels_per_class=20", "batch_size=64", "trainer.max_epochs=3"]
TUNE = [*FUSED, *ALONE]
SHIFT = ["finetune", "+target=digits", "+shift=dann", "data@shift.target=digits", "shift.samples=200", "from=scratch", *TINY_IMAGES]
SHIFT += ["labels_per_class=20", "batch_size=32", "trainer.max_epochs=3", *ALONE]  # 6 steps an epoch, of 40 of the target
BAG = ["pretrain", "+task=crops", "encoder.dim=16", "encoder.pairs=64", "batch_size=64", "trainer.max_steps=8", "trainer.accelerator=cpu"]
TUNE_BAG = ["finetune", "+target=docs", "from=scratch", "encoder=bag", "encoder.dim=16", "encoder.pairs=64", "labels_per_class=8"]
TUNE_BAG += ["batch_size=16", "trainer.max_steps=8", "trainer.accelerator=cpu", *ALONE]

ADALORA = ["finetune", "+target=docs", "from=scratch", *TINY_TEXT, "labels_per_class=8", "batch_size=16", "adaptation=adalora", *ALONE]

MAML = [
    "finetune", "+target=digits", "from=scratch", "encoder=conv4", "encoder.width=8", "trainer.precision=32", "trainer.accelerator=cpu",
    "+episodes=maml", "episodes.way=3", "episodes.query=5", "episodes.test_episodes=4", "trainer.max_steps=9",
    "episodes.training.per_step=2", "episodes.training.val_every_n_steps=2", "episodes.training.val_episodes=2",
]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "stops"),
    [
        (IMAGES, (3, 5, 6)),  # in an epoch, at its end, after it
        ([*IMAGES, "trainer.accumulate_grad_batches=2"], (2, 6)),
        (TEXT, (5,)),
        (BAG, (3,)),
        (TUNE_BAG, (3, 7)),  # a table whose gradients are sparse beside a head
        ([*FUSED, "adaptation=partial", "adaptation.blocks=2"], (4, 7)),
        ([*TUNE, "adaptation=probe", "head=fresh"], (4,)),
        ([*TUNE, "adaptation=gradual", "adaptation.over=0.9"], (4, 7)),  # some blocks free, others not yet
        ([*TUNE, "adaptation=l2sp"], (4,)),
        ([*TUNE, "+joint=simclr", "joint.batch_size=100"], (4, 8)),  # one stream in its second round, the other in its first
        ([*TUNE, "+joint=simclr", "sampling=proportional", "trainer.accumulate_grad_batches=2", "trainer.max_steps=5"], (4,)),
        ([*ADALORA, "trainer.max_steps=8", "adaptation.every=1"], (3, 6)),  # while ranks are taken away, and when they are settled
        (SHIFT, (8,)),  # two streams, a critic, the best epoch so far
        (MAML, (3, 6)),
        ([*IMAGES, "ema=0.5"], (3, 6)),
        ([*TUNE, "adaptation=partial", "adaptation.blocks=2", "ema=0.5", "report=best"], (4,)),
    ],
    ids=[
        "simclr",
        "simclr-accumulated",
        "mlm",
        "crops",
        "finetune-bag",
        "finetune-partial",
        "probe",
        "gradual",
        "l2sp",
        "joint",
        "joint-in-turns",
        "adalora",
        "shift",
        "maml",
        "averaged",
        "averaged-partial",
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(args, stops, sslt, here):
    """The order of samples, views, dropout, masks, optimizer, schedule and counters go on where they were."""
    sslt(*args, "hydra.run.dir=whole")
    for step in stops:
        with pytest.MonkeyPatch.context() as patch:
            StopAt(step, patch)
            sslt(*args, f"hydra.run.dir=part{step}", code=130)
        run = Run(here / f"part{step}")
        assert run.info["status"] == "interrupted" and not (run / "encoder").exists()
        assert read(run / "checkpoints" / LAST)["batches_seen"] - step in (0, 1)  # 1 where gradients waited for another batch
        sslt(args[0], f"resume=part{step}")
        assert run.finished and same(here / "whole", run.path), f"stopped at {step}"
        assert run.metrics["train/steps"] == Run(here / "whole").metrics["train/steps"]


def test_killed_and_resumed_through_the_console_script(here, cache):
    """kill -9 in the middle of training, then `resume=`: as if nothing had happened."""
    args = [*IMAGES, "trainer.max_epochs=8", "checkpoint.every_minutes=0.0005"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert main([*args, "hydra.run.dir=whole"]) == 0
    process = subprocess.Popen([SSLT, *args, "hydra.run.dir=killed"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (here / "killed" / "checkpoints" / "last.ckpt").exists() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Run(here / "killed").finished
    subprocess.run([SSLT, "pretrain", "resume=killed"], env=env, check=True, capture_output=True)
    assert same(here / "whole", here / "killed")


def test_signals_are_given_back(sslt, here):
    """After a fit Ctrl-C and SIGTERM end the process again; Lightning's own handler would ignore SIGTERM for good."""
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    sslt(*IMAGES, "trainer.max_steps=1", "hydra.run.dir=one")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_stopped_sweep_starts_no_other_job(sslt, here):
    """Ctrl-C and SIGTERM are meant for all of it; the job that ran can be gone on with."""
    with pytest.MonkeyPatch.context() as patch:
        StopAt(2, patch)
        sslt(IMAGES[0], "-m", *IMAGES[1:], "seed=0,1", "hydra.sweep.dir=sweep", code=130)
    assert Run("sweep/0").info["status"] == "interrupted" and not Path("sweep/1").exists()
    sslt("pretrain", "resume=sweep/0")
    assert Run("sweep/0").finished


def test_resume_auto_finds_the_same_command_only(sslt, here):
    with pytest.MonkeyPatch.context() as patch:
        StopAt(2, patch)
        sslt(*IMAGES, code=130)
    (first,) = list(Path("runs").glob("*/*"))
    sslt(*IMAGES, "seed=1", "trainer.max_steps=1", "resume=auto")
    assert len(list(Path("runs").glob("*/*"))) == 2 and not Run(first).finished
    sslt(*IMAGES, "resume=auto")
    assert Run(first).finished and len(list(Path("runs").glob("*/*"))) == 2


def test_time_budget_ends_annealed(sslt, here):
    """trainer.max_time bounds the run and the learning rate follows it to (nearly) nothing."""
    from sslt.report.curves import MetricsCSV

    sslt(
        "pretrain",
        "+task=simclr",
        *TINY_IMAGES,
        "trainer.max_time=2",
        "trainer.log_every_n_steps=1",
        "batch_size=32",
        "hydra.run.dir=timed",
    )
    steps, rates = MetricsCSV.read(here / "timed" / "metrics.csv")["lr"]
    assert rates[-1] < 0.02 * max(rates) and len(steps) > 5
    assert Run(here / "timed").metrics["train/seconds"] < 20


def test_the_same_command_goes_on_whatever_its_parts(sslt, here):
    """resume=auto finds the run of a command that chooses another optimizer and views than its recipe."""
    args = ["finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "optimizer=sgd", "views=plain", "trainer.max_steps=1"]
    sslt(*args)
    (run,) = (Run(p.parent) for p in here.glob("runs/**/run.json"))
    run.update(status="interrupted")
    sslt(*args, "resume=auto")
    assert run.finished and len(list(here.glob("runs/**/run.json"))) == 1


def test_a_frozen_encoder_is_run_once(sslt, here, monkeypatch):
    """adaptation=probe computes features before training: three epochs ask the encoder no more often than one does."""
    calls = []
    before = ImageEncoder.forward
    monkeypatch.setattr(ImageEncoder, "forward", lambda self, inputs: calls.append(1) or before(self, inputs))
    counts = []
    for epochs in (1, 3):
        calls.clear()
        sslt(
            *TUNE,
            "adaptation=probe",
            f"trainer.max_epochs={epochs}",
            f"seed={epochs}",
            f"hydra.run.dir=run{epochs}",
            f"cache_dir=c{epochs}",
        )
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0
    found = Run(here / "run3").metrics
    assert found["model/parameters"] > found["model/moving_parameters"] > 0


def test_gone_on_with_by_smaller_batches_every_gradient_counts(sslt, here, monkeypatch):
    """Half the batch and twice as many a step, from the middle of an epoch: no batch's gradient is thrown away."""
    from sslt.learner import Learner

    events: list[str] = []

    def noted(name, what):
        method = getattr(Learner, name)

        def call(self, *args, **kwargs):
            if what == "step" or args[0]:
                events.append(what if what == "step" else str(len(args[0])))
            return method(self, *args, **kwargs)

        monkeypatch.setattr(Learner, name, call)

    with pytest.MonkeyPatch.context() as patch:
        StopAt(3, patch)
        sslt(*IMAGES, "hydra.run.dir=a", code=130)
    noted("on_after_batch_transfer", "batches")
    noted("optimizer_step", "step")
    sslt("pretrain", "resume=a", "batch_size=128", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=1")
    assert events[0] == "1" and events[1::2] == ["step"] * (len(events) // 2) and set(events[2::2]) <= {"1", "2"} and len(events) > 6
