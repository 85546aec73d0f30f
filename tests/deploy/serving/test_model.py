"""Protects what a worker does with pictures and what targets answer: read within bounds, one broken alone, as `sslt predict` says it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES, working_in
from PIL import Image

from sslt.cli import main
from sslt.deploy.serving.inputs import Limits, Refused
from sslt.deploy.serving.model import Model, picture
from sslt.encoders.load import load_encoder
from sslt.targets import heads

LIMITS = Limits(1 << 20, 64, 10_000, 1000, 30.0)


def png(image: np.ndarray, kind: str = "PNG", **more) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **more)
    return file.getvalue()


def huge() -> bytes:
    """A PNG of 100 bytes whose header says 60,000 × 60,000."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


IMAGE = np.arange(20 * 30 * 3, dtype=np.uint32).astype(np.uint8).reshape(20, 30, 3)
REFUSED = {
    "no base64": ("it is a cat!", 422),
    "base64 of a text": (base64.b64encode(b"it is a cat").decode(), 415),
    "nothing": (b"", 415),
    "a program for a printer": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415),
    "cut short": (png(IMAGE)[:70], 422),
    "too many pixels": (png(np.zeros((200, 200, 3), np.uint8)), 413),
    "a bomb": (huge(), 413),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_picture_that_cannot_be_read_is_refused(what):
    content, status = REFUSED[what]
    with pytest.raises(Refused) as e:
        picture(content, LIMITS.max_pixels)
    assert e.value.status == status and len(str(e.value)) < 200


def test_pictures_are_decoded_as_files_are():
    """As bytes, base64 and data URL; turned upright by EXIF."""
    content = png(IMAGE)
    text = base64.b64encode(content).decode()
    for form in (content, text, f"data:image/png;base64,{text}", "\n".join(text[i : i + 60] for i in range(0, len(text), 60))):
        assert (picture(form, LIMITS.max_pixels) == IMAGE).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture(png(IMAGE, "JPEG", exif=exif.tobytes(), quality=100, subsampling=0), LIMITS.max_pixels)
    assert turned.shape == (30, 20, 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache) -> Path:
    """A classifier of digits with what stands beside it, and a folder of pictures of several sizes."""
    tune = ["finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "trainer.max_steps=3", "baseline=false"]
    with working_in(tmp_path_factory.mktemp("trained"), cache) as here:
        assert main([*tune, "hydra.run.dir=run"]) == 0
    rng, folder = np.random.default_rng(0), here / "pictures"
    folder.mkdir()
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (*rng.integers(6, 40, 2), 3), np.uint8)).save(folder / f"{i}.png")
    return here


@pytest.fixture
def digits(trained: Path, here: Path) -> Path:
    """Both in a working folder of their own."""
    shutil.copytree(trained, here, dirs_exist_ok=True)
    return here / "run"


def opened(run: Path) -> Model:
    encoder = load_encoder(str(run), None, [])
    return Model(encoder, heads.load(run / "head", encoder, []), (), torch.device("cpu"), 4, LIMITS)


def test_pictures_are_answered_as_predict_answers_files(digits, sslt, here):
    """Rows equal, in any company; broken ones have their reason and the others their answers; features equal to the last bit."""
    sslt("predict", f"from={digits}", "input=pictures", "trainer.accelerator=cpu", "hydra.run.dir=predicted")
    sslt("predict", f"from={digits}/encoder", "input=pictures", "trainer.accelerator=cpu", "hydra.run.dir=encoded")
    wanted = [json.loads(line) for line in (here / "predicted" / "predictions.jsonl").read_text().splitlines()]
    features = np.load(here / "encoded" / "features.npy")
    model, files = opened(digits), [(here / "pictures" / row.pop("name")).read_bytes() for row in wanted]
    assert model.target is not None and len(model.target.beside) == 2  # type: ignore[arg-type]
    for rows in ([4], [0, 1, 2], list(range(8, -1, -1))):
        found = model.answers("predict", [*(files[i] for i in rows), b"broken"])
        assert [{**row, "row": i} for row, i in zip(found, rows, strict=False)] == [wanted[i] for i in rows]
        assert found[-1]["status"] == 415
        encoded = model.answers("features", [files[i] for i in rows])
        assert (np.array([row["features"] for row in encoded], np.float32) == features[rows]).all()
    assert [row["status"] for row in model.answers("predict", [b"", huge()])] == [415, 413]


def test_an_input_that_breaks_the_model_fails_alone(digits, here, monkeypatch):
    """Where a library raises for one of a batch, the others are answered all the same."""
    model, poison = opened(digits), np.full((7, 7, 3), 13, np.uint8)
    prepare = model.encoder.processor.at_once

    def fails(source):
        if any(image.shape == poison.shape and (image == 13).all() for image in source.items):
            raise ValueError("thirteen")
        return prepare(source)

    monkeypatch.setattr(model.encoder.processor, "at_once", fails)
    good = (here / "pictures" / "0.png").read_bytes()
    found = model.answers("predict", [good, png(poison), good])
    assert found[1] == {"error": "this input cannot be answered (ValueError)", "status": 500}
    assert found[0]["prediction"] == found[2]["prediction"] and "error" not in found[0]
