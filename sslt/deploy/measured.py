"""The row of a variant: score, size, operations, latency, throughput, memory, time to load; of several, side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslt.data.offered import Offered
from sslt.deploy import fresh, table, timing
from sslt.deploy.variants import Variant, bytes_on_disk, parameters
from sslt.encoders.base import evaluating
from sslt.errors import UserError

log = logging.getLogger("sslt")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How variants are measured; names as in configs/bench.yaml."""

    batch_sizes: tuple[int, ...]
    rounds: int
    warmup: int
    max_seconds: float
    threads: int | None
    raw: bool
    fresh: bool
    seed: int

    @classmethod
    def of(cls, cfg: Any) -> Settings:
        if not cfg.batch_sizes:
            raise UserError("batch_sizes=[]: give at least one size of a batch to time, such as [1,32]")
        sizes = tuple(dict.fromkeys(int(b) for b in cfg.batch_sizes))
        return cls(sizes, cfg.rounds, cfg.warmup, cfg.max_seconds, cfg.threads, cfg.raw, cfg.fresh, cfg.seed)


@contextlib.contextmanager
def with_threads(threads: int | None) -> Iterator[int]:
    """Within, torch computes on so many threads (None: as many as it does); gives how many these are."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass
class Measured:
    """A row for each variant, its predictions, and the seconds of its timed calls: by (what, batch size) an array for each variant."""

    rows: list[dict[str, Any]]
    predictions: list[Any]
    answers: Any
    seconds: dict[tuple[str, int], list[np.ndarray]]
    threads: int


def measure(
    variants: Sequence[Variant],
    source: Any,
    split: str,
    device: torch.device,
    batch_size: int,
    settings: Settings,
    opening: dict[str, Any],
    timed: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Rows of `variants` on a split of `source`, differences against the first.

    opening: what `load_variant` took beside the folder (trust, base, windows), for the processes of their own. timed: False where
    scores and sizes are wanted alone: on the ranks that wait for the first.
    """
    samples = [variant.prepare(source, split) for variant in variants]
    predictions = [v.predictions(s, device, batch_size) for v, s in zip(variants, samples, strict=True)]
    if len({len(s) for s in samples}) > 1:
        raise UserError(f"these do not read the same rows of {source.name} ({split}): leave out samples that one of them cannot")
    rows: list[dict[str, Any]] = []
    for variant, own, answered in zip(variants, samples, predictions, strict=True):
        target = variant.target
        row: dict[str, Any] = {"variant": variant.name, target.primary: target.score(answered, own.answers)}
        if rows:
            found = table.change(target, predictions[0], answered, own.answers)
            row |= {"difference": found.mean, "difference_low": found.low, "difference_high": found.high}
        inside = variant.answers is None  # and not in a file, of which neither weights nor operations are counted
        row |= {"bytes": bytes_on_disk(variant.folder), "parameters": parameters(variant.encoder, variant.target) if inside else None}
        rows.append(row)
    answers = samples[0].answers
    if not timed:
        return Measured(rows, predictions, answers, {}, torch.get_num_threads())
    with with_threads(settings.threads) as threads, contextlib.ExitStack() as stack:
        for variant in variants:
            for module in (variant.encoder, variant.target):
                stack.enter_context(evaluating(module.to(device)))
        drawn = _Rows(len(samples[0]), settings.seed)
        largest = max(settings.batch_sizes)
        for row, variant, own in zip(rows, variants, samples, strict=True):
            row["operations"] = operations(variant, _on(own.batch(drawn(0, largest)), device), largest)
        seconds = _timed(variants, samples, source, split, device, settings, drawn, clock)
    for (what, size), found_ in seconds.items():
        for row, taken in zip(rows, found_, strict=True):
            row |= {f"{what}/{size}/{k}": v for k, v in timing.summary(taken, size).items()}
            row[f"{what}/{size}/rounds"] = len(taken)
    if settings.fresh:
        for row, variant, own in zip(rows, variants, samples, strict=True):
            job = {"what": str(variant.folder), **opening, "threads": settings.threads, "device": str(device)}
            row |= fresh.measured(job, {str(size): own.batch(drawn(0, size)) for size in settings.batch_sizes})
    return Measured(rows, predictions, answers, seconds, threads)


