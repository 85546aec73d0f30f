"""What a worker does with items: reads them, answers them together, and finds the one that cannot be answered."""

from __future__ import annotations

import base64
import binascii
import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslt.data.answers import Answers, Class
from sslt.data.cache import digest
from sslt.data.offered import Offered
from sslt.data.ragged import Ragged
from sslt.data.sources.image_files import Unreadable, decode
from sslt.data.spans import Spans
from sslt.deploy.serving.inputs import HISTORY, IMAGE, PARTS, QUESTION, TEXT, Limits, Reads, Refused
from sslt.encoders.base import Encoder, fingerprint
from sslt.evaluation.alike import alike_on
from sslt.evaluation.features import encode, predicted
from sslt.report.answers import answer_rows
from sslt.targets.base import Target

log = logging.getLogger("sslt")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # others are not even looked at: some start programs to be read
KINDS = ("predict", "features")


class Model:
    """An encoder and perhaps the target on it. parts: of a sample, where it has several; in questions those of earlier turns, too."""

    def __init__(self, encoder: Encoder, target: Target | None, parts: Sequence[str], device: torch.device, batch: int, limits: Limits):
        self.encoder, self.target, self.parts, self.device, self.batch, self.limits = encoder, target, tuple(parts), device, batch, limits
        self.alike = alike_on(device)
        self.answer: type[Answers] = Class if target is None else target.answer
        self.reads = self._reads()

    def _reads(self) -> Reads:
        if self.encoder.modality == "image":
            return Reads(IMAGE)
        if self.encoder.modality == "items":
            return Reads(HISTORY)
        if self.answer.read_by is not None:
            return Reads(QUESTION, ("question", "context"))
        return Reads(PARTS, self.parts) if self.parts else Reads(TEXT)

    def info(self) -> dict[str, Any]:
        """What there is to say of it, as plain data."""
        state = {} if self.target is None else self.target.state_dict()
        heads = digest(*(part for k, v in sorted(state.items()) for part in (k, v.detach().cpu().numpy())))
        found: dict[str, Any] = {
            "reads": self.reads.kind,
            "parts": list(self.reads.parts),
            "input": self.reads.wanted,
            "model": str(self.encoder.args.get("name") or self.encoder.args.get("model_type") or type(self.encoder).__name__),
            "digest": digest(fingerprint(self.encoder), heads),
            "answers": ["features"] if self.target is None else list(KINDS),
            "dim": self.encoder.dim,
            "parameters": sum(p.numel() for p in self.encoder.parameters()),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "exact": self.alike is not None and not (self.target is not None and self.target.reads_beside),
        }
        if self.target is not None:
            found |= {"answer": self.answer.kind, "space": {k: v for k, v in self.target.space.items() if k != "items"}}
        return found

    # ---------------------------------------------------------------- answers
    def answers(self, kind: str, items: Sequence[Any]) -> list[dict[str, Any]]:
        """To each item what `sslt predict` says of it (kind "predict"), or `features`; `error` and `status` of one that has no answer."""
        found: list[dict[str, Any]] = [{} for _ in items]
        good, rows = [], []
        for i, item in enumerate(items):
            try:
                good.append(self._read(item))
                rows.append(i)
            except Refused as e:
                found[i] = {"error": str(e), "status": e.status}
        for i, answer in zip(rows, self._together(kind, good), strict=True):
            found[i] = answer
        return found

    def _together(self, kind: str, items: list[Any]) -> list[dict[str, Any]]:
        if not items:
            return []
        try:
            return self._features(items) if kind == "features" else self._rows(items)
        except Exception as e:  # whatever a library does with one input must not be the end of the others
            if len(items) > 1:
                return [answer for item in items for answer in self._together(kind, [item])]
            log.warning("an input cannot be answered: %s: %s", type(e).__name__, str(e)[:500])
            return [{"error": f"this input cannot be answered ({type(e).__name__})", "status": 500}]

    def _rows(self, items: list[Any]) -> list[dict[str, Any]]:
        target = self.target
        assert target is not None
        samples = self._samples(items)
        found = predicted(self.encoder, target, samples, self.device, self.batch, alike=self.alike)
        rows = answer_rows(target, found, samples, None, None)
        if type(target).write is Target.write:  # no files: a folder for each answer would cost more than a small model
            return rows
        with tempfile.TemporaryDirectory() as folder:
            for row, name in zip(rows, target.write(Path(folder), found) or (), strict=False):  # maps go into the answer as pictures
                picture = base64.b64encode((Path(folder) / name).read_bytes()).decode()
                row["prediction"] = f"data:image/png;base64,{picture}"
        return rows

    def _features(self, items: list[Any]) -> list[dict[str, Any]]:
        x = encode(self.encoder, self._samples(items), self.device, self.batch, alike=self.alike)
        return [{"row": i, "features": row} for i, row in enumerate(x.tolist())]

    def _samples(self, items: list[Any]) -> Any:
        parts, answers = self.parts if self.reads.kind in (PARTS, QUESTION) else (), None
        if self.answer is Spans and self.target is not None:
            answers = _nothing_known([context for _, context, *_ in items], self.target.space)
        return self.encoder.processor.at_once(Offered(self.encoder.modality, items, self.answer, parts, answers))

    # ---------------------------------------------------------------- reading
    def _read(self, item: Any) -> Any:
        """An item as a source has it."""
        if self.reads.kind == IMAGE:
            return picture(item, self.limits.max_pixels)
        if self.reads.kind == PARTS:
            return tuple(item[name] for name in self.reads.parts)
        if self.reads.kind == QUESTION:
            turns = [("", "")] * len(self.parts) + [tuple(turn) for turn in item.get("history", ())]
            before = {f"{what}_{k}": turns[-k][i] for k in range(1, len(self.parts)) for i, what in enumerate(("question", "answer"))}
            return tuple({**before, "question": item["question"], "context": item["context"]}[name] for name in self.parts)
        return item


