"""Adaptations that add small parts to an encoder which itself stands still (`encoders/inserted.py`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslt.adaptation.base import Adaptation
from sslt.encoders import inserted
from sslt.encoders.base import Encoder, is_adapter
from sslt.errors import UserError
from sslt.ranges import Count, NonNegative, Positive, Share


class Adapter(Adaptation):
    """Only the tensors of an adapter move; every weight and buffer of the encoder stands still."""

    def __init__(self, kind: str, **settings: Any):
        super().__init__(1.0)
        self.spec = {"kind": kind, **settings}

    def prepare(self, encoder: Encoder) -> None:
        inserted.inject(encoder, self.spec)
        super().prepare(encoder)

    def moves(self, name: str, group: int, depth: int) -> bool:
        return is_adapter(name) and ".ranknum." not in name


class LoRA(Adapter):
    """Low-rank updates W + (alpha/r)·B·A of linear maps and convolutions (Hu et al., 2022), by peft.

    target_modules: names of the layers (their ends), null: those usual for the family: queries and values, in a ResNet every
    convolution of the blocks. dropout: on the input of A.
    """

    def __init__(self, r: Count, alpha: Positive, dropout: Share, target_modules: list[str] | None):
        _positive("r", r)
        super().__init__("lora", r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=target_modules)


class IA3(Adapter):
    """Learned factors on keys, values and the inner activations of feed-forward parts (Liu et al., 2022), by peft.

    Where a model computes queries, keys and values by one map, all three are scaled.
    """

    def __init__(self, target_modules: list[str] | None):
        super().__init__("ia3", target_modules=target_modules)

    def decay_of(self, parameter: nn.Parameter, weight_decay: float, head: bool) -> float:
        return super().decay_of(parameter, weight_decay, head) if head else 0.0  # factors start at 1, not at 0


class Bottleneck(Adapter):
    """A bottleneck of `size` units behind every block (Houlsby et al., 2019; Pfeiffer et al., 2021)."""

    def __init__(self, size: Count):
        _positive("size", size)
        super().__init__("adapter", size=size)


class Prefix(Adapter):
    """`length` learned keys and values in every layer (Li & Liang, 2021). Text only."""

    def __init__(self, length: Count):
        super().__init__("prefix", length=length)


class Prompt(Adapter):
    """`length` learned embeddings before the text (Lester et al., 2021). Text only."""

    def __init__(self, length: Count):
        super().__init__("prompt", length=length)


class AdaLoRA(Adapter):
    """LoRA as P·Λ·Q whose ranks are allotted by importance while training (Zhang et al., 2023), by peft's allocator.

    Every map starts with rank `init_r`; between the shares `start` and `end` of the run the least important singular values
    are set to zero, every `every` steps, until they are `target_r` a map on average. orthogonality: weight of
    ‖PᵀP - I‖ + ‖QQᵀ - I‖ (Frobenius norms; the mean over both of all maps). Needs a bound in steps or epochs.
    """

    def __init__(
        self, init_r: Count, target_r: Count, alpha: Positive, dropout: Share, start: Share, end: Share, every: int,
        orthogonality: NonNegative, target_modules: list[str] | None,
    ):  # fmt: skip
        _positive("target_r", target_r)
        _positive("every", every)
        if target_r >= init_r:
            raise UserError(f"adaptation.init_r={init_r}, target_r={target_r}: ranks are taken away, so init_r must be the larger")
        if not 0 <= start < end < 1:
            raise UserError(f"adaptation.start={start}, end={end}: give shares of the run, start below end, end below 1")
        super().__init__(
            "adalora", init_r=init_r, target_r=target_r, lora_alpha=alpha, lora_dropout=dropout, deltaT=every, target_modules=target_modules
        )
        self.start, self.end, self.orthogonality = start, end, orthogonality
        self.allocator: Any = None
        self.kept: dict[str, list[bool]] | None = None  # which singular values are left, once decided
        self._loaded = False

    def prepare(self, encoder: Encoder) -> None:
        if self.total_steps is None:
            raise UserError("adaptation=adalora spreads its ranks over the run: bound it by trainer.max_steps or trainer.max_epochs")
        total = max(self.total_steps, 3)
        first, last = int(self.start * total), min(int(self.end * total), total - 1)
        self.spec |= {"tinit": first, "tfinal": total - max(last, first + 1), "total_step": total}
        super().prepare(encoder)
        from peft import AdaLoraConfig
        from peft.tuners.adalora.layer import RankAllocator

        config = AdaLoraConfig(**{k: v for k, v in self.spec.items() if k not in ("kind", "target_modules")})
        self.allocator = RankAllocator(encoder, config, inserted.NAME)
        self.done_at = total - config.tfinal

    def after_step(self, encoder: Encoder, step: int) -> None:
        if self._loaded:  # a checkpoint's tensors come to the CPU
            self._loaded = False
            a, places = self.allocator, {name: p.device for name, p in encoder.named_parameters()}
            a.ipt, a.exp_avg_ipt, a.exp_avg_unc = (
                {name: x.to(places.get(name, x.device)) for name, x in kept.items()} for kept in (a.ipt, a.exp_avg_ipt, a.exp_avg_unc)
            )
        if step < self.done_at:
            self.allocator.update_and_allocate(encoder, step)
        elif step == self.done_at:
            _, self.kept = self.allocator.update_and_allocate(encoder, step, force_mask=True)
        elif self.kept is not None:
            self.allocator.mask_using_rank_pattern(encoder, self.kept)

    def penalty(self, encoder: Encoder) -> Tensor:
        gaps = []
        for name, p in encoder.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                product = p @ p.T if ".lora_A." in name else p.T @ p
                gaps.append(torch.linalg.norm(product - torch.eye(len(product), device=p.device, dtype=p.dtype)))
        return self.orthogonality * torch.stack(gaps).mean()

    def state_dict(self) -> dict[str, Any]:
        a = self.allocator
        return {"ipt": a.ipt, "sensitivity": a.exp_avg_ipt, "uncertainty": a.exp_avg_unc, "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        a = self.allocator
        a.ipt, a.exp_avg_ipt, a.exp_avg_unc, self.kept = (state[k] for k in ("ipt", "sensitivity", "uncertainty", "kept"))
        self._loaded = True


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"adaptation.{name}={value}: give at least 1")
