"""The whole job through the command line, for images and text: run folders, results, links between them."""

from __future__ import annotations

import json

import pytest
from conftest import TINY_IMAGES, TINY_TEXT

from sslt.runs import Run

ALONE = ["baseline=false", "late_fusion=false"]  # nothing beside the encoder


def both(settings: list[str]) -> list[str]:
    """Encoder settings for the stage that builds one; trainer settings for both."""
    return [f"pretrain.{s}" if s.startswith("encoder") else s for s in settings]


@pytest.mark.usefixtures("true_pictures")
def test_images_from_unlabelled_to_measured(sslt, here, capsys):
    """run = pretrain → finetune → evaluate; every file a user looks for is there, and a finished chain is not run again."""
    args = ["run", "+task=simclr", "+target=digits", *both(TINY_IMAGES), "trainer.max_steps=4", "hydra.run.dir=chain"]
    sslt(*args)
    pre, fine, ev = (Run(here / "chain" / s) for s in ("pretrain", "finetune", "evaluate"))
    for run in (pre, fine, ev, Run(here / "chain")):
        assert run.finished
    for name in ("config.yaml", "command.txt", "versions.json", "metrics.json", "metrics.csv", "plots/curves.png", "logs/sslt.log"):
        assert (pre / name).exists(), name
    assert (pre / "plots" / "views_pretrain.png").exists() and (fine / "plots" / "confusion.png").exists()
    assert (pre / "checkpoints" / "last.ckpt").exists() and (pre / "encoder" / "model.safetensors").exists()
    assert fine.info["from"].endswith("pretrain") and pre.info["data"] == fine.info["data"]
    assert ev.metrics["test/accuracy"] == fine.metrics["test/accuracy"]  # the same weights on the same split
    assert fine.metrics["train/steps"] == 4 and fine.metrics["throughput/samples_per_second"] >= 0
    stamp = (pre / "run.json").stat().st_mtime_ns
    sslt(*args, "resume=auto")
    assert (pre / "run.json").stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("true_pictures")
def test_text_from_unlabelled_to_measured(sslt, here):
    """The same commands with words instead of pixels; SimCSE by the class that is SimCLR's."""
    sslt("pretrain", "+task=mlm", *TINY_TEXT, "trainer.max_steps=3", "hydra.run.dir=mlm", "views.whole_word=true")
    assert "[MASK]" in (here / "mlm" / "plots" / "views_pretrain.txt").read_text()
    sslt("pretrain", "+task=simcse", "from=mlm", "trainer.max_steps=2", "trainer.accelerator=cpu", "hydra.run.dir=simcse")
    fine = ["finetune", "+target=docs", "from=simcse", "trainer.max_steps=3", "labels_per_class=8", "trainer.accelerator=cpu"]
    fine += ["baseline=false"]
    sslt(*fine, "hydra.run.dir=fine", "adaptation=partial", "adaptation.blocks=1", "compare=scratch")
    metrics = Run(here / "fine").metrics
    assert metrics["train/labels"] == 64
    assert metrics["gain/test/accuracy"] == pytest.approx(metrics["test/accuracy"] - metrics["scratch/test/accuracy"])
    sslt("evaluate", "from=mlm", "trainer.accelerator=cpu", "hydra.run.dir=ev", "shots=[1]", "draws=2")
    found = Run(here / "ev").metrics
    assert {"knn/accuracy", "linear/accuracy", "1_shot/accuracy", "features/rankme", "features/alpha_req"} <= set(found)
    assert (here / "ev" / "plots" / "embeddings.png").exists()


