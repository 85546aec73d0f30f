"""Protects what predictions say where the input has labels: the truth beside them, the accuracy, and every class's probability."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_IMAGES, TINY_TEXT
from omegaconf import OmegaConf
from PIL import Image

from sslt import groups
from sslt.runs import Run
from sslt.stages import predict

CPU = "trainer.accelerator=cpu"


def rows_of(run: str) -> list[dict[str, str]]:
    with (Path(run) / "predictions.csv").open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def check(run: str, labelled: int) -> list[dict[str, str]]:
    """The numbers of a run agree with its table."""
    rows, metrics = rows_of(run), Run(Path(run)).metrics
    known = [r for r in rows if f"probability/{r['truth']}" in r]
    assert metrics["predict/rows"] == len(rows) and metrics["predict/labelled"] == labelled == len(known)
    assert metrics["predict/accuracy"] == pytest.approx(np.mean([r["truth"] == r["label"] for r in known]))
    for r in rows:
        each = {k.partition("/")[2]: float(v) for k, v in r.items() if k.startswith("probability/")}
        assert sum(each.values()) == pytest.approx(1, abs=1e-3) and float(r["probability"]) == max(each.values()) == each[r["label"]]
    return rows


def test_a_table_with_labels(sslt, here, capsys):
    """The run's own column is read again; a row without a label is predicted as any other; what the head does not know counts nowhere."""
    lines = [f"{word} {i},x,{team}" for i in range(20) for word, team in (("trees grow", "garden"), ("ships sail", "sea"))]
    (here / "tickets.csv").write_text("\n".join(["body,label,team", *lines]) + "\n")
    own = ["data.path=tickets.csv", "data.text=body", "data.label=team", *TINY_TEXT]
    sslt("finetune", "+target=text_csv", "from=scratch", *own, "trainer.max_steps=2", "baseline=false", "hydra.run.dir=run")
    (here / "new.csv").write_text("body,label,team\ntrees,x,garden\nships,x,\nships,x,sea\nstars,x,sky\n")
    capsys.readouterr()
    sslt("predict", "from=run", "input=new.csv", CPU, "hydra.run.dir=out")
    assert "accuracy on the 2 whose answer is known" in capsys.readouterr().out
    assert [r["truth"] for r in check("out", 2)] == ["garden", "", "sea", "sky"]
    sslt("predict", "from=run", "input=new.csv", CPU, "probabilities=false", "hydra.run.dir=short")
    assert list(rows_of("short")[0]) == ["row", "truth", "label", "probability"]
    (here / "new.txt").write_text("trees\n")
    sslt("predict", "from=run", "input=new.txt", CPU, "hydra.run.dir=lines")
    assert "truth" not in rows_of("lines")[0] and "predict/accuracy" not in Run(Path("lines")).metrics
    sslt("predict", "from=run", "input=new.txt", CPU, "probabilities=some", code=2)


def test_folders_of_classes(sslt, here):
    """Pictures in folders named as the classes, and a data set by name."""
    for name in ("3", "7"):
        (here / "set" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((8, 8), 80 * i, np.uint8)).save(here / "set" / name / f"{i}.png")
    sslt("finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "trainer.max_steps=2", "baseline=false", "hydra.run.dir=run")
    sslt("predict", "from=run", "input=set", CPU, "hydra.run.dir=out")
    assert [r["truth"] for r in check("out", 4)] == ["3", "3", "7", "7"]
    sslt("predict", "from=run", "data=digits", CPU, "hydra.run.dir=named")
    assert Run(Path("named")).metrics["predict/accuracy"] == pytest.approx(Run(Path("run")).metrics["test/accuracy"])
    check("named", len(rows_of("named")))


def test_a_text_is_read_to_its_end(sslt, here):
    """Texts that differ in their last words alone are told apart with windows=all, and not by one window of 32 tokens; a run says once how
    much it reads, and whatever reads its encoder may say otherwise.
    """
    same = " ".join(f"w{i % 7}" for i in range(100))
    lines = [f"{same} {word * 3} {i},{team}" for i in range(20) for word, team in (("trees ", "garden"), ("ships ", "sea"))]
    (here / "long.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    (here / "new.txt").write_text(f"{same} trees trees trees\n{same} ships ships ships\ntrees\n")
    own = [
        "+target=text_csv",
        "data.path=long.csv",
        "data.text=text",
        "data.label=label",
        *TINY_TEXT,
        "baseline=false",
        "trainer.max_steps=2",
    ]

    def probabilities(run: str, *settings: str) -> list[str]:
        sslt("predict", f"from={run}", "input=new.txt", CPU, f"hydra.run.dir={run}-{len(settings)}", *settings)
        return [r["probability/sea"] for r in rows_of(f"{run}-{len(settings)}")]

    sslt("finetune", "from=scratch", *own, "hydra.run.dir=one")
    sslt("finetune", "from=one", "windows=all", *own, "adaptation=probe", "hydra.run.dir=all")
    assert Run(Path("all")).metrics["test/accuracy"] > Run(Path("one")).metrics["test/accuracy"] == 0.5
    first, second, short = probabilities("one")
    assert first == second != short
    longer = probabilities("one", "windows=all")
    assert longer[0] != longer[1] and longer[2] == short
    first, second, _ = probabilities("all")
    assert first != second
    sslt("evaluate", "from=all", "windows=1", CPU, "baseline=false", "hydra.run.dir=measured")
    assert Run(Path("measured")).metrics["test/accuracy"] == 0.5
    sslt("predict", "from=all", "input=new.txt", CPU, "windows=every", code=2)


@pytest.mark.parametrize("path, columns", [("new.csv", ("who", "what")), ("new.txt", (None, None))])
def test_columns_of_a_log_are_those_of_the_run(path, columns, monkeypatch):
    """A new file of the kind that was learned from is read as that was; sequences may stand in another."""
    node = OmegaConf.load(groups.CONFIG_DIR / "data/interactions.yaml")
    learned = OmegaConf.merge(node, {"path": "log.csv.gz", "user": "who", "item": "what"})
    monkeypatch.setattr(predict, "_data_of_run", lambda cfg: learned)
    found = OmegaConf.merge(node, predict._same_layout(OmegaConf.create({"input": path}), node))
    assert (found.user, found.item) == columns
