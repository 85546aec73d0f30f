"""The encoder's interface, and how one is written to and read from a folder."""

from __future__ import annotations

import abc
import bisect
import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sslt.data.base import Samples
from sslt.encoders import quantized
from sslt.encoders.dropout import has_dropout
from sslt.encoders.files import round_stored
from sslt.encoders.seals import seal
from sslt.errors import UserError

FILE = "sslt.json"
ADAPTER = "adapter.safetensors"
FORMAT = 1
_WRITERS = {"masked": "bert_tiny", "causal": "gpt_tiny", "seq2seq": "t5_tiny"}
_CANNOT = {"masked": "reads no hidden words out", "causal": "writes no next word", "seq2seq": "has no decoder to write with"}
_ADAPTER_PARTS = ("lora_", "ia3_", "added_bottleneck", "virtual_tokens")  # what names of their parts begin with


class Features(NamedTuple):
    """What an encoder makes of a batch: `pooled` [B, D]; `tokens` [B, T, D]; `mask` [B, T], True where a token counts
    (None: all of them)."""

    pooled: Tensor
    tokens: Tensor
    mask: Tensor | None = None


class Encoder(nn.Module, abc.ABC):
    """Samples → `Features`.

    A subclass sets `modality` and `Processor` (which prepares samples for it), builds itself from a processor and plain
    keyword arguments, and says where its blocks are. `args` are those arguments as plain data: with the processor and
    the weights they are the whole encoder.
    """

    modality: ClassVar[str]
    Processor: ClassVar[Any]
    fixed: ClassVar[bool] = False  # whether labels have nothing to teach it: fine-tuning solves for a head on its features
    offers: frozenset[str] = frozenset({"pooled", "tokens"})  # what of its features a target may read: pooled, tokens, maps
    writes: str | None = None  # how words are read out of it: "masked" (hidden ones), "causal" (the next), "seq2seq" (a text after a text)
    side_models: ClassVar[tuple[str, ...]] = ()  # cheap methods that can stand beside it in a classifier (`targets/fusion.py`)
    adapter: dict[str, Any] | None = None  # what an adapter in it is rebuilt from (`encoders/inserted.py`)
    origin: str | None = None  # where its weights can be found again: a folder or a published name
    base_fingerprint: str | None = None  # `fingerprint` before the adapter came
    pruned: dict[str, Any] | None = None  # how its layers differ from what `args` build (`encoders/pruned.py`)
    quantization: quantized.Quantization | None = None  # which of its layers are kept in fewer bits
    chunk_size: int | None = None  # rows that are encoded at a time while it trains (`encoders/chunks.py`); None: all
    stored_as: str | None = None  # number format of its matrices on disk, where that is not float32

    def __init__(self, processor: Any, **args: Any):
        super().__init__()
        self.processor = processor
        self.args = args

    dim: int

    @abc.abstractmethod
    def forward(self, inputs: dict[str, Tensor]) -> Features:
        """Encode `inputs` as `inputs()` or a views module made them."""

    @abc.abstractmethod
    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `forward` takes, from a batch of prepared samples as they are, without augmentation."""

    def begin(self, samples: Samples) -> None:
        """Set those weights that are better begun by data than at random; of a fresh encoder, before it is trained on `samples`."""

    @abc.abstractmethod
    def block_names(self) -> list[str]:
        """Dotted names of the blocks, from input to output."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moving to a device within inference mode would leave buffers that nothing may write to afterwards."""
        with torch.inference_mode(False):
            return super()._apply(fn, recurse)

    @property
    def samples_are(self) -> str:
        """What it reads, in words: "texts", "images of 32 × 32", "histories"."""
        return "histories" if self.modality == "items" else f"{self.modality}s"

    @property
    def varies(self) -> bool:
        """Whether two passes of the same inputs can differ while it trains (dropout, stochastic depth)."""
        return has_dropout(self)

    @property
    def patch(self) -> int:
        """Pixels that an image's side must be a multiple of: a ViT's patch; 1 where any will do."""
        return 1

    def tables(self) -> list[nn.Embedding]:
        """Large tables of which a batch reads few rows: their gradients are sparse where the optimizer takes such."""
        return []

    def rate_of(self, parameter: str) -> float:
        """Learning rate of a parameter, by its name, as a multiple of the optimizer's."""
        return 1.0

    # ---------------------------------------------------------------- words of texts, for encoders beside which "words" can stand
    def word_ids(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, T] ids of the words (or pieces of them) that texts have, in their order; 0 where none stands."""
        raise NotImplementedError

    def word_list(self) -> list[str]:
        """What is written for each id; "" where that is not one word."""
        raise NotImplementedError

    def in_rows(self, output: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """What a block gave in a forward of `inputs`, in the rows of `inputs`: tokens [B, T, D] where a text was read in parts."""
        return output

    # ---------------------------------------------------------------- words that are read out, of encoders that write
    def require_writing(self, *kinds: str) -> None:
        """Raise `UserError` where words cannot be read out of it in one of these ways."""
        if self.writes not in kinds:
            name = self.args.get("name") or self.args.get("model_type") or type(self).__name__
            which = " or ".join(f"encoder={_WRITERS[kind]}" for kind in kinds)
            raise UserError(f"{name} {_CANNOT[kinds[0]]}: choose {which}")

    def keep_words(self) -> None:
        """Have what reads hidden words out, for "masked": fresh where there was none; it is saved with the encoder from then on."""
        raise NotImplementedError

    def word_states(self, inputs: dict[str, Tensor], positions: Tensor | None = None, outputs: Tensor | None = None) -> Tensor:
        """What is multiplied with the matrix of `output_layer` to give logits of words.

        "masked": of the tokens at `positions` int64 [B, K] → [B, K, D]. "causal": [B, T, D], the state at t is that of token t + 1.
        "seq2seq": of `outputs` int64 [B, M], what is written with the mark of its end → [B, M, D], the state at j is that of outputs[:, j].
        """
        raise NotImplementedError

    def reply_states(self, inputs: dict[str, Tensor], outputs: Tensor, outputs_mask: Tensor) -> Tensor:
        """[B, M, D], the state at j is that of `outputs` [B, M] at j, written after the text of `inputs`; for "causal" and "seq2seq"."""
        raise NotImplementedError

    def output_layer(self) -> tuple[Tensor, Tensor | None]:
        """The matrix [V, D] and the bias [V] (None: there is none) that make logits of `word_states`."""
        raise NotImplementedError

    def unread(self) -> list[str]:
        """Names of the parameters that its features do not go through: what only reads words out."""
        return []

    # ---------------------------------------------------------------- maps, for image encoders that offer them
    def pyramid(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Maps [B, C_i, H_i, W_i] of images, from fine to coarse. Raises `UserError` where it has none."""
        raise NotImplementedError

    def unread_by_maps(self) -> list[str]:
        """Names of the parameters that want a gradient and get none from `pyramid`: what only pooled features go through."""
        raise NotImplementedError

    # ---------------------------------------------------------------- tokens that are hidden
    def require_tokens(self, pooled: bool) -> None:
        """Raise `UserError` if this encoder's tokens cannot be hidden one by one. pooled: whether the loss trains the pooled features."""
        name = self.args.get("name") or self.args.get("model_type") or type(self).__name__
        raise UserError(f"this objective hides tokens of the encoder, and {name} has none: choose a transformer, such as encoder=vit_small")

    def hideable(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, T], True where a token may be hidden (a patch, a word)."""
        raise NotImplementedError

    def hide(self, inputs: dict[str, Tensor], masked: Tensor, token: Tensor) -> dict[str, Tensor]:
        """`inputs` with the tokens `masked` [B, T] hidden: words by the mask word, patches by the vector `token` [D]."""
        raise NotImplementedError

    def pick(self, inputs: dict[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
        """Views [V, B, ...] of `inputs`, of which each has only the tokens `kept` [V, B, T] of a text, in their order."""
        raise NotImplementedError

    # ---------------------------------------------------------------- layers in order
    @property
    def depth(self) -> int:
        """Number of blocks; groups run from 0 (what comes before the first block) to depth."""
        return len(self.block_names())

    def group_of(self) -> dict[str, int]:
        """Dotted name of every module, parameter and buffer → its group.

        Group 0 is what stands before the first block (stem, embeddings), group i the i-th block; what stands between two blocks moves
        with the second (a stage's downsampling), what follows the last (a final norm) with that.
        """
        blocks = self.block_names()
        groups: dict[str, int] = {}
        order = {n: i for i, (n, _) in enumerate(self.named_modules())}
        tensors = [n for n, _ in (*self.named_parameters(), *self.named_buffers())]
        places = sorted(order[b] for b in blocks if b in order)
        for name in [*order, *tensors]:
            owner = name
            while owner not in order:
                owner = owner.rpartition(".")[0]
            inside = next((i + 1 for i, b in enumerate(blocks) if name == b or name.startswith(b + ".")), None)
            if inside is not None:
                groups[name] = inside
            elif any(b.startswith(owner + ".") or owner == "" for b in blocks):
                groups[name] = 0  # a container of blocks, and its own parameters (class token, positions)
            else:
                before = bisect.bisect_left(places, order[owner])
                groups[name] = min(before + 1, len(blocks)) if before else 0
        return groups

    @property
    def reading(self) -> dict[str, int | None]:
        """How much of a text it reads: at most `windows` times (None: to its end) `max_length` tokens; {} of images."""
        return {k: getattr(self.processor, k) for k in ("max_length", "windows") if hasattr(self.processor, k)}

    # ---------------------------------------------------------------- folders
    def save(self, folder: Path, card: str = "") -> None:
        """Write the encoder: weights (safetensors), plain config, processor, model card.

        With an adapter whose base can be found again, the adapter alone and which base it is; otherwise everything.
        """
        folder.mkdir(parents=True, exist_ok=True)
        cls = type(self)
        about: dict[str, Any] = {
            "format": FORMAT,
            "_target_": f"{cls.__module__}.{cls.__qualname__}",
            "args": self.args,
            "modality": self.modality,
            "dim": self.dim,
        }
        if self.pruned is not None:
            about["pruned"] = self.pruned
        if self.quantization is not None:
            quantized.save(self, self.quantization, folder)
            about["quantization"] = self.quantization.entry
            about["processor"] = self.processor_config(folder)
        elif self.adapter is None:
            self.save_weights(folder)
            if self.stored_as is not None:
                round_stored(folder, self.stored_as)
            about["processor"] = self.processor_config(folder)
        else:
            from safetensors.torch import save_file

            about["adapter"] = self.adapter
            if self.origin is not None:
                about["base"] = {"from": self.origin, "fingerprint": self.base_fingerprint, **self.reading}
            else:
                about["processor"] = self.processor_config(folder)
            tensors = adapter_state(self) if self.origin is not None else self.state_dict()
            once = {v.data_ptr(): k for k, v in reversed(tensors.items())}  # a matrix that has two names is kept under the first
            kept = {k: v for k, v in tensors.items() if not v.numel() or once[v.data_ptr()] == k}
            save_file({k: v.detach().cpu().contiguous() for k, v in kept.items()}, folder / ADAPTER)
        seal(folder, FILE, about)
        (folder / "README.md").write_text(card or f"# {cls.__name__}\n")

    @abc.abstractmethod
    def save_weights(self, folder: Path) -> None:
        """Write the weights (and the library's own config) in the format of the library the model comes from."""

    @abc.abstractmethod
    def load_weights(self, folder: Path) -> None:
        """Read what `save_weights` wrote."""

    @abc.abstractmethod
    def processor_config(self, folder: Path) -> dict[str, Any]:
        """Save the processor; returns what `load_processor` needs beside the folder."""

    @classmethod
    @abc.abstractmethod
    def load_processor(cls, folder: Path, config: dict[str, Any]) -> Any:
        """The processor that `processor_config` saved."""


def blocks_of(encoders: Iterable[Encoder]) -> list[nn.Module]:
    """The blocks of all encoders, one after the other."""
    return [block for e in encoders for block in map(e.get_submodule, e.block_names())]


def is_adapter(name: str) -> bool:
    """Whether the parameter or buffer `name` of an encoder belongs to its adapter."""
    return any(part.startswith(_ADAPTER_PARTS) for part in name.split(".")) or ".ranknum." in f".{name}."


def adapter_state(encoder: Encoder) -> dict[str, Tensor]:
    """The tensors of an encoder's adapter, by name."""
    return {k: v for k, v in encoder.state_dict().items() if is_adapter(k)}


def pool_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of tokens [B, T, D] over the True positions of mask [B, T] → [B, D]."""
    if mask is None:
        return tokens.mean(1)
    weight = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every submodule has the mode it had (frozen ones stay frozen)."""
    were_training = [m for m in module.modules() if m.training]
    if were_training:
        module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for m in were_training:
            m.training = True


def put_on(module: nn.Module, device: torch.device) -> None:
    """Move a module to a device, unless it is there: a call that moves nothing takes as long as a small network."""
    if any(x.device != device for x in itertools.chain(module.parameters(), module.buffers())):
        module.to(device)


def fingerprint(encoder: Encoder) -> str:
    """Digest of an encoder's weights, arguments and kind: the key of everything computed by it."""
    from sslt.data.cache import digest

    parts: list[Any] = [type(encoder).__qualname__, encoder.args, *([] if encoder.pruned is None else [encoder.pruned])]
    state = encoder.state_dict()
    if encoder.quantization is not None:
        state = encoder.quantization.state(encoder)
        parts.append(encoder.quantization.entry)
    for name, tensor in sorted(state.items()):
        parts += [name, tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy()]
    return digest(*parts)


def require(modality: str, source: Any, what: str) -> None:
    """Raise `UserError` if a source is of another modality than what is to read it."""
    if source.modality != modality:
        other = {"image": "images", "text": "text", "items": "histories of items"}
        raise UserError(
            f"{what} reads {other[modality]}, but {source.name} holds {other[source.modality]}: choose another data= or encoder="
        )
