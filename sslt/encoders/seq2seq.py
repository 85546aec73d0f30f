"""Encoders with a decoder beside them: T5, BART and their like, by their config."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sslt.data.prepare.text_processor import TextProcessor
from sslt.encoders.written import Writer

FORCED = ("forced_bos_token_id", "forced_eos_token_id")  # which transformers keeps apart from what makes the model


class Seq2SeqEncoder(Writer):
    """A transformers model `…ForConditionalGeneration` (Raffel et al., 2020; Lewis et al., 2020).

    As an encoder it is its encoder half: features of texts are read from there. Its blocks are those of both halves, in order. A token
    that a published model is forced to begin with (BART's <s>, the language of mBART) stands before all that it writes and learns.
    """

    writes = "seq2seq"
    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"

    def __init__(
        self, processor: TextProcessor, model_type: str, config: dict[str, Any], pooling: str, model: nn.Module | None = None,
        words: bool = False,
    ):  # fmt: skip
        if model is not None:
            config = config | {k: v for k in FORCED if (v := getattr(model.generation_config, k, None)) is not None}
        super().__init__(processor, model_type, config, pooling, model, words)
        for name in FORCED:
            setattr(self.model.generation_config, name, config.get(name))

    @classmethod
    def _config(cls, processor: TextProcessor, model_type: str, config: dict[str, Any]) -> Any:
        made = super()._config(processor, model_type, config)
        if "decoder_start_token_id" not in config:  # T5 begins with padding, BART with the mark of an end
            made.decoder_start_token_id = processor.pad_id if processor.cls_id is None else processor.sep_id
        for forced in FORCED:
            if hasattr(made, forced) and forced not in config:
                setattr(made, forced, None)
        return made

    @property
    def network(self) -> Any:
        return self.model.get_encoder()

    @property
    def start_id(self) -> int:
        """What the decoder begins with."""
        return int(self.model.config.decoder_start_token_id)

    @property
    def forced_first(self) -> int | None:
        return self.model.generation_config.forced_bos_token_id  # type: ignore[no-any-return]

    @property
    def forced_last(self) -> int | None:
        """What a text ends with that is as long as it may be."""
        return self.model.generation_config.forced_eos_token_id  # type: ignore[no-any-return]

    @property
    def start_ids(self) -> list[int]:
        """What stands before the first token that is written."""
        return [self.start_id] if self.forced_first is None else [self.start_id, self.forced_first]

    def word_states(self, inputs: dict[str, Tensor], positions: Tensor | None = None, outputs: Tensor | None = None) -> Tensor:
        assert outputs is not None
        return self.decoded(self(inputs).tokens, inputs.get("mask"), outputs)

    def decoded(self, memory: Tensor, mask: Tensor | None, outputs: Tensor) -> Tensor:
        """`word_states` of `outputs` [B, M], where what the decoder attends to is `memory` [B, T, D] at the True places of mask [B, T]."""
        mask = None if mask is None else mask.long()
        states = self.model.get_decoder()(
            input_ids=self._shifted(outputs), encoder_hidden_states=memory, encoder_attention_mask=mask, use_cache=False
        ).last_hidden_state  # fmt: skip
        return self.scaled(states[:, len(self.start_ids) - 1 :])

    def _shifted(self, outputs: Tensor) -> Tensor:
        """What the decoder reads to write `outputs` [B, M]: what stands before each token."""
        return torch.cat([outputs.new_tensor(self.start_ids).expand(len(outputs), -1), outputs[:, :-1]], 1)

    def scaled(self, states: Tensor) -> Tensor:
        """The decoder's last hidden states as the output matrix takes them: T5 makes them smaller where it is tied to the embeddings."""
        c = self.model.config
        scaled = getattr(c, "scale_decoder_outputs", c.model_type == "t5" and c.tie_word_embeddings)  # the latter before transformers 5
        return states * c.d_model**-0.5 if scaled else states

    def reply_states(self, inputs: dict[str, Tensor], outputs: Tensor, outputs_mask: Tensor) -> Tensor:
        return self.word_states(inputs, outputs=outputs)

    def output_layer(self) -> tuple[Tensor, Tensor | None]:
        layer = self.model.get_output_embeddings()
        bias = getattr(self.model, "final_logits_bias", None)
        return layer.weight, (bias[0] if bias is not None else getattr(layer, "bias", None))

    def _read_twice(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(input_ids=tokens, decoder_input_ids=self._shifted(tokens)).logits
        return self.word_states({"tokens": tokens}, outputs=tokens), logits[:, len(self.start_ids) - 1 :]

    def unread(self) -> list[str]:
        read = {id(p) for p in self.network.parameters()}
        return [f"model.{name}" for name, p in self.model.named_parameters() if id(p) not in read]

    def block_names(self) -> list[str]:
        found: list[str] = []
        names = {id(m): n for n, m in self.named_modules()}
        for half in (self.network, self.model.get_decoder()):
            stack = next(
                m for n, m in half.named_modules() if isinstance(m, nn.ModuleList) and n.rpartition(".")[2] in ("layers", "block")
            )  # fmt: skip
            found += [names[id(block)] for block in stack]
        return found
