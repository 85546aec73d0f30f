"""A graph in 8 bits by ONNX Runtime: the file that `sslt export format=onnx` writes, its weights (and activations) in integers."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from sslt import stored
from sslt.data.base import Samples
from sslt.deploy import exported
from sslt.deploy.formats.base import Model
from sslt.deploy.formats.onnx import Onnx
from sslt.deploy.graph import Graph, beside_reading, divided, graph_of
from sslt.deploy.method import Method
from sslt.deploy.quantization import NAMED, LayerError, some_batch, write_layers
from sslt.encoders.base import Encoder, evaluating, fingerprint
from sslt.errors import UserError
from sslt.ranges import Count
from sslt.runs import Run
from sslt.targets import heads
from sslt.targets.base import Target

log = logging.getLogger("sslt")
AT_ONCE = 16  # calibration samples in a batch
PRODUCTS = ("MatMul", "Gemm")  # of weights, which ONNX Runtime computes in integers with inputs scaled as they come
ENCODER = "encoder.encoder."  # what names of the encoder's parts begin with in the graph


class QuantizeOnnx(Method):
    """The encoder's part of the graph in int8; the head and what stands beside the encoder stay in float32.

    static: activations too, their ranges found beforehand on `samples` training samples (QDQ; for convolutions); False: linear maps alone,
    their inputs scaled as they come. per_channel: a scale for each output of a layer instead of one for all.
    """

    reads_train, saves = True, False

    def __init__(self, static: bool, samples: Count, per_channel: bool):
        super().__init__()
        self.static, self.samples, self.per_channel = static, samples, per_channel
        self.name = "onnx_int8_static" if static else "onnx_int8"

    def check(self, encoder: Encoder, target: Target) -> None:
        import onnx  # noqa: F401  named by the error where it is missing
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

        if tagger := beside_reading(target):
            raise UserError(f"method={self.name} makes a file, and none holds the {tagger} beside the encoder: choose method=int8")

    def apply(
        self, encoder: Encoder, target: Target, train: Samples | None, val: Samples | None, cfg: Any, run: Run
    ) -> tuple[Encoder, Target]:
        if train is None or not len(train):
            raise UserError(f"method={self.name} is calibrated on training samples, and there are none")
        if run.is_main:
            made = run / ".model.tmp"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            try:
                self._write(encoder, target, train, cfg, run, made)
                run.update(format="onnx")
                exported.save_reader(run, encoder, target, heads.node_of(stored.located(str(cfg["from"])) / "head"))
                made.rename(run / exported.MODEL)
            finally:
                shutil.rmtree(made, ignore_errors=True)
        return encoder, target

    def _write(self, encoder: Encoder, target: Target, train: Samples, cfg: Any, run: Run, folder: Path) -> None:
        batch = some_batch(train, int(cfg.seed))
        parent = {"from": str(cfg["from"]), "fingerprint": fingerprint(encoder)}
        node = OmegaConf.to_container(heads.node_of(stored.located(str(cfg["from"])) / "head"))
        with evaluating(encoder), torch.inference_mode(False):
            target.eval()
            Onnx().write(Model(encoder, target, batch), folder, {"parent": parent, "format_name": self.name, "node": node})
        graph = graph_of(encoder, divided(target)[0], batch)
        whole = folder / "float.onnx"
        (folder / Onnx.file).rename(whole)
        left, names = _to_quantize(whole, (*PRODUCTS, "Conv") if self.static else PRODUCTS)
        if not names:
            others = "method=onnx_int8_static, which is for convolutions too" if not self.static else "method=half"
            raise UserError(f"method={self.name} is for {_FOR[self.static]}, and this encoder has none: choose {others}")
        index = np.random.default_rng([int(cfg.seed), 0xCA11]).permutation(len(train))[: self.samples]
        _quantize(whole, folder / Onnx.file, self, left, _feeds(graph, train, np.sort(index)))
        errors = layer_errors(whole, folder, names, {k: x.cpu().numpy() for k, x in graph.of(batch).items()})
        write_layers(run / "layers.csv", errors)
        before, after = whole.stat().st_size, (folder / Onnx.file).stat().st_size
        whole.unlink()
        self.found = {"quantized/layers": len(names), "quantized/bytes_before": before, "quantized/bytes": after}
        self.found |= {"quantized/worst_error": errors[0].error, "quantized/calibration_samples": len(index) if self.static else 0}
        self.remarks.append(f"{len(names)} layers in int8: the file {before:,} → {after:,} bytes, ÷ {before / after:.2f}")
        named = ", ".join(f"{e.layer} {100 * e.error:.2g} %" for e in errors[:NAMED])
        self.remarks.append(f"largest relative errors of layers' outputs, with those before in int8: {named} (all: layers.csv)")


_FOR = {True: "linear maps and convolutions", False: "linear maps"}


def _to_quantize(path: Path, kinds: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Names of the nodes of these kinds that stay in float, and output → layer of the others: the encoder's, of one input and weights."""
    import onnx

    graph = onnx.load(path).graph
    constant = {x.name for x in graph.initializer}
    left, names = [], {}
    for node in graph.node:
        given = [x for x in node.input if x]
        if given and constant.issuperset(given):  # weights that are turned or reshaped
            constant |= set(node.output)
        elif node.op_type in kinds:
            layer = _layer(node)
            if layer is None or constant.isdisjoint(given):  # the head's, of what stands beside; of two activations: attention
                left.append(node.name)
            else:
                names[node.output[0]] = layer
    return left, names


