"""Several processes as one: start-up, gathers that carry gradients, BatchNorm over all ranks.

With one process every function here is the identity, so that callers need no branch.
"""

from __future__ import annotations

import datetime
import os
import re
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sslt.errors import UserError
from sslt.modules import of_kind, replaced

PATIENCE = 600  # seconds in which the tensors of a step have to come: a node that is gone is noticed after it
ARRIVAL = datetime.timedelta(minutes=15)  # in which all processes of a command have to be there
LONG = datetime.timedelta(hours=12)  # for which ranks wait while rank 0 prepares data or fits probes
_patient: Any = None  # the process group with which they do
_meeting: Any = None
_joined = 0


def patience() -> datetime.timedelta:
    """$SSLT_PATIENCE in seconds, or `PATIENCE`. Raises `UserError` for what is no number of seconds."""
    said = os.environ.get("SSLT_PATIENCE") or str(PATIENCE)
    try:
        found = float(said)
    except ValueError:
        found = 0
    if not 1 <= found <= LONG.total_seconds():  # no NaN either
        raise UserError(f"the environment has SSLT_PATIENCE={said!a}: give seconds, from 1 to {LONG.total_seconds():g}")
    return datetime.timedelta(seconds=found)


def active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def local_world_size() -> int:
    """How many of the ranks are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if active() else 1


def meeting() -> dist.Store:
    """The store by which ranks find each other, at MASTER_ADDR:MASTER_PORT: the agent's where that has one, otherwise rank 0's own.

    What is written there is of this attempt: ranks that an agent has started anew see nothing of those before.
    """
    global _meeting
    if _meeting is None:
        hosts = os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        place = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*place, is_master=hosts, timeout=ARRIVAL, wait_for_workers=False)
        store.set_timeout(LONG)
        _meeting = dist.PrefixStore(f"sslt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return _meeting


def own_store() -> dist.Store:
    """A connection of its own to `meeting()`, for a thread; what is written there is of the process groups that are joined now."""
    place = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=False, timeout=ARRIVAL, wait_for_workers=False)
    return dist.PrefixStore(f"sslt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/of_group{_joined}", store)


def init(accelerator: str) -> bool:
    """Join the process groups that the environment describes (WORLD_SIZE, RANK or LOCAL_RANK), if it does; returns whether it did now.

    There are two: the default one for tensors of a step (NCCL on GPUs), in which nobody waits for longer than `patience()`, so that a
    node that is gone is noticed; and one of gloo for flags, objects and waiting while rank 0 prepares data or fits probes.
    """
    global _patient, _joined
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world <= 1 or dist.is_initialized():
        return False
    os.environ.setdefault("RANK", os.environ.get("LOCAL_RANK", "0"))
    if accelerator == "gpu":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    _joined += 1  # a command may do so several times, by the same store
    store = dist.PrefixStore(f"group{_joined}", meeting())
    backend = "nccl" if accelerator == "gpu" else "gloo"
    dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=world, timeout=patience())
    _patient = dist.new_group(backend="gloo", timeout=LONG)
    return True


def close() -> None:
    """Leave the process groups."""
    global _patient
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    _patient = None


def patient() -> Any:
    """The group whose ranks wait for each other for as long as it takes; None in one process."""
    return _patient


def local(x: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the tensor's own memory: its part of one that is sharded, all of any other."""
    found: Any = x
    return found.detach().to_local() if hasattr(x, "to_local") else x


def barrier() -> None:
    """Wait for all ranks, for as long as it takes."""
    if active():
        dist.barrier(_patient)


def connection_lost(e: BaseException) -> bool:
    """Whether an error says that another rank is gone: gloo's are plain RuntimeErrors, known by their words."""
    words = r"gloo|NCCL|Connection (closed|reset)|Broken pipe"
    return isinstance(e, dist.DistError) or (isinstance(e, RuntimeError) and re.search(words, str(e)) is not None)


def gather_objects(value: Any) -> list[Any]:
    """The `value` of every rank, in rank order."""
    if not active():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, _patient)
    return found


def largest(values: list[float]) -> list[float]:
    """Each value's largest over all ranks. It goes by the CPU, so that no GPU is waited for."""
    if not active():
        return values
    t = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(t, dist.ReduceOp.MAX, _patient)
    return t.tolist()


def any_rank(flags: list[bool]) -> list[bool]:
    """For each flag, whether it is true on some rank."""
    return [bool(x) for x in largest([float(f) for f in flags])]


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, group=_patient)
    return box[0]


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum over ranks, without gradient."""
    if active():
        dist.all_reduce(x := x.detach().clone())
    return x


def gather_rows(x: Tensor, by_turns: bool = False) -> Tensor:
    """Rows [N_r, ...] of all ranks in rank order, [ΣN_r, ...]; ranks may hold different numbers; no gradient.

    by_turns: each rank's first row, then each one's second, ...: as they stand in the joint batch, whose row j is of rank j mod W.
    """
    if not active():
        return x
    counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    sizes = [int(c) for c in counts]
    padded = x.new_zeros((max(sizes), *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    joined = torch.cat([p[:n] for p, n in zip(parts, sizes, strict=True)])
    if by_turns:
        turn = torch.cat([torch.arange(n) for n in sizes]).to(x.device)
        joined = joined[turn.argsort(stable=True)]
    return joined


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)  # every rank's loss depends on these rows
        return grad.chunk(world_size())[rank()]


class _SumWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dist.all_reduce(out := x.detach().clone())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        dist.all_reduce(grad := grads[0].contiguous().clone())
        return grad


def gather(x: Tensor) -> Tensor:
    """Equal-sized batches [B, ...] of all ranks in rank order, [W·B, ...], with gradient to every rank.

    When each rank's loss is the mean over its own B rows and DDP averages gradients over ranks, the result is the
    gradient of the mean over all W·B rows.
    """
    return cast(Tensor, _GatherWithGradient.apply(x)) if active() else x


def all_sum(x: Tensor) -> Tensor:
    """The sum over ranks, with gradient."""
    return cast(Tensor, _SumWithGradient.apply(x)) if active() else x


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean over the rows [N, ...] of all ranks, as many on each, with gradient."""
    return all_sum(x.mean(0)) / world_size()


