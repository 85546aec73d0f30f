"""`method=prune` and `method=prune_unstructured`: what matters least goes, and what stays is trained on."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sslt.data.base import Samples
from sslt.deploy import movement, pruning, training, units
from sslt.deploy.method import Method
from sslt.encoders.base import Encoder
from sslt.encoders.pruned import is_conv1d
from sslt.errors import UserError, nearest
from sslt.ranges import Count, Fraction, Share
from sslt.runs import Run, open_run
from sslt.targets.base import Target

CRITERIA = ("magnitude", "taylor", "movement")
WHAT = ("channels", "heads", "layers")
OF = ("parameters", "operations")
LINE = 100  # samples of which a layer's influence is read, a batch


class Prune(Method):
    """Take out `share` of the encoder's parameters or operations in whole channels, heads or layers, and train on.

    what: channels, of convolutions or of the hidden units of a transformer's blocks; its heads; or its layers. criterion: by what they
    are ranked, on `batches` of training samples; by movement, while they train, with `warm_up` and `cool_down` as of
    `movement.Movement`; else those layers go that change their tokens least. rounds: share and training are divided into so many, each
    trained for the whole of `trainer.max_*`. finetune: whether anything is trained, by the run's own objective, optimizer and views:
    after units went, or by movement while they go. multiple: of which the channels that stay are one.
    """

    reads_train = True

    def __init__(
        self, share: Fraction, of: str, what: str, criterion: str, rounds: Count, batches: Count, multiple: Count, finetune: bool,
        warm_up: Share, cool_down: Share,
    ):  # fmt: skip
        super().__init__()
        for name, value, known in (("of", of, OF), ("what", what, WHAT), ("criterion", criterion, CRITERIA)):
            if value not in known:
                raise UserError(f"method.{name}={value}: give {' or '.join(known)}{nearest(value, known)}")
        if share >= 1:
            raise UserError(f"method.share={share:g} leaves nothing: give less than 1")
        if criterion == "movement" and not finetune:
            raise UserError("method.criterion=movement ranks while it trains: leave out method.finetune=false, or choose taylor")
        if warm_up + cool_down > 1:
            raise UserError(
                f"method.warm_up={warm_up:g}, method.cool_down={cool_down:g}: shares of one training, so give at most 1 together"
            )
        self.share, self.of, self.what, self.criterion = share, of, what, criterion
        self.warm_up, self.cool_down = warm_up, cool_down
        self.rounds, self.batches, self.multiple, self.finetune = rounds, batches, multiple, finetune

    def check(self, encoder: Encoder, target: Target) -> None:
        refuse_quantized(encoder)
        transformer = units.is_transformer(encoder)
        if self.what != "channels" and not transformer:
            raise UserError(
                f"method.what={self.what}: {named(encoder)} is no transformer whose blocks are known ({units.KNOWN}): choose "
                f"method.what=channels for convolutions"
            )
        if self.what == "layers" and not units.has_layers_alone(encoder):
            raise UserError(
                f"method.what=layers: the blocks of {named(encoder)} are not alike, or are those of two halves: choose heads or channels"
            )
        if self.what == "channels" and not transformer:
            if encoder.modality != "image":
                raise UserError(f"method=prune knows no channels of {named(encoder)}: it prunes convolutions, {units.KNOWN}")
            if target.reads == "maps":
                raise UserError("this target reads maps of several stages, whose channels cannot go: choose another method=")
        if self.of == "operations" and self.what == "layers":
            raise UserError("method.of=operations: layers are counted by their parameters: leave out method.of")

    def apply(
        self, encoder: Encoder, target: Target, train: Samples | None, val: Samples | None, cfg: Any, run: Run
    ) -> tuple[Encoder, Target]:
        assert train is not None
        before, own = sum(p.numel() for p in encoder.parameters()), training.recipe(cfg, open_run(cfg["from"]), run.info["overrides"])
        for i in range(self.rounds):
            last = i == self.rounds - 1
            place = run if last else Run(run / "rounds" / str(i + 1), run.is_main)
            if self.finetune:
                place.path.mkdir(parents=True, exist_ok=True)

            def learn(watchers: list[Any], place: Run = place) -> None:
                self.found |= training.train(self, own, place, encoder, target, train, watchers=watchers)

            self._once(encoder.cpu(), target.cpu(), train, 1 - (1 - self.share) ** (1 / self.rounds), int(cfg.seed), learn)
            if self.finetune and self.criterion != "movement":
                learn([])
        after = sum(p.numel() for p in encoder.parameters())
        self.found |= {"pruned/parameters_share": 1 - after / before}
        times = f"{self.rounds} time{'s' if self.rounds > 1 else ''}"
        how = "while it was trained" if self.criterion == "movement" else "and what stayed was trained on"
        then = f"{times}, {how}" if self.finetune else "untrained since"
        self.remarks.append(f"{before:,} parameters of the encoder became {after:,}: {self.what} went, {then}")
        return encoder, target

    def _once(self, encoder: Encoder, target: Target, train: Samples, share: float, seed: int, learn: Callable[[list[Any]], None]) -> None:
        """Take `share` out, on the CPU. learn: trains encoder and target, watched by callbacks of Lightning."""
        inputs = training.example(encoder, train)
        if self.what == "layers":
            pruning.drop_layers(encoder, self._layers(encoder, target, train, share, seed, learn))
            return
        transformer = units.is_transformer(encoder)
        if self.what == "heads":
            groups = units.heads(encoder)
        elif transformer:
            groups = units.hidden(encoder)
        else:
            fewer = target.reads == "pooled" and pruning.takes_fewer(target, encoder.dim)
            groups = units.channels(encoder, inputs, features=fewer)

        def choose(scores: list[torch.Tensor], share: float) -> list[torch.Tensor]:
            device = next(encoder.parameters()).device
            return pruning.choose(
                encoder, groups, scores, share, self.of, {k: v.to(device) for k, v in inputs.items()},
                even=transformer and self.what == "channels", multiple=1 if self.what == "heads" else self.multiple, what=self.what,
            )  # fmt: skip

        if self.criterion == "movement":
            kept = self._moved(movement.gates_of(groups, getattr(target, "head", None)), choose, share, learn)
            encoder.cpu(), target.cpu()
        elif self.criterion == "taylor":
            batches = training.some_batches(train, self.batches, 32, seed)
            kept = choose(pruning.by_taylor(groups, encoder, target, batches), share)
        else:
            kept = choose(pruning.by_magnitude(groups), share)
        features = pruning.without(encoder, groups, kept, inputs)
        if features is not None:
            pruning.narrow_head(target, features)

    def _layers(
        self, encoder: Encoder, target: Target, train: Samples, share: float, seed: int, learn: Callable[[list[Any]], None]
    ) -> list[int]:
        """Which layers go."""
        if self.criterion != "movement":
            given = [encoder.inputs(b) for b in training.some_batches(train, self.batches, LINE, seed)]
            return pruning.layers_to_drop(encoder, pruning.influence(encoder, given), share)

        def choose(scores: list[torch.Tensor], share: float) -> list[torch.Tensor]:
            gone = pruning.layers_to_drop(encoder, [float(s) for s in scores], share)
            return [torch.arange(int(i not in gone)) for i in range(len(scores))]

        kept = self._moved([movement.Gate.around(encoder.get_submodule(name)) for name in encoder.block_names()], choose, share, learn)
        encoder.cpu(), target.cpu()
        return [i for i, stay in enumerate(kept) if not len(stay)]

    def _moved(
        self, gates: list[movement.Gate], choose: Callable[[list[torch.Tensor], float], list[torch.Tensor]], share: float,
        learn: Callable[[list[Any]], None],
    ) -> list[torch.Tensor]:  # fmt: skip
        """Train while gates close. Returns what stays of each."""
        moving = movement.Movement(gates, choose, share, self.warm_up, self.cool_down)
        learn([moving])
        return moving.end()


class Unstructured(Method):
    """Put the smallest `share` of the weights of all matrices and filters together to zero, and train on with them at zero.

    Zeros make nothing faster here, and nothing smaller but where files are compressed (Gale et al., 2019): it is for comparison.
    """

    reads_train = True

    def __init__(self, share: Fraction, finetune: bool):
        super().__init__()
        if share >= 1:
            raise UserError(f"method.share={share:g} leaves nothing: give less than 1")
        self.share, self.finetune = share, finetune

    def check(self, encoder: Encoder, target: Target) -> None:
        refuse_quantized(encoder)

    def apply(
        self, encoder: Encoder, target: Target, train: Samples | None, val: Samples | None, cfg: Any, run: Run
    ) -> tuple[Encoder, Target]:
        assert train is not None
        masks = zero_smallest(encoder, self.share)
        hooks = [p.register_hook(lambda grad, mask=mask: grad * mask.to(grad.device)) for p, mask in masks.items()]
        if self.finetune:
            own = training.recipe(cfg, open_run(cfg["from"]), run.info["overrides"])
            self.found |= training.train(self, own, run, encoder, target, train)
        for hook in hooks:
            hook.remove()
        with torch.no_grad():  # what moves weights without a gradient
            for p, mask in masks.items():
                p.mul_(mask.to(p.device))
        tensors = [p.detach().cpu().numpy().tobytes() for p in encoder.parameters()]
        plain, packed = sum(map(len, tensors)), sum(len(zlib.compress(x, 1)) for x in tensors)
        zeros = sum(int((p == 0).sum()) for p in encoder.parameters()) / sum(p.numel() for p in encoder.parameters())
        self.found |= {"pruned/zeros_share": zeros, "pruned/compressed_bytes": packed}
        self.remarks.append(
            f"{zeros:.0%} of the weights are zeros: these make nothing faster here, and the folder is as large as before; compressed (zip) "
            f"its weights take {packed / 1e6:.1f} of {plain / 1e6:.1f} MB"
        )
        return encoder, target


@torch.no_grad()
def zero_smallest(encoder: nn.Module, share: float) -> dict[nn.Parameter, torch.Tensor]:
    """Put the smallest `share` of the weights of linear maps and convolutions to zero. Returns where the others stand, by parameter."""
    layers: list[Any] = [m for m in encoder.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) or is_conv1d(m)]
    weights: list[nn.Parameter] = list({id(m.weight): m.weight for m in layers}.values())
    if not weights:
        raise UserError(f"method=prune_unstructured: {type(encoder).__name__} has no matrices of linear maps or convolutions")
    sizes = torch.cat([w.abs().flatten() for w in weights])
    order = sizes.argsort(stable=True)
    keep = torch.ones(len(sizes), dtype=torch.bool, device=sizes.device)
    keep[order[: round(share * len(sizes))]] = False
    masks = {w: part.view(w.shape).to(w.dtype) for w, part in zip(weights, keep.split([w.numel() for w in weights]), strict=True)}
    for w, mask in masks.items():
        w.mul_(mask)
    return masks


def refuse_quantized(encoder: Encoder) -> None:
    """Raise `UserError` for an encoder whose weights are codes."""
    if encoder.quantization is not None:
        raise UserError("a quantized run has no weights to prune: prune the run that it was made from, and quantize the result")


def named(encoder: Encoder) -> str:
    """What an encoder is called in a sentence."""
    return str(encoder.args.get("name") or encoder.args.get("model_type") or type(encoder).__name__)
