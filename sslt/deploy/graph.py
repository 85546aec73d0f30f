"""What an exported file computes: a function of plain tensors, from raw pixels or token ids to the outputs of a target."""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.prepare.parts import part, part_names
from sslt.encoders.bag import BagEncoder
from sslt.encoders.base import Encoder, Features
from sslt.encoders.lexicon import Lexicon
from sslt.encoders.pixels import PixelEncoder
from sslt.encoders.side import SideModel
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError
from sslt.targets.base import Target
from sslt.targets.pairs import Pairs

EXAMPLES = 3  # rows of the batch that a graph is traced with: one alone would make its size a constant of the graph
LENGTHS = (13, 11)  # of the texts of that batch, by part; unlike each other and all else, so that none is taken for another
NAMES = {"tokens": "input_ids", "mask": "attention_mask", "segments": "token_type_ids"}  # as transformers calls them


class Given(nn.Module):
    """An encoder that takes what it is given as its inputs: what makes them of a batch is done before, outside the graph or in it."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        return self.encoder(inputs)

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("encoder"), name)


class GivenBag(Given):
    """A bag of words whose sums are over rows of equal width, in which holes and padding count for nothing: the same numbers."""

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        bag, tokens = self.encoder, inputs["tokens"]
        assert isinstance(bag, BagEncoder)
        seen = tokens > 0
        summed = torch.bmm((bag.rarity[tokens] * seen).unsqueeze(1), bag.words.weight[tokens]).squeeze(1)
        if bag.pairs is not None:
            both = seen[:, 1:] & seen[:, :-1]
            rows = _hashed(tokens[:, :-1], tokens[:, 1:], bag.pairs.num_embeddings)
            summed = summed + torch.bmm((both * bag.pair_weight).unsqueeze(1), bag.pairs.weight[rows]).squeeze(1)
        # an added 1e-12 is taken for nothing by the exporter's folding of constants, and an empty text would have no numbers
        pooled = summed * torch.rsqrt(summed.square().mean(1, keepdim=True).clamp(min=1e-12))
        return Features(pooled, pooled.unsqueeze(1))


def _hashed(first: Tensor, second: Tensor, rows: int) -> Tensor:
    """`lexicon.hashed_pairs` by divisions: ONNX has shifts of unsigned numbers alone."""
    h = (first * 0x9E3779B1 + second * 0x85EBCA77) % (1 << 32)
    h = ((h ^ (h // (1 << 16))) * 0x45D9F3B) % (1 << 32)
    return (h ^ (h // (1 << 15))) % rows


class Graph(nn.Module, abc.ABC):
    """Tensors in the order of `takes` → tensors in the order of `gives`. target: None of an encoder without a head, with `features`."""

    takes: tuple[str, ...]
    gives: tuple[str, ...]

    def __init__(self, encoder: Encoder, target: Target | None):
        super().__init__()
        self.encoder, self.target = GivenBag(encoder) if isinstance(encoder, BagEncoder) else Given(encoder), target

    @abc.abstractmethod
    def of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the graph takes, by name, of a batch of prepared samples, and what stands beside it takes."""

    @abc.abstractmethod
    def made(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the encoder of what the graph takes."""

    @abc.abstractmethod
    def example(self) -> dict[str, Tensor]:
        """What it is traced with."""

    @property
    @abc.abstractmethod
    def sizes(self) -> dict[str, dict[int, str]]:
        """Which dimensions of what it takes may be of any size, by the name that they have in the file."""

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        found = self.answer(dict(zip(self.takes, given, strict=True)))
        return tuple(found[name] for name in self.gives)

    def answer(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""
        if self.target is None:
            return {"features": self.encoder(self.made(given)).pooled.float()}
        return self.target.outputs(self.encoder, self.made(given))  # type: ignore[arg-type]

    def settle(self) -> None:
        """Find out what it gives."""
        self.eval()
        with torch.no_grad():
            self.gives = tuple(self.answer(self.example()))


class ImageGraph(Graph):
    """`image` uint8 [B, S, S, C], resized as the encoder's processor does it; scale, mean and deviation are in the graph.

    To resize in it would not be exact: pictures are resized on bytes, with fixed-point weights, and ONNX's Resize computes in floats.
    """

    takes = ("image",)
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, target: Target | None):
        super().__init__(encoder, target)
        p = encoder.processor
        self.register_buffer("mean", torch.tensor(p.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(p.std).view(-1, 1, 1), persistent=False)
        self.shape = (p.size, p.size, p.channels)

    def of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"image": batch["image"].permute(0, 2, 3, 1).contiguous()}

    def made(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"image": (given["image"].permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std}

    def example(self) -> dict[str, Tensor]:
        return {"image": torch.randint(0, 256, (EXAMPLES, *self.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))}

    @property
    def sizes(self) -> dict[str, dict[int, str]]:
        return {"image": {0: "batch"}}


class TextGraph(Graph):
    """`input_ids`, `attention_mask` and, of models that tell segments apart, `token_type_ids` int64 [B, L]; of a bag `words` int64 [B, T].

    Parts that are read by themselves (`objective=pairs`) have these each, with the part's name before: `a_input_ids`, … What a batch has of
    `subwords` is for a lexicon beside the graph.
    """

    def __init__(self, encoder: Encoder, target: Target | None, parts: tuple[str, ...], segments: bool):
        super().__init__(encoder, target)
        self.bag, self.apart = isinstance(encoder, BagEncoder), parts if isinstance(target, Pairs) else ()
        own = ("tokens",) if self.bag else ("tokens", "mask", *(["segments"] if segments else []))
        self.own = {name: "words" if self.bag else NAMES[name] for name in own}
        self.takes = tuple(f"{before}{name}" for before in self.before for name in self.own.values())

    @property
    def before(self) -> tuple[str, ...]:
        return tuple(f"{name}_" for name in self.apart) or ("",)

    def of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        encoder = self.encoder.encoder
        rows = [part(batch, name) for name in self.apart] or [dict(batch)]
        made = [encoder.inputs(row) for row in rows]
        found = {f"{b}{name}": row[own].long() for b, row in zip(self.before, made, strict=True) for own, name in self.own.items()}
        beside = {} if self.apart else {name: x for name, x in made[0].items() if name == "subwords"}
        return found | beside

    def made(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {own: given[name] for own, name in self.own.items()}
        return {name: x.bool() if name == "mask" else x for name, x in found.items()}

    def answer(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.apart:
            return super().answer(given)
        rows = [{name: given[f"{b}{name}"] for name in self.own.values()} for b in self.before]
        a, b = (self.encoder(self.made(row)).pooled.float() for row in rows)
        return {"cosine": F.cosine_similarity(a, b, dim=1)}

    def example(self) -> dict[str, Tensor]:
        p, generator = self.encoder.encoder.processor, torch.Generator().manual_seed(0)
        found: dict[str, Tensor] = {}
        for before, length in zip(self.before, LENGTHS, strict=False):
            length = min(length, p.max_length)
            ids = torch.randint(1, p.vocab_size, (EXAMPLES, length), generator=generator)
            mask = torch.arange(length) < torch.tensor([[length], [length - 1], [2]])
            all_of = {"tokens": ids * mask if self.bag else ids, "mask": mask.long(), "segments": torch.zeros_like(ids)}
            found |= {f"{before}{name}": all_of[own] for own, name in self.own.items()}
        return found

    @property
    def sizes(self) -> dict[str, dict[int, str]]:
        return {f"{b}{name}": {0: "batch", 1: f"{b}length"} for b in self.before for name in self.own.values()}


def graph_of(encoder: Encoder, target: Target | None, batch: Mapping[str, Tensor]) -> Graph:
    """The graph for an encoder and what answers on it. batch: of prepared samples, for their parts.

    Raises `UserError` naming what no graph can hold.
    """
    named = encoder.args.get("name") or encoder.args.get("model_type") or type(encoder).__name__
    if target is not None and not target.is_read_from_outputs():
        raise UserError(
            f"{type(target).__name__} answers by more than one pass through the encoder, which no exported file holds: export the "
            f"encoder alone, from=RUN/encoder"
        )
    if target is not None and (tagger := beside_reading(target)):
        raise UserError(f"the {tagger} beside the encoder is no part of any format: late_fusion=false leaves it out")
    if encoder.adapter is not None:
        raise UserError(
            f"an adapter of kind '{encoder.adapter['kind']}' adds parts that cannot be merged, and is not exported: use lora or ia3"
        )
    made: Graph
    if isinstance(encoder, PixelEncoder):
        made = ImageGraph(encoder, target)
    elif encoder.modality == "text" and isinstance(encoder, (BagEncoder, TextEncoder)) and encoder.writes != "seq2seq":
        if not isinstance(encoder, BagEncoder) and encoder.processor.windows != 1:
            raise UserError("this run reads several windows of a text, which no exported file holds: windows=1 exports the first alone")
        names = tuple(part_names(batch))
        segments = bool(names) and not isinstance(target, Pairs) and "segments" in encoder.inputs(dict(batch))
        made = TextGraph(encoder, target, names, segments)
    else:
        raise UserError(f"{named} ({type(encoder).__name__}, of {encoder.samples_are}) is of no family that an exported file holds")
    made.settle()
    return made


def graph_as(samples: Mapping[str, Any], encoder: Encoder, target: Target | None) -> Graph:
    """The graph of a file whose `export.json` says this of samples: for what it takes alone."""
    if samples["kind"] == "image":
        return ImageGraph(encoder, target)
    return TextGraph(encoder, target, tuple(samples["parts"]), bool(samples.get("segments")))


def beside_reading(target: Target) -> str | None:
    """What is added where answers are read, in words: unlike side models, whose scores are outputs, it is in no graph."""
    others = [m for m in getattr(target, "beside", ()) if not isinstance(m, SideModel)]
    return type(others[0]).kind.replace("_", " ") if others else None  # type: ignore[attr-defined]


def divided(target: Target | None) -> tuple[Target | None, Lexicon | None]:
    """A target without the lexicon beside it, and the lexicon: words are counted by hashing, beside the graph."""
    lexicons = [m for m in getattr(target, "beside", ()) if isinstance(m, Lexicon)]
    if target is None or not lexicons:
        return target, None
    return without(target, lexicons), lexicons[0]


def without(target: Target, left_out: Any = None) -> Target:
    """The same target, its modules shared, without some (None: any) of what stands beside the encoder."""
    twin = copy.copy(target)
    kept = [m for m in getattr(target, "beside", ()) if left_out is not None and not any(m is x for x in left_out)]
    twin._modules = {**target._modules, "beside": nn.ModuleList(kept)}
    return twin