def test_own_table_in_any_language_and_predictions(sslt, here):
    """A user's CSV by path and columns; a wrong column names the nearest; predictions for new lines; labels that do not fit."""
    rows = [f"{word} 这家酒店 {i},{label}" for i in range(40) for word, label in (("很好", "pos"), ("很差", "neg"))]
    (here / "tickets.csv").write_text("body,team\n" + "\n".join(rows) + "\n", encoding="utf-8")
    base = ["finetune", "+target=text_csv", "from=scratch", "data.path=tickets.csv", *TINY_TEXT, "encoder.processor.vocab_size=100"]
    sslt(*base, "data.text=bdoy", code=2)
    sslt(*base, "data.text=body", "data.label=team", "trainer.max_steps=3", "hydra.run.dir=own", "report=best")
    (here / "new.txt").write_text("很好 的 酒店\n很差\n", encoding="utf-8")
    sslt("predict", "from=own", "input=new.txt", "trainer.accelerator=cpu", "hydra.run.dir=out")
    lines = (here / "out" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[1].split(",")[1] in ("neg", "pos")
    sslt("evaluate", "from=own", "data=docs", "trainer.accelerator=cpu", code=2)
    sslt("evaluate", "from=own", "data=digits", "trainer.accelerator=cpu", code=2)
    sslt("predict", "from=own", "input=tickets.csv", "trainer.accelerator=cpu", "hydra.run.dir=all")
    assert len((here / "all" / "predictions.csv").read_text().splitlines()) == 81


def test_a_run_folder_is_never_overwritten(sslt, here, capsys):
    (here / "taken").mkdir()
    (here / "taken" / "thesis.tex").write_text("mine")
    sslt("pretrain", "+task=simclr", "hydra.run.dir=taken", code=2)
    assert "already holds files" in capsys.readouterr().err
    assert sorted(p.name for p in (here / "taken").iterdir()) == ["thesis.tex"]


def test_a_downloaded_encoder_executes_nothing(sslt, here, capsys):
    """A `_target_` outside sslt in somebody's files is refused, not run (CVE-2025-23304 and its like)."""
    (here / "evil").mkdir()
    for target in ("os.system", "sslt.data.cache.shutil.rmtree"):
        about = {"format": 1, "_target_": target, "args": {"command": "touch owned"}, "processor": {}}
        (here / "evil" / "sslt.json").write_text(json.dumps(about))
        sslt("finetune", "+target=digits", "from=evil", "trainer.accelerator=cpu", code=2)
        assert "trust=" in capsys.readouterr().err
    run = here / "run"
    run.mkdir()
    (run / "run.json").write_text('{"verb": "finetune", "status": "finished"}')
    (run / "config.yaml").write_text("data: {_target_: os.system, command: touch owned}\n")
    sslt("evaluate", "from=run", code=2)
    assert not (here / "owned").exists()


def test_a_changed_head_executes_nothing(sslt, here, capsys):
    """An interpolation could make a node while it is resolved: refused."""
    sslt("finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "trainer.max_steps=1", *ALONE, "hydra.run.dir=run")
    place = here / "run" / "head" / "head.json"
    head = json.loads(place.read_text())
    head["objective"]["dropout"] = "${oc.create:{_target_:os.system,command:'touch owned'}}"
    place.write_text(json.dumps(head))
    sslt("evaluate", "from=run", "trainer.accelerator=cpu", code=2)
    assert "interpolation" in capsys.readouterr().err
    assert not (here / "owned").exists()


def test_two_processes_do_not_work_in_one_folder(sslt, here, capsys):
    """A run that is still going is not taken up by resume."""
    import fcntl

    sslt("pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=1", "hydra.run.dir=busy")
    Run(here / "busy").update(status="running")
    with (here / "busy" / ".lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        sslt("pretrain", "resume=busy", code=2)
    assert "another process" in capsys.readouterr().err


def test_a_longer_budget_goes_on_from_a_finished_run(sslt, here):
    """resume=RUN with a later bound trains on; the former config is kept beside the new one."""
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=2", "hydra.run.dir=more")
    sslt("pretrain", "resume=more", "trainer.max_steps=4")
    assert Run(here / "more").metrics["train/steps"] == 4
    assert (here / "more" / "config.0.yaml").exists() and Run(here / "more").config.trainer.max_steps == 4


def test_nan_loss_names_the_step_and_keeps_the_last_good_checkpoint(sslt, here, capsys):
    args = [
        "pretrain",
        "+task=simclr",
        *TINY_IMAGES,
        "hydra.run.dir=nan",
        "checkpoint.every_minutes=0.00001",
        "online_probe.every_n_epochs=0",
    ]
    sslt(*args, "optimizer=sgd", "optimizer.lr=1e30", "schedule=constant", "schedule.warmup=0.5", "trainer.max_steps=40", code=2)
    said = capsys.readouterr().err
    assert "step" in said and "optimizer.lr" in said
    assert Run(here / "nan").info["status"] == "failed"


def test_sweep_goes_on_after_a_failing_job(sslt, here):
    """-m: one bad value does not cost the other jobs; each job has its own folder."""
    args = ["pretrain", "-m", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=2", "batch_size=5000,64", "hydra.sweep.dir=sweep"]
    sslt(*args, code=2)
    assert Run(here / "sweep" / "0").info["status"] == "failed" and Run(here / "sweep" / "1").finished
    before = (here / "sweep" / "1" / "metrics.json").read_bytes()
    said = (here / "sweep" / "1" / ".hydra" / "overrides.yaml").read_bytes()
    sslt(*args[:-2], "batch_size=32,64", args[-1], code=2)  # the same folders again: refused, not overwritten
    assert (here / "sweep" / "1" / ".hydra" / "overrides.yaml").read_bytes() == said
    assert (here / "sweep" / "1" / "metrics.json").read_bytes() == before


def test_predictions_for_a_folder_of_pictures(sslt, here):
    """Names are in the table, and every split of a folder that has some; one picture is no folder."""
    import numpy as np
    from PIL import Image

    sslt("finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "trainer.max_steps=2", *ALONE, "hydra.run.dir=fine")
    (here / "photos").mkdir()
    for split, n in {"train": 2, "val": 1}.items():
        for name in ("a", "b"):
            (here / "set" / split / name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(np.full((20, 30, 3), 80 * i, np.uint8)).save(here / "set" / split / name / f"{i}.png")
    sslt("predict", "from=fine", "input=set", "trainer.accelerator=cpu", "hydra.run.dir=splits")
    lines = [line.split(",") for line in (here / "splits" / "predictions.csv").read_text().splitlines()]
    assert lines[0][:5] == ["row", "split", "name", "label", "probability"] and len(lines) == 7  # a and b are no digits
    assert [line[:2] for line in lines[1:]] == [["0", "train"], ["1", "train"], ["2", "train"], ["3", "train"], ["0", "val"], ["1", "val"]]
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 80 * i, np.uint8)).save(here / "photos" / f"{i}.png")
    sslt("predict", "from=fine", "input=photos", "trainer.accelerator=cpu", "hydra.run.dir=out")
    lines = (here / "out" / "predictions.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines] == ["name", "0.png", "1.png", "2.png"]
    sslt("predict", "from=fine", "input=photos/0.png", "trainer.accelerator=cpu", code=2)
    sslt("predict", "from=fine/encoder", "input=photos", "trainer.accelerator=cpu", "hydra.run.dir=features")
    assert np.load(here / "features" / "features.npy").shape == (3, 16)


def test_a_chain_takes_what_is_added_to_fine_tuning(sslt, here, capfd):
    """+joint= goes to fine-tuning alone; what cannot be placed is said."""
    args = ["run", "+task=mlm", "+target=docs", "+joint=mlm", "joint.weight=0.4", *TINY_TEXT, "trainer.max_steps=2", "shots=[1]", "draws=1"]
    sslt(*args, "hydra.run.dir=chain")
    assert Run(here / "chain" / "finetune").config.joint.weight == 0.4
    sslt("run", "+task=mlm", "+target=docs", "+shift=coral", "data@shift.target=docs", code=2)
    assert "cannot place data@shift.target=" in capfd.readouterr().err
