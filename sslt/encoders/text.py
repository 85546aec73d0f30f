"""Text encoders: any Hugging Face encoder by its config, with what it learned to say."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt import lanes
from sslt.data.prepare.parts import one_row, part, part_names
from sslt.data.prepare.text_processor import TextProcessor
from sslt.encoders.base import Encoder, Features, pool_mean, require
from sslt.encoders.files import fill
from sslt.encoders.masked_head import MaskedHead
from sslt.encoders.windows import Windows
from sslt.errors import UserError, nearest

log = logging.getLogger("sslt")


class TextEncoder(Encoder):
    """A transformers encoder (BERT: Devlin et al., 2019) without its task head.

    model_type: transformers' name of the family (bert, roberta, distilbert, …). config: values of that family's config;
    vocabulary and special tokens are the tokenizer's. pooling: "mean" over the real tokens, "cls", the first token, or "last", the last
    one. words: whether it has the head of a masked language model, which reads words out of hidden tokens.

    Where the processor's `windows` is not 1, rows longer than its `max_length` are read window by window: tokens attend within their
    window, and the pooled feature is the mean over the windows, each weighted by its real tokens.
    """

    modality = "text"
    side_models = ("words",)
    Processor = TextProcessor
    writes: str | None = "masked"
    poolings: ClassVar[tuple[str, ...]] = ("mean", "cls", "last")
    auto: ClassVar[str] = "AutoModel"  # transformers' class that makes it of a config

    def __init__(
        self,
        processor: TextProcessor,
        model_type: str,
        config: dict[str, Any],
        pooling: str,
        model: nn.Module | None = None,
        words: bool = False,
    ):
        super().__init__(processor, model_type=model_type, config=config, pooling=pooling)
        if pooling not in self.poolings:
            raise UserError(f"encoder.pooling={pooling}: give {', '.join(self.poolings)}{nearest(pooling, self.poolings)}")
        self.model: Any
        self.words: MaskedHead | None = None
        self.model = model if model is not None else self._create(processor, model_type, config)
        self.dim = int(self.model.config.hidden_size)
        self.pooling = pooling
        self.virtual_tokens: nn.Module | None = None  # a prompt or prefix, where an adapter put one
        if words:
            self.keep_words()

    @classmethod
    def build(cls, source: Any, processor: dict[str, Any], **args: Any) -> TextEncoder:
        """An encoder whose tokenizer is trained on `source`."""
        require("text", source, f"encoder {args.get('model_type')}")
        return cls(TextProcessor.fit(source, **processor), **args)

    @property
    def network(self) -> Any:
        """The part of the model that makes hidden states of tokens."""
        return self.model

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Samples of several parts are read as one row of a single window, with `segments` where the model was made for such."""
        if names := part_names(batch):
            return self.of_row(one_row([part(batch, name) for name in names], self.processor), len(names))
        return {k: batch[k] for k in ("tokens", "mask") if k in batch}

    def of_row(self, row: dict[str, Tensor], parts: int) -> dict[str, Tensor]:
        """Inputs of a row of several parts: with its `segments` where the model tells as many apart."""
        return row if self._segments >= parts else {k: row[k] for k in ("tokens", "mask")}

    @property
    def _segments(self) -> int:
        """How many segments the model tells apart; 0 where it takes none."""
        taken = "token_type_ids" in inspect.signature(self.network.forward).parameters
        return int(getattr(self.model.config, "type_vocab_size", 0)) if taken else 0

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        mask, windows = inputs.get("mask"), self._windows(inputs)
        if windows is None:
            tokens = self._read(inputs["tokens"], mask, inputs.get("segments"))
        else:
            tokens = windows.unfold(self._read(windows.fold(inputs["tokens"], self.processor.pad_id), windows.mask))
        if self.pooling == "mean":
            return Features(pool_mean(tokens, mask), tokens, mask)
        if windows is not None:
            return Features(windows.pool_one(tokens, last=self.pooling == "last"), tokens, mask)
        if self.pooling == "last" and mask is not None:
            return Features(tokens[torch.arange(tokens.shape[0], device=tokens.device), mask.sum(1).clamp(min=1) - 1], tokens, mask)
        return Features(tokens[:, -1 if self.pooling == "last" else 0], tokens, mask)

    def _windows(self, inputs: dict[str, Tensor]) -> Windows | None:
        """What rows are taken apart into; None where they are read as they are."""
        tokens, p = inputs["tokens"], self.processor
        if p.windows == 1 or tokens.shape[1] <= p.max_length:
            return None
        return Windows(inputs.get("mask", torch.ones_like(tokens, dtype=torch.bool)), p.max_length)

    def _read(self, tokens: Tensor, mask: Tensor | None, segments: Tensor | None = None) -> Tensor:
        """Last hidden states [N, L, D] of tokens [N, L]."""
        if self.virtual_tokens is not None:
            return self.virtual_tokens(self.network, tokens, mask, segments)
        more = {} if segments is None else {"token_type_ids": segments}
        return self.network(input_ids=tokens, attention_mask=None if mask is None else mask.long(), **more).last_hidden_state

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
        sizes, before = kept.sum(2).clamp(max=p.room), int(p.cls_id is not None)
        width = min(-(-(lanes.most(int(sizes.max())) + before + 1) // 8) * 8, p.max_length)
        order = kept.int().argsort(dim=2, descending=True, stable=True)[:, :, : width - before - 1]
        chosen = inputs["tokens"].expand_as(kept).gather(2, order)
        chosen = F.pad(chosen, (before, width - before - chosen.shape[2]), value=p.cls_id if before else p.pad_id)
        place, ends = torch.arange(width, device=kept.device), sizes.unsqueeze(2) + before
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

    # ---------------------------------------------------------------- words that are read out
    def keep_words(self) -> None:
        """Have the head of a masked language model, a fresh one where there was none; it is saved with the encoder from then on."""
        if self.words is None:
            self.words = MaskedHead.fresh(self.model)
            self.args["words"] = True
            self.origin = None  # it is not there

    def word_states(self, inputs: dict[str, Tensor], positions: Tensor | None = None, outputs: Tensor | None = None) -> Tensor:
        assert self.words is not None and positions is not None
        tokens = self(inputs).tokens
        return self.words(tokens.gather(1, positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])))

    def output_layer(self) -> tuple[Tensor, Tensor | None]:
        assert self.words is not None
        return self.words.layer(self.token_embeddings.weight)

    def unread(self) -> list[str]:
        return [] if self.words is None else [f"words.{name}" for name, _ in self.words.named_parameters()]

    # ---------------------------------------------------------------- folders
    def save_weights(self, folder: Path) -> None:
        """As transformers has it, which opens it as `AutoModel` and, with a head, as what it can say; and sentence-transformers too."""
        from transformers.utils import logging

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        with contextlib.nullcontext(self.model) if self.words is None else self.words.whole(self.model) as model:
            model.save_pretrained(folder)
        if bars:
            logging.enable_progress_bar()
        if self.modality == "text":
            _for_sentence_transformers(folder, self.pooling, self.dim, self.processor.max_length)

    def load_weights(self, folder: Path) -> None:
        with contextlib.nullcontext(self.model) if self.words is None else self.words.whole(self.model) as model:
            try:
                fill(model, folder / "model.safetensors")
            except UserError:
                if not _filled_by_transformers(model, folder):
                    raise

    def processor_config(self, folder: Path) -> dict[str, Any]:
        self.processor.save(folder)
        return {}

    @classmethod
    def load_processor(cls, folder: Path, config: dict[str, Any]) -> TextProcessor:
        return TextProcessor.load(folder)

    # ---------------------------------------------------------------- a network by its config
    @classmethod
    def _create(cls, processor: TextProcessor, model_type: str, config: dict[str, Any]) -> nn.Module:
        import transformers

        made = cls._config(processor, model_type, config)
        longest = getattr(made, "max_position_embeddings", None)
        if longest is not None and processor.max_length > longest:
            raise UserError(
                f"encoder.processor.max_length={processor.max_length} is more than the model's {longest} positions: "
                f"raise encoder.config.max_position_embeddings too"
            )
        try:
            return getattr(transformers, cls.auto).from_config(made, **(no_pooler(made) if cls.auto == "AutoModel" else {}))
        except ValueError as e:
            raise UserError(f"encoder.config: {str(e).splitlines()[0]}") from e

    @classmethod
    def _config(cls, processor: TextProcessor, model_type: str, config: dict[str, Any]) -> Any:
        """The family's config, with the vocabulary and the marks of the processor."""
        from transformers import AutoConfig

        try:
            made = AutoConfig.for_model(model_type, **{**config, "vocab_size": processor.vocab_size})
        except ValueError as e:
            raise UserError(f"encoder.model_type={model_type}: transformers knows no such family") from e
        tokenizer = getattr(processor, "tokenizer", None)  # histories of items have none
        made.pad_token_id = processor.pad_id if tokenizer is None else tokenizer.pad_token_id
        return made


def _for_sentence_transformers(folder: Path, pooling: str, dim: int, max_length: int) -> None:
    """What sentence-transformers reads beside a model: how its tokens are pooled."""
    modes = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "", "mean_sqrt_len_tokens": "", "lasttoken": "last"}
    names = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling")
    modules = [{"idx": i, "name": str(i), "path": "1_Pooling" if i else "", "type": name} for i, name in enumerate(names)]
    about = {"word_embedding_dimension": dim, **{f"pooling_mode_{mode}": pooling == own for mode, own in modes.items()}}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", about),
        ("sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False}),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def _filled_by_transformers(model: Any, folder: Path) -> bool:
    """Load a folder as transformers does, which writes some families under other names than they have; False where it cannot."""
    try:
        loaded, found = type(model).from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError):
        return False
    if any(found.get(k) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return False
    model.load_state_dict(loaded.state_dict())
    return True


def no_pooler(config: Any) -> dict[str, Any]:
    """A pooler is a head of BERT's own pretraining: unused here, and without a gradient it would stop DDP."""
    from transformers import MODEL_MAPPING

    found: Any = MODEL_MAPPING[type(config)]
    cls = found[0] if isinstance(found, (list, tuple)) else found
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(cls).parameters else {}
