"""Maps of classes as pictures: PNG files with a palette, and rows to look at."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslt.data.answers import IGNORE, Map
from sslt.data.base import Samples
from sslt.report.plots import COLOURS

MANY = 256  # classes from which on a file has 16 bits and no palette


def palette(n: int) -> np.ndarray:
    """A colour for each byte, uint8 [256, 3]: class 0 black, the first few those the colour-blind can tell apart, `IGNORE` white."""
    named = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in COLOURS if c != "#000000"]
    more = [tuple(round(255 * v) for v in colorsys.hsv_to_rgb(0.618034 * i % 1, 0.6, 0.9)) for i in range(max(0, n - 1 - len(named)))]
    colours = np.zeros((256, 3), np.uint8)
    used = [(0, 0, 0), *named, *more][: min(n, 256)]
    colours[: len(used)] = used
    colours[IGNORE] = 255
    return colours


def file_name(i: int) -> str:
    """What the file of map `i` is called."""
    return f"{i:05d}.png"


def write_maps(folder: Path, maps: Map) -> list[str]:
    """Each map as NUMBER.png in its own size, pixels the numbers of classes; the files' names."""
    folder.mkdir(parents=True, exist_ok=True)
    n, names = len(maps.classes), [file_name(i) for i in range(len(maps))]
    colours = palette(n).tobytes()
    for i, name in enumerate(names):
        if n >= MANY:
            picture = Image.fromarray(maps.row(i).astype(np.uint16))
        else:
            picture = Image.fromarray(maps.row(i).astype(np.uint8), "P")
            picture.putpalette(colours)
        picture.save(folder / name)
    return names


def described(maps: Map) -> list[dict[str, Any]]:
    """Of each map its file's name, and which share of it each class has."""
    names, found = maps.classes, []
    for i, row in enumerate(maps.values):
        counts = np.bincount(row, minlength=len(names))[: len(names)]
        shares = {names[c]: round(float(counts[c] / max(len(row), 1)), 4) for c in np.flatnonzero(counts)}
        found.append({"prediction": file_name(i), "shares": shares})
    return found


def coloured(values: Tensor, n: int) -> Tensor:
    """Maps [B, H, W] in the colours of `n` classes, [B, 3, H, W] in 0..1."""
    colours = torch.from_numpy(palette(n)).to(values.device)
    return colours[values.clamp(0, 255)].permute(0, 3, 1, 2) / 255


def beside(samples: Samples, predictions: Map, index: np.ndarray, processor: Any) -> dict[str, Tensor]:
    """The images `index` with their true and predicted maps as an encoder sees them, [N, 3, H, W] each, as `processor` normalises."""
    batch = samples.batch(index)
    truth, seen = batch["map"], batch["seen"].numpy() if "seen" in batch else None
    found = predictions.take(index).batch(np.arange(len(index)), seen, truth.shape[-1])["map"]
    maps = {"truth": truth, "prediction": found}
    colours = {name: processor.normalize(coloured(values, len(predictions.classes))) for name, values in maps.items()}
    return {"image": processor.normalize(batch["image"]).expand(-1, 3, -1, -1), **colours}
