"""Protects loading from folders that are damaged or hostile: one line that names the file, no hang, no memory filled, no recursion."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from test_encoders import image_encoder

from sslt.config import build
from sslt.encoders import inserted
from sslt.encoders.load import fresh_like, load_encoder
from sslt.errors import UserError
from sslt.runs import Run
from sslt.targets import heads


def change(file: Path, *path: str | int, to: Any) -> None:
    """Put a value somewhere in a JSON file."""
    about = json.loads(file.read_text())
    about.pop("digests", None)  # as for a folder without: damage is found by what is read, too
    node = about
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = to
    file.write_text(json.dumps(about))


@pytest.fixture
def folder(here):
    image_encoder().save(here / "e")
    return here / "e"


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (["args"], 3),
        (["args"], {}),
        (["args", "args"], "abc"),
        (["args", "args", "layers"], "abc"),
        (["args", "args", "channels"], [10**7, 10**7, 10**7, 10**7]),
        (["args", "args", "channels"], [10**400, 8, 8, 8]),
        (["args", "args", "layers"], [10**8, 1, 1, 1]),
        (["args", "name"], None),
        (["args", "name"], "local-dir:/tmp"),
        (["args", "pretrained"], True),
        (["args", "more"], 1),
        (["processor"], []),
        (["processor", "size"], 10**9),
        (["processor", "size"], "8"),
        (["processor", "mean"], [float("nan")] * 3),
        (["processor", "std"], ["a", "b", "c"]),
        (["_target_"], 3),
        (["_target_"], "sslt.encoders.base.Encoder"),
        (["_target_"], "sslt.encoders."),
        (["adapter"], {"kind": "adapter"}),
        (["base"], "x"),
    ],
    ids=str,
)
def test_each_value_of_the_wrong_kind_is_one_line(path, to, folder):
    """Also where it would ask for more memory than there is."""
    change(folder / "sslt.json", *path, to=to)
    with pytest.raises(UserError) as e:
        load_encoder(str(folder))
    assert "\n" not in str(e.value) and (str(folder.name) in str(e.value) or "no timm model" in str(e.value))


def test_a_network_out_of_proportion_is_refused_before_memory_is_filled(folder):
    """8 GB of weights are described beside a file of some kilobytes; also when nothing is read from that."""
    change(folder / "sslt.json", "args", "args", "channels", to=[8, 8, 8, 16_000])
    for load in (load_encoder, fresh_like):
        with pytest.raises(UserError, match=r"sslt\.json describes a network much larger than the weights beside it"):
            load(str(folder))


@pytest.mark.parametrize("name", ["sslt.json", "model.safetensors", "config.json"])
def test_pipes_and_devices_are_refused(name, folder):
    if name == "config.json":  # a folder of timm's then
        (folder / "sslt.json").unlink()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError):
        load_encoder(str(folder))
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(UserError):
        load_encoder(str(folder))


def test_an_adapter_is_not_its_own_base(folder, here):
    """Directly, or by way of another: refused before anything is loaded."""
    encoder = load_encoder(str(folder))
    inserted.inject(encoder, {"kind": "adapter", "size": 2})
    for name in ("a", "b"):
        encoder.save(here / name)
    for name, other, says in (("a", "a", "itself"), ("b", "a", "an adapter too")):
        change(here / name / "sslt.json", "base", "from", to=str(here / other))
        for load in (load_encoder, fresh_like):
            with pytest.raises(UserError, match=says):
                load(str(here / name))


def test_pickled_weights_are_named(folder, here):
    """By folder of timm's, of Hugging Face, without a config, and by file: said how to convert, never said to be offline."""
    (folder / "sslt.json").unlink()
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    shutil.copytree(folder, here / "hf")
    (here / "hf" / "config.json").write_text('{"model_type": "bert"}')
    shutil.copytree(folder, here / "bare")
    (here / "bare" / "config.json").unlink()
    for what in (folder, here / "hf", here / "bare", folder / "pytorch_model.bin"):
        with pytest.raises(UserError, match=r"pickled weights only \(pytorch_model\.bin\).*save_file"):
            load_encoder(str(what), "text")


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (["space", "classes"], "abc"),
        (["space", "classes"], []),
        (["space", "classes"], [1]),
        (["objective"], 3),
        (["objective"], {}),
        (["objective", "_target_"], None),
        (["objective", "_target_"], "sslt.runs.Run"),
        (["objective", "dropout"], "abc"),
        (["objective", "more"], 1),
        (["objective", "dropout"], "${oc.env:HOME}"),
    ],
    ids=str,
)
def test_each_value_of_a_head_is_of_its_kind(path, to, here):
    encoder = image_encoder()
    node = OmegaConf.create({"_target_": "sslt.targets.classification.Classification", "dropout": 0.0, "label_smoothing": 0.0})
    heads.save(Run(here), build(node, encoder, space={"classes": ["a", "b"]}), node)
    assert heads.load(here / "head", encoder, []).space == {"classes": ["a", "b"]}
    change(here / "head" / "head.json", *path, to=to)
    with pytest.raises(UserError, match="head"):
        heads.load(here / "head", encoder, [])
