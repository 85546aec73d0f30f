"""Small trainable parts put into an encoder that stands still: LoRA and its kin by `peft`, bottlenecks, prefixes, prompts.

The encoder object stays what it is. `encoder.adapter` is the plain specification an adapter is rebuilt from; a folder saved with it
holds the adapter alone and says which base it belongs to (`Encoder.save`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.base import many
from sslt.encoders.base import Encoder, adapter_state, evaluating
from sslt.encoders.base import fingerprint as fingerprint_of
from sslt.errors import UserError

KINDS = ("lora", "adalora", "ia3", "adapter", "prefix", "prompt")
MERGEABLE = ("lora", "adalora", "ia3")
NAME = "default"  # peft's, of the only adapter there is


def inject(encoder: Encoder, spec: dict[str, Any]) -> None:
    """Put the adapter of `spec` ({"kind": …, settings}) into `encoder`. Raises `UserError` where the pair makes no sense."""
    if encoder.adapter is not None:
        raise UserError(f"this encoder carries an adapter ({encoder.adapter['kind']}) already: merge it first (sslt merge from=RUN)")
    if encoder.modality != "image" and not hasattr(encoder, "model"):
        raise UserError(f"adaptation={spec['kind']} adapts a transformer, and this encoder is none: choose adaptation=full, l2sp or probe")
    encoder.base_fingerprint = fingerprint_of(encoder)
    kind, settings = spec["kind"], {k: v for k, v in spec.items() if k != "kind"}
    if kind in ("lora", "adalora", "ia3"):
        _inject_peft(encoder, kind, settings)
    elif kind == "adapter":
        _inject_bottlenecks(encoder, **settings)
    else:
        _inject_virtual(encoder, kind, **settings)
    encoder.adapter = dict(spec)


def load_state(encoder: Encoder, tensors: dict[str, Tensor]) -> None:
    """Take back what `adapter_state` gave. Raises `UserError` if it is of another adapter."""
    mine = adapter_state(encoder)
    if mine.keys() != tensors.keys() or any(mine[k].shape != tensors[k].shape for k in mine):
        raise UserError("the adapter's weights do not fit the encoder they are loaded over: it was made for another one")
    encoder.load_state_dict(tensors, strict=False)


def merge(encoder: Encoder) -> None:
    """Fold a LoRA, AdaLoRA or IA³ into the weights, so that nothing of the adapter is left. Raises `UserError` for the others."""
    if encoder.adapter is None:
        raise UserError("there is no adapter to merge: this encoder is whole")
    kind = encoder.adapter["kind"]
    if kind not in MERGEABLE:
        raise UserError(f"an adapter of kind '{kind}' adds parts that no weight can hold: only {', '.join(MERGEABLE)} can be merged")
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(encoder.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, module.get_base_layer())
    encoder.requires_grad_(True)
    encoder.adapter = encoder.origin = None


# -------------------------------------------------------------------- peft
_FAMILIES: dict[str, dict[str, list[str]]] = {  # what peft has no defaults for
    "modernbert": {"lora": ["Wqkv"], "adalora": ["Wqkv"], "ia3": ["Wqkv", "mlp.Wo"], "feedforward": ["mlp.Wo"]},
    "vit": {"lora": ["qkv"], "adalora": ["qkv"], "ia3": ["qkv", "mlp.fc2"], "feedforward": ["mlp.fc2"]},
    "resnet": {"lora": ["conv1", "conv2", "conv3"]},
}


def _family(encoder: Encoder) -> str:
    if encoder.modality != "image":
        return str(encoder.args.get("model_type"))
    names = [n for n, _ in encoder.named_modules()]
    return "vit" if any(n.endswith("attn.qkv") for n in names) else "resnet" if any("layer1" in n for n in names) else "other"


def _inject_peft(encoder: Encoder, kind: str, settings: dict[str, Any]) -> None:
    import peft

    family = _family(encoder)
    targets = settings.pop("target_modules", None) or _FAMILIES.get(family, {}).get(kind)
    if family in ("resnet", "other") and (kind != "lora" or targets is None):
        where = "adaptation=lora with target_modules" if family == "other" else "adaptation=lora"
        raise UserError(f"adaptation={kind} adapts the linear maps of a transformer, and this encoder is none: choose {where}")
    extra: dict[str, Any] = {"target_modules": targets}
    if kind == "ia3" and family in _FAMILIES:
        extra["feedforward_modules"] = _FAMILIES[family]["feedforward"]
    config = {"lora": peft.LoraConfig, "adalora": peft.AdaLoraConfig, "ia3": peft.IA3Config}[kind]
    if targets is not None:
        missing = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n, _ in encoder.named_modules())]
        if missing and family != "resnet":  # its usual names are those of both kinds of blocks
            some = [n for n, m in encoder.named_modules() if isinstance(m, nn.Linear)]
            raise UserError(
                f"adaptation.target_modules: '{missing[0]}' matches no layer of this encoder (there is {', '.join(some[:3])}, …)"
            )
    try:
        peft.inject_adapter_in_model(config(**settings, **extra), getattr(encoder, "model", encoder), NAME)  # type: ignore[arg-type]
    except ValueError as e:
        raise UserError(f"adaptation={kind}: {str(e).splitlines()[0]}") from e


# -------------------------------------------------------------------- bottlenecks
class InsertedBottleneck(nn.Module):
    """x + up(GELU(down(x))) behind a block (Houlsby et al., 2019; one per block as Pfeiffer et al., 2021); starts as identity.

    On feature maps [B, C, H, W] the two maps are 1×1 convolutions, on tokens [B, T, D] linear.
    """

    def __init__(self, width: int, size: int, maps: bool):
        super().__init__()
        self.down = nn.Conv2d(width, size, 1) if maps else nn.Linear(width, size)
        self.up = nn.Conv2d(size, width, 1) if maps else nn.Linear(size, width)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(nn.functional.gelu(self.down(x)))


def _behind(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a block: its output, or the first of its outputs, through its bottleneck."""
    through = module.added_bottleneck
    return (through(output[0]), *output[1:]) if isinstance(output, tuple) else through(output)  # type: ignore[operator]


