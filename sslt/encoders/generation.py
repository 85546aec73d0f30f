"""Writing: the tokens that follow, by the encoder's own decoder."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
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
    the probability (Holtzman et al., 2020); seed: of the draws, with the prompt itself, so that equal prompts get equal texts.
    length_penalty: of beams, 0 is neutral, above 0 favours long texts.
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


def generate(encoder: Any, inputs: dict[str, Tensor], limits: Limits) -> list[list[int]]:
    """The token ids written for each row of `inputs`, without what starts and ends them. Call it in eval mode without gradients.

    Prompts of equal length are written to together, so that none is padded from the left; rows that have ended are dropped from the
    batch. What a row gets, drawn or not, depends on the row and `limits` alone: on no row beside it, and on none of the settings that a
    published folder recommends for writing, but for the tokens that its model was trained to begin and to end with.
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
            f"objective.max_tokens or encoder.processor.max_length"
        )
    found: list[list[int]] = [[] for _ in range(len(tokens))]
    for size in sizes.unique().tolist():
        rows = (sizes == size).nonzero().flatten()
        for row, ids in zip(rows.tolist(), _written(encoder, {"tokens": tokens[rows, :size]}, limits), strict=True):
            found[row] = ids
    return found


def _written(encoder: Any, inputs: dict[str, Tensor], limits: Limits) -> list[list[int]]:
    if limits.beams == 1:
        return _word_by_word(encoder, inputs, limits)
    if not limits.sample:
        return _by_transformers(encoder, inputs, limits, limits.seed)
    return [_by_transformers(encoder, row, limits, _seed(row["tokens"][0].tolist(), limits.seed))[0] for row in _one_by_one(inputs)]


def _one_by_one(inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Each row by itself, without padding."""
    tokens, mask = inputs["tokens"], inputs.get("mask")
    return [{"tokens": row[None] if mask is None else row[mask[i]][None]} for i, row in enumerate(tokens)]


def _seed(prompt: Sequence[int], seed: int) -> int:
    """What is drawn for a prompt hangs on."""
    content = np.array([seed, *prompt], np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "little")


def _by_transformers(encoder: Any, inputs: dict[str, Tensor], limits: Limits, seed: int) -> list[list[int]]:
    from transformers import GenerationConfig

    p, model, before = encoder.processor, encoder.model, _before(encoder, inputs["tokens"])
    more: dict[str, Any] = {}
    if limits.sample:
        more = {"temperature": limits.temperature, "top_k": limits.top_k, "top_p": limits.top_p}
    given = 0
    if encoder.writes == "seq2seq":
        given = before.shape[1] - 1  # a forced first token counts as one that is written
        more |= {"decoder_start_token_id": encoder.start_id, "forced_bos_token_id": encoder.forced_first,
                 "forced_eos_token_id": encoder.forced_last}  # fmt: skip
    settings = GenerationConfig(
        max_new_tokens=limits.max_tokens + given, min_new_tokens=limits.min_tokens + given if limits.min_tokens else None,
        num_beams=limits.beams, do_sample=limits.sample, length_penalty=limits.length_penalty,
        bos_token_id=p.cls_id, eos_token_id=p.sep_id, pad_token_id=p.pad_id, **more,
    )  # fmt: skip
    tokens = inputs["tokens"]
    mask = inputs.get("mask", torch.ones_like(tokens, dtype=torch.bool)).long()
    own = model.generation_config  # fills in what is not set here: penalties, lengths and so on that greedy texts do not know
    try:
        model.generation_config = GenerationConfig()
        with torch.random.fork_rng(devices=[tokens.device] if tokens.is_cuda else []):
            torch.manual_seed(seed)
            out = model.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)
    finally:
        model.generation_config = own
    return [_until(row[before.shape[1] :], p.sep_id) for row in out.tolist()]


def _before(encoder: Any, tokens: Tensor) -> Tensor:
    """What stands before the first token to write, [B, N]."""
    return tokens.new_tensor(encoder.start_ids).expand(len(tokens), -1) if encoder.writes == "seq2seq" else tokens


def _until(ids: Sequence[int], end: int) -> list[int]:
    ids = list(ids)
    return ids[: ids.index(end)] if end in ids else ids


def _word_by_word(encoder: Any, inputs: dict[str, Tensor], limits: Limits) -> list[list[int]]:
    """The most probable word at every step, or a drawn one, with a cache of keys and values from which rows that have ended are dropped."""
    from transformers import DynamicCache, EncoderDecoderCache

    model, end, most = encoder.model, encoder.processor.sep_id, limits.max_tokens
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
    step = _before(encoder, tokens)
    draw = _Draws(inputs, limits) if limits.sample else None
    alive = torch.arange(len(tokens), device=tokens.device)
    written = tokens.new_full((len(tokens), most), end)
    weight, bias = encoder.output_layer()
    for i in range(most):
        states = decoder(input_ids=step, use_cache=True, **{keyword: cache}, **more).last_hidden_state[:, -1]
        states = encoder.scaled(states) if seq2seq else states
        scores = torch.nn.functional.linear(states.to(weight.dtype), weight, bias)
        if i < limits.min_tokens:
            scores[:, end] = float("-inf")
        chosen = scores.argmax(1) if draw is None else draw(scores, alive, i)
        if seq2seq and i == most - 1 and encoder.forced_last is not None:
            chosen = torch.full_like(chosen, encoder.forced_last)
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


class _Draws:
    """Draws words by one uniform number for each row and step, which the row's prompt and the seed give."""

    def __init__(self, inputs: dict[str, Tensor], limits: Limits):
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self.warpers: list[Any] = [] if limits.temperature == 1 else [TemperatureLogitsWarper(limits.temperature)]
        self.warpers += [TopKLogitsWarper(limits.top_k)] if limits.top_k else []
        self.warpers += [TopPLogitsWarper(limits.top_p)] if limits.top_p < 1 else []
        seeds = [_seed(row["tokens"][0].tolist(), limits.seed) for row in _one_by_one(inputs)]
        self.numbers = torch.from_numpy(np.stack([1 - np.random.default_rng(s).random(limits.max_tokens) for s in seeds]))  # in (0, 1]

    def __call__(self, scores: Tensor, rows: Tensor, step: int) -> Tensor:
        """One of the words [B, V] for each of these rows [B], int64 [B]."""
        scores = scores.float()
        for warper in self.warpers:
            scores = warper(None, scores)
        upto = scores.double().softmax(1).cumsum(1)
        number = self.numbers[rows.cpu(), step].to(upto.device)[:, None] * upto[:, -1:]
        return (upto < number).sum(1)
