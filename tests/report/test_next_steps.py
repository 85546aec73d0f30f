"""Protects what a run says to type next: the printed commands run as they stand, on the data the run was made on."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_IMAGES, TINY_TEXT
from PIL import Image

from sslt import config
from sslt.groups import command, completed, starting
from sslt.report.next_steps import data_settings
from sslt.runs import Run

FAST = ["trainer.max_steps=1", "online_probe.every_n_epochs=0", "batch_size=8"]


def pictures(folder: Path, labelled: bool) -> None:
    rng = np.random.default_rng(0)
    for i in range(40):
        inner = folder / ("ab"[i % 2] if labelled else "")
        inner.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(inner / f"{i}.png")


def table(file: Path) -> None:
    rows = [f"{i},some words about {word} number {i},{word}" for i in range(30) for word in ("trees", "ships")]
    file.write_text("\n".join(["id,body,team", *rows]) + "\n")


def told(printed: str) -> list[list[str]]:
    return [shlex.split(line.partition("next: ")[2]) for line in printed.splitlines() if "next: " in line]


def run_as_printed(sslt, capsys, *args: str) -> list[list[str]]:
    """Pretrain, then run every command it prints; fine-tuning is only kept short."""
    sslt("pretrain", *args, *FAST, "hydra.run.dir=first run")
    commands = told(capsys.readouterr().out)
    for i, (program, verb, *rest) in enumerate(commands):
        assert program == "sslt"
        sslt(verb, *rest, *(["trainer.max_steps=1"] if verb == "finetune" else []), f"hydra.run.dir=next{i}")
        assert Run(Path(f"next{i}")).finished
    return commands


def test_after_a_folder_of_classes(sslt, here, capsys):
    """A path with a space and another fraction are said again."""
    pictures(here / "my photos", labelled=True)
    commands = run_as_printed(
        sslt, capsys, "+task=simclr", "data=image_folder", "data.path='my photos'", "data.val_fraction=0.2", *TINY_IMAGES
    )
    assert [c[1] for c in commands] == ["evaluate", "finetune"]
    assert "+target=image_folder" in commands[1] and "data.val_fraction=0.2" in commands[1]


def test_after_pictures_without_labels(sslt, here, capsys):
    """There is nothing to fine-tune on: features, and what labels would be good for."""
    pictures(here / "photos", labelled=False)
    sslt("pretrain", "+task=simclr", "data=image_folder", "data.path=photos", *TINY_IMAGES, *FAST, "hydra.run.dir=run")
    printed = capsys.readouterr().out
    assert "once you have labels: sslt finetune +target=image_folder data.path=FOLDER from=run" in printed
    commands = told(printed)
    assert [c[1] for c in commands] == ["evaluate", "predict"]
    for i, (_, verb, *rest) in enumerate(commands):
        sslt(verb, *rest, f"hydra.run.dir=next{i}")
    assert len(np.load("next1/features.npy")) == 40


def test_after_a_table(sslt, here, capsys):
    """Its columns are said again."""
    table(here / "tickets.csv")
    settings = ["+task=mlm", "data=text_csv", "data.path=tickets.csv", "data.text=body", "data.label=team", *TINY_TEXT]
    commands = run_as_printed(sslt, capsys, *settings)
    assert {"data.text=body", "data.label=team"} <= set(commands[1])


@pytest.mark.parametrize("kind", ["text_lines", "arrays"])
def test_after_other_files(kind, sslt, here, capsys):
    """Lines without labels, and arrays with them."""
    if kind == "arrays":
        np.savez("a.npz", images=np.random.default_rng(0).integers(0, 256, (60, 10, 10), dtype=np.uint8), labels=np.arange(60) % 3)
        commands = run_as_printed(sslt, capsys, "+task=simclr", "data=arrays", "data.path=a.npz", *TINY_IMAGES)
        assert "+target=arrays" in commands[1]
    else:
        (here / "a.txt").write_text("\n".join(f"line {i} of a few words" for i in range(60)))
        commands = run_as_printed(sslt, capsys, "+task=mlm", "data=text_lines", "data.path=a.txt", *TINY_TEXT)
        assert [c[1] for c in commands] == ["evaluate", "predict"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data=digits"], ("digits", [])),
        (["data=cifar100", "data.root=/x y"], ("cifar100", ["data.root='/x y'"])),
        (["data=text_csv", "data.path=a", "data.sep=tab"], ("text_csv", ["data.path=a", "data.sep=tab"])),
    ],
)
def test_the_option_is_found_again(overrides, expected):
    """Of several options of one class, the one that needs the fewest settings."""
    assert data_settings(config.compose("pretrain", ["+task=simclr", *overrides]).data) == expected


@pytest.mark.parametrize("word", ["a", "data.path='my photos'", "data.path='it\\'s'", "data.path='$HOME'", 'a"b'])
def test_a_shell_reads_the_words(word):
    """Whatever stands in a path."""
    assert shlex.split(command("predict", word)) == ["sslt", "predict", word]


@pytest.mark.parametrize("folder", ["plain", "my run", "it's mine", "runs/5", "a,b", "Größe (2)", "$HOME `x`"])
def test_runs_of_any_name(folder):
    """A shell and Hydra read back what was meant, of one run and of two side by side."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    def read(line: str, verb: str) -> str:
        (override,) = OverridesParser.create().parse_overrides(completed(verb, shlex.split(line)[2:]))
        return override.value()

    assert read(command("merge", starting(folder)), "merge") == folder
    if "," not in folder:
        assert read(command("bench", starting(folder, "other")), "bench") == f"{folder},other"
    assert shlex.split(command("finetune", f"resume={folder}")) == ["sslt", "finetune", f"resume={folder}"]


def test_no_command_is_put_together_by_hand():
    """A folder in a command that is printed goes through `command`, `starting` or `quoted`, which know what a shell does to it."""
    import re

    import sslt as package

    files = Path(package.__file__).parent.rglob("*.py")
    odd = re.compile(r"""sslt (\w+|\{[^}]*\}) (from|resume)=\{|(next|go on with|by|with) resume=\{""")
    assert not [f"{f.name}: {m.group()}" for f in files for m in odd.finditer(f.read_text(encoding="utf-8"))]


def test_exported_and_compressed_runs_with_spaces(here, capsys):
    """The commands that these stages print are read by a shell as the folders that they name."""
    from omegaconf import OmegaConf

    from sslt.stages.export import _next

    run = Run(here / "my run")
    (run / "model").mkdir(parents=True)
    (run / "model" / "predict.py").write_text("")
    said = [shlex.split(line) for line in _next(OmegaConf.create({"format": "torch", "from": "the parent"}), run, object())]
    assert said[0] == ["python", "my run/model/predict.py", "FILE"]
    assert said[1] == ["sslt", "predict", "from='my run'", "input=FILE", "trust=[torch]"]
    assert said[2] == ["sslt", "bench", "from='the parent,my run'", "trust=[torch]"]