def _inject_bottlenecks(encoder: Encoder, size: int) -> None:
    if not encoder.block_names():
        raise UserError("adaptation=adapter puts a bottleneck behind every block, and this encoder names no blocks")
    for name, shape in _block_outputs(encoder).items():
        block = encoder.get_submodule(name)
        block.added_bottleneck = InsertedBottleneck(shape[1] if len(shape) == 4 else shape[-1], size, maps=len(shape) == 4)
        if not isinstance(block, nn.Sequential):  # which runs its last part anyway
            block.register_forward_hook(_behind)


def _block_outputs(encoder: Encoder) -> dict[str, torch.Size]:
    """The shape of what each block gives, found by encoding one blank sample."""
    shapes: dict[str, torch.Size] = {}
    hooks = []
    for name in encoder.block_names():
        note = lambda _, __, out, name=name: shapes.update({name: (out[0] if isinstance(out, tuple) else out).shape})  # noqa: E731
        hooks.append(encoder.get_submodule(name).register_forward_hook(note))
    try:
        with evaluating(encoder):
            encoder(_blank(encoder))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _blank(encoder: Encoder) -> dict[str, Tensor]:
    device = next(encoder.parameters()).device
    if encoder.modality != "image":
        return {"tokens": torch.zeros(1, 4, dtype=torch.long, device=device)}
    p = encoder.processor
    return encoder.inputs({"image": torch.zeros(1, p.channels, p.size, p.size, dtype=torch.uint8, device=device)})


