"""What a step costs on many GPUs, on paper: compute, bytes over the network and memory, for DDP, FSDP and HSDP.

A rank of N computes its share of the batch and takes part in collectives by rings (Patarasuk & Yuan, 2009), where each sends, of S bytes:

    all-reduce 2(N−1)/N·S      reduce-scatter (N−1)/N·S      all-gather (N−1)/N·S

in N−1 messages one after the other; an all-reduce in 2·log₂N, by NCCL's trees, which send no more. What the loss and BatchNorm send
stands in the way of the step; gradients, and weights that are gathered, are sent while the backward (and forward) pass computes, and what
does not fit beside that is waited for.
"""

from __future__ import annotations

import dataclasses
import math

STRATEGIES = ("ddp", "fsdp", "hsdp")
WIDE, NARROW = 4, 2  # bytes of float32 and bfloat16
BUCKET = 25 * 2**20  # bytes of gradients that DDP sends at once; the last of them has no computation left beside it


@dataclasses.dataclass(frozen=True)
class Link:
    """bandwidth: bytes/s that a GPU sends in a ring. latency: seconds of a message."""

    bandwidth: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Machine:
    """GPUs in nodes. inside: between GPUs of a node; between: between nodes, by all network cards of a node. memory: bytes of a GPU.

    A ring over several nodes goes by all cards at once, since there are as many rings beside each other.
    """

    name: str
    gpus: int
    inside: Link
    between: Link
    memory: float

    def ring(self, n: int) -> Link:
        """What a ring of n GPUs goes by: its slowest part."""
        return self.inside if n <= self.gpus else self.between


@dataclasses.dataclass(frozen=True)
class Work:
    """A method on an encoder.

    parameters: that are trained. held: copies that are not (a teacher). rate: samples/s of one GPU. batch: samples a GPU. activations:
    bytes a sample that the backward pass needs. block: parameters of the largest part that FSDP gathers at once. channels: of all
    BatchNorms that the batch goes through, `norms` of them, whose moments are sent in `moment` bytes each (4: torch's SyncBatchNorm).
    gathered: floats of a sample that every rank needs (embeddings), in `rows` rows, each of which is compared with all. reduced: floats
    that are summed over ranks a step (DINO's centre).
    """

    name: str
    parameters: float
    rate: float
    batch: int
    activations: float
    block: float
    held: float = 0.0
    channels: int = 0
    norms: int = 0
    moment: int = WIDE
    gathered: int = 0
    rows: int = 0
    reduced: int = 0
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Step:
    """Of one GPU: seconds, bytes sent by purpose, bytes of memory."""

    compute: float
    waiting: float
    sent: dict[str, float]
    memory: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.compute + self.waiting

    @property
    def efficiency(self) -> float:
        """Samples a second a GPU, over those of one GPU alone."""
        return self.compute / self.seconds


def all_reduce(n: int, size: float) -> float:
    """Bytes that each of n ranks sends, of `size` bytes that each has."""
    return 2 * (n - 1) / n * size


def reduce_scatter(n: int, size: float) -> float:
    """Bytes that each of n ranks sends, of `size` bytes that each has."""
    return (n - 1) / n * size


def all_gather(n: int, size: float) -> float:
    """Bytes that each of n ranks sends, of `size` bytes that all have together."""
    return (n - 1) / n * size


def hops(n: int) -> int:
    """Messages of an all-reduce of n ranks that wait for each other."""
    return 2 * math.ceil(math.log2(n))


def seconds(sent: float, messages: float, link: Link) -> float:
    """Of one GPU in a ring."""
    return sent / link.bandwidth + messages * link.latency


def step(work: Work, machine: Machine, n: int, strategy: str = "ddp") -> Step:
    """A step of `work` on n GPUs. Raises `ValueError` for another strategy than `STRATEGIES`, and for nodes that are not full."""
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy}: one of {', '.join(STRATEGIES)}")
    if n > machine.gpus and n % machine.gpus:
        raise ValueError(f"{n} GPUs are not whole nodes of {machine.gpus}")
    compute = work.batch / work.rate
    forward, backward = compute / 3, compute * 2 / 3  # a backward pass is two matrix products where a forward pass is one
    sent, waiting = _of_the_loss(work, machine, n)
    weights = work.parameters * WIDE
    if strategy == "ddp" or n == 1:
        sent["gradients"] = all_reduce(n, weights)
        waiting += _beside(sent["gradients"], hops(n) * math.ceil(weights / BUCKET), machine.ring(n), backward, BUCKET / weights)
        shards = 1
    else:
        shards = n if strategy == "fsdp" else min(n, machine.gpus)
        parts = math.ceil(work.parameters / work.block)
        gathered = all_gather(shards, work.parameters * NARROW)
        scattered = reduce_scatter(shards, weights)
        link = machine.ring(shards)
        sent["weights"], sent["gradients"] = 2 * gathered, scattered
        waiting += _beside(gathered, (shards - 1) * parts, link, forward, 1 / parts)
        waiting += _beside(gathered + scattered, 2 * (shards - 1) * parts, link, backward, 1 / parts)
        if n > shards:  # each shard's gradient over the nodes that hold it, as many rings at once as a node has GPUs
            own = all_reduce(n // shards, weights / shards)
            sent["gradients"] += own
            across = Link(machine.between.bandwidth / shards, machine.between.latency)
            waiting += _beside(own, hops(n // shards) * parts, across, backward, 1 / parts)
    memory = {
        "weights, gradients, Adam's moments": 4 * weights / shards,
        "teacher": work.held * WIDE / shards,
        "gathered": 0.0 if shards == 1 else 2 * work.block * NARROW,
        "activations": work.activations * work.batch,
        "similarities": 3.0 * work.rows**2 * work.batch**2 * n * WIDE,  # logits, their softmax and its gradient
    }
    return Step(compute, waiting, sent, memory)


def _of_the_loss(work: Work, machine: Machine, n: int) -> tuple[dict[str, float], float]:
    """Bytes and seconds of what the loss and BatchNorm need of all ranks, as `sslt/distributed.py` sends it."""
    link, waiting = machine.ring(n), 0.0
    sent: dict[str, float] = {}
    if n == 1:
        return sent, waiting
    if work.gathered:  # all rows to all, and the sum of all their gradients back
        rows = n * work.batch * work.gathered * WIDE
        sent["embeddings"] = all_gather(n, rows) + all_reduce(n, rows)
        waiting += seconds(sent["embeddings"], n - 1 + hops(n), link)
    if work.norms:  # mean, variance and count to all; two sums in float32 back
        moments = n * (2 * work.channels + work.norms) * work.moment
        sent["BatchNorm"] = all_gather(n, moments) + all_reduce(n, 2 * work.channels * WIDE)
        waiting += seconds(sent["BatchNorm"], (n - 1 + hops(n)) * work.norms, link)
        sent["buffers"] = (2 * work.channels * WIDE + work.norms * 8) * (n - 1) / n  # rank 0's, along the ring
        waiting += seconds(sent["buffers"], n - 1, link)
    if work.reduced:
        sent["centre"] = all_reduce(n, work.reduced * WIDE)
        waiting += seconds(sent["centre"], hops(n), link)
    return sent, waiting


def _beside(sent: float, messages: float, link: Link, compute: float, last: float) -> float:
    """Seconds that are waited for what is sent beside a computation: what takes longer than that, and at least the last part of it."""
    whole = seconds(sent, messages, link)
    return max(whole - compute, whole * min(1.0, last))