class _Rows:
    """Which rows of a split a round reads: drawn by the seed, the same for every variant."""

    def __init__(self, n: int, seed: int):
        self.n, self.seed = n, seed

    def __call__(self, i: int, size: int) -> np.ndarray:
        return np.random.default_rng([self.seed, size, i]).integers(0, self.n, size)


def _timed(
    variants: Sequence[Variant],
    samples: Sequence[Any],
    source: Any,
    split: str,
    device: torch.device,
    settings: Settings,
    drawn: _Rows,
    clock: Callable[[], float],
) -> dict[tuple[str, int], list[np.ndarray]]:
    """Seconds of calls: of a prepared batch to its answers ("latency"), and of raw items to their answers ("raw")."""
    raw = source.get(split) if settings.raw else None
    if raw is not None and len(raw) != len(samples[0]):
        log.warning("raw=true is left out: some samples of %s cannot be read, so that its rows are not those of the split", source.name)
        raw = None
    found = {}
    for size in settings.batch_sizes:
        prepared = [_of_prepared(v, s, device, drawn, size) for v, s in zip(variants, samples, strict=True)]
        works = {"latency": prepared}
        if raw is not None:
            works["raw"] = [_of_raw(v, source, raw, device, drawn, size) for v in variants]
        for what, each in works.items():
            log.info("timing batches of %d, %s", size, "from raw items" if what == "raw" else "prepared")
            found[what, size] = timing.interleaved(
                each, settings.rounds, settings.warmup, settings.max_seconds, settings.seed, _waiting(clock, device)
            )
    return found


def _waiting(clock: Callable[[], float], device: torch.device) -> Callable[[], float]:
    """A clock that waits for what a GPU has still to do."""
    if device.type != "cuda":
        return clock

    def waited() -> float:
        torch.cuda.synchronize(device)
        return clock()

    return waited


def _of_prepared(variant: Variant, samples: Any, device: torch.device, drawn: _Rows, size: int) -> timing.Work:
    def work(i: int) -> Callable[[], Any]:
        batch = _on(samples.batch(drawn(i, size)), device)
        return lambda: variant.predict(batch)

    return work


def _of_raw(variant: Variant, source: Any, raw: Any, device: torch.device, drawn: _Rows, size: int) -> timing.Work:
    """From files and texts as the source has them: decoded, resized or split into tokens, made a batch, answered."""

    def work(i: int) -> Callable[[], Any]:
        index = drawn(i, size)
        answers = raw.answers.take(index) if source.answer.in_text else None

        def call() -> Any:
            items = [raw.items[int(row)] for row in index]
            offered = Offered(source.modality, items, variant.target.answer, source.parts, answers)
            return variant.predict(_on(variant.encoder.processor.at_once(offered).batch(np.arange(size)), device))

        return call

    return work


def _on(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {k: x.to(device) for k, x in batch.items()}


# ------------------------------------------------------------------ operations
def operations(variant: Variant, batch: dict[str, Tensor], size: int) -> int | None:
    """Additions and multiplications of a sample: of a batch, divided by its size; None where torch does not compute them.

    Counted are products of matrices, convolutions and attention (two for each multiply-add, padding included), as
    `torch.utils.flop_counter` does; products of integers count as others. Not counted: norms, activations, look-ups in tables.
    """
    if variant.answers is not None:
        return None
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=_integer_products()) as counted:
        variant.predict(batch)
    return round(counted.get_total_flops() / size)


def _integer_products() -> dict[Any, Any]:
    """What the counter does not know: products whose matrices hold int8 or packed int4."""

    def product(a: Any, b: Any, *_: Any, **__: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    def packed(a: Any, b: Any, *_: Any, **__: Any) -> int:  # b [N, K / 2]
        return 2 * a[0] * a[1] * b[0]

    aten = torch.ops.aten
    known = {"_int_mm": product, "_weight_int4pack_mm_for_cpu": packed}
    return {getattr(aten, name): count for name, count in known.items() if hasattr(aten, name)}
