"""Folders of weights that other libraries open: sslt's own, timm's and transformers'."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sslt import deferred, stored
from sslt.deploy.description import ABOUT
from sslt.deploy.formats.base import Format, Model, Outputs
from sslt.encoders.base import Encoder
from sslt.encoders.files import read_tensors, write_tensors
from sslt.encoders.image import ImageEncoder
from sslt.encoders.load import load_encoder
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError
from sslt.runs import Run, write_json
from sslt.targets import heads
from sslt.targets.base import Target
from sslt.targets.classification import Classification
from sslt.targets.multilabel import Multilabel
from sslt.targets.regression import Regression

HEAD = "head.safetensors"


class Safetensors(Format):
    """`encoder/` and `head/` as a run has them: weights without anything that can run, and plain config."""

    name, words = "safetensors", "weights and config, as a run has them"

    def write(self, model: Model, folder: Path, about: dict[str, Any]) -> None:
        model.encoder.save(folder / "encoder", "# An encoder, exported by sslt\n")
        if model.target is not None:
            heads.save(Run(folder), model.target, model.node)

    def open(self, model: Model, folder: Path) -> Outputs:
        encoder = load_encoder(str(folder / "encoder"), trust=self.trust)
        target = heads.load(folder / "head", encoder, self.trust) if model.target is not None else None
        encoder.eval()
        return Model(encoder, None if target is None else cast(Target, target.eval())).outputs

    trust: list[str] = []  # noqa: RUF012  of the command that exports


class Timm(Format):
    """`config.json` and `model.safetensors` with a linear head as the classifier: `timm.create_model(…, checkpoint_path=…)`."""

    name, words = "timm", "a folder of timm"

    def write(self, model: Model, folder: Path, about: dict[str, Any]) -> None:
        encoder, p = model.encoder, model.encoder.processor
        if not isinstance(encoder, ImageEncoder) or encoder.args["name"].startswith("torchvision/"):
            raise UserError(f"{_named(model)} is no model of timm: format=onnx, torch or safetensors holds it")
        _refuse_pruned(encoder, self)
        if encoder.args["stem"] != "standard":
            raise UserError(
                f"{encoder.args['name']} has a stem for small images (encoder.stem={encoder.args['stem']}), which timm's has not: "
                f"format=onnx, torch or safetensors holds it"
            )
        head = linear_head(model, self)
        classes = 0 if head is None else head.out_features
        args = {**encoder.args["args"], "in_chans": p.channels, **({"img_size": p.size} if encoder.args["fixed_size"] else {})}
        config = {
            "architecture": encoder.args["name"].removeprefix("timm/"),
            "num_classes": classes,
            "num_features": int(encoder.model.num_features),
            "model_args": args,
            "pretrained_cfg": {
                "input_size": [p.channels, p.size, p.size], "mean": list(p.mean), "std": list(p.std), "num_classes": classes,
                "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center",
            },
        }  # fmt: skip
        if model.target is not None and model.target.names:
            config["label_names"] = list(model.target.names)
        whole = _timm(config, None)
        own = whole.state_dict()
        state = {k: v for k, v in encoder.model.state_dict().items() if k in own}
        if head is not None:
            where = whole.pretrained_cfg["classifier"]
            last = whole.get_submodule(where) if isinstance(where, str) else None
            if not isinstance(last, nn.Linear) or last.in_features != head.in_features:
                raise UserError(
                    f"{encoder.args['name']} has no linear classifier on its features in timm: export the encoder, from=RUN/encoder"
                )
            state |= {f"{where}.weight": head.weight.detach(), f"{where}.bias": head.bias.detach()}
        whole.load_state_dict(state)
        write_tensors(folder / "model.safetensors", whole.state_dict())
        (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_json(folder / ABOUT, about)

    def open(self, model: Model, folder: Path) -> Outputs:
        config = stored.json_object(folder / "config.json")
        opened = _timm(config, folder / "model.safetensors").eval()

        def outputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
            return named_outputs(model, opened(model.encoder.processor.normalize(batch["image"])))

        return outputs


def _refuse_pruned(encoder: Encoder, own: Format) -> None:
    """Raise `UserError` for an encoder whose layers have widths that a library's config cannot say."""
    if encoder.pruned is not None:
        raise UserError(f"its layers were pruned to widths that {own.words} cannot say: format=onnx, torch or safetensors holds it")


def _timm(config: Mapping[str, Any], weights: Path | None) -> Any:
    timm = deferred.timm()

    return timm.create_model(
        config["architecture"], num_classes=config["num_classes"], checkpoint_path="" if weights is None else str(weights),
        **config["model_args"],
    )  # fmt: skip


