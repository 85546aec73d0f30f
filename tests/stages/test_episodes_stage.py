"""Episodes through the command line: every method learns and measures, images and text, and mistakes end before training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY_TEXT
from safetensors.torch import load_file

from sslt.errors import UserError
from sslt.report.curves import MetricsCSV
from sslt.runs import Run
from sslt.stages import fitting

CPU = "trainer.accelerator=cpu"
TINY = ["encoder=conv4", "encoder.width=8", "trainer.precision=32", CPU]
DIGITS = ["+target=digits", "from=scratch", *TINY, "episodes.way=3", "episodes.query=5", "episodes.test_episodes=20"]
ALONE = ["baseline=false", "late_fusion=false"]  # nothing beside the encoder


def tensors(run: str) -> dict[str, torch.Tensor]:
    return load_file(f"{run}/encoder/model.safetensors")


@pytest.mark.parametrize("method", ["protonet", "maml", "fomaml", "anil"])
def test_learn_from_episodes_and_measure_on_new_classes(method, sslt, here):
    """The run holds encoder, curve and metrics; what it learned is measured again to the same number by `sslt evaluate`."""
    small = ["episodes.training.per_step=2", "episodes.training.val_every_n_steps=4", "episodes.training.val_episodes=5"]
    sslt("finetune", *DIGITS, f"+episodes={method}", *small, "trainer.max_steps=10", "hydra.run.dir=learned")
    run = Run(here / "learned")
    m = run.metrics
    assert run.finished and 0.2 < m["episodes/accuracy"] <= 1 and m["episodes/interval"] >= 0
    assert (m["episodes/way"], m["episodes/shot"], m["episodes/count"], m["train/steps"]) == (3, 1, 20, 10)
    assert MetricsCSV.read(run / "metrics.csv")["val/accuracy"][0] == [4, 8, 10]
    again = ["evaluate", "from=learned", f"+episodes={method}", "episodes.way=3", "episodes.query=5", "episodes.test_episodes=20", CPU]
    sslt(*again, "hydra.run.dir=again")
    assert Run(here / "again").metrics["episodes/accuracy"] == pytest.approx(m["episodes/accuracy"], abs=1e-6)
    assert (run / "episodes").exists() == (method != "protonet")


def test_prototypes_learn(sslt, here):
    """After eighty steps the classes of a training episode are told apart far above chance."""
    shape = ["episodes.training.way=3", "encoder.width=16", "optimizer.lr=0.005", "trainer.log_every_n_steps=1"]
    sslt("finetune", *DIGITS, "+episodes=protonet", *shape, "trainer.max_steps=80", "hydra.run.dir=p")
    accuracy = MetricsCSV.read("p/metrics.csv")["accuracy"][1]
    assert sum(accuracy[-20:]) / 20 > max(0.55, sum(accuracy[:5]) / 5 + 0.1)


def test_any_encoder_is_measured(sslt, here):
    """Nothing learned from episodes: centroids, logistic regression and fine-tuning of a plain run's encoder, on the same episodes."""
    sslt("finetune", "+target=digits", "from=scratch", *TINY, "trainer.max_steps=10", *ALONE, "hydra.run.dir=plain")
    before = tensors("plain")
    few = ["episodes.way=3", "episodes.query=5", "episodes.test_episodes=15", "episodes.shot=2", CPU]
    for name, more in (("centroid", []), ("logistic", []), ("finetune", ["episodes.method.steps=2"])):
        sslt("evaluate", "from=plain", f"+episodes={name}", *few, *more, f"hydra.run.dir={name}")
        m = Run(here / name).metrics
        assert 0.34 < m["episodes/accuracy"] <= 1 and m["episodes/shot"] == 2
    assert all(torch.equal(v, before[k]) for k, v in tensors("plain").items())


def test_maml_leaves_an_encoder_that_works_by_itself(sslt, here):
    """Its running statistics are those of data: features in eval mode are neither those of an untrained norm nor collapsed."""
    sslt("finetune", *DIGITS, "+episodes=maml", "trainer.max_steps=3", "episodes.training.per_step=2", "hydra.run.dir=m")
    state = tensors("m")
    assert state["blocks.0.norm.running_mean"].abs().sum() > 0 and int(state["blocks.0.norm.num_batches_tracked"]) == 10


def test_what_is_frozen_stays(sslt, here):
    """MAML on the last block of an encoder: every other tensor, running statistics too, bit for bit."""
    sslt("finetune", *DIGITS, "+episodes=protonet", "trainer.max_steps=2", "hydra.run.dir=p")
    moved = ["from=p", "adaptation=partial", "adaptation.blocks=1", "trainer.max_steps=3", "episodes.training.per_step=2"]
    sslt("finetune", *DIGITS, "+episodes=maml", *moved, "hydra.run.dir=m")
    a, b = tensors("p"), tensors("m")
    assert all(torch.equal(a[k], b[k]) for k in a if not k.startswith("blocks.3."))
    assert not torch.equal(a["blocks.3.conv.weight"], b["blocks.3.conv.weight"])


def test_best_weights_are_those_of_the_best_validation(sslt, here):
    """report=best, with a compared start from scratch beside it."""
    sslt("finetune", *DIGITS, "+episodes=protonet", "trainer.max_steps=4", "hydra.run.dir=start")
    args = ["from=start", "compare=scratch", "report=best", "episodes.training.val_every_n_steps=1", "trainer.max_steps=4"]
    sslt("finetune", *DIGITS, "+episodes=protonet", *args, "hydra.run.dir=best")
    metrics = Run(here / "best").metrics
    assert metrics["gain/episodes/accuracy"] == pytest.approx(metrics["episodes/accuracy"] - metrics["scratch/episodes/accuracy"])
    kept = load_file("best/checkpoints/best.safetensors")
    assert all(torch.equal(v, kept[f"e.{k}"]) for k, v in tensors("best").items())


