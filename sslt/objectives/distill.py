"""Distillation: a small encoder learns to give what a larger one, which stands still, gives for the same views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt import distributed, stored
from sslt.data.base import Samples, many
from sslt.data.offered import Offered
from sslt.data.streams.subsets import some
from sslt.encoders import inserted
from sslt.encoders.base import Encoder, Features, evaluating, fingerprint, pool_mean
from sslt.encoders.batch_norm import batch_statistics
from sslt.encoders.files import read_tensors
from sslt.encoders.load import load_encoder
from sslt.encoders.pixels import square_map
from sslt.encoders.seals import check_seal
from sslt.errors import UserError, nearest
from sslt.objectives.base import Loss, Objective, encode_views, full_precision, n_views, wide
from sslt.objectives.parts.momentum import Queue
from sslt.ranges import Natural, NonNegative, Positive

DISTANCES = ("cosine", "mse")
STARTED_ON = 512  # samples that the map to the teacher's features is first solved for
AT_ONCE = 64
RIDGE = 0.1  # of the mean variance of the student's features


class Distill(Objective):
    """features · d(map(s), t) + tokens · d(of each token) + pseudo · KL over a queue + logits · τ² KL, of student s and teacher t.

    Reads `views` [V, B, ...], which the teacher sees as well, in its own size and normalisation or by its own tokenizer. Each part is 0
    where the student is the teacher: maps to the teacher's width are linear, and start as the identity where widths are equal, or else that
    of pooled features as the best one on a few samples (ridge regression).

    teacher: a run, an encoder folder or a published model; frozen, in eval mode, and no part of what is saved: a checkpoint knows it by
    its fingerprint. trust: packages whose classes it may name.
    features, tokens, pseudo, logits: the weights of the parts, 0 leaves one out.
    distance: of features and tokens: "cosine", 1 - cos(map(s), t); or "mse", the squared distance (FitNets' hints: Romero et al., 2015,
    eq. 3) over the variance of the teacher's features in the batch of all ranks: 1 is what their mean reaches.
    tokens: of images whose tokens are others in number, the teacher's map is resized to the student's.
    pseudo: each of `queue` past features of the teacher is a class (Fang et al., 2021, eq. 3-5), softmax of similarities / temperature.
    Their cross-entropy less its least value, the teacher's own entropy, so that gradients are the same and the best is 0.
    logits: of a classifier, its `head/`, at temperature `tau` (Hinton et al., 2015, section 2.1); the student answers by that same head on
    its mapped features (Chen et al., 2022), or by its own (`answer_by`).
    """

    advice = "try a higher learning rate, a longer training or views=light: the teacher cannot collapse"
    alike_on_ranks = True

    def __init__(
        self,
        encoder: Encoder,
        teacher: str | None,
        trust: list[str],
        features: NonNegative,
        tokens: NonNegative,
        pseudo: NonNegative,
        logits: NonNegative,
        distance: str,
        temperature: Positive,
        tau: Positive,
        queue: Natural | None,
    ):
        super().__init__()
        self.weights = {"features": features, "tokens": tokens, "pseudo": pseudo, "logits": logits}
        self.distance, self.temperature, self.tau = distance, temperature, tau
        if not any(self.weights.values()):
            raise UserError("nothing is distilled: give one of objective.features, tokens, pseudo and logits a weight above 0")
        if distance not in DISTANCES:
            raise UserError(f"objective.distance={distance}: give {' or '.join(DISTANCES)}{nearest(distance, DISTANCES)}")
        if teacher is None:
            raise UserError("distillation needs a teacher: objective.teacher=RUN, an encoder folder, or the name of a published model")
        found = _loaded(teacher, encoder.modality, trust)
        self.named, self.fingerprint = teacher, fingerprint(found)
        self._adapt = _reader(encoder, found, teacher)
        head = _classifier(teacher, found.dim) if logits else None
        self.classes: list[str] = [] if head is None else head[1]
        # in a tuple, so that they are no submodules: not trained, not saved, not counted
        self._frozen: tuple[nn.Module, ...] = tuple(m.eval().requires_grad_(False) for m in (found, *(() if head is None else (head[0],))))
        self._answers: tuple[nn.Module, ...] = ()
        own_head_only = not (features or pseudo)
        self.map = None if own_head_only and not logits else _map(encoder.dim, found.dim)
        self.token_map = _map(encoder.dim, found.dim) if tokens else None
        self.queue = Queue(queue, found.dim) if pseudo else None
        self.register_buffer("taught_by", torch.frombuffer(bytearray(self.fingerprint.encode()), dtype=torch.uint8).clone())
        if tokens:
            _require_tokens(encoder, found)

    # ---------------------------------------------------------------- the teacher
    @property
    def teacher(self) -> Encoder:
        """The frozen encoder that teaches."""
        return self._frozen[0]  # type: ignore[return-value]

    def made_from(self) -> dict[str, Any]:
        return {"teacher": {"from": self.named, "fingerprint": self.fingerprint}}

    def answer_by(self, head: nn.Module, classes: list[str]) -> None:
        """From now on the student's logits are those of `head` on its pooled features; it is trained elsewhere as well.

        Raises `UserError` where it knows other `classes` than the teacher.
        """
        if classes != self.classes:
            raise UserError(_other_classes(self.named, self.classes, classes))
        self._answers = (head,)
        if not (self.weights["features"] or self.weights["pseudo"]):
            self.map = None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        for module in self._frozen:  # they go where the rest goes
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        known = state_dict.get(f"{prefix}taught_by")
        if known is not None and bytes(known.tolist()) != self.fingerprint.encode():
            raise UserError(
                f"objective.teacher={self.named} is another than before (content {self.fingerprint[:8]}, not "
                f"{bytes(known.tolist()).decode(errors='replace')[:8]}): give the one that the run began with"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ---------------------------------------------------------------- the loss
    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        if self.queue is not None:
            self.queue.fit(len(samples))
        if self.distance == "mse" and batch_size < 2:
            raise UserError("batch_size=1: objective.distance=mse is in units of a batch's variance, so give at least 2")
        if self.map is not None and encoder.dim != self.teacher.dim:
            self._start_map(encoder, samples)

    @torch.no_grad()
    def _start_map(self, encoder: Encoder, samples: Samples) -> None:
        """Ridge regression of the teacher's features on the student's, of a few samples as they are: by a random map the student would
        first be taught what only suits that map, and what it knows (words it began with) would be lost."""
        assert self.map is not None
        few, device = some(samples, STARTED_ON, seed=0), next(encoder.parameters()).device
        ours, theirs = [], []
        with full_precision(), evaluating(encoder), batch_statistics(encoder):  # a fresh network's running ones say nothing yet
            for rows in np.array_split(np.arange(len(few)), -(-len(few) // AT_ONCE)):
                inputs = encoder.inputs({k: x.to(device) for k, x in few.batch(rows).items()})
                ours.append(encoder(inputs).pooled.double())
                theirs.append(self.teacher(self._adapt(inputs)).pooled.double())
        x, y = torch.cat(ours), torch.cat(theirs)
        centred = x - x.mean(0)
        gram = centred.T @ centred / len(x)
        gram += RIDGE * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype, device=device)
        weight = torch.linalg.solve(gram, centred.T @ (y - y.mean(0)) / len(x)).T
        self.map.weight.copy_(weight)
        self.map.bias.copy_(y.mean(0) - weight @ x.mean(0))

    def leaves_out(self, encoder: Encoder) -> bool:
        return super().leaves_out(encoder) or not any(w for part, w in self.weights.items() if part != "tokens")

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        s = encode_views(encoder, batch)
        with torch.no_grad():
            t = self.teacher(self._adapt({name: x.flatten(0, 1) for name, x in batch["views"].items()}))
        mapped = None if self.map is None else self.map(s.pooled)
        answered = self._logits(s, t, mapped) if self.weights["logits"] else None
        mapped_tokens = None if self.token_map is None else self.token_map(s.tokens)
        with full_precision():
            found: dict[str, Tensor] = {}
            if self.weights["features"]:
                assert mapped is not None
                found["features"] = self._apart(wide(mapped), wide(t.pooled)).mean()
            if self.weights["tokens"]:
                assert mapped_tokens is not None
                found["tokens"] = self._of_tokens(wide(mapped_tokens), s.mask, t)
            if self.weights["pseudo"]:
                assert mapped is not None
                found["pseudo"] = self._of_queue(wide(mapped), wide(t.pooled), n_views(batch["views"]))
            if answered is not None:
                found["logits"] = softened_kl(*answered, self.tau)
            value = torch.stack([self.weights[part] * loss for part, loss in found.items()]).sum()
        return Loss(value, {part: loss.detach() for part, loss in found.items()})

    def _logits(self, s: Features, t: Features, mapped: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of student and teacher, [N, C]."""
        head = self._frozen[1]
        own = self._answers[0](s.pooled) if self._answers else head(mapped)
        return wide(own), wide(head(t.pooled))

    def _apart(self, ours: Tensor, theirs: Tensor, counted: Tensor | None = None) -> Tensor:
        """How far vectors [N, D] are from the teacher's, [N]; counted [N]: which are not padding."""
        if self.distance == "cosine":
            # by unit vectors: torch's cosine_similarity of a vector with itself is off by a rounding error
            return (F.normalize(ours, dim=-1) - F.normalize(theirs, dim=-1)).square().sum(-1) / 2
        rows = theirs if counted is None else theirs[counted]
        n = distributed.sum_over_ranks(rows.new_tensor(len(rows))).clamp(min=1)
        mean = distributed.sum_over_ranks(rows.sum(0)) / n
        variance = distributed.sum_over_ranks((rows - mean).square().sum()) / n  # of all features together: a dead one weighs nothing
        return (ours - theirs).square().sum(-1) / variance.clamp(min=1e-12)

    def _of_tokens(self, ours: Tensor, mask: Tensor | None, t: Features) -> Tensor:
        """The mean over each sample's tokens, then over samples."""
        theirs = wide(t.tokens)
        if ours.shape[1] != theirs.shape[1]:
            theirs = _resized(theirs, ours.shape[1], self.teacher)
        counted = None if mask is None else mask.flatten()
        apart = self._apart(ours.flatten(0, 1), theirs.flatten(0, 1), counted).unflatten(0, ours.shape[:2])
        return pool_mean(apart.unsqueeze(-1), mask).mean()

    def _of_queue(self, ours: Tensor, theirs: Tensor, views: int) -> Tensor:
        """KL of the student's from the teacher's choice among past features of the teacher; those of this batch are among them."""
        assert self.queue is not None
        ours, theirs = F.normalize(ours, dim=1), F.normalize(theirs, dim=1)
        if self.training:
            self.queue.push(theirs.unflatten(0, (views, -1)).transpose(0, 1))
        rows = self.queue.rows.to(ours.dtype)
        return softened_kl(ours @ rows.T, theirs @ rows.T, self.temperature, scale=1.0)


