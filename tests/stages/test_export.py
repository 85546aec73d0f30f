"""Protects the verb `export` through the command line: a file that answers alone, a run folder that answers as its parent, and refusals."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES, TINY_TEXT
from PIL import Image

from sslt.config import build
from sslt.deploy import standalone
from sslt.deploy.variants import bytes_on_disk, load_variant
from sslt.runs import Run, read_json

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

CPU = "trainer.accelerator=cpu"
LINES = ["the socket is closed", "", "a list of strings and a dictionary of lists", "Größe der Datei — 大小", "parse the document " * 30]
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("sslt", "torch", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def photos(here: Path, shapes: list[tuple[int, ...]]) -> None:
    """Files of noise of these shapes in photos/."""
    rng = np.random.default_rng(0)
    (here / "photos").mkdir()
    for i, shape in enumerate(shapes):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(here / "photos" / f"{i}.png")


def alone(run: Path, files: Path, *flags: str) -> list[dict]:
    """What predict.py says in a process that has neither sslt nor torch."""
    command = [sys.executable, "-c", BLOCKED, run / "model" / "predict.py", *flags, files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.parent if flags else "/")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def alike(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a["prediction"] == b["prediction"] and a["row"] == b["row"]
        assert a["scores"] == pytest.approx(b["scores"], abs=2e-4)


def test_images(sslt, here):
    """Trained with late fusion, exported, asked alone and by `sslt`; the exported run is measured as its parent."""
    tiny = ["encoder=resnet_small", *TINY_IMAGES, "trainer.max_steps=4", "baseline=false"]
    sslt("finetune", "+target=digits", "from=scratch", *tiny, "hydra.run.dir=tuned")
    sslt("export", "from=tuned", CPU, "hydra.run.dir=out")
    metrics, parent = Run(here / "out").metrics, Run(here / "tuned").metrics
    assert metrics["test/accuracy"] == metrics["run/accuracy"] == parent["test/accuracy"]
    assert 0 < metrics["export/max_error"] < 1e-5 and metrics["export/bytes"] == sum(
        p.stat().st_size for p in (here / "out/model").iterdir()
    )
    assert {k for k in metrics if k.startswith("export/max_error")} == {
        "export/max_error",
        *(f"export/max_error_batch_{n}" for n in (1, 3, 8)),
    }
    assert Run(here / "out").info["parent"]["from"] == "tuned" and not (here / "out" / ".model.tmp").exists()

    photos(here, [(8, 8, 3), (30, 11, 3), (9, 40, 4), (64, 64, 3)])
    for run in ("tuned", "out"):
        sslt("predict", f"from={run}", "input=photos", CPU, f"hydra.run.dir=said_{run}")
    told = alone(here / "out", here / "photos")
    alike(told, rows(here / "said_tuned" / "predictions.jsonl"))
    alike(rows(here / "said_out" / "predictions.jsonl"), rows(here / "said_tuned" / "predictions.jsonl"))
    assert [row["name"] for row in told] == ["0.png", "1.png", "2.png", "3.png"]
    sslt("evaluate", "from=out", "baseline=false", CPU, "hydra.run.dir=measured")
    assert Run(here / "measured").metrics["test/accuracy"] == parent["test/accuracy"]
    variant, samples = load_variant("out"), load_variant("tuned").prepare(build(Run(here / "out").config.data), "test")
    assert variant.target.score(variant.predictions(samples, torch.device("cpu"), 64), samples.answers) == parent["test/accuracy"]
    assert bytes_on_disk(here / "out") > metrics["export/bytes"]

    sslt("export", "from=out", CPU, "hydra.run.dir=again", code=2)
    sslt("finetune", "+target=digits", "from=out", CPU, "hydra.run.dir=again", code=2)
    sslt("export", "from=tuned", "format=timm", "late_fusion=false", CPU, "hydra.run.dir=again", code=2)  # the stem is another
    assert not (here / "again").exists()


def test_texts(sslt, here, capsys):
    """With TF-IDF beside the encoder; and what leaving it out costs is said."""
    sslt("finetune", "+target=docs", "from=scratch", *TINY_TEXT, "trainer.max_steps=4", "baseline=false", "hydra.run.dir=tuned")
    sslt("export", "from=tuned", CPU, "hydra.run.dir=out")
    (here / "lines.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    sslt("predict", "from=tuned", "input=lines.txt", CPU, "hydra.run.dir=said")
    told = rows(here / "said" / "predictions.jsonl")
    alike(alone(here / "out", here / "lines.txt"), told)
    with (here / "table.csv").open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["team", "Body"], *(["x", line] for line in LINES)])
    alike(alone(here / "out", here / "table.csv"), told)

    capsys.readouterr()
    sslt("export", "from=tuned", "format=hf", CPU, "hydra.run.dir=refused", code=2)
    assert "late_fusion=false leaves it out, which costs" in capsys.readouterr().err
    sslt("export", "from=tuned", "format=hf", "late_fusion=false", CPU, "hydra.run.dir=hf")
    assert "left out: what stands beside the encoder" in capsys.readouterr().out
    assert Run(here / "hf").metrics["left_out/accuracy"] == pytest.approx(
        Run(here / "tuned").metrics["test/accuracy"] - Run(here / "hf").metrics["test/accuracy"], abs=1e-6
    )


def test_a_bag_of_words(sslt, here):
    """Words that training never had are spelled beside the graph as `sslt predict` spells them."""
    small = ["encoder=bag", "encoder.dim=8", "encoder.pairs=64", "trainer.max_steps=4", "baseline=false", CPU]
    sslt("finetune", "+target=docs", "from=scratch", *small, "hydra.run.dir=tuned")
    sslt("export", "from=tuned", CPU, "hydra.run.dir=out")
    assert read_json(here / "out/model/export.json")["samples"]["spelled"]
    lines = ["arraylikes reshaped broadcastings", "", "unheardof words of arraylike"]
    (here / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for run in ("tuned", "out"):
        sslt("predict", f"from={run}", "input=lines.txt", CPU, f"hydra.run.dir=said_{run}")
    told = rows(here / "said_tuned" / "predictions.jsonl")
    alike(alone(here / "out", here / "lines.txt"), told)
    alike(rows(here / "said_out" / "predictions.jsonl"), told)
    assert told[0]["scores"] != told[1]["scores"]  # an empty text's are the bias


def test_tags(sslt, here):
    """Spans of short texts and of one that is cut, as `sslt predict` says them; the type and words of each."""
    import test_tagging_stage as tagging

    (here / "set").mkdir()
    for name, numbers in (("train", range(48)), ("test", range(48, 60))):
        (here / "set" / f"{name}.jsonl").write_text("".join(json.dumps(tagging.row(i)) + "\n" for i in numbers))
    own = ["+target=text_tags", "data.path=set", *TINY_TEXT, "encoder.processor.vocab_size=200", "batch_size=16", "windows=1"]
    short = ["optimizer.lr=0.01", "trainer.max_steps=50", "late_fusion=false", "baseline=false"]
    sslt("finetune", *own, "from=scratch", *short, "hydra.run.dir=tuned")
    sslt("export", "from=tuned", CPU, "hydra.run.dir=out")
    (here / "lines.txt").write_text("\n".join(str(tagging.row(i)["text"]) for i in range(60, 72)) + "\nnobody\n")
    sslt("predict", "from=tuned", "input=lines.txt", CPU, "hydra.run.dir=said")
    told, wanted = alone(here / "out", here / "lines.txt"), rows(here / "said" / "predictions.jsonl")
    assert [r["prediction"] for r in told] == [r["prediction"] for r in wanted] and sum(len(r["prediction"]) for r in told) >= 12
    assert {s["type"] for r in told for s in r["prediction"]} == {"person", "place"}


def test_maps(sslt, here):
    """A picture's own size, pixel by pixel; into a folder that has nothing in it yet."""
    from test_every_target_whole import CASES, SHORT

    sslt("finetune", *CASES["segmentation"](here), *SHORT, "trainer.max_steps=20", "baseline=false", "hydra.run.dir=tuned")
    sslt("export", "from=tuned", CPU, "hydra.run.dir=out")
    photos(here, [(8, 8, 3), (30, 11, 3), (9, 40, 3), (64, 64, 3)])
    for run in ("tuned", "out"):
        sslt("predict", f"from={run}", "input=photos", CPU, f"hydra.run.dir=said_{run}")
    told, wanted = alone(here / "out", here / "photos", "--maps=maps"), rows(here / "said_tuned" / "predictions.jsonl")
    assert [r["shares"] for r in told] == [r["shares"] for r in wanted] and any(len(r["shares"]) > 1 for r in told)
    for row, other in zip(told, wanted, strict=True):
        assert (here / "maps" / row["prediction"]).read_bytes() == (here / "said_tuned" / other["prediction"]).read_bytes()
    again = subprocess.run([sys.executable, here / "out/model/predict.py", "--maps=maps", "photos"], capture_output=True, text=True)
    assert again.returncode == 1 and again.stderr == "--maps=maps: there are files in this folder already; name another\n"


