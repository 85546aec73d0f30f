"""Small encoders of every family that can be pruned, with weights and statistics that are those of no fresh one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.conv4 import Conv4
from sslt.encoders.image import ImageEncoder

PIXELS = {
    "resnet": ("resnet18", {"layers": [1, 2, 1, 1], "channels": [8, 16, 16, 24]}, "small", False),
    "bottleneck": ("resnet50", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, "small", False),
    "mobilenet": ("mobilenetv2_035", {}, "standard", False),
    "mobilenetv3": ("mobilenetv3_small_050", {}, "standard", False),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 24]}, "standard", False),
    "torchvision": ("torchvision/resnet18", {}, "standard", False),
    "vit": ("vit_tiny_patch16_224", {"patch_size": 4, "depth": 3, "embed_dim": 24, "num_heads": 3}, "standard", True),
}
TEXTS = {
    "bert": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40},
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 40},
    "gpt2": {"n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 32},
    "modernbert": {
        "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 32,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"], "local_attention": 4,
    },
    "t5": {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 3},
    "mt5": {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3, "feed_forward_proj": "gated-gelu"},
    "bart": {
        "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3, "decoder_attention_heads": 3,
        "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 32,
    },
    "mbart": {
        "d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 48, "max_position_embeddings": 32,
    },
}  # fmt: skip
HALVES = ("t5", "mt5", "bart", "mbart")


def shaken(encoder: Any) -> Any:
    """With biases and BatchNorm's statistics that are not 0 and 1."""
    torch.manual_seed(1)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        for p in module.parameters(recurse=False):
            if p.dim() == 1:
                with torch.no_grad():
                    p.add_(0.2 * torch.randn_like(p))
    return encoder.eval()


def made(kind: str) -> Any:
    torch.manual_seed(0)
    if kind in PIXELS:
        name, args, stem, fixed = PIXELS[kind]
        size = 64 if kind in ("mobilenet", "mobilenetv3", "convnext", "torchvision") else 16
        return shaken(ImageEncoder(ImageProcessor(size, 3, [0.5] * 3, [0.25] * 3), name, dict(args), stem, fixed))
    if kind == "conv4":
        return shaken(Conv4(ImageProcessor(16, 3, [0.5] * 3, [0.25] * 3), width=12, blocks=2, downsample="pool", pooling="flatten"))
    from sslt.data.prepare.text_processor import TextProcessor
    from sslt.data.prepare.tokenizers import train_tokenizer
    from sslt.encoders.causal import CausalEncoder
    from sslt.encoders.seq2seq import Seq2SeqEncoder
    from sslt.encoders.text import TextEncoder

    words = train_tokenizer(["some words of a text that is short", "others are of another"] * 5, 200, True)
    cls = CausalEncoder if kind == "gpt2" else Seq2SeqEncoder if kind in HALVES else TextEncoder
    return shaken(cls(TextProcessor(words, 16), kind, dict(TEXTS[kind]), "mean"))


def inputs(encoder: Any, n: int = 4) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    p = encoder.processor
    if encoder.modality == "image":
        return {"image": torch.randn(n, p.channels, p.size, p.size, generator=g)}
    mask = torch.ones(n, 8, dtype=torch.bool)
    mask[0, 5:] = False
    return {"tokens": torch.randint(5, 20, (n, 8), generator=g), "mask": mask}
