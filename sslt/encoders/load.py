"""Which encoder a run starts with: built anew from the config, or taken `from=` what exists.

Nothing that comes with a folder is executed: weights are safetensors, configs are plain data, and the class they name
must be one of sslt's own or of a package named in `trust=`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch

from sslt import config, deferred, groups, stored, trusted
from sslt.encoders import inserted, pruned, quantized
from sslt.encoders.base import ADAPTER, FILE, Encoder, evaluating, fingerprint
from sslt.encoders.files import Bounded, building, check_folder, fill, read_tensors, refuse_pickled
from sslt.encoders.seals import check_seal
from sslt.encoders.windows import set_windows
from sslt.errors import UserError
from sslt.runs import RUN_FILE, Run
from sslt.stored import shown


def build_encoder(node: Any, source: Any, words_of: Encoder | None = None) -> Encoder:
    """A fresh encoder by its config node, fitted to the source (size, channels, tokenizer).

    words_of: a transformer whose tokenizer a fresh transformer takes instead of one of the source.
    """
    from omegaconf import OmegaConf

    if node is None:
        raise UserError("no encoder is chosen: encoder=resnet_small for images, encoder=bag or bert_tiny for text, or from=")
    args: Any = OmegaConf.to_container(node, resolve=True) if not isinstance(node, dict) else dict(node)
    target = args.pop("_target_")
    cls = _locate(target)
    # weights, their gradient and two moments of an optimizer
    bound = Bounded(_memory() // 4, f"the encoder {target} is larger than can be trained in this machine's memory")
    try:
        with bound:
            settings, given = args.pop("processor", None) or {}, _processor_like(cls, words_of)
            encoder: Encoder = cls.build(source, settings, **args) if given is None else cls(given(settings), **args)
        _try(encoder)
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RuntimeError) as e:  # of the library whose model it is
        raise UserError(f"cannot build the encoder {target}: {type(e).__name__}: {stored.first_line(e)}") from e
    return encoder


def _processor_like(cls: Any, other: Encoder | None) -> Any:
    """Settings of a processor → one with the tokenizer of `other`; None where `cls` reads no such words."""
    from sslt.data.prepare.text_processor import TextProcessor

    if other is None or cls.Processor is not TextProcessor or type(other.processor) is not TextProcessor:
        return None
    words: TextProcessor = other.processor
    return lambda settings: TextProcessor(
        words.tokenizer, settings.get("max_length", words.max_length), max_output=settings.get("max_output")
    )


def _memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 62


def _try(encoder: Encoder) -> None:
    """Encode one black image: what settings of a library's model lead to shows there, before any data are prepared."""
    size, channels = getattr(encoder.processor, "size", None), getattr(encoder.processor, "channels", None)
    if size is not None and channels is not None:
        with evaluating(encoder), torch.random.fork_rng(devices=[]):
            encoder({"image": torch.zeros(1, channels, size, size)})


def load_encoder(
    what: str,
    modality: str | None = None,
    trust: list[str] | None = None,
    max_length: int | None = None,
    base: str | None = None,
    key: str = "from",
) -> Encoder:
    """The encoder of a run folder, an encoder folder, a Hugging Face or timm folder, or a model name.

    base: where the base of an adapter is now, if it is not where it was. key: the setting that named it.
    Raises `UserError`, which names the setting, if `what` is none of these.
    """
    encoder = _load(what, modality, trust, max_length, base, key)
    if encoder.adapter is None:
        path = stored.located(what)
        encoder.origin = str(path.resolve()) if stored.is_folder(path) else what
    return encoder