def softened_kl(ours: Tensor, theirs: Tensor, tau: float, scale: float | None = None) -> Tensor:
    """scale · KL(softmax(theirs / τ) ‖ softmax(ours / τ)) of logits [N, C], the mean over rows.

    scale: τ² where not given, so that gradients do not shrink with the temperature (Hinton et al., 2015, section 2.1).
    """
    p, q = (theirs / tau).log_softmax(1), (ours / tau).log_softmax(1)
    return (tau * tau if scale is None else scale) * (p.exp() * (p - q)).sum(1).mean()


def _map(ours: int, theirs: int) -> nn.Linear:
    """Linear, to the teacher's width: the identity where it is the student's own."""
    made = nn.Linear(ours, theirs)
    nn.init.zeros_(made.bias)
    if ours == theirs:
        nn.init.eye_(made.weight)
    return made


def _loaded(teacher: str, modality: str, trust: list[str]) -> Encoder:
    found = load_encoder(teacher, modality, trust, key="objective.teacher")
    if found.adapter is not None:
        inserted.merge(found)
    if found.modality != modality:
        raise UserError(
            f"objective.teacher={teacher} reads {many(found.modality)}, and the student {many(modality)}: give one of {many(modality)}"
        )
    return found


def _classifier(teacher: str, dim: int) -> tuple[nn.Linear, list[str]]:
    """The linear head of a fine-tuned run, and its classes; what stands beside the encoder there (late fusion) is left out."""
    folder = stored.located(teacher) / "head"
    file = folder / "head.json"
    if not stored.is_file(file):
        raise UserError(
            f"objective.logits needs a teacher with a head, and {teacher} has none: give a fine-tuned run, or objective.logits=0"
        )
    about = stored.json_object(file)
    check_seal(folder, file.name, about)
    tensors = read_tensors(folder / "model.safetensors")
    weight, classes = tensors.get("head.weight"), stored.value(about, "space", dict, file).get("classes")
    if about.get("answer") != "class" or weight is None or not isinstance(classes, list) or weight.shape != (len(classes), dim):
        raise UserError(f"objective.logits are those of a classifier, and {teacher} answers otherwise: leave out objective.logits")
    head = nn.Linear(dim, len(classes))
    head.load_state_dict({"weight": weight, "bias": tensors.get("head.bias", torch.zeros(len(classes)))})
    return head, [str(name) for name in classes]


