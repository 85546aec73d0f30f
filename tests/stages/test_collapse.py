"""Protects whoever pretrains from features that say nothing: collapse is told in words while the run goes on."""

from __future__ import annotations

from conftest import TINY_IMAGES

from sslt.callbacks.probes import OnlineProbe

MODULE = """
from sslt.objectives.base import Loss, Objective, encode_views


class Nothing(Objective):
    def __init__(self, encoder):
        super().__init__()

    def forward(self, encoder, batch):
        pooled = encode_views(encoder, batch).pooled
        return Loss((pooled - pooled.mean(0)).square().mean(), {})
"""


def test_a_collapse_is_told_while_training(sslt, own_code, capsys):
    """An objective that is met by one point for all samples: a warning names the step, once; SimCLR in its place gives none."""
    (own_code / "mylab.py").write_text(MODULE)
    (own_code / "mine" / "objective").mkdir(parents=True)
    (own_code / "mine" / "objective" / "nothing.yaml").write_text("_target_: mylab.Nothing\n")
    common = [*TINY_IMAGES, "batch_size=64", "trainer.max_epochs=6", "optimizer.lr=0.05", "schedule.warmup=0"]
    sslt("pretrain", "+task=simclr", *common, "hydra.run.dir=good")
    assert "collaps" not in capsys.readouterr().err
    sslt("pretrain", "+task=simclr", "objective=nothing", "--config-dir", "mine", *common, "hydra.run.dir=bad")
    said = [line for line in capsys.readouterr().err.splitlines() if "collaps" in line]
    assert len(said) == 1 and said[0].startswith("warning: step ")
    assert "collaps" in (own_code / "bad" / "logs" / "sslt.log").read_text()


def test_a_teacher_that_prefers_nothing_is_told(sslt, here, capsys):
    """DINO's targets at a temperature that makes them flat: features keep their spread, so that only the objective can say it."""
    flat = ["objective.teacher_temperature=9", "objective.teacher_temperature_start=9"]
    sslt("pretrain", "+task=dino", *TINY_IMAGES, *flat, "batch_size=64", "trainer.max_epochs=2", "hydra.run.dir=flat")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1 and "prefers no prototype" in said[0] and "objective.teacher_temperature" in said[0]


COMPLAINS = """
from mylab import Nothing


class Complains(Nothing):
    def trouble(self):
        return "the objective complains"
"""


def test_a_word_of_the_objective_hides_no_collapse(sslt, own_code, capsys):
    """What an objective says from the first probe on leaves room for the warning that features collapse: each is told once."""
    (own_code / "mylab.py").write_text(MODULE)
    (own_code / "myother.py").write_text(COMPLAINS)
    (own_code / "mine" / "objective").mkdir(parents=True)
    (own_code / "mine" / "objective" / "complains.yaml").write_text("_target_: myother.Complains\n")
    common = [*TINY_IMAGES, "batch_size=64", "trainer.max_epochs=6", "optimizer.lr=0.05", "schedule.warmup=0"]
    sslt("pretrain", "+task=simclr", "objective=complains", "--config-dir", "mine", *common)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: step ")]
    assert len(said) == 2 and "complains" in said[0] and "collaps" in said[1]


def test_what_was_told_before_an_older_checkpoint_is_known():
    """It had one answer, about features."""
    probe = OnlineProbe.__new__(OnlineProbe)
    for kept, warned in ((True, {"features"}), (False, set()), (["pretrain"], {"pretrain"})):
        probe.load_state_dict({"start": None, "warned": kept, "last": {}})
        assert probe.warned == warned


HARMS = """
from mylab import Nothing


class Harms(Nothing):
    advice = "take another one"
"""


def test_a_run_that_ends_below_its_start_says_so(sslt, own_code, capsys):
    """kNN of features that were driven to one point, against those of the untrained encoder, with what the objective advises."""
    (own_code / "mylab.py").write_text(MODULE)
    (own_code / "myharm.py").write_text(HARMS)
    (own_code / "mine" / "objective").mkdir(parents=True)
    (own_code / "mine" / "objective" / "harms.yaml").write_text("_target_: myharm.Harms\n")
    common = [*TINY_IMAGES, "batch_size=64", "trainer.max_epochs=4", "optimizer.lr=0.02", "schedule.warmup=0"]
    sslt("pretrain", "+task=simclr", "objective=harms", "--config-dir", "mine", *common, "hydra.run.dir=bad")
    said = [line for line in capsys.readouterr().err.splitlines() if "below those that training began with" in line]
    assert len(said) == 1 and said[0].startswith("warning: ") and said[0].endswith("take another one")


def test_every_objective_says_what_to_try():
    """Negatives are the advice of those that have some alone."""
    from sslt.objectives.byol import BYOL
    from sslt.objectives.masked_lm import MaskedLM

    assert "negatives" not in MaskedLM.advice and "simcse" in MaskedLM.advice and "momentum" in BYOL.advice