def _load(what: str, modality: str | None, trust: list[str] | None, max_length: int | None, base: str | None, key: str) -> Encoder:
    path = stored.located(what)
    if stored.is_file(path / RUN_FILE):
        if not stored.is_file(path / "encoder" / FILE):
            raise UserError(f"{key}={what} {_without_encoder(Run(path), what, key)}")
        path = path / "encoder"
    if stored.is_file(path / FILE):
        return _own(path, trust or [], base=base)
    if stored.is_folder(path):
        return _foreign(path, max_length, key)
    if stored.is_file(path):
        refuse_pickled(path)
        raise UserError(f"{key}={what} is a file: give the folder that it is in, with the config of the network")
    if what.startswith((".", "/", "~")) or what.count("/") > 1 or not what.isprintable():
        raise UserError(f"{key}={what[:200]}: there is no such folder (`sslt list runs` shows your runs)")
    if modality == "text":
        return _published_text(what, max_length, key)
    if modality == "image":
        return _published_image(what, key)
    raise UserError(f"{key}={what} is no folder; to take a published model by name, say which data it is for: data=…")


def is_own(what: str) -> bool:
    """Whether `from=` names what sslt has made, or the architecture of something, which says how long texts are by itself."""
    path = stored.located(what)
    return what.startswith("scratch:") or stored.is_file(path / RUN_FILE) or stored.is_file(path / FILE)


def _without_encoder(run: Run, what: str, key: str) -> str:
    """Why a run folder holds no encoder, and what to name instead."""
    info = run.info
    if info.get("verb") == "run":
        return f"is a chain: name the stage whose encoder is meant, {key}={what}/finetune or {key}={what}/pretrain"
    if info.get("status") == "finished":
        return f"is a `sslt {info.get('verb')}` run, which makes no encoder: name the run it measured, {key}={info.get('from')}"
    return f"has no encoder yet (its status is '{info.get('status')}'): end it first with {groups.quoted(f'resume={what}')}"


def fresh_like(encoder_folder: str, trust: list[str] | None = None) -> Encoder:
    """The same architecture and processor as an existing encoder's, with new weights: the matched baseline."""
    path = stored.located(encoder_folder)
    path = path / "encoder" if stored.is_file(path / "encoder" / FILE) else path
    if not stored.is_file(path / FILE):
        raise UserError(f"from=scratch:{encoder_folder[:200]}: no encoder there")
    return _own(path, trust or [], weights=False)


def _own(path: Path, trust: list[str], weights: bool = True, base: str | None = None) -> Encoder:
    file = path / FILE
    about = stored.json_object(file)
    if "base" in about:
        check_seal(path, FILE, about, weights)
        return _over_base(path, about, trust, weights, base)
    target, args = stored.value(about, "_target_", str, file), stored.value(about, "args", dict, file)
    processor = stored.value(about, "processor", dict, file)
    trusted.check_trusted({"encoder": {"_target_": target}}, trust, shown(path))
    if "pretrained" in args or str(args.get("name")).startswith("local-dir:"):
        raise UserError(f"{shown(file)} asks for weights that are elsewhere, which sslt never writes there: the file was changed")
    check_seal(path, FILE, about, weights)
    if "lexicon" in args:
        raise UserError(
            f"{shown(path)} was fine-tuned by an earlier version, which kept TF-IDF inside the encoder; now it stands in head/: fine-tune "
            f"again from the pretraining it started from"
        )
    cls = _locate(target)
    config.check_arguments(f"{shown(file)}: args", target, args, given={"processor"})
    with building(path, FILE):
        encoder = cls(cls.load_processor(path, processor), **args)
        if "pruned" in about:
            pruned.resize(encoder, stored.value(about, "pruned", dict, file), file)
        if weights and "quantization" in about:
            quantized.load(encoder, path, stored.value(about, "quantization", dict, file), file)
        elif weights and "adapter" in about:
            inserted.inject(encoder, stored.value(about, "adapter", dict, file))
            fill(encoder, path / ADAPTER)
        elif weights:
            encoder.load_weights(path)
    return encoder