def _layer(node: Any) -> str | None:
    """Which module of the encoder a node was made of, by its weight or as torch's exporter notes it; None of no part of the encoder."""
    scopes = next((x.value for x in node.metadata_props if x.key.endswith("name_scopes")), "[]")
    named = [*re.findall(r"'([^']*)'", scopes), *(x.removesuffix(".weight") for x in node.input if x.endswith(".weight"))]
    found = [x.removeprefix(ENCODER) for x in named if x.startswith(ENCODER)]
    return found[-1] if found else None


def _feeds(graph: Graph, samples: Samples, index: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """What the graph takes of these samples, a few at a time."""
    for i in range(0, len(index), AT_ONCE):
        yield {k: x.cpu().numpy() for k, x in graph.of(samples.batch(index[i : i + AT_ONCE])).items()}


def _quantize(whole: Path, out: Path, method: QuantizeOnnx, left: list[str], feeds: Iterator[dict[str, np.ndarray]]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises its own preprocessing there
    try:
        if not method.static:
            quantize_dynamic(
                whole, out, op_types_to_quantize=list(PRODUCTS), per_channel=method.per_channel, weight_type=QuantType.QInt8,
                nodes_to_exclude=left, extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip
            return

        class Reader(CalibrationDataReader):
            def get_next(self) -> Any:
                return next(feeds, None)

        quantize_static(
            whole, out, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=[*PRODUCTS, "Conv"], per_channel=method.per_channel,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=left,
        )  # fmt: skip
    finally:
        root.setLevel(level)


def layer_errors(whole: Path, folder: Path, names: dict[str, str], given: dict[str, np.ndarray]) -> list[LayerError]:
    """By how much outputs of the quantized graph in `folder` differ from those of the whole one, the worst first. names: output → layer."""
    found = []
    outputs = (_outputs(path, list(names), given) for path in (whole, folder / Onnx.file))
    for name, a, b in zip(names.values(), *outputs, strict=True):
        off = float(np.linalg.norm((b - a).ravel())) / max(float(np.linalg.norm(a.ravel())), 1e-30)
        found.append(LayerError(name, a.shape[1] if a.ndim == 4 else a.shape[-1], 0, off))
    return sorted(found, key=lambda e: -e.error)


def _outputs(path: Path, names: Sequence[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnx
    import onnxruntime

    model = onnx.load(path)
    there = {x.name for x in model.graph.output}
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names if n not in there)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(list(names), given)
