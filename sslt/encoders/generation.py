"""Writing: the tokens that follow, by the encoder's own decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslt.encoders.causal import prompts
from sslt.encoders.inserted import cache_keyword
from sslt.encoders.published import positions
from sslt.errors import UserError
from sslt.ranges import Count, Fraction, Natural, Positive


@dataclasses.dataclass(frozen=True)
class Limits:
    """How texts are written.

    max_tokens: of a text, the mark of its end among them; min_tokens: before that mark may come. beams: 1 is greedy. sample: draw words
    instead of taking the most probable one, at a temperature, of the top_k most probable (0: of all) and of those that make up top_p of
    the probability (Holtzman et al., 2020); seed: of the draws. length_penalty: of beams, 0 is neutral, above 0 favours long texts.
    """

    max_tokens: Count
    min_tokens: Natural
    beams: Count
    sample: bool
    temperature: Positive
    top_k: Natural
    top_p: Fraction
    length_penalty: float
    seed: int

    @property
    def greedy(self) -> bool:
        return self.beams == 1 and not self.sample


def generate(encoder: Any, inputs: dict[str, Tensor], limits: Limits) -> list[list[int]]:
    """The token ids written for each row of `inputs`, without what starts and ends them. Call it in eval mode without gradients.

    Prompts of equal length are written to together, so that none is padded from the left; rows that have ended are dropped from the
    batch. What a row gets does not depend on the rows beside it, samples excepted, which depend on the order of draws.
    Raises `UserError` where the encoder has no decoder, or a prompt leaves no room in the model.
    """
    encoder.require_writing("causal", "seq2seq")
    if encoder.writes == "seq2seq":
        return _written(encoder, inputs, limits)
    tokens, sizes = prompts(inputs)
    longest = positions(encoder.model.config)
    if longest is not None and int(sizes.max()) + limits.max_tokens > longest:
        raise UserError(
            f"a prompt of {int(sizes.max())} tokens and {limits.max_tokens} to write are more than the model's {longest} positions: lower "
            f" encoder.processor.max_length or max_tokens"
        )
    found: list[list[int]] = [[] for _ in range(len(tokens))]
    for size in sizes.unique().tolist():
        rows = (sizes == size).nonzero().flatten()
        for row, ids in zip(rows.tolist(), _written(encoder, {"tokens": tokens[rows, :size]}, limits), strict=True):
            found[row] = ids
    return found


def _written(encoder: Any, inputs: dict[str, Tensor], limits: Limits) -> list[list[int]]:
    if limits.greedy and limits.min_tokens == 0:
        return _greedy(encoder, inputs, limits.max_tokens)
    return _by_transformers(encoder, inputs, limits)


def _by_transformers(encoder: Any, inputs: dict[str, Tensor], limits: Limits) -> list[list[int]]:
    from transformers import GenerationConfig

    p, model = encoder.processor, encoder.model
    sampled = {"temperature": limits.temperature, "top_k": limits.top_k, "top_p": limits.top_p} if limits.sample else {}
    settings = GenerationConfig(
        max_new_tokens=limits.max_tokens, min_new_tokens=limits.min_tokens or None, num_beams=limits.beams, do_sample=limits.sample,
        length_penalty=limits.length_penalty if limits.beams > 1 else None,
        bos_token_id=p.cls_id, eos_token_id=p.sep_id, pad_token_id=p.pad_id,
        decoder_start_token_id=encoder.start_id if encoder.writes == "seq2seq" else None, **sampled,
    )  # fmt: skip
    tokens = inputs["tokens"]
    mask = inputs.get("mask", torch.ones_like(tokens, dtype=torch.bool)).long()
    with torch.random.fork_rng(devices=[tokens.device] if tokens.is_cuda else []):
        torch.manual_seed(limits.seed)
        out = model.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)
    start = 1 if encoder.writes == "seq2seq" else tokens.shape[1]
    return [_until(row[start:], p.sep_id) for row in out.tolist()]


def _until(ids: Sequence[int], end: int) -> list[int]:
    ids = list(ids)
    return ids[: ids.index(end)] if end in ids else ids


def _greedy(encoder: Any, inputs: dict[str, Tensor], most: int) -> list[list[int]]:
    """The most probable word at every step, with a cache of keys and values from which rows that have ended are dropped."""
    from transformers import DynamicCache, EncoderDecoderCache

    model, end = encoder.model, encoder.processor.sep_id
    tokens = inputs["tokens"]
    seq2seq = encoder.writes == "seq2seq"
    decoder = model.get_decoder() if seq2seq else encoder.network
    keyword = cache_keyword(decoder) or "past_key_values"
    more: dict[str, Any] = {}
    cache: Any = DynamicCache()
    if seq2seq:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        mask = inputs.get("mask")
        more = {"encoder_hidden_states": encoder(inputs).tokens, "encoder_attention_mask": None if mask is None else mask.long()}
    step = tokens.new_full((len(tokens), 1), encoder.start_id) if seq2seq else tokens
    alive = torch.arange(len(tokens), device=tokens.device)
    written = tokens.new_full((len(tokens), most), end)
    weight, bias = encoder.output_layer()
    for i in range(most):
        states = decoder(input_ids=step, use_cache=True, **{keyword: cache}, **more).last_hidden_state[:, -1]
        states = encoder.scaled(states) if seq2seq else states
        chosen = torch.nn.functional.linear(states.to(weight.dtype), weight, bias).argmax(1)
        written[alive, i] = chosen
        going = (chosen != end).nonzero().flatten()
        if not len(going):
            break
        if len(going) < len(alive):
            alive, chosen = alive[going], chosen[going]
            cache.batch_select_indices(going)
            more = {k: x if x is None else x[going] for k, x in more.items()}
        step = chosen[:, None]
    return [_until(row, end) for row in written.tolist()]
