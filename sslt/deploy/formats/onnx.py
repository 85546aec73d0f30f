"""ONNX: a graph that ONNX Runtime computes, with a script beside it that answers files without sslt and torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslt import stored
from sslt.deploy import located, standalone
from sslt.deploy.description import LOCATED, can_be_read_alone
from sslt.deploy.formats.base import Format, Model, Outputs
from sslt.deploy.formats.program import quiet, traced, write_described
from sslt.deploy.graph import Graph, graph_as
from sslt.errors import UserError


class Onnx(Format):
    """`model.onnx` by torch's dynamo exporter, `export.json` and `predict.py`."""

    name, words = "onnx", "an ONNX graph"
    file = "model.onnx"

    def write(self, model: Model, folder: Path, about: dict[str, Any]) -> None:
        import onnx  # noqa: F401  named by the error where it is missing
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

        graph, found = write_described(model, folder, about, self.file)
        program = traced(graph)
        try:
            with quiet(), torch.no_grad():
                made: Any = torch.onnx.export(
                    program, dynamo=True, verbose=False, input_names=list(graph.takes), output_names=list(graph.gives)
                )
        except Exception as e:  # torch's own, of many kinds
            raise UserError(
                f"torch's ONNX exporter cannot translate this model ({type(e).__name__}: {stored.first_line(e)[:200]}): choose "
                f"format=torch, or late_fusion=false where what stands beside the encoder is at fault"
            ) from e
        _name_sizes(made.model.graph, graph)
        for key in ("samples", "answers", "primary", "versions", "lexicon", "parent"):
            made.model.metadata_props[f"sslt.{key}"] = json.dumps(found.get(key), ensure_ascii=False)
        made.save(str(folder / self.file))
        if can_be_read_alone(model.target):
            shutil.copyfile(standalone.__file__, folder / "predict.py")
            if model.target is not None and model.target.answer in LOCATED:
                shutil.copyfile(located.__file__, folder / "located.py")

    def open(self, model: Model, folder: Path) -> Outputs:
        opened = standalone.Model(folder, threads=torch.get_num_threads())
        return session_outputs(graph_as(opened.about["samples"], model.encoder, model.target), opened)


def session_outputs(graph: Graph, opened: standalone.Model) -> Outputs:
    """Outputs that a session computes, of prepared batches."""

    def outputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
        given = {k: x.cpu().numpy() for k, x in graph.of(batch).items()}
        return {k: torch.from_numpy(x) for k, x in opened.outputs(given).items()}

    return outputs


def _name_sizes(made: Any, graph: Graph) -> None:
    """Call the sizes that are free "batch" and "length" wherever they stand in the file, and not s17."""
    import onnx_ir

    names = {}
    for value in made.inputs:
        for i, name in graph.sizes[value.name].items():
            if isinstance(value.shape[i], onnx_ir.SymbolicDim):
                names[value.shape[i].value] = name
            else:
                raise UserError(
                    f"torch's exporter made the size {value.shape[i]} of '{value.name}' a constant of the graph, which answers wrongly "
                    f"for others: format=safetensors holds the weights"
                )
    values = [*made.inputs, *made.outputs, *(v for node in made for v in node.outputs)]
    for value in values:
        for i, size in enumerate(value.shape or ()):
            if isinstance(size, onnx_ir.SymbolicDim) and size.value in names:
                value.shape[i] = names[size.value]
