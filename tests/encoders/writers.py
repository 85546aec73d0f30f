"""Small encoders that write, by the families of transformers."""

from __future__ import annotations

from typing import Any

import torch

from sslt.data.prepare.reversible import train_reversible
from sslt.data.prepare.text_processor import TextProcessor
from sslt.encoders.causal import CausalEncoder
from sslt.encoders.seq2seq import Seq2SeqEncoder

TEXTS = ["the cat sat on the mat. a dog ran in the park", "unhappy people ran (quickly) and sat"] * 6
_HALVES = {f"{half}_{what}": n for half in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64},
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "qwen2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32},
    "gpt_neox": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
}
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "bart": {"d_model": 16, "max_position_embeddings": 64, **_HALVES},
}


def writer(family: str, spread: float = 0.3, length: int = 32) -> Any:
    """In eval mode, its weights of normal noise, so that what it writes is not all the same."""
    causal = family in CAUSAL
    tokenizer = train_reversible("bpe", TEXTS, 400, False, 0 if causal or family == "bart" else 100)
    torch.manual_seed(0)
    kind: Any = CausalEncoder if causal else Seq2SeqEncoder
    made = kind(TextProcessor(tokenizer, length), family, CAUSAL[family] if causal else SEQ2SEQ[family], "last" if causal else "mean")
    for p in made.parameters():
        if p.dim() > 1:  # norms as they are: noise there drowns what was read
            torch.nn.init.normal_(p, std=spread)
    return made.eval()


def rows(encoder: Any, sizes: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random texts of these lengths, each with the mark of its end."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    tokens = torch.randint(5, encoder.processor.vocab_size, mask.shape, generator=g)
    tokens[torch.arange(len(sizes)), torch.tensor(sizes) - 1] = encoder.processor.sep_id
    return {"tokens": tokens.masked_fill(~mask, encoder.processor.pad_id), "mask": mask}
