"""Protects `sslt run`: whose a setting is, what a sweep of chains runs, and that finished stages are not silently left as they are."""

from __future__ import annotations

from conftest import TINY_IMAGES, TINY_TEXT

from sslt.chain import rewrite
from sslt.runs import Run

IMAGES = ["run", "+task=simclr", "+target=digits", *TINY_IMAGES, "trainer.max_steps=1", "batch_size=64"]


def test_the_targets_data_settings_reach_pretraining(sslt, here):
    """Pretraining is on the target's data, wherever they are: nothing has to be said twice."""
    rows = [f"{word} room number {i},{label}" for i in range(40) for word, label in (("good", "pos"), ("bad", "neg"))]
    (here / "tickets.csv").write_text("body,team\n" + "\n".join(rows) + "\n")
    data = ["data.path=tickets.csv", "data.text=body", "data.label=team", "encoder.processor.vocab_size=60"]
    small = [s for s in TINY_TEXT if "vocab" not in s]
    sslt("run", "+task=mlm", "+target=text_csv", *data, *small, "trainer.max_steps=2", "batch_size=8", "hydra.run.dir=chain")
    pre, fine = (Run(here / "chain" / s) for s in ("pretrain", "finetune"))
    assert pre.config.data.path == fine.config.data.path == "tickets.csv" and pre.info["data"] == fine.info["data"]


def test_a_sweep_of_chains_gives_all_stages_the_same_value(sslt, here):
    """Two seeds are two chains, not every pair of a seed to pretrain and one to fine-tune with."""
    assert rewrite(["seed=0,1"], None, sweep=True)[1:] == [
        f"++stages.{stage}.values.seed=${{stages.pretrain.values.seed}}" for stage in ("finetune", "evaluate")
    ]
    sslt(*IMAGES, "-m", "seed=3,4", "hydra.sweep.dir=sweep")
    seeds = [
        [Run(job / stage).config.seed for stage in ("pretrain", "finetune", "evaluate")] for job in sorted((here / "sweep").glob("[0-9]*"))
    ]
    assert seeds == [[3, 3, 3], [4, 4, 4]]
    sslt("run", "resume=sweep/0")  # what stages share is no code


def test_changed_settings_of_a_finished_stage_are_refused(sslt, here, capsys):
    """They would do nothing."""
    sslt(*IMAGES, "hydra.run.dir=chain")
    sslt("run", "resume=chain", "finetune.trainer.max_steps=3", code=2)
    assert "sslt finetune resume=" in capsys.readouterr().err


def test_an_encoder_is_chosen_for_pretraining(here):
    """Fine-tuning takes the one that was pretrained."""
    assert rewrite(["encoder=resnet18", "encoder.stem=small"], None) == [
        "++stages.pretrain.choices.encoder=resnet18",
        "++stages.pretrain.values.encoder.stem=small",
    ]