def test_text_with_a_joint_loss(sslt, here):
    """The same classes for words: prototypes beside masked words, ANIL, and MAML one episode at a time."""
    docs = [
        "+target=docs",
        "from=scratch",
        *TINY_TEXT,
        "episodes.way=2",
        "episodes.query=2",
        "episodes.test_episodes=4",
        "trainer.max_steps=2",
    ]
    cheap = ["episodes.training.per_step=1", "episodes.training.val_every_n_steps=0"]
    sslt("finetune", *docs, *cheap, "+episodes=protonet", "+joint=mlm", "joint.batch_size=4", "hydra.run.dir=joint")
    assert "joint/masked_accuracy" in MetricsCSV.read("joint/metrics.csv")
    sslt("finetune", *docs, *cheap, "+episodes=maml", "hydra.run.dir=maml")
    assert Run(here / "maml").metrics["episodes/accuracy"] > 0


MISTAKES = [
    (["finetune", *DIGITS, "+episodes=protonet", "episodes.way=5"], "5-way episodes need 5 classes to test on, but there are 3"),
    (["finetune", *DIGITS, "+episodes=protonet", "episodes.shot=300"], "300 + 5 samples of a class"),
    (["finetune", *DIGITS, "+episodes=protonet", "episodes.training.query=900"], "to learn from"),
    (["finetune", *DIGITS, "+episodes=maml", "episodes.training.way=4"], "a head for episodes.way=3"),
    (["finetune", *DIGITS, "+episodes=centroid"], "nothing to learn"),
    (["finetune", *DIGITS, "+episodes=protonet", "label_fraction=0.5"], "label_fraction"),
    (["finetune", *DIGITS, "+episodes=protonet", "views.n=2"], "one view"),
    (["finetune", *DIGITS, "+episodes=protonet", "adaptation=probe"], "no weights beside the encoder's"),
    (["finetune", *DIGITS, "+episodes=maml", "episodes.way=1"], "at least 2"),
    (["finetune", *DIGITS, "+episodes=protonett"], "did you mean 'protonet'"),
    (["finetune", "+target=imdb", "from=scratch", "+episodes=protonet", "data.root=nowhere"], "nowhere"),
    (["evaluate", "from=plain", "+episodes=maml", "episodes.way=3"], "has not learned"),
    (["evaluate", "from=head", "+episodes=maml", "episodes.way=2"], "3-way"),
    (["evaluate", "from=head", "+episodes=anil", "episodes.way=3"], "MAML"),
]


def test_mistakes_end_before_training(sslt, here, capsys):
    """Exit code 2, the numbers in one line, and nothing trained."""
    sslt("finetune", "+target=digits", "from=scratch", *TINY, "trainer.max_steps=1", *ALONE, "hydra.run.dir=plain")
    quick = ["trainer.max_steps=1", "episodes.training.per_step=1", "episodes.training.val_every_n_steps=0"]
    sslt("finetune", *DIGITS, "+episodes=maml", *quick, "hydra.run.dir=head")
    capsys.readouterr()
    for i, (args, says) in enumerate(MISTAKES):
        sslt(*args, f"hydra.run.dir=wrong{i}", code=2)
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sslt: ")]
        assert len(said) == 1 and says in said[0], (args, said)
        assert not (here / f"wrong{i}" / "checkpoints").exists()


def test_classes_that_are_new_need_episodes(sslt, here, capsys):
    """Omniglot's test characters are unknown to any classifier of its train characters: said at once."""
    from PIL import Image

    for place in ("images_background/A/1", "images_evaluation/B/1"):
        (here / "omniglot" / place).mkdir(parents=True)
        Image.new("L", (105, 105)).save(here / "omniglot" / place / "x.png")
    sslt("finetune", "+target=omniglot", "from=scratch", "data.root=.", CPU, code=2)
    assert "+episodes=" in capsys.readouterr().err


def test_what_was_frozen_is_frozen_when_it_is_measured_again(sslt, here):
    """MAML of the last block is measured by MAML of the last block."""
    sslt("finetune", *DIGITS, "+episodes=protonet", "trainer.max_steps=2", "hydra.run.dir=p")
    args = ["from=p", "adaptation=partial", "adaptation.blocks=1", "trainer.max_steps=3", "episodes.training.per_step=2"]
    sslt("finetune", *DIGITS, "+episodes=maml", *args, "hydra.run.dir=m")
    again = ["evaluate", "from=m", "+episodes=maml", "episodes.way=3", "episodes.query=5", "episodes.test_episodes=20", CPU]
    sslt(*again, "hydra.run.dir=again")
    assert Run(here / "again").metrics["episodes/accuracy"] == pytest.approx(Run(here / "m").metrics["episodes/accuracy"], abs=1e-6)


def test_a_joint_objective_sees_no_class_that_is_tested_on(sslt, here, monkeypatch):
    """Its samples are those of the classes that are learned from."""
    seen = {}

    def fit(cfg, run, encoder, terms, streams, *rest):
        seen.update({name: set(np.unique(stream.samples.labels)) for name, stream in streams.items() if name == "joint"})
        raise UserError("enough")

    monkeypatch.setattr(fitting, "fit", fit)
    sslt("finetune", *DIGITS, "+episodes=protonet", "+joint=simclr", "trainer.max_steps=1", code=2)
    assert seen["joint"] and len(seen["joint"]) < 10
