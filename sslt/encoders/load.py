"""Which encoder a run starts with: built anew from the config, or taken `from=` what exists.

Nothing that comes with a folder is executed: weights are safetensors, configs are plain data, and the class they name
must be one of sslt's own or of a package named in `trust=`.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from sslt.encoders import adapters
from sslt.encoders.base import ADAPTER, FILE, Encoder, fingerprint
from sslt.encoders.files import check_seal, read_tensors
from sslt.errors import UserError
from sslt.runs import RUN_FILE, Run, display


def build_encoder(node: Any, source: Any) -> Encoder:
    """A fresh encoder by its config node, fitted to the source (size, channels, tokenizer)."""
    from omegaconf import OmegaConf

    if node is None:
        raise UserError("no encoder is chosen: encoder=resnet_small for images, encoder=bert_tiny for text, or from=")
    args: Any = OmegaConf.to_container(node, resolve=True) if not isinstance(node, dict) else dict(node)
    cls = _locate(args.pop("_target_"))
    return cls.build(source, args.pop("processor", {}), **args)


def load_encoder(
    what: str, modality: str | None = None, trust: list[str] | None = None, max_length: int | None = None, base: str | None = None
) -> Encoder:
    """The encoder of a run folder, an encoder folder, a Hugging Face or timm folder, or a model name.

    base: where the base of an adapter is now, if it is not where it was. Raises `UserError` if `what` is none of these.
    """
    encoder = _load(what, modality, trust, max_length, base)
    if encoder.adapter is None:
        path = Path(what).expanduser()
        encoder.origin = str(path.resolve()) if path.is_dir() else what
    return encoder


def _load(what: str, modality: str | None, trust: list[str] | None, max_length: int | None, base: str | None) -> Encoder:
    path = Path(what).expanduser()
    if (path / RUN_FILE).is_file():
        if not (path / "encoder" / FILE).is_file():
            raise UserError(f"from={what} {_without_encoder(Run(path), what)}")
        path = path / "encoder"
    if (path / FILE).is_file():
        return _own(path, trust or [], base=base)
    if path.is_dir():
        return _foreign(path, max_length)
    if what.startswith((".", "/", "~")) or what.count("/") > 1:
        raise UserError(f"from={what}: there is no such folder (`sslt list runs` shows your runs)")
    if modality == "text":
        return _text().from_hub(what, max_length)
    if modality == "image":
        return _published_image(what)
    raise UserError(f"from={what} is no folder; to take a published model by name, say which data it is for: data=…")


def _without_encoder(run: Run, what: str) -> str:
    """Why a run folder holds no encoder, and what to name instead."""
    info = run.info
    if info.get("verb") == "run":
        return f"is a chain: name the stage whose encoder is meant, from={what}/finetune or from={what}/pretrain"
    if info.get("status") == "finished":
        return f"is a `sslt {info.get('verb')}` run, which makes no encoder: name the run it measured, from={info.get('from')}"
    return f"has no encoder yet (its status is '{info.get('status')}'): end it first with resume={what}"


def fresh_like(encoder_folder: str, trust: list[str] | None = None) -> Encoder:
    """The same architecture and processor as an existing encoder's, with new weights: the matched baseline."""
    path = Path(encoder_folder).expanduser()
    path = path / "encoder" if (path / "encoder" / FILE).is_file() else path
    if not (path / FILE).is_file():
        raise UserError(f"from=scratch:{encoder_folder}: no encoder there")
    return _own(path, trust or [], weights=False)


def _own(path: Path, trust: list[str], weights: bool = True, base: str | None = None) -> Encoder:
    try:
        about = json.loads((path / FILE).read_text())
        if "base" in about:
            check_seal(path, FILE, about, weights)
            return _over_base(path, about, trust, weights, base)
        target, args, config = about["_target_"], about["args"], about["processor"]
    except (ValueError, KeyError) as e:
        raise UserError(f"{path / FILE} is damaged: {e}") from e
    package = target.split(".")[0]
    if not target.startswith("sslt.encoders.") and package not in trust:
        raise UserError(f"{path} asks for the class {target}, which is not part of sslt. If you know and trust it: trust=[{package}]")
    check_seal(path, FILE, about, weights)
    cls = _locate(target)
    encoder = cls(cls.load_processor(path, config), **args)
    if weights and "adapter" in about:
        adapters.inject(encoder, about["adapter"])
        encoder.load_state_dict(read_tensors(path / ADAPTER))
    elif weights:
        encoder.load_weights(path)
    return encoder


