"""Text encoders: any Hugging Face encoder, from its config or from existing weights."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.prepare.parts import one_row, part, part_names
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.sources.hub import ask_once
from sslt.encoders.base import Encoder, Features, pool_mean, require
from sslt.encoders.files import building, check_folder, fill
from sslt.encoders.windows import Windows
from sslt.errors import UserError, nearest
from sslt.stored import first_line

log = logging.getLogger("sslt")

_NOT_CONFIG = ("architectures", "dtype", "torch_dtype", "transformers_version", "model_type", "_name_or_path")


class TextEncoder(Encoder):
    """A transformers encoder (BERT: Devlin et al., 2019) without its task head.

    model_type: transformers' name of the family (bert, roberta, distilbert, …). config: values of that family's config;
    vocabulary and special tokens are the tokenizer's. pooling: "mean" over the real tokens, or "cls", the first token.

    Where the processor's `windows` is not 1, rows longer than its `max_length` are read window by window: tokens attend within their
    window, and the pooled feature is the mean over the windows, each weighted by its real tokens.
    """

    modality = "text"
    side_models = ("words",)
    Processor = TextProcessor

    def __init__(self, processor: TextProcessor, model_type: str, config: dict[str, Any], pooling: str, model: nn.Module | None = None):
        super().__init__(processor, model_type=model_type, config=config, pooling=pooling)
        if pooling not in ("mean", "cls"):
            raise UserError(f"encoder.pooling={pooling}{nearest(pooling, ['mean', 'cls'])}")
        self.model: Any
        self.model = model if model is not None else _create(processor, model_type, config)
        self.dim = int(self.model.config.hidden_size)
        self.pooling = pooling
        self.virtual_tokens: nn.Module | None = None  # a prompt or prefix, where an adapter put one

    @classmethod
    def build(cls, source: Any, processor: dict[str, Any], **args: Any) -> TextEncoder:
        """An encoder whose tokenizer is trained on `source`."""
        require("text", source, f"encoder {args.get('model_type')}")
        return cls(TextProcessor.fit(source, **processor), **args)

    @classmethod
    def from_hub(cls, folder: str, max_length: int | None = None, pooling: str = "mean") -> TextEncoder:
        """A Hugging Face folder or hub id; nothing of it is executed (no remote code, safetensors before pickle)."""
        place = Path(folder)
        if place.is_dir():
            check_folder(place)
            with building(place, "config.json"):
                tokenizer, model = _from_pretrained(folder, use_safetensors=True)
        else:
            ask_once()
            try:
                tokenizer, model = _from_pretrained(folder, weights_only=True)
            except (OSError, ValueError) as e:
                raise UserError(
                    f"from={folder}: no Hugging Face model can be read there ({first_line(e)}). "
                    f"Offline, copy the model's folder here and give its path"
                ) from e
        longest = int(getattr(model.config, "max_position_embeddings", 512))
        if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
            longest -= 2  # positions start after the padding index
        wanted = min(max_length or 128, longest)
        config = {k: v for k, v in json.loads(model.config.to_json_string()).items() if k not in _NOT_CONFIG}
        return cls(TextProcessor(tokenizer, wanted), model.config.model_type, config, pooling, model)

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Samples of several parts are read as one row of a single window, with `segments` where the model was made for such."""
        if names := part_names(batch):
            row = one_row([part(batch, name) for name in names], self.processor)
            return row if self._segments >= len(names) else {k: row[k] for k in ("tokens", "mask")}
        return {k: batch[k] for k in ("tokens", "mask") if k in batch}

    @property
    def _segments(self) -> int:
        """How many segments the model tells apart; 0 where it takes none."""
        taken = "token_type_ids" in inspect.signature(self.model.forward).parameters
        return int(getattr(self.model.config, "type_vocab_size", 0)) if taken else 0

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        mask, windows = inputs.get("mask"), self._windows(inputs)
        if windows is None:
            tokens = self._read(inputs["tokens"], mask, inputs.get("segments"))
        else:
            tokens = windows.unfold(self._read(windows.fold(inputs["tokens"], self.processor.pad_id), windows.mask))
        if self.pooling == "mean":
            return Features(pool_mean(tokens, mask), tokens, mask)
        return Features(tokens[:, 0] if windows is None else windows.pool_first(tokens), tokens, mask)

    def _windows(self, inputs: dict[str, Tensor]) -> Windows | None:
        """What rows are taken apart into; None where they are read as they are."""
        tokens, p = inputs["tokens"], self.processor
        if p.windows == 1 or tokens.shape[1] <= p.max_length:
            return None
        return Windows(inputs.get("mask", torch.ones_like(tokens, dtype=torch.bool)), p.max_length)

    def _read(self, tokens: Tensor, mask: Tensor | None, segments: Tensor | None = None) -> Tensor:
        """Last hidden states [N, L, D] of tokens [N, L]."""
        if self.virtual_tokens is not None:
            return self.virtual_tokens(self.model, tokens, mask, segments)
        more = {} if segments is None else {"token_type_ids": segments}
        return self.model(input_ids=tokens, attention_mask=None if mask is None else mask.long(), **more).last_hidden_state

    def in_rows(self, output: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        windows = self._windows(inputs)
        return output if windows is None else windows.unfold(output)

    def require_tokens(self, pooled: bool) -> None:
        if self.processor.mask_id is None:
            raise UserError("this tokenizer has no mask token, so its encoder cannot learn by masking: +task=simcse needs none")
        if not pooled and self.pooling == "cls":
            log.warning("the loss trains words, not the first token that the features are read from: encoder.pooling=mean reads the words")

    def word_ids(self, inputs: dict[str, Tensor]) -> Tensor:
        return (inputs["tokens"] + 1) * self.hideable(inputs)

    def word_list(self) -> list[str]:
        return [""] * (self.processor.vocab_size + 1)

    def hideable(self, inputs: dict[str, Tensor]) -> Tensor:
        tokens = inputs["tokens"]
        special = torch.as_tensor(sorted(self.processor.special_ids), device=tokens.device)
        return ~torch.isin(tokens, special) & inputs.get("mask", torch.ones_like(tokens, dtype=torch.bool))

    def hide(self, inputs: dict[str, Tensor], masked: Tensor, token: Tensor) -> dict[str, Tensor]:
        return {**inputs, "tokens": inputs["tokens"].masked_fill(masked, self.processor.mask_id)}

    def pick(self, inputs: dict[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
        p = self.processor
        sizes = kept.sum(2).clamp(max=p.room)
        width = min(-(-(int(sizes.max()) + 2) // 8) * 8, p.max_length)
        order = kept.int().argsort(dim=2, descending=True, stable=True)[:, :, : width - 2]
        chosen = inputs["tokens"].expand_as(kept).gather(2, order)
        chosen = F.pad(chosen, (1, width - 1 - chosen.shape[2]), value=p.cls_id)
        place, ends = torch.arange(width, device=kept.device), sizes.unsqueeze(2) + 1
        tokens = chosen.masked_fill(place > ends, p.pad_id).masked_fill(place == ends, p.sep_id)
        return {"tokens": tokens, "mask": place <= ends}

    @property
    def token_embeddings(self) -> nn.Embedding:
        """The input embeddings [V, D], to which a language-model head ties its weights."""
        return self.model.get_input_embeddings()

    def block_names(self) -> list[str]:
        stacks = ("layer", "layers", "h", "block")
        names = [n for n, m in self.named_modules() if isinstance(m, nn.ModuleList) and n.rpartition(".")[2] in stacks]
        if not names:
            return []
        return [f"{names[0]}.{i}" for i in range(len(self.get_submodule(names[0])))]  # type: ignore[arg-type]

    def save_weights(self, folder: Path) -> None:
        from transformers.utils import logging

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        self.model.save_pretrained(folder)
        if bars:
            logging.enable_progress_bar()

    def load_weights(self, folder: Path) -> None:
        fill(self.model, folder / "model.safetensors")

    def processor_config(self, folder: Path) -> dict[str, Any]:
        self.processor.save(folder)
        return {}

    @classmethod
    def load_processor(cls, folder: Path, config: dict[str, Any]) -> TextProcessor:
        return TextProcessor.load(folder)


def _from_pretrained(name: str, **settings: bool) -> tuple[Any, Any]:
    """(tokenizer, model) of a folder or a hub id."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    known = AutoConfig.from_pretrained(name, trust_remote_code=False)
    return tokenizer, AutoModel.from_pretrained(name, trust_remote_code=False, **settings, **_no_pooler(known))


def _no_pooler(config: Any) -> dict[str, Any]:
    """A pooler is a head of BERT's own pretraining: unused here, and without a gradient it would stop DDP."""
    from transformers import MODEL_MAPPING

    found: Any = MODEL_MAPPING[type(config)]
    cls = found[0] if isinstance(found, (list, tuple)) else found
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(cls).parameters else {}


def _create(processor: TextProcessor, model_type: str, config: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    try:
        made = AutoConfig.for_model(model_type, **{**config, "vocab_size": processor.vocab_size})
    except ValueError as e:
        raise UserError(f"encoder.model_type={model_type}: transformers knows no such family") from e
    longest = getattr(made, "max_position_embeddings", None)
    if longest is not None and processor.max_length > longest:
        raise UserError(
            f"encoder.processor.max_length={processor.max_length} is more than the model's {longest} positions: "
            f"raise encoder.config.max_position_embeddings too"
        )
    made.pad_token_id = processor.tokenizer.pad_token_id
    try:
        return AutoModel.from_config(made, **_no_pooler(made))
    except ValueError as e:
        raise UserError(f"encoder.config: {str(e).splitlines()[0]}") from e
