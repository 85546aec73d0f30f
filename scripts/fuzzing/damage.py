"""Damaged bytes, and the small good files that they are damages of."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
from pathlib import Path
from random import Random

import numpy as np


def damage(path: Path, rng: Random) -> str:
    """Damage a file in one to four ways, at places that the seed chooses; says which."""
    data = bytearray(path.read_bytes())
    told = []
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        how = rng.choice(["flip", "flip", "cut", "cut head", "insert", "twice", "zero", "swap", "text", "number"])
        at = rng.randrange(len(data)) if data else 0
        if rng.random() < 0.4:  # headers say most
            at = min(at, rng.randrange(64))
        n = min(rng.choice([1, 4, 16, 200]), max(1, len(data) - at))
        if how == "flip":
            for i in range(at, at + n if rng.random() < 0.3 else at + 1):
                if i < len(data):
                    data[i] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del data[at:]
        elif how == "cut head":
            del data[:at]
        elif how == "insert":
            data[at:at] = rng.randbytes(n)
        elif how == "twice":
            data[at:at] = data[at : at + n]
        elif how == "zero":
            data[at : at + n] = bytes(n)
        elif how == "swap":
            other = rng.randrange(len(data)) if data else 0
            data[at : at + n], data[other : other + n] = data[other : other + n], data[at : at + n]
        elif how == "text":
            data[at:at] = rng.choice(
                [b"\xff\xfe", b"\r", b"\n\n", b'"', b",,,", b"\t", b"\x00", "é".encode("latin-1"), b"{", b"\\u0000", b"NaN"]
            )
        else:
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00"])
        told.append(f"{how} at {at}")
    path.write_bytes(bytes(data))
    return ", ".join(told)


# ---------------------------------------------------------------- good files
def rows(n: int = 60) -> list[tuple[str, str]]:
    """(text, label) of a small table."""
    return [(f"{'good' if i % 2 else 'bad'} room, number {i} “here”", "pos" if i % 2 else "neg") for i in range(n)]


def table(path: Path) -> None:
    """A table of texts with labels in the format of its name."""
    import csv
    import json

    name = path.name.removesuffix(".gz").removesuffix(".xz")
    held = io.StringIO(newline="")
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        texts, labels = zip(*rows(), strict=True)
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), path)
        return
    if name.endswith(".jsonl"):
        held.writelines(json.dumps({"text": t, "label": y}, ensure_ascii=False) + "\n" for t, y in rows())
    elif name.endswith(".json"):
        held.write(json.dumps([{"text": t, "label": y} for t, y in rows()]))
    elif name.endswith((".csv", ".tsv")):
        writer = csv.writer(held, delimiter="\t" if name.endswith(".tsv") else ",")
        writer.writerows([("text", "label"), *rows()])
    else:
        held.writelines(f"{t}\n" for t, _ in rows())
    data = held.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else lzma.compress(data) if path.suffix == ".xz" else data)


def images(n: int, size: int = 8, channels: int = 0) -> np.ndarray:
    """uint8 images, all different and alike in every run."""
    shape = (n, size, size, channels) if channels else (n, size, size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def pictures(folder: Path, n: int = 20) -> None:
    """A folder of two classes with pictures in several formats."""
    from PIL import Image

    for i, image in enumerate(images(2 * n, 12, 3)):
        path = folder / ("cats", "dogs")[i % 2] / f"{i}{('.png', '.jpg', '.bmp', '.webp', '.gif')[i % 5]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def tables(folder: Path) -> None:
    """A folder of train and test tables."""
    folder.mkdir(parents=True)
    for name in ("train.csv", "test.csv"):
        table(folder / name)


def arrays(path: Path) -> None:
    """An .npz of labelled images."""
    labels = np.arange(80) % 2
    np.savez(path, x_train=images(80), y_train=labels, x_test=images(40), y_test=labels[:40])


def idx(folder: Path, packed: bool) -> None:
    """Fashion-MNIST's four files, tiny, as torchvision lays them out."""
    place = folder / "FashionMNIST" / "raw"
    place.mkdir(parents=True)
    for split, n in (("train", 80), ("t10k", 40)):
        x, y = images(n, 28), (np.arange(n) % 10).astype(np.uint8)
        for name, head, array in (
            ("images-idx3", struct.pack(">IIII", 2051, n, 28, 28), x),
            ("labels-idx1", struct.pack(">II", 2049, n), y),
        ):
            data = head + array.tobytes()
            path = place / f"{split}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data) if packed else data)