def _over_base(path: Path, about: dict[str, Any], trust: list[str], weights: bool, base: str | None) -> Encoder:
    """An adapter over the base it was made for. Fresh weights (`weights=False`) are those of the base's architecture, without it."""
    known = about["base"]
    place = base or known["from"]
    if base is None and place.startswith("/") and not Path(place).is_dir():
        raise UserError(f"{display(path)} is an adapter; its base was in {place}, where nothing is: say base=FOLDER, where it is now")
    if not weights:
        return fresh_like(place, trust)
    encoder = load_encoder(place, about["modality"], trust, known["max_length"])
    if (found := fingerprint(encoder)) != known["fingerprint"]:
        raise UserError(
            f"{display(path)} is an adapter made over another base than {place} (content {found[:8]}, not {known['fingerprint'][:8]}): "
            f"say base=FOLDER, where the one it was made over is"
        )
    if known["max_length"] is not None:
        encoder.processor.max_length = known["max_length"]
    adapters.inject(encoder, about["adapter"])
    adapters.load_state(encoder, read_tensors(path / ADAPTER))
    return encoder


def _foreign(path: Path, max_length: int | None) -> Encoder:
    config = json.loads((path / "config.json").read_text()) if (path / "config.json").is_file() else {}
    if "model_type" in config:
        return _text().from_hub(str(path), max_length)
    if "architecture" in config:
        p = config.get("pretrained_cfg", config)
        channels, size, _ = p.get("input_size", [3, 224, 224])
        encoder = _image()(_processor(size, channels, p), f"local-dir:{path}", {}, "standard", False, pretrained=True)
        own = {k: v for k, v in config.get("model_args", {}).items() if k not in ("in_chans", "num_classes")}
        encoder.args |= {"name": config["architecture"], "args": own}  # saved with its weights, it needs the folder no more
        return encoder
    raise UserError(f"from={path} is no run, no encoder and no Hugging Face or timm folder (no {RUN_FILE}, {FILE} or config.json in it)")


def _published_image(name: str) -> Encoder:
    import timm

    if name.startswith("torchvision/"):
        return _image()(_processor(224, 3, {}), name, {}, "standard", name.startswith("torchvision/vit_"), pretrained=True)
    bare = name.removeprefix("timm/")
    from sslt.errors import nearest

    if not timm.is_model(bare):
        raise UserError(f"from={name} is no folder and no timm model{nearest(bare, timm.list_models())}")
    p = timm.get_pretrained_cfg(bare)
    cfg = p.to_dict() if p is not None else {}
    channels, size, _ = cfg.get("input_size", (3, 224, 224))
    fixed = bare.startswith(("vit_", "deit", "beit", "eva", "flexivit"))  # whose positions belong to one image size
    return _image()(_processor(size, channels, cfg), bare, {}, "standard", fixed, pretrained=True)


def _processor(size: int, channels: int, cfg: dict[str, Any]) -> Any:
    mean, std = cfg.get("mean", (0.485, 0.456, 0.406)), cfg.get("std", (0.229, 0.224, 0.225))
    return _image().Processor(size=size, channels=channels, mean=list(mean), std=list(std))


def _locate(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise UserError(f"{target} cannot be imported: {e}") from e
    if not (isinstance(cls, type) and issubclass(cls, Encoder)):
        raise UserError(f"{target} is no Encoder")
    return cls


def _image() -> Any:
    from sslt.encoders.image import ImageEncoder

    return ImageEncoder


def _text() -> Any:
    from sslt.encoders.text import TextEncoder

    return TextEncoder