def picture(content: bytes | str, max_pixels: int) -> np.ndarray:
    """uint8 [H, W, C] of a picture file, or of its base64. What it is and how large is read of its header before it is decoded.

    Raises `Refused`.
    """
    from PIL import Image

    if isinstance(content, str):
        comma = content.find(",", 0, 100) if content.startswith("data:") else -1
        try:
            content = base64.b64decode("".join(content[comma + 1 :].split()), validate=True)
        except (binascii.Error, ValueError):
            raise Refused(422, "this run reads pictures, and the input is no base64 of one") from None
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise Refused(413, f"the picture has more pixels than are read, {max_pixels} (max_pixels=)") from None
    except Image.UnidentifiedImageError:
        raise Refused(415, f"this run reads pictures ({', '.join(FORMATS)}), and the input is none") from None
    except Exception as e:  # readers meet damaged files with nearly every exception there is
        raise Refused(422, f"the picture cannot be read ({type(e).__name__})") from None
    if width * height > max_pixels:
        raise Refused(413, f"the picture has {width} × {height} pixels: at most {max_pixels} are read (max_pixels=)")
    try:
        return decode(content, "that was sent")
    except Unreadable as e:
        raise Refused(422, str(e)) from None


def _nothing_known(contexts: list[str], space: dict[str, Any]) -> Spans:
    """Questions without answers, each of a dialogue of its own where the target reads such."""
    n = len(contexts)
    more = {"turns": np.stack([np.arange(n), np.zeros(n, np.int64)], 1), "domains": np.zeros(n, np.int64)} if "domains" in space else {}
    empty = Ragged.of([[]] * n, np.int64, 2)
    return Spans(empty, space, kinds=np.full(n, -1), texts=[[]] * n, contexts=contexts, groups=np.arange(n), **more)
