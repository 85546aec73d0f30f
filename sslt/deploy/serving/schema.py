"""The part of the OpenAPI document that says what is sent and what comes back."""

from __future__ import annotations

from typing import Any

from sslt.deploy.serving.inputs import HISTORY, IMAGE, TEXT, Reads
from sslt.deploy.serving.service import Service

_TEXT = {"type": "string"}
_CODES = {
    "400": "the body cannot be read",
    "401": "the key is missing or another one",
    "404": "this run does not answer that",
    "408": "the body did not come in time",
    "413": "too many bytes, inputs, pixels or characters",
    "415": "a kind of body or of picture that is not read",
    "422": "inputs of another kind than this run reads; all of them",
    "503": "too much waits, or the model starts: see Retry-After",
    "504": "no answer in time",
}


def input_schema(reads: Reads) -> dict[str, Any]:
    """JSON schema of one input."""
    if reads.kind in (TEXT, IMAGE):
        return {"type": "string", "description": reads.wanted, **({"format": "byte"} if reads.kind == IMAGE else {})}
    if reads.kind == HISTORY:
        return {"type": "array", "items": _TEXT, "description": reads.wanted}
    return {
        "type": "object",
        "required": list(reads.parts),
        "properties": {name: _TEXT for name in reads.parts},
        "description": reads.wanted,
    }


def described(kind: str, service: Service) -> dict[str, Any]:
    """`requestBody` and `responses` of /predict or /features."""
    one, most = input_schema(service.reads), service.limits.max_items
    many = {"type": "array", "items": one, "minItems": 1, "maxItems": most}
    schema = {"oneOf": [{"type": "object", "required": [k], "properties": {k: v}} for k, v in (("inputs", many), ("input", one))]}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if service.reads.kind in (TEXT, IMAGE):
        files = {"type": "array", "items": {"type": "string", "format": "binary"}}
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": {"files": files}}}
    values: dict[str, Any] = {"row": {"type": "integer"}, "error": {**_TEXT, "description": "why this input has no answer"}}
    values |= {"prediction": {}, "score": {}} if kind == "predict" else {"features": {"type": "array", "items": {"type": "number"}}}
    name = "predictions" if kind == "predict" else "features"
    rows = {"type": "object", "properties": {name: {"type": "array", "items": {"type": "object", "properties": values}}}}
    error = {"type": "object", "properties": {"error": _TEXT}}
    answers = {"200": {"description": "an answer to each input, in their order", "content": {"application/json": {"schema": rows}}}}
    codes = {c: {"description": d, "content": {"application/json": {"schema": error}}} for c, d in _CODES.items()}
    security: dict[str, Any] = {"security": [{"key": []}]} if service.needs_key else {}
    return {"requestBody": {"required": True, "content": content}, "responses": {**answers, **codes}, **security}
