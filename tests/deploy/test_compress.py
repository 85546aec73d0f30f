"""Protects the life of a compressed run through the command line: measured before and after, kept or not, used as any other run."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_IMAGES, TINY_TEXT

from sslt.deploy import table
from sslt.deploy.variants import load_variant, named_apart
from sslt.encoders.files import read_tensors
from sslt.runs import Run
from sslt.stages.bench import folders_of

SSLT = str(Path(sys.executable).parent / "sslt")
CPU = "trainer.accelerator=cpu"
BRIEF = [CPU, "rounds=3", "warmup=1", "batch_sizes=[1,4]"]


def test_images_side_by_side(sslt, here):
    """Numbers of the rows are those of an independent count, and the interval is the target's own."""
    tune = ["finetune", "+target=digits", "encoder=resnet_small", *TINY_IMAGES, "from=scratch", "trainer.max_steps=6"]
    sslt(*tune, "labels_per_class=20", "hydra.run.dir=run")
    sslt("compress", "from=run", "method=half", "method.dtype=bfloat16", *BRIEF, "fresh=false", "tolerance=0.9", "hydra.run.dir=half")
    assert Run(here / "half").info["labels"]["labels_per_class"] == 20  # of the run that it was made from
    sslt("bench", "from=run,half", *BRIEF, "hydra.run.dir=bench")
    with (here / "bench" / "bench.csv").open() as f:
        first, second = csv.DictReader(f)
    metrics = Run(here / "bench").metrics
    assert (first["variant"], second["variant"]) == ("run", "half") and (here / "bench" / "plots" / "bench.png").exists()

    variants = [load_variant(here / name) for name in ("run", "half")]
    for row, variant in zip((first, second), variants, strict=True):
        tensors = {k: x for part in ("encoder", "head") for k, x in read_tensors(variant.folder / part / "model.safetensors").items()}
        state = {**variant.encoder.state_dict(keep_vars=True), **variant.target.state_dict(keep_vars=True)}
        buffers = sum(x.numel() for x in state.values() if not x.requires_grad)
        assert int(row["parameters"]) == sum(x.numel() for x in tensors.values()) - buffers
        files = [p for part in ("encoder", "head") for p in (variant.folder / part).iterdir() if p.is_file()]
        assert int(row["bytes"]) == sum(len(p.read_bytes()) for p in files)
        assert float(row["latency/1/p50_ms"]) > 0 and int(row["raw/4/rounds"]) == 3
        assert 1e7 < float(row["libraries_bytes"]) < float(row["memory_bytes"]) < 1e11
        assert float(row["start_seconds"]) > float(row["load_seconds"]) > 0
    assert int(second["bytes"]) < int(first["bytes"]) and first["operations"] == second["operations"]

    from sslt.config import build

    source = build(Run(here / "run").config.data)
    samples = variants[0].prepare(source, "test")
    ours, theirs = (v.predictions(samples, v.encoder.parameters().__next__().device, 64) for v in variants)
    wanted = variants[0].target.difference(theirs, ours, samples.answers)
    assert wanted == (metrics["half/difference"], metrics["half/difference_low"], metrics["half/difference_high"])
    assert metrics["run/accuracy"] == Run(here / "run").metrics["test/accuracy"]
    compressed = Run(here / "half").metrics
    assert compressed["kept"] is True and compressed["after/difference"] == metrics["half/difference"]
    sslt("evaluate", "from=half", CPU, "baseline=false", "hydra.run.dir=e")
    assert Run(here / "e").metrics["test/accuracy"] == compressed["test/accuracy"] == compressed["after/accuracy"]
    _in_integers(sslt, here)
    sslt("compress", "from=run", *BRIEF, "hydra.run.dir=c1", code=2)  # no method
    sslt("compress", "from=run", "method=int8", *BRIEF, "hydra.run.dir=c2", code=2)  # nothing linear in it
    sslt("bench", "from=run,nothing", *BRIEF, "hydra.run.dir=b1", code=2)
    assert not (here / "c1").exists() and not (here / "b1").exists()


