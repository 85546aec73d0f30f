"""Protects what a run is known by: the encoder that a method's authors evaluate, averages of weights, and the others beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_IMAGES, TINY_TEXT
from safetensors.torch import load_file
from tiny_tasks import TASKS, tiny

from sslt.callbacks import probes
from sslt.config import compose
from sslt.encoders.base import FILE, fingerprint
from sslt.encoders.load import load_encoder
from sslt.encoders.seals import DIGESTS
from sslt.learner import Learner
from sslt.runs import Run, read_json

EVALUATED = {
    "byol": "student",
    "data2vec": "student",
    "dino": "teacher",
    "ibot": "teacher",
    "ijepa": "teacher",
    "moco_v2": "student",
    "moco_v3": "student",
    "msn": "teacher",
}


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_encoder(str(folder)).state_dict()


def checkpoint(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """Fingerprints of the encoders that online probes measure, in order."""
    seen: list[str] = []
    before = probes.encode

    def encode(encoder: Any, *rest: Any) -> Any:
        seen.append(fingerprint(encoder))
        return before(encoder, *rest)

    monkeypatch.setattr(probes, "encode", encode)
    return seen


def test_every_task_with_a_teacher_is_here():
    assert [t for t in TASKS if "momentum" in compose("pretrain", [f"+task={t}"]).objective] == sorted(EVALUATED)


@pytest.mark.parametrize("task", sorted(EVALUATED))
def test_both_encoders_are_saved(task, sslt, here, probed):
    """To the bit, the teacher and the student that training left, each a sealed folder; the one evaluated is `encoder/` and was probed."""
    first = EVALUATED[task]
    other = {"student": "teacher", "teacher": "student"}[first]
    sslt("pretrain", f"+task={task}", *tiny(task), "batch_size=32", "trainer.max_steps=2", "online_probe.samples=64", "hydra.run.dir=run")
    run, kept = Run(here / "run"), checkpoint(here / "run")
    wanted = {"student": under(kept, "encoder."), "teacher": under(kept, "objectives.pretrain.teacher.copies.encoder.")}
    assert not equal(wanted["student"], wanted["teacher"])
    assert equal(state(run / "encoder"), wanted[first]) and equal(state(run / other), wanted[other])
    assert not (run / first).exists() and run.metrics["encoder/is"] == first
    assert fingerprint(load_encoder(str(run))) == probed[-1] == fingerprint(load_encoder(str(run / "encoder")))
    assert read_json(run / other / FILE)[DIGESTS] and f"weights: {other}." in (run / other / "README.md").read_text()


def test_the_other_is_measured_as_a_folder(sslt, here, capsys):
    """The commands that the end of pretraining prints: the run is the teacher, the student is asked for by name, with the run's data."""
    sslt("pretrain", "+task=dino", *TINY_IMAGES, "batch_size=64", "trainer.max_steps=2", "hydra.run.dir=run")
    said = capsys.readouterr()
    assert "next: sslt evaluate from=run\n" in said.out and "next: sslt evaluate from=run/student\n" in said.out
    assert "encoder/ will be the teacher" in said.err
    for name, folder in (("run", "encoder"), ("run/student", "student")):
        sslt("evaluate", f"from={name}", "trainer.accelerator=cpu", "shots=[1]", "draws=2", "baseline=false", f"hydra.run.dir=of_{folder}")
    a, b = (Run(here / f"of_{name}").metrics for name in ("encoder", "student"))
    assert a["knn/accuracy"] > 0 and b["linear/labels"] == a["linear/labels"] and a["features/uniformity"] != b["features/uniformity"]


def test_what_is_frozen_in_the_student_is_frozen_in_the_teacher(sslt, here):
    """BatchNorm statistics too, which a teacher in train mode would go on measuring."""
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, "batch_size=64", "trainer.max_steps=2", "hydra.run.dir=before")
    sslt(
        "pretrain", "+task=byol", "from=before", *TINY_IMAGES[2:], "adaptation=partial", "adaptation.blocks=1", "batch_size=64",
        "trainer.max_steps=2", "hydra.run.dir=run",
    )  # fmt: skip
    before, student, teacher = (state(here / name) for name in ("before", "run", "run/teacher"))
    still = [k for k in before if torch.equal(before[k], student[k])]
    assert any("running_mean" in k for k in still) and len(still) < len(before)
    assert equal({k: teacher[k] for k in still}, {k: before[k] for k in still})
    assert all(not torch.equal(teacher[k], before[k]) for k in before if k not in still and k.endswith("weight"))