def _other_classes(teacher: str, theirs: list[str], ours: list[str]) -> str:
    def some(names: list[str]) -> str:
        return f"{len(names)} classes ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"

    return (
        f"the teacher {teacher} knows {some(theirs)}, the student {some(ours)}: give objective.logits=0, or a teacher of the same classes"
    )


# -------------------------------------------------------------------- what the student sees, as the teacher reads it
def _reader(encoder: Encoder, teacher: Encoder, named: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Inputs of the student → inputs of the teacher. Raises `UserError` where the teacher cannot read them."""
    if encoder.modality == "image":
        return _pixels(encoder.processor, teacher.processor, named)
    ours, theirs = encoder.processor, teacher.processor
    if not _read_alike(ours, theirs):
        return _other_words(ours, teacher)
    longest = getattr(getattr(getattr(teacher, "model", None), "config", None), "max_position_embeddings", None)
    if longest is not None and ours.max_length > longest:
        raise UserError(f"the teacher reads at most {longest} tokens: set encoder.processor.max_length={longest}")
    theirs.max_length, theirs.windows = ours.max_length, ours.windows
    takes_segments = bool(getattr(teacher, "_segments", 0))
    return lambda inputs: {k: x for k, x in inputs.items() if k != "segments" or takes_segments}


def _read_alike(ours: Any, theirs: Any) -> bool:
    """Whether two processors of texts make the same tokens."""
    return type(ours) is type(theirs) and ours.digest == theirs.digest


def _other_words(ours: Any, teacher: Encoder) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Tokens [N, T] of one tokenizer → what a teacher with another one reads of the same text, of which a view may be a part."""

    def read(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens = inputs["tokens"]
        texts = [ours.read_out(row) for row in tokens.tolist()]
        batch = teacher.processor.at_once(Offered("text", texts)).batch(np.arange(len(texts)))
        return teacher.inputs({name: x.to(tokens.device) for name, x in batch.items()})

    return read


def _pixels(ours: Any, theirs: Any, named: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Normalised images [N, C, H, W] of one processor as another normalises and sizes them; grey ones for a teacher of colours."""
    if ours.channels not in (1, theirs.channels):
        raise UserError(
            f"objective.teacher={named} reads images of {theirs.channels} channel, and the student of {ours.channels}: set "
            f"encoder.processor.channels={theirs.channels}"
        )
    alike = (list(ours.mean), list(ours.std), ours.channels) == (list(theirs.mean), list(theirs.std), theirs.channels)
    ratio = theirs.size / ours.size
    known: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}  # a copy to an accelerator in every step would make it wait

    def read(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        x = inputs["image"]
        if not alike:
            key = (x.device, x.dtype)
            if key not in known:
                a, b, c, d = (x.new_tensor(list(m)).view(-1, 1, 1) for m in (ours.std, ours.mean, theirs.std, theirs.mean))
                known[key] = a / c, (b - d) / c
            scale, shift = known[key]
            x = x * scale + shift
        if ratio != 1:
            size = [max(1, round(side * ratio)) for side in x.shape[2:]]
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=ratio < 1)
        return {"image": x}

    return read


def _require_tokens(encoder: Encoder, teacher: Encoder) -> None:
    if encoder.modality == "text" and not _read_alike(encoder.processor, teacher.processor):
        raise UserError("objective.tokens compares token by token, and the student has another tokenizer than its teacher: set it to 0")
    for who, one in (("the student", encoder), ("the teacher", teacher)):
        if "tokens" not in one.offers:
            raise UserError(f"objective.tokens: {who} ({type(one).__name__}) has no tokens: set objective.tokens=0")


def _resized(tokens: Tensor, wanted: int, teacher: Encoder) -> Tensor:
    """Tokens [N, T, D] of an image as `wanted` ones: a square map, resized."""
    side = round(wanted**0.5)
    if teacher.modality != "image" or side * side != wanted:
        raise UserError(f"objective.tokens: the student has {wanted} tokens, which form no square to resize the teacher's to: set it to 0")
    if tokens.shape[1] == 1:
        return tokens.expand(-1, wanted, -1)
    found = F.interpolate(square_map(tokens, teacher), size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    return found.flatten(2).transpose(1, 2)