def alike_buffers(module: nn.Module) -> list[str]:
    """Names of the buffers that parts of `module` with `alike_on_ranks = True` hold themselves.

    Every rank computes the same ones, so that DDP need not send rank 0's before each step: the memory of a large data set is gigabytes.
    """
    holders = [(name, m) for name, m in module.named_modules() if getattr(m, "alike_on_ranks", False)]
    return [f"{name}.{own}" if name else own for name, m in holders for own, _ in m.named_buffers(recurse=False)]


class _JointBatchNorm(torch.autograd.Function):
    """BatchNorm by the statistics of all ranks' rows: x [N_r, C, ...], mean and var [C] of all, n of them a channel.

    With x̂ = (x - mean) / √(var + eps), the gradient is that of the joined batch (Ioffe & Szegedy, 2015):
    dx = weight / √(var + eps) · (dy - Σdy / n - x̂ · Σdy·x̂ / n), sums over all ranks; those of weight and bias are of this rank's rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, n: float, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.n, ctx.eps = n, eps
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0] if x.numel() else x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, mean, var = ctx.saved_tensors
        ones = torch.ones_like(mean) if weight is None else weight
        dx, own_weight, own_bias = None, torch.zeros_like(mean), torch.zeros_like(mean)
        if x.numel():  # with fixed statistics these are the sums, in one pass
            _, own_weight, own_bias = torch.ops.aten.native_batch_norm_backward(
                dy, x, ones, mean, var, None, None, False, ctx.eps, [False, True, True]
            )
        if ctx.needs_input_grad[0]:
            dist.all_reduce(sums := torch.stack([own_bias, own_weight]).to(mean.dtype))
            scale = ones * torch.rsqrt(var + ctx.eps)
            dx = dy
            if x.numel():  # of the maps, the last two terms are a normalisation with another weight and bias
                dx = torch.native_batch_norm(x, -scale * sums[1] / ctx.n, -scale * sums[0] / ctx.n, mean, var, False, 0.0, ctx.eps)[0]
                if x.dtype == mean.dtype:
                    dx.addcmul_(dy, scale.view(1, -1, *([1] * (x.dim() - 2))))
                else:  # maps and channels of two formats are multiplied slowly, except by this
                    nothing = torch.zeros_like(mean)
                    dx.add_(torch.native_batch_norm(dy, scale, None, nothing, nothing + 1, False, 0.0, 0.0)[0])
        return dx, None if weight is None else own_weight, None if weight is None else own_bias, None, None, None, None


def _moments(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and variance [C] over the rows of all ranks, x [N_r, C, ...], and how many numbers of a channel there are.

    Each rank's own are merged (Chan et al., 1979), so that nothing is lost by cancellation. In float32 at least.
    """
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    own = torch.zeros(2 * x.shape[1] + 1, dtype=torch.float64, device=x.device)
    if x.numel():
        n = x.numel() / x.shape[1]
        unused = torch.zeros(x.shape[1], dtype=wide, device=x.device)  # has the result wide, whatever x is
        mean, var = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
        own = torch.cat([mean.double(), var.double() * n, own.new_tensor([n])])
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    means, squares, counts = torch.stack(parts).split([x.shape[1], x.shape[1], 1], 1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    var = (squares.sum(0) + (counts * (means - mean) ** 2).sum(0)) / total
    return mean.to(wide), var.to(wide), float(total)


class CrossRankBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose batch is that of all ranks, on any device; ranks may hold different numbers of rows.

    torch's SyncBatchNorm refuses CPU tensors; this one needs only `all_gather` and `all_reduce`, one of each a step, and the passes over
    the maps are those of torch's own BatchNorm. It cannot be differentiated twice.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and active()):
            return super().forward(input)
        self._check_input_dim(input)
        with torch.no_grad():
            mean, var, n = _moments(input.detach())
            if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                m = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), m)
                self.running_var.lerp_((var * n / (n - 1)).to(self.running_var.dtype), m)
        return cast(Tensor, _JointBatchNorm.apply(input, self.weight, self.bias, mean, var, n, self.eps))


def span_batch_norm(module: nn.Module) -> nn.Module:
    """Make every BatchNorm inside `module` one over all ranks, with its parameters, buffers and hooks; returns it, or what takes its place.

    Raises `UserError` for a subclass that does more than normalise (timm's BatchNormAct2d).
    """

    def spanning(m: nn.Module) -> nn.Module:
        if not isinstance(m, nn.modules.batchnorm._BatchNorm) or isinstance(m, CrossRankBatchNorm):
            return m
        if type(m) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            raise UserError(f"{type(m).__name__} cannot span ranks on a CPU; set trainer.sync_batchnorm=false")
        return of_kind(m, CrossRankBatchNorm)

    return replaced(module, spanning)