def test_features(sslt, here):
    """An encoder without a head: the file gives its features."""
    sslt("pretrain", "+task=simcse", "data=docs", *TINY_TEXT, "trainer.max_steps=2", "hydra.run.dir=base")
    sslt("export", "from=base", "format=torch", CPU, "hydra.run.dir=out")
    (here / "lines.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    sslt("predict", "from=out", "input=lines.txt", CPU, "hydra.run.dir=no", code=2)  # a program can run code: trust=[torch]
    for run, more in (("base", ()), ("out", ("trust=[torch]",))):
        sslt("predict", f"from={run}", "input=lines.txt", CPU, *more, f"hydra.run.dir=said_{run}")
    ours, theirs = (np.load(here / f"said_{run}" / "features.npy") for run in ("out", "base"))
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_file_that_answers_otherwise_is_not_kept(sslt, here, monkeypatch, capsys):
    """Nothing of it stays, nor does its folder."""
    tiny = ["encoder=resnet_small", *TINY_IMAGES, "trainer.max_steps=1", "late_fusion=false", "baseline=false"]
    sslt("finetune", "+target=digits", "from=scratch", *tiny, "hydra.run.dir=tuned")
    right = standalone.Model.outputs
    monkeypatch.setattr(standalone.Model, "outputs", lambda self, given: {k: 1.001 * x for k, x in right(self, given).items()})
    sslt("export", "from=tuned", CPU, "hydra.run.dir=wrong", code=2)
    assert "gives other numbers than the run" in capsys.readouterr().err and not (here / "wrong").exists()
    sslt("export", "from=tuned", "max_error=0.01", CPU, "hydra.run.dir=wrong")
    sslt("export", "from=tuned", "format=coreml", CPU, "hydra.run.dir=other", code=2)
