"""What stands beside an exported file: `export.json`, which says what it takes and gives, and what makes inputs of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from sslt.data.answers import Class, Labels, Map, Number, Tags
from sslt.data.prepare.bag_processor import VOCABULARY
from sslt.data.prepare.parts import part_names
from sslt.data.prepare.tokenizers import reader_of
from sslt.data.sources.pairs import SIDES
from sslt.data.sources.tables import LABEL_NAMES, TEXT_NAMES
from sslt.deploy.graph import Graph, ImageGraph, TextGraph
from sslt.encoders.base import Encoder
from sslt.encoders.lexicon import SPELLED, Lexicon
from sslt.runs import versions
from sslt.targets.base import Target
from sslt.targets.map_pictures import palette
from sslt.targets.pairs import Pairs

ABOUT = "export.json"
LEXICON = "lexicon.npz"
INSIDE = "inside_words.npy"
FORMAT = 1
LOCATED = (Tags, Map)  # answers that `located.py` reads
PACKAGES = ("sslt", "torch", "numpy", "onnx", "onnxruntime", "onnxscript")


def described(graph: Graph, encoder: Encoder, target: Target | None, batch: Mapping[str, Any], lexicon: Lexicon | None) -> dict[str, Any]:
    """What `export.json` says of a graph; the file's name and what was measured come later."""
    example = graph.example()
    takes = [
        {"name": n, "type": str(x.dtype).removeprefix("torch."), "shape": [graph.sizes[n].get(i, d) for i, d in enumerate(x.shape)]}
        for n, x in example.items()
    ]
    return {
        "format": FORMAT,
        "inputs": takes,
        "outputs": [{"name": name, "type": "float32"} for name in graph.gives],
        "samples": _samples(graph, encoder, batch, lexicon),
        "answers": _answers(target),
        "lexicon": None if lexicon is None else _lexicon(lexicon, encoder),
        "primary": None if target is None else target.primary,
        "versions": _versions(),
    }


def _samples(graph: Graph, encoder: Encoder, batch: Mapping[str, Any], lexicon: Lexicon | None) -> dict[str, Any]:
    p = encoder.processor
    if isinstance(graph, ImageGraph):
        return {"kind": "image", **p.config()}
    assert isinstance(graph, TextGraph)
    parts = {"parts": part_names(batch), "apart": bool(graph.apart), "max_length": p.max_length}
    if graph.bag:
        spelled = lexicon is not None and lexicon.third == SPELLED
        return {"kind": "words", **parts, "unknown": p.unknown, "vocabulary": len(p.documents), "spelled": spelled}
    marks = {"cls": p.cls_id, "sep": p.sep_id, "pad": p.pad_id, "marks_between": p.marks_between}
    return {"kind": "tokens", **parts, **marks, "segments": "segments" in graph.own, "tokens": p.vocab_size}


def _answers(target: Target | None) -> dict[str, Any]:
    """How outputs are read."""
    if target is None:
        return {"kind": "features"}
    if isinstance(target, Pairs):
        return {"kind": "cosine", "low": target.low, "high": target.high}
    found: dict[str, Any] = {"kind": target.answer.kind, **target.space}
    if target.answer is Labels:
        found["thresholds"] = cast(Tensor, target.thresholds).tolist()
    elif target.answer is Number:
        found |= {"mean": float(cast(Tensor, target.mean)), "std": float(cast(Tensor, target.std))}
    elif target.answer is Tags:
        found |= {"cuts_words": bool(target.cuts_words), "inside_words": INSIDE}
    elif target.answer is Map:
        found["colours"] = palette(len(target.space["classes"])).tolist()
    return json.loads(json.dumps(found))


def _lexicon(lexicon: Lexicon, encoder: Encoder) -> dict[str, Any]:
    special = sorted(map(int, getattr(encoder.processor, "special_ids", ())))
    return {"file": LEXICON, "words": lexicon.words, "third": lexicon.third, "terms": len(lexicon.terms), "special": special}


def _versions() -> dict[str, str]:
    import contextlib
    import importlib.metadata

    found = {"python": str(versions()["python"])}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_beside(folder: Path, encoder: Encoder, target: Target | None, lexicon: Lexicon | None) -> None:
    """What makes inputs of texts (a tokenizer, a vocabulary) and spans of tags, and the scores of words as arrays."""
    p = encoder.processor
    if hasattr(p, "tokenizer"):
        reader_of(p.tokenizer).save(str(folder / "tokenizer.json"))
    elif hasattr(p, "documents"):
        p.save(folder)
        assert (folder / VOCABULARY).is_file()
    if target is not None and target.answer is Tags:
        np.save(folder / INSIDE, cast(Tensor, target.entries).cpu().numpy())
    if lexicon is not None:
        names = ("terms", "idf", "table", "bias", "parts", "starts")
        np.savez(folder / LEXICON, **{name: getattr(lexicon, name).detach().cpu().numpy() for name in names})


def columns(node: Any, parts: list[str]) -> dict[str, Any]:
    """How the texts of a table are found: the columns that the data `node` names (None: it names none), the usual ones, and labels'."""
    own = [node.get(name) for name in parts or ["text"]]
    usual = [[name] for name in TEXT_NAMES] if not parts else [list(sides) for sides in SIDES] if len(parts) == 2 else [parts]
    return {"own": [str(c) for c in own] if all(c is not None for c in own) else None, "usual": usual, "labels": list(LABEL_NAMES)}


def can_be_read_alone(target: Target | None) -> bool:
    """Whether `standalone.py` makes answers of the outputs."""
    return target is None or isinstance(target, Pairs) or target.answer in (Class, Labels, Number, *LOCATED)
