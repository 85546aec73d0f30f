"""The formats that a run is exported in, by the names that `format=` has."""

from __future__ import annotations

from sslt.deploy.formats.base import Format
from sslt.deploy.formats.folders import HuggingFace, Safetensors, Timm
from sslt.deploy.formats.onnx import Onnx
from sslt.deploy.formats.program import TorchProgram

FORMATS: dict[str, type[Format]] = {kind.name: kind for kind in (Onnx, TorchProgram, Safetensors, Timm, HuggingFace)}
