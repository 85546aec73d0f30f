"""Protects result folders: a byte that is not as it was written is noticed when the folder is used, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from sslt.encoders.base import FILE
from sslt.encoders.files import read_tensors, write_tensors
from sslt.encoders.lenet import LeNet
from sslt.encoders.load import fresh_like, load_encoder
from sslt.encoders.seals import check_seal, seal
from sslt.errors import UserError


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    """An encoder's folder."""
    LeNet(LeNet.Processor(28, 1, [0.1], [0.3]), maps=[2, 4], width=8, dropout=0.0).save(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_flipped_weights_are_noticed(folder):
    """Of the encoder, as transformers or timm would not."""
    load_encoder(str(folder))
    flip(folder / "model.safetensors", -10)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_encoder(str(folder))
    fresh_like(str(folder))  # takes no weights from there


def test_a_changed_number_is_noticed(folder):
    """JSON with another mean in it is still JSON."""
    place = folder / FILE
    place.write_text(place.read_text().replace("0.3", "0.8"))
    with pytest.raises(UserError, match=r"sslt\.json is damaged.*delete \"digests\""):
        load_encoder(str(folder))
    about = json.loads(place.read_text())
    del about["digests"]  # as the message says, and as folders were before
    place.write_text(json.dumps(about))
    assert load_encoder(str(folder)).processor.std == [0.8]


def test_a_missing_file_is_named_and_the_card_is_free(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("card")
    seal(tmp_path, "about.json", {"classes": ["ä", "b"], 1: (2, 3)})
    about = json.loads((tmp_path / "about.json").read_text())
    (tmp_path / "README.md").write_text("another card")
    check_seal(tmp_path, "about.json", about)
    (tmp_path / "tokenizer.json").write_text("{ }")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        check_seal(tmp_path, "about.json", about)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        check_seal(tmp_path, "about.json", about)


def test_tensors_know_their_digest(tmp_path):
    """Every flipped bit of the data is noticed; others' files, which say none, are read as they are."""
    path = tmp_path / "best.safetensors"
    state = {"a": torch.randn(3, 4).T, "b": torch.tensor(True), "c": torch.zeros(0, 2), "d": torch.randn(5, dtype=torch.bfloat16)}
    write_tensors(path, state)
    assert all(torch.equal(read_tensors(path)[k], v) for k, v in state.items())
    data = sum(v.numel() * v.element_size() for v in state.values())
    whole = path.read_bytes()
    for i in range(1, data + 1):
        flip(path, -i)
        with pytest.raises(UserError, match="damaged"):
            read_tensors(path)
        path.write_bytes(whole)
    path.write_bytes(whole.replace(b'"a"', b'"A"'))  # other names and shapes for the same bytes
    with pytest.raises(UserError, match="damaged"):
        read_tensors(path)
    path.write_bytes(whole.replace(b"[4,3]", b"[3,4]") if b"[4,3]" in whole else whole.replace(b"[3,4]", b"[4,3]"))
    with pytest.raises(UserError, match="damaged"):
        read_tensors(path)
    save_file(load_file(path), path)
    flip(path, -1)
    read_tensors(path)


def test_tensors_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A full disk leaves the former ones."""
    path = tmp_path / "best.safetensors"
    write_tensors(path, {"a": torch.ones(3)})

    def half(tensors, place, **_):
        Path(place).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(OSError, match="No space"):
        write_tensors(path, {"a": torch.zeros(3)})
    assert read_tensors(path)["a"].tolist() == [1, 1, 1]