def _over_base(path: Path, about: dict[str, Any], trust: list[str], weights: bool, base: str | None) -> Encoder:
    """An adapter over the base it was made for. Fresh weights (`weights=False`) are those of the base's architecture, without it."""
    file = path / FILE
    known = stored.value(about, "base", dict, file)
    place = base or stored.value(known, "from", str, file)
    longest = known.get("max_length") if known.get("max_length") is None else stored.value(known, "max_length", int, file)
    if base is None and place.startswith("/") and not stored.is_folder(Path(place)):
        raise UserError(f"{shown(path)} is an adapter; its base was in {place}, where nothing is: say base=FOLDER, where it is now")
    _refuse_adapter(path, stored.located(place))
    if not weights:
        return fresh_like(place, trust)
    encoder = load_encoder(place, stored.value(about, "modality", str, file), trust, longest)
    content = stored.value(known, "fingerprint", str, file)
    if (found := fingerprint(encoder)) != content:
        raise UserError(
            f"{shown(path)} is an adapter made over another base than {place} (content {found[:8]}, not {content[:8]}): "
            f"say base=FOLDER, where the one it was made over is"
        )
    if longest is not None:
        encoder.processor.max_length = longest
        windows = known.get("windows", 1)  # folders of before there were any have none
        set_windows(encoder, "all" if windows is None else stored.value({"windows": windows}, "windows", int, file))
    with building(path, FILE):
        inserted.inject(encoder, stored.value(about, "adapter", dict, file))
        inserted.load_state(encoder, read_tensors(path / ADAPTER))
    return encoder


def _refuse_adapter(path: Path, base: Path) -> None:
    """Raise `UserError` where the base of an adapter is one itself, or the same one: bases are whole."""
    for folder in (base, base / "encoder"):
        if stored.is_file(folder / FILE) and "base" in stored.json_object(folder / FILE):
            what = "itself" if folder.resolve() == path.resolve() else f"{shown(folder)}, an adapter too"
            raise UserError(
                f"{shown(path)} is an adapter, and names as its base {what}: say base=FOLDER, where the one it was made over is"
            )


def _foreign(path: Path, max_length: int | None, key: str) -> Encoder:
    file = path / "config.json"
    about = stored.json_object(file) if stored.is_file(file) else {}
    if "model_type" in about:
        return _published_text(str(path), max_length, key)
    if "architecture" in about:
        check_folder(path)
        p = stored.value(about, "pretrained_cfg", dict, file) if "pretrained_cfg" in about else about
        model_args = stored.value(about, "model_args", dict, file) if "model_args" in about else {}
        with building(path, file.name):
            channels, size, _ = p.get("input_size", [3, 224, 224])
            encoder = _image()(_processor(size, channels, p), f"local-dir:{path}", {}, "standard", False, pretrained=True)
            own = {k: v for k, v in model_args.items() if k not in ("in_chans", "num_classes")}
            # saved with its weights, it needs the folder no more
            encoder.args |= {"name": stored.value(about, "architecture", str, file), "args": own}
            return encoder
    refuse_pickled(path)
    raise UserError(f"{key}={path} is no run, no encoder and no Hugging Face or timm folder (no {RUN_FILE}, {FILE} or config.json in it)")


def _published_image(name: str, key: str = "from") -> Encoder:
    timm = deferred.timm()

    if name.startswith("torchvision/"):
        return _image()(_processor(224, 3, {}), name, {}, "standard", name.startswith("torchvision/vit_"), pretrained=True)
    bare = name.removeprefix("timm/")
    from sslt.errors import nearest

    if not timm.is_model(bare):
        raise UserError(f"{key}={name} is no folder and no timm model{nearest(bare, timm.list_models())}")
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
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(f"{target} cannot be imported: {e}") from e
    if not (isinstance(cls, type) and issubclass(cls, Encoder)):
        raise UserError(f"{target} is no Encoder")
    return cls


def _image() -> Any:
    from sslt.encoders.image import ImageEncoder

    return ImageEncoder


def _published_text(name: str, max_length: int | None, key: str) -> Encoder:
    from sslt.encoders.published import published_text

    return published_text(name, max_length, key)
