"""One pass of an encoder over a split, shared by everything that measures it, and kept on disk by content."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslt import distributed, precision, signals
from sslt.data import cache
from sslt.data.answers import Answers
from sslt.data.base import Samples
from sslt.encoders.base import Encoder, evaluating, fingerprint, put_on
from sslt.evaluation.alike import Alike, widened
from sslt.targets.base import Target

FORMAT = 1
# Features that differ little from each other (an untrained encoder's do) lose their differences in bfloat16's 8 bits:
# what is reported is measured in float32. Numbers shown while training may use the format of training.
MEASURED = "32-true"
SILENT = 15.0  # seconds after which a long pass says how far it is
log = logging.getLogger("sslt")


def predicted(
    encoder: Encoder,
    target: Target,
    samples: Samples,
    device: torch.device,
    batch_size: int,
    number_format: str = MEASURED,
    how: Callable[..., Any] | None = None,
    alike: Alike | None = None,
) -> Any:
    """What a target answers to all samples, in their order. Ranks share the work; all get the result. how: its method, None: `predict`.

    alike: what batches are made by, so that no bit of a row depends on the rows beside it; None, and where a target cannot be computed
    so: as they come.
    """
    how = how or target.predict
    rounds = target.rounds(samples)
    alike = None if target.reads_beside else alike
    if rounds is None:
        return _answered(encoder, target, samples, device, batch_size, number_format, how, alike)
    found = []
    for rows in rounds:
        found.append(_answered(encoder, target, samples.subset(rows), device, batch_size, number_format, how, alike))
        target.hear(found[-1])
    return Answers.join(found).take(np.argsort(np.concatenate(rounds)))


def _answered(
    encoder: Encoder,
    target: Target,
    samples: Samples,
    device: torch.device,
    batch_size: int,
    number_format: str,
    how: Callable[..., Any],
    alike: Alike | None,
) -> Any:
    put_on(target, device)
    with evaluating(target):
        parts, rows = _over_batches(encoder, samples, device, batch_size, number_format, lambda batch: how(encoder, batch), alike)
    found = [(Answers.join(parts) if parts else None, rows)]
    if distributed.world_size() > 1:
        found = distributed.gather_objects(found[0])
    order = torch.cat([torch.cat(rows) for _, rows in found if rows]).numpy()
    return Answers.join([part for part, _ in found if part is not None]).take(np.argsort(order))


def _over_batches(
    encoder: Encoder,
    samples: Samples,
    device: torch.device,
    batch_size: int,
    number_format: str,
    compute: Callable[[dict[str, Tensor]], Any],
    alike: Alike | None = None,
) -> tuple[list[Any], list[Tensor]]:
    """What `compute` gives of this rank's share of the batches, and which rows they are of.

    Raises `signals.Left` where measuring may be left and a signal came.
    """
    rank, world = distributed.rank(), distributed.world_size()
    rows: list[Tensor] = []
    parts: list[Any] = []
    far, done = HowFar("features of", len(samples), "samples"), 0

    def of(index: np.ndarray, key: tuple[int, ...] = ()) -> Any:
        return compute({k: v.to(device, non_blocking=True) for k, v in widened(samples.batch(index), key, samples.padding).items()})

    put_on(encoder, device)
    with evaluating(encoder), precision.autocast(device, number_format):
        longest = encoder.reading.get("max_length")
        plain = (((), index) for index in samples.ordered_batches(batch_size, longest))
        for i, (key, index) in enumerate(plain if alike is None else alike.batches(encoder, samples, batch_size, longest)):
            if signals.leave():
                break
            done += len(index)
            far.tell(done)
            if i % world == rank:
                parts.append(of(index) if alike is None else alike.compute(encoder, partial(of, key=key), key, index))
                rows.append(torch.from_numpy(np.ascontiguousarray(index)))
    if signals.may_leave() and any(distributed.any_rank([signals.leave()])):
        raise signals.Left
    return parts, rows


class HowFar:
    """Says on the first rank how far a pass over `n` things is, every `SILENT` seconds."""

    def __init__(self, doing: str, n: int, things: str):
        self.doing, self.n, self.things, self._told = doing, n, things, time.monotonic()

    def tell(self, done: int) -> None:
        """`done` of them are done."""
        if distributed.rank() == 0 and time.monotonic() - self._told > SILENT:
            log.info("%s %s of %s %s", self.doing, f"{done:,}", f"{self.n:,}", self.things)
            self._told = time.monotonic()


def encode(
    encoder: Encoder,
    samples: Samples,
    device: torch.device,
    batch_size: int,
    number_format: str = MEASURED,
    alike: Alike | None = None,
) -> Tensor:
    """Pooled features [N, D], float32 on the CPU, in the order of the samples. Ranks share the work; all get the result.

    alike: as in `predicted`.
    """
    parts, rows = _over_batches(
        encoder, samples, device, batch_size, number_format, lambda batch: encoder(encoder.inputs(batch)).pooled.float(), alike
    )
    if distributed.world_size() > 1:
        distributed.barrier()  # one may have had other things to do before
        width = torch.tensor([parts[0].shape[1] if parts else 0], device=device)
        torch.distributed.all_reduce(width, torch.distributed.ReduceOp.MAX)
        values = torch.cat(parts) if parts else torch.empty(0, int(width), device=device)
        order = torch.cat(rows).to(device) if rows else torch.empty(0, dtype=torch.long, device=device)
        values, order = distributed.gather_rows(values), distributed.gather_rows(order)
    else:
        values, order = torch.cat(parts), torch.cat(rows)
    out = torch.empty_like(values, device="cpu")
    out[order.cpu()] = values.cpu()
    return out


def cached_features(
    encoder: Encoder, samples: Samples, device: torch.device, batch_size: int, number_format: str = MEASURED, key: str | None = None
) -> Tensor:
    """`encode`, kept on disk under a key of the encoder's weights, how much of a text it reads, the samples' content and the number format.

    key: `fingerprint(encoder)`, where the caller has it already.
    """
    name = precision.resolve(number_format, "gpu" if device.type == "cuda" else "cpu")
    entry_key = cache.digest(key or fingerprint(encoder), encoder.reading, samples.fingerprint, name, FORMAT)
    found = cache.find("features", entry_key) if distributed.rank() == 0 else None
    if distributed.broadcast_object(found is not None):
        entry = found or cache.Entry(cache.cache_dir() / "features" / entry_key)
        return torch.from_numpy(np.array(entry["features"]))
    x = encode(encoder, samples, device, batch_size, number_format)

    def make(folder: Path) -> dict[str, Any]:
        np.save(folder / "features.npy", x.numpy())
        return {"n": len(x), "dim": x.shape[1]}

    if distributed.rank() == 0:
        cache.get_or_make("features", entry_key, make)
    distributed.barrier()
    return x