def _in_integers(sslt, here):
    """The graph of the run: convolutions with integer weights and calibrated activations, the head in float; used as any other run."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    sslt("compress", "from=run", "method=onnx_int8_static", "method.samples=32", *BRIEF, "fresh=false", "hydra.run.dir=o")
    graph = onnx.load(here / "o" / "model" / "model.onnx").graph
    assert "QuantizeLinear" in {node.op_type for node in graph.node}
    weights = {x.name: x.data_type for x in graph.initializer}
    assert weights["target.head.weight"] == onnx.TensorProto.FLOAT and onnx.TensorProto.INT8 in weights.values()
    with (here / "o" / "layers.csv").open() as f:
        layers = list(csv.DictReader(f))
    named = {row["layer"] for row in layers}
    assert "model.conv1" in named and all(name.startswith("model.") for name in named)  # nothing that stands beside the encoder
    assert 0 < float(layers[0]["relative_error"]) < 0.5
    found = Run(here / "o").metrics
    assert found["quantized/calibration_samples"] == 32 and found["quantized/bytes"] < found["quantized/bytes_before"]
    sslt("evaluate", "from=o", CPU, "baseline=false", "hydra.run.dir=oe")
    assert Run(here / "oe").metrics["test/accuracy"] == found["after/accuracy"] and "after/parameters" not in found
    sslt("compress", "from=run", "method=onnx_int8", *BRIEF, "hydra.run.dir=o2", code=2)  # nothing linear in it
    sslt("compress", "from=o", "method=half", *BRIEF, "hydra.run.dir=o3", code=2)


def test_texts_in_eight_bits(sslt, here, capsys):
    """A fresh process answers the same bit for bit; it cannot be trained or compressed again, and says so."""
    pytest.importorskip("torchao")
    sslt("finetune", "+target=docs", *TINY_TEXT, "from=scratch", "trainer.max_steps=4", "labels_per_class=20", "hydra.run.dir=run")
    sslt("compress", "from=run", "method=int8", *BRIEF, "fresh=false", "raw=false", "hydra.run.dir=q")
    found = Run(here / "q").metrics
    assert found["quantized/bytes_before"] / found["quantized/bytes"] > 3.5 and found["after/bytes"] < found["before/bytes"]
    assert found["kept"] is (found["after/difference_low"] >= -0.01)
    with (here / "q" / "layers.csv").open() as f:
        errors = [float(row["relative_error"]) for row in csv.DictReader(f)]
    assert len(errors) == found["quantized/layers"] == 12 and errors == sorted(errors, reverse=True)
    (here / "texts.txt").write_text("a list of strings\nthe socket is closed\nparse the document\n")
    sslt("predict", "from=q", "input=texts.txt", CPU, "hydra.run.dir=here")
    subprocess.run([SSLT, "predict", "from=q", "input=texts.txt", CPU, "hydra.run.dir=there"], check=True, capture_output=True)
    assert (here / "here" / "predictions.csv").read_text() == (here / "there" / "predictions.csv").read_text()
    capsys.readouterr()
    sslt("finetune", "+target=docs", *TINY_TEXT[6:], "from=q", "trainer.max_steps=2", "hydra.run.dir=f", code=2)
    assert "from=q is quantized (int8)" in (said := capsys.readouterr().err) and "from=run" in said
    sslt("compress", "from=q", "method=half", *BRIEF, "hydra.run.dir=c", code=2)
    assert "from=q is quantized" in capsys.readouterr().err


def test_a_change_is_kept_where_its_whole_interval_is():
    """Not the mean: its worse end."""
    assert table.Change(-0.005, -0.01, 0.0).kept(0.01) and not table.Change(0.0, -0.011, 0.011).kept(0.01)
    assert not table.Change(-0.005, -0.011, 0.0).kept(0.01) and table.Change(0.1, 0.05, 0.2).kept(0.0)


def test_names_and_folders(here):
    """Folders of one name are told apart by those above; one that has a comma in its name is one."""
    assert named_apart(["x/run", "y/run"]) == ["x/run", "y/run"]
    assert named_apart(["a/b", "a/c"]) == ["b", "c"] and len(set(named_apart(["a", "a"]))) == 2
    (here / "a,b").mkdir()
    assert folders_of("a,b") == ["a,b"] and folders_of("c, d") == ["c", "d"]