class HuggingFace(Format):
    """What `AutoModelForSequenceClassification` opens where the head fits; else what `AutoModel` does, the head in `head.safetensors`.

    A head on the last token fits GPT-2's: that has no bias, so that the head's goes into the one of the norm before it, as the vector
    which the head's matrix turns into it. BERT's and its like have a layer between features and classes that this head does not know.
    """

    name, words = "hf", "a folder of transformers"

    def write(self, model: Model, folder: Path, about: dict[str, Any]) -> None:
        encoder = model.encoder
        if not isinstance(encoder, TextEncoder) or encoder.modality != "text":
            raise UserError(f"{_named(model)} is no model of transformers: format=onnx, torch or safetensors holds it")
        _refuse_pruned(encoder, self)
        if encoder.virtual_tokens is not None or encoder.processor.windows != 1:
            raise UserError("transformers reads a text as one window: windows=1 exports the first alone")
        if encoder.writes == "seq2seq":
            raise UserError(f"{_named(model)} has a decoder, which features do not go through: format=safetensors holds it")
        head = linear_head(model, self)
        encoder.processor.save(folder)
        whole = _with_score(encoder, head, model.target) if head is not None else None
        if whole is None:
            encoder.save_weights(folder)
            if head is not None:
                write_tensors(folder / HEAD, {"weight": head.weight, "bias": head.bias})
        else:
            with _without_bars():
                whole.save_pretrained(folder)
        head_is = None if head is None else HEAD if whole is None else "score"
        write_json(folder / ABOUT, {**about, "pooling": encoder.pooling, "head": head_is})

    def open(self, model: Model, folder: Path) -> Outputs:
        import transformers

        about, encoder = stored.json_object(folder / ABOUT), model.encoder
        auto = "AutoModelForSequenceClassification" if about["head"] == "score" else "AutoModel"
        with _without_bars():
            opened = getattr(transformers, auto).from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        head = read_tensors(folder / HEAD) if about["head"] == HEAD else None

        def outputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
            made = encoder.inputs(dict(batch))
            more = {"token_type_ids": made["segments"]} if "segments" in made else {}
            given = {"input_ids": made["tokens"], "attention_mask": made["mask"].long(), **more}
            if about["head"] == "score":
                return named_outputs(model, opened(**given).logits)
            states = opened(**given).last_hidden_state
            pooled = _pooled(states, made["mask"], about["pooling"])
            return named_outputs(model, pooled if head is None else nn.functional.linear(pooled, head["weight"], head["bias"]))

        return outputs


def _pooled(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """Features [B, D] of states [B, L, D], as whoever opens the folder computes them."""
    if how == "mean":
        weight = mask.unsqueeze(2).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
    return states[:, 0] if how == "cls" else states[torch.arange(len(states)), mask.sum(1) - 1]


def _with_score(encoder: TextEncoder, head: nn.Linear, target: Target | None) -> Any:
    """GPT-2 with the head as its `score`; None where the head does not fit."""
    import transformers

    config = encoder.model.config
    norm = getattr(getattr(encoder.model, "transformer", None), "ln_f", None)
    p = encoder.processor
    fits = config.model_type == "gpt2" and encoder.pooling == "last" and getattr(norm, "bias", None) is not None and p.pad_id != p.sep_id
    if not fits or not isinstance(target, Classification) or head.out_features > head.in_features:
        return None
    names = [str(name) for name in target.names]
    made = type(config).from_dict(
        {**config.to_dict(), "id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}, "architectures": None}
    )
    made.pad_token_id = p.pad_id
    whole: Any = transformers.GPT2ForSequenceClassification(made)
    whole.transformer.load_state_dict(encoder.model.transformer.state_dict())
    with torch.no_grad():
        weight, bias = head.weight.double(), head.bias.double()
        whole.score.weight.copy_(head.weight)
        whole.transformer.ln_f.bias.add_((torch.linalg.pinv(weight) @ bias).float())
    return whole.eval()


@contextlib.contextmanager
def _without_bars() -> Any:
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def linear_head(model: Model, to: Format) -> nn.Linear | None:
    """The linear head on the pooled features; None of an encoder alone. Raises `UserError` where something else answers."""
    target = model.target
    if target is None:
        return None
    if not isinstance(target, (Classification, Multilabel, Regression)):
        raise UserError(
            f"{to.words} holds a linear head on pooled features, and {type(target).__name__} is another: format=onnx or torch holds it, or "
            f"from=RUN/encoder the encoder alone"
        )
    if len(getattr(target, "beside", ())):
        raise UserError(
            f"{to.words} holds nothing beside the encoder: late_fusion=false leaves it out, format=onnx or torch takes it along"
        )
    return target.head


def named_outputs(model: Model, x: Tensor) -> dict[str, Tensor]:
    """What a library's model gives, as the outputs of the target."""
    if model.target is None:
        return {"features": x}
    return {"number": x[:, 0]} if isinstance(model.target, Regression) else {"logits": x}


def _named(model: Model) -> str:
    return str(model.encoder.args.get("name") or model.encoder.args.get("model_type") or type(model.encoder).__name__)
