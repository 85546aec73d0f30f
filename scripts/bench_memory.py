"""What activation checkpointing and gradient cache save in memory and cost in time, on one thread of a CPU or a GPU.

    python scripts/bench_memory.py [--rounds 3] [--only vit,bert] [--json FILE]

A step is one forward and backward pass of a contrastive loss and AdamW's update. Memory is what a step adds at most to a process that
holds the model alone; time is the processor's, which other programs do not change, and of ways that take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench.memory import MARK, report
from bench.rounds import Contender, now

from sslt import recomputing
from sslt.config import build, compose
from sslt.stages.common import starting_encoder

VIT = ["+task=simclr", "encoder=vit_patches", "encoder.args.depth=12", "encoder.processor.size=32", "encoder.processor.channels=3"]
BERT = ["+task=simcse", "encoder=bert_tiny", "encoder.config.hidden_size=512", "encoder.config.intermediate_size=2048"]
BERT += ["encoder.config.num_hidden_layers=4", "encoder.config.num_attention_heads=8", "encoder.processor.max_length=64"]
MODELS = {  # what it is, settings, samples of a batch, views in a part
    "vit": ("SimCLR, ViT of 12 blocks, 192 wide, 65 tokens", VIT, 16, 8),
    "bert": ("SimCSE, BERT-small (4 blocks, 512 wide), 64 tokens", BERT, 8, 4),
}
AGAIN, PARTS = "activation_checkpointing", "chunk_size"
WAYS: dict[str, tuple[bool, bool, int]] = {  # blocks again, in parts, times the batch
    "as it is": (False, False, 1),
    AGAIN: (True, False, 1),
    PARTS: (False, True, 1),
    f"{AGAIN}, {PARTS}": (True, True, 1),
    "as it is, 4 × the batch": (False, False, 4),
    f"{PARTS}, 4 × the batch": (False, True, 4),
}


def stepper(model: str) -> Callable[[str], Callable[[], None]]:
    """Builds the model; gives, for a way to train it, what makes one step."""
    _, settings, batch, part = MODELS[model]
    cfg = compose("pretrain", settings)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = starting_encoder(cfg, build(cfg.data)).to(device).train()
    objective = build(cfg.objective, encoder).to(device).train()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], 1e-4)
    optimizer.zero_grad()
    for group in optimizer.param_groups:  # gradients and the optimizer's state are there before what is measured
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    p = encoder.processor

    def inputs(n: int) -> dict[str, torch.Tensor]:
        if encoder.modality == "image":
            return {"image": torch.randn(2, n, p.channels, p.size, p.size, device=device)}
        tokens = torch.randint(5, 1000, (1, n, p.max_length), device=device).expand(2, -1, -1)
        return {"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)}

    def of(way: str) -> Callable[[], None]:
        again, parts, times = WAYS[way]
        views = inputs(batch * times)

        def step() -> None:
            encoder.chunk_size = part if parts else None
            with recomputing.recomputed([encoder]) if again else contextlib.nullcontext():
                optimizer.zero_grad(set_to_none=False)
                objective(encoder, {"views": views}).value.backward()
                optimizer.step()

        return step

    return of


def peaks(model: str) -> dict[str, int]:
    """Bytes that a step adds at most, in a process whose allocator gives back at once what is freed."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, __file__, "--memory-of", model], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = [json.loads(line.removeprefix(MARK)) for line in done.splitlines() if line.startswith(MARK)]
    return {way: x["peak"] - x["before"] for way, x in zip(WAYS, found, strict=True)}


def seconds(step: Callable[[], None]) -> float:
    """The processor's time of a step; of a GPU the clock's."""
    clock = now if torch.cuda.is_available() else time.process_time
    begun = clock()
    step()
    return clock() - begun


def times(model: str, rounds: int) -> dict[str, float]:
    """Time of a step at the plain batch, as a multiple of the first way's: medians over rounds in which all take turns."""
    of = stepper(model)
    steps = {way: of(way) for way, (_, _, size) in WAYS.items() if size == 1}
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(rounds):
        for way, step in steps.items():
            found[way].append(seconds(step))
    plain = found["as it is"]
    print(f"{model}: a step as it is takes {statistics.median(plain):.2f} s", file=sys.stderr)
    return {way: statistics.median(t / p for t, p in zip(taken, plain, strict=True)) for way, taken in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of is not None:
        of = stepper(args.memory_of)
        for way in WAYS:
            report(Contender(way, "32", lambda _, way=way: of(way)()))
        return
    table: dict[str, Any] = {}
    for model in args.only.split(","):
        memory = peaks(model)
        ratio = times(model, args.rounds)
        title, _, batch, part = MODELS[model]
        print(f"\n{title}; batch of {batch} × 2 views, parts of {part}\n\n| way | MiB | time of a step |\n|---|---|---|")
        for way, peak in memory.items():
            print(f"| {way} | {peak / 2**20:,.0f} | {f'{ratio[way]:.2f}' if way in ratio else ''} |", flush=True)
        table[model] = {"memory": memory, "time": ratio}
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