# -------------------------------------------------------------------- averaged weights
@pytest.fixture
def steps(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The encoder before training and after every optimizer step, in float64."""
    seen: list[dict[str, torch.Tensor]] = []
    before = Learner.optimizer_step

    def keep(learner: Learner) -> None:
        seen.append({k: x.detach().double().clone() for k, x in learner.encoder.state_dict().items()})

    def step(learner: Learner, *args: Any, **given: Any) -> None:
        if not seen:
            keep(learner)
        before(learner, *args, **given)
        keep(learner)

    monkeypatch.setattr(Learner, "optimizer_step", step)
    return seen


def averaged(steps: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """The definition, in float64."""
    now = {k: x.clone() for k, x in steps[0].items()}
    for t, weights in enumerate(steps[1:], 1):
        m = min(decay, (1 + t) / (10 + t))
        now = {k: m * x + (1 - m) * weights[k] for k, x in now.items()}
    return now


def test_the_average_is_that_of_the_steps(sslt, here, steps, probed):
    """Weights and BatchNorm statistics, through the warm-up and past it; it is probed and saved, and the last step's weights beside it."""
    args = ["pretrain", "+task=simclr", *TINY_IMAGES, "batch_size=64", "trainer.max_steps=6", "ema=0.3", "optimizer.lr=0.02"]
    sslt(*args, "online_probe.samples=64", "hydra.run.dir=run")
    found, raw = state(here / "run"), state(here / "run" / "raw")
    moving = [k for k in found if not k.endswith("num_batches_tracked")]
    assert len(steps) == 7 and any("running_var" in k for k in moving)
    wanted = averaged(steps, 0.3)
    assert all(torch.allclose(found[k].double(), wanted[k], rtol=1e-5, atol=1e-7) for k in moving)
    assert all(torch.equal(raw[k].double(), steps[-1][k]) for k in moving)
    assert all(not torch.equal(raw[k], found[k]) for k in moving if k.endswith("weight"))
    assert probed[-1] == fingerprint(load_encoder(str(here / "run"))) != fingerprint(load_encoder(str(here / "run" / "raw")))
    assert Run(here / "run").metrics["encoder/is"] == "average"


def test_training_goes_as_without_an_average(sslt, here):
    """Probes with averaged weights leave no trace: the last step's weights are those of a run that averages nothing."""
    args = ["pretrain", "+task=simclr", *TINY_IMAGES, "batch_size=256", "trainer.max_epochs=2", "online_probe.samples=64"]
    sslt(*args, "hydra.run.dir=plain")
    sslt(*args, "ema=0.9", "hydra.run.dir=run")
    assert equal(state(here / "plain"), state(here / "run" / "raw")) and not equal(state(here / "plain"), state(here / "run"))
    assert "encoder/is" not in Run(here / "plain").metrics and not (here / "plain" / "raw").exists()


TUNE = ["finetune", "+target=digits", *TINY_IMAGES[2:], "labels_per_class=10", "batch_size=50", "ema=0.9", "baseline=false"]
TUNE += ["late_fusion=false"]


def test_only_what_moves_is_averaged(sslt, here, steps):
    """Partial fine-tuning: one block and the head, which are measured together; the head of the last step lies beside its encoder."""
    sslt(
        *TUNE,
        "from=scratch",
        *TINY_IMAGES[:2],
        "adaptation=partial",
        "adaptation.blocks=1",
        "trainer.max_epochs=3",
        "optimizer.lr=0.02",
        "hydra.run.dir=run",
    )
    run = Run(here / "run")
    names = [k.replace("/", ".") for k in under(checkpoint(run.path), "average.")]
    weights = [k for k in names if "running_" not in k]
    assert {k.split(".")[2] for k in weights if k.startswith("encoder")} == {"layer4"} and any(k.startswith("objectives") for k in weights)
    found, wanted = state(run / "encoder"), averaged(steps, 0.9)
    assert all(torch.allclose(found[k].double(), wanted[k], rtol=1e-5, atol=1e-7) for k in found if not k.endswith("tracked"))
    frozen = [k for k in found if torch.equal(found[k].double(), steps[0][k])]
    assert 0 < len(frozen) < len(found) and all(torch.equal(found[k].double(), steps[-1][k]) for k in frozen)
    head = checkpoint(run.path)
    for folder, prefix, slash in ((run.path, "average.objectives/finetune/", "/"), (run / "raw", "objectives.finetune.", ".")):
        saved = load_file(folder / "head" / "model.safetensors")
        assert saved and all(torch.equal(x, head[prefix + k.replace(".", slash)]) for k, x in saved.items())
    for name in ("run", "run/raw"):
        sslt("evaluate", f"from={name}", "trainer.accelerator=cpu", "baseline=false", f"hydra.run.dir={name.replace('/', '_')}_measured")
    assert Run(here / "run_measured").metrics["test/nll"] == pytest.approx(run.metrics["test/nll"], rel=1e-4)
    assert Run(here / "run_raw_measured").metrics["test/nll"] != pytest.approx(run.metrics["test/nll"], rel=1e-4)


def test_validation_and_the_best_epoch_are_the_averages(sslt, here):
    """The validation accuracy that is recorded, the best epoch's weights and what `encoder/` has are of the same weights."""
    args = [*TUNE, "from=scratch", *TINY_IMAGES[:2], "report=best", "trainer.max_epochs=1", "optimizer.lr=0.02"]
    sslt(*args, "hydra.run.dir=run")
    best = load_file(here / "run" / "checkpoints" / "best.safetensors")
    assert equal(under(best, "e."), state(here / "run")) and not equal(under(best, "e."), state(here / "run" / "raw"))


@pytest.mark.parametrize("adaptation", ["lora", "probe"])
def test_an_average_of_what_is_added(adaptation, sslt, here):
    """An adapter over a base that has no copy; a head on a frozen encoder, which stays what it was."""
    pytest.importorskip("peft")
    sslt("pretrain", "+task=mlm", *TINY_TEXT, "trainer.max_steps=1", "hydra.run.dir=base")
    args = ["finetune", "+target=docs", "from=base", *TINY_TEXT[-2:], "labels_per_class=8", "trainer.max_steps=4", "ema=0.9"]
    args += ["baseline=false"]
    sslt(*args, "optimizer.lr=0.02", f"adaptation={adaptation}", "head=fresh", "hydra.run.dir=run")  # a solved head takes no steps
    run = Run(here / "run")
    names = under(checkpoint(run.path), "average.")
    assert names and all("lora_" in k or k.startswith("objectives/") for k in names)
    assert any("lora_" in k for k in names) == (adaptation == "lora")
    a, b = (load_file(folder / "head" / "model.safetensors") for folder in (run.path, run / "raw"))
    assert not equal(a, b)
    assert equal(state(run.path), state(run / "raw")) == (adaptation == "probe")
    sslt("evaluate", "from=run", *TINY_TEXT[-1:], "baseline=false", "hydra.run.dir=measured")
    assert Run(here / "measured").metrics["test/nll"] == pytest.approx(run.metrics["test/nll"], rel=1e-3)


def test_episodes_are_averaged_too(sslt, here):
    """A method with statistics of its own: those of the average and of the raw weights are each made anew, and both are measured again."""
    maml = [
        "finetune", "+target=digits", "from=scratch", "encoder=conv4", "encoder.width=8", "trainer.precision=32", "trainer.accelerator=cpu",
        "+episodes=maml", "episodes.way=3", "episodes.query=5", "episodes.test_episodes=4", "trainer.max_steps=3",
        "episodes.training.per_step=1", "episodes.training.val_every_n_steps=0",
    ]  # fmt: skip
    sslt(*maml, "ema=0.9", "optimizer.lr=0.02", "hydra.run.dir=run")
    a, b = state(here / "run"), state(here / "run" / "raw")
    assert all(not torch.equal(a[k], b[k]) for k in a if "running_mean" in k)
    assert not equal(*(load_file(here / folder / "episodes" / "model.safetensors") for folder in ("run", "run/raw")))
    again = ["+episodes=maml", "episodes.way=3", "episodes.query=5", "episodes.test_episodes=4", "trainer.accelerator=cpu"]
    sslt("evaluate", "from=run/raw", *again, "hydra.run.dir=measured")
    assert Run(here / "measured").metrics["episodes/accuracy"] > 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["pretrain", "+task=dino", *TINY_IMAGES, "ema=0.9"], "a teacher"),
        (["pretrain", "+task=simclr", *TINY_IMAGES, "ema=1"], "ema=1"),
        (["pretrain", "+task=simclr", *TINY_IMAGES, "ema=often"], "ema='often' is out of range"),
        (["finetune", "+target=docs", "from=scratch", *TINY_TEXT, "adaptation=adalora", "ema=0.9", "trainer.max_steps=4"], "adalora"),
    ],
)
def test_what_no_average_can_be_of(args, says, sslt, here, capsys):
    sslt(*args, code=2)
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
