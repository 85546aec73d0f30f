"""The graph of a run as a program that torch exports, for itself (`.pt2`) and for other formats."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslt import stored
from sslt.deploy.description import ABOUT, described, write_beside
from sslt.deploy.formats.base import Format, Model, Outputs
from sslt.deploy.graph import Graph, divided, graph_as, graph_of
from sslt.deploy.standalone import Lexicon
from sslt.errors import UserError
from sslt.runs import write_json

log = logging.getLogger("sslt")


def traced(graph: Graph) -> Any:
    """The program of a graph, for batches of any size and texts of any length."""
    example = graph.example()
    free = torch.export.Dim.DYNAMIC
    shapes = tuple({i: free for i in graph.sizes[name]} for name in graph.takes)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(graph, tuple(example[name] for name in graph.takes), dynamic_shapes={"given": shapes}, strict=False)
    except Exception as e:  # torch's own, of many kinds, for what a model does that cannot be traced
        raise UserError(
            f"torch.export cannot trace this model, so that format=onnx and torch are not for it ({type(e).__name__}: "
            f"{stored.first_line(e)[:200]}): format=safetensors holds its weights"
        ) from e


class quiet:
    """Within, what the exporters have to say to those who write them is not said."""

    def __enter__(self) -> None:
        self.levels = [(name, logging.getLogger(name).level) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch")]
        for name, _ in self.levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        self.caught.__exit__(None, None, None)
        for name, level in self.levels:
            logging.getLogger(name).setLevel(level)


def write_described(model: Model, folder: Path, about: dict[str, Any], file: str) -> tuple[Graph, dict[str, Any]]:
    """Write what stands beside a graph; returns it, and what `export.json` says."""
    target, lexicon = divided(model.target)
    graph = graph_of(model.encoder, target, model.batch)
    found = {**described(graph, model.encoder, target, model.batch, lexicon), "file": file, **about}
    write_beside(folder, model.encoder, target, lexicon)
    write_json(folder / ABOUT, found)
    return graph, found


class TorchProgram(Format):
    """`model.pt2`, which `torch.export.load` opens without any class of sslt."""

    name, words = "torch", "a program of torch.export"
    file = "model.pt2"

    def write(self, model: Model, folder: Path, about: dict[str, Any]) -> None:
        graph, _ = write_described(model, folder, about, self.file)
        program = traced(graph)
        with quiet():
            torch.export.save(program, folder / self.file)

    def open(self, model: Model, folder: Path) -> Outputs:
        about = stored.json_object(folder / ABOUT)
        graph = graph_as(about["samples"], model.encoder, model.target)
        with quiet():
            program = torch.export.load(folder / self.file).module()
        words = Lexicon(folder, about["lexicon"]) if about["lexicon"] else None
        names = [x["name"] for x in about["outputs"]]

        def outputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
            given = graph.of(batch)
            found = dict(zip(names, program(*(given[x["name"]] for x in about["inputs"])), strict=True))
            return with_words(found, words, given)

        return outputs


def with_words(outputs: dict[str, Tensor], words: Lexicon | None, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs with the scores of words added to their logits."""
    if words is None:
        return outputs
    scores = words.scores({k: np.asarray(x.cpu()) for k, x in given.items()})
    return {**outputs, "logits": outputs["logits"] + torch.from_numpy(scores).to(outputs["logits"].device)}