# -------------------------------------------------------------------- prefixes and prompts
class InsertedPrompt(nn.Module):
    """`length` learned embeddings before the tokens (Lester et al., 2021). They start as embeddings of random words."""

    def __init__(self, model: Any, length: int):
        super().__init__()
        table = model.get_input_embeddings().weight
        self.tokens = nn.Parameter(table[torch.randint(len(table), (length,))].detach().clone())

    def forward(self, model: Any, tokens: Tensor, mask: Tensor | None, segments: Tensor | None = None) -> Tensor:
        """Last hidden states [B, T, D] of the real tokens [B, T]."""
        before = self.tokens.expand(len(tokens), -1, -1)
        embedded = torch.cat([before, model.get_input_embeddings()(tokens)], 1)
        seen = torch.ones_like(tokens) if mask is None else mask.long()
        seen = torch.cat([seen.new_ones(before.shape[:2]), seen], 1)
        more = {} if segments is None else {"token_type_ids": F.pad(segments, (before.shape[1], 0))}
        return model(inputs_embeds=embedded, attention_mask=seen, **more).last_hidden_state[:, before.shape[1] :]


class InsertedPrefix(nn.Module):
    """`length` learned keys and values before those of the tokens in every layer (Li & Liang, 2021), without reparametrisation.

    They are handed over as a cache of past keys and values, which BERT and its like take, with a mask that lets every token see
    all of them; positions of the tokens stay their own. (peft's wrapper shifts the positions by the prefix.)
    """

    def __init__(self, model: Any, length: int):
        super().__init__()
        c = model.config
        self.heads = c.num_attention_heads
        self.keyword = str(cache_keyword(model))
        places = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
        padding = getattr(places, "padding_idx", None)
        self.first_position = 0 if padding is None else padding + 1  # RoBERTa and its like count from behind the padding's
        self.pairs = nn.Parameter(torch.randn(c.num_hidden_layers, 2, length, c.hidden_size) * 0.02)

    def forward(self, model: Any, tokens: Tensor, mask: Tensor | None, segments: Tensor | None = None) -> Tensor:
        """Last hidden states [B, T, D] of the tokens [B, T]."""
        from transformers import DynamicCache

        b, t = tokens.shape
        layers, _, p, width = self.pairs.shape
        cache = DynamicCache()
        split = self.pairs.view(layers, 2, p, self.heads, width // self.heads).transpose(2, 3)
        for i in range(layers):
            key, value = (split[i, j].unsqueeze(0).expand(b, -1, -1, -1) for j in (0, 1))
            cache.update(key, value, i)
        seen = torch.ones(b, t, dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
        seen = torch.cat([seen.new_ones(b, p), seen], 1)[:, None, None, :].expand(b, 1, t, p + t)
        positions = (self.first_position + torch.arange(t, device=tokens.device)).unsqueeze(0)
        more = {self.keyword: cache} | ({} if segments is None else {"token_type_ids": segments})
        return model(input_ids=tokens, attention_mask=seen, position_ids=positions, **more).last_hidden_state


def cache_keyword(model: Any) -> str | None:
    """What a transformers model calls its cache of past keys and values (the name changed in version 5.24); None if it takes none."""
    import inspect

    taken = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in taken), None)


def _inject_virtual(encoder: Encoder, kind: str, length: int) -> None:
    if encoder.modality != "text":
        raise UserError(
            f"adaptation={kind} puts learned tokens before a text, and this encoder reads {many(encoder.modality)}: "
            "choose adaptation=adapter"
        )
    if length < 1:
        raise UserError(f"adaptation.length={length}: give at least 1")
    family = encoder.args.get("model_type")
    reads_both_ways = encoder.writes not in ("causal", "seq2seq")  # the prefix comes with a mask by which every word sees all of them
    if kind == "prefix" and (cache_keyword(encoder.model) is None or not reads_both_ways):
        raise UserError(
            f"adaptation=prefix needs a model that takes past keys and values and reads both ways, and {family} does not: "
            f"choose adaptation=prompt"
        )
    longest = getattr(encoder.model.config, "max_position_embeddings", None)  # type: ignore[union-attr]
    if kind == "prompt" and longest is not None and encoder.processor.max_length + length > longest:
        raise UserError(
            f"adaptation.length={length} and texts of {encoder.processor.max_length} tokens are more than the model's {longest} positions: "
            f"lower adaptation.length or encoder.processor.max_length"
        )
    encoder.virtual_tokens = (InsertedPrompt if kind == "prompt" else InsertedPrefix)(encoder.model, length)
