"""Text encoders from a Hugging Face folder or id: what kind of model it is, and what it has learned to say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.sources.hub import ask_once
from sslt.encoders.causal import CausalEncoder
from sslt.encoders.files import building, check_folder
from sslt.encoders.masked_head import MaskedHead
from sslt.encoders.seq2seq import Seq2SeqEncoder
from sslt.encoders.text import TextEncoder, no_pooler
from sslt.errors import UserError
from sslt.stored import first_line

_NOT_CONFIG = ("architectures", "dtype", "torch_dtype", "transformers_version", "model_type", "_name_or_path")
_HEADS = ("ForMaskedLM", "ForPreTraining", "WithLMHeadModel")  # classes whose weights have the head of a masked language model


def published_text(name: str, max_length: int | None = None, key: str = "from") -> TextEncoder:
    """The encoder in a Hugging Face folder or of a hub id; nothing of it is executed (no remote code, safetensors before pickle).

    A decoder beside the encoder, the head that writes the next word and that of a masked language model come along. max_length: of a
    window (None: 128, or less where the model has fewer positions). key: the setting that named it.
    Raises `UserError` where no model can be read there.
    """
    place = Path(name)
    if place.is_dir():
        check_folder(place)
        with building(place, "config.json"):
            tokenizer, model, kind = _read(name, use_safetensors=True)
    else:
        ask_once()
        try:
            tokenizer, model, kind = _read(name, weights_only=True)
        except (OSError, ValueError) as e:
            raise UserError(
                f"{key}={name}: no Hugging Face model can be read there ({first_line(e)}). "
                f"Offline, copy the model's folder here and give its path"
            ) from e
    c = model.config
    processor = TextProcessor(tokenizer, min(max_length or 128, positions(c) or 512))
    config = {k: v for k, v in json.loads(c.to_json_string()).items() if k not in _NOT_CONFIG}
    if kind is not TextEncoder:
        return kind(processor, c.model_type, config, kind.poolings[0], model)
    head = None
    if type(model).__name__.endswith("ForMaskedLM"):
        model, head = MaskedHead.apart(model)
    encoder = TextEncoder(processor, c.model_type, config, "mean", model)
    if head is not None:
        encoder.words = head
        encoder.args["words"] = True
    return encoder


def positions(config: Any) -> int | None:
    """Tokens that a model of this config reads at most; None where it does not say."""
    longest = getattr(config, "max_position_embeddings", None)
    if not longest:
        return None
    return int(longest) - 2 * (config.model_type in ("roberta", "xlm-roberta", "camembert"))  # theirs start after the padding index


def _read(name: str, **settings: bool) -> tuple[Any, Any, type[TextEncoder]]:
    """(tokenizer, model, the encoder it is) of a folder or a hub id."""
    import transformers
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    known = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    kind: type[TextEncoder] = TextEncoder
    if getattr(known, "is_encoder_decoder", False) and type(known) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        kind = Seq2SeqEncoder
    elif type(known) in MODEL_FOR_CAUSAL_LM_MAPPING and type(known) not in MODEL_FOR_MASKED_LM_MAPPING:
        kind = CausalEncoder
    headed = str((known.architectures or [""])[0]).endswith(_HEADS) and type(known) in MODEL_FOR_MASKED_LM_MAPPING
    auto = "AutoModelForMaskedLM" if kind is TextEncoder and headed else kind.auto
    more = no_pooler(known) if auto == "AutoModel" else {}
    return tokenizer, getattr(transformers, auto).from_pretrained(name, trust_remote_code=False, **settings, **more), kind
