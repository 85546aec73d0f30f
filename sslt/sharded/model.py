"""FSDP2 (Zhao et al., 2023; torch's `fully_shard`): weights, gradients and moments are spread, a block is whole while it computes.

What trains is a copy. The encoder and the objectives that everybody else knows stay plain modules, on the CPU where the training is on
GPUs, in memory that the ranks of a machine share (`shared.py`); before they are measured, and when training ends, they get the weights
(`Whole.fill`), tensor by tensor. So only training knows of shards, and a device has a whole encoder while it measures, without gradients
and moments.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sslt import distributed
from sslt.encoders.base import Encoder, blocks_of
from sslt.errors import UserError, nearest
from sslt.sharded.shared import Shared

STRATEGIES = ("ddp", "fsdp", "hsdp")
SETTING = "trainer.strategy"


def chosen(trainer: Any, number_format: str) -> bool:
    """Whether models are sharded: `trainer.strategy=` on several ranks. Raises `UserError` for one that there is not, or that cannot be."""
    name = trainer.get("strategy", "ddp")
    if name not in STRATEGIES:
        raise UserError(f"{SETTING}={name}: give one of {', '.join(STRATEGIES)}{nearest(str(name), STRATEGIES)}")
    if name != "hsdp" and trainer.get("shard_ranks") is not None:
        raise UserError(f"trainer.shard_ranks= says how many ranks share a copy with {SETTING}=hsdp; leave it out, or choose that")
    if name == "ddp" or distributed.world_size() == 1:
        return False
    if number_format.startswith("16"):
        raise UserError(f"trainer.precision={number_format} scales the loss, which {SETTING}={name} does not: choose bf16-mixed or 32")
    if tuple(int(x) for x in torch.__version__.split(".")[:2]) < (2, 9):
        raise UserError(f"{SETTING}={name} needs torch 2.9 or later, and this is {torch.__version__}: choose ddp")
    return True


def mesh_of(trainer: Any, accelerator: str) -> Any:
    """The ranks as a mesh: all in one row, or with `hsdp` a row for each copy, within which it is sharded."""
    from torch.distributed.device_mesh import init_device_mesh

    kind, world = "cuda" if accelerator == "gpu" else "cpu", distributed.world_size()
    if trainer.strategy == "fsdp":
        return init_device_mesh(kind, (world,), mesh_dim_names=("shard",))
    within = trainer.get("shard_ranks") or distributed.local_world_size()
    if within < 2 or world % within or world == within:
        raise UserError(
            f"{SETTING}=hsdp: {world} ranks make no several copies of {within} ranks each: set trainer.shard_ranks= to a number from 2 "
            f"that divides {world} and is less (null: the ranks of a machine), or choose fsdp"
        )
    return init_device_mesh(kind, (world // within, within), mesh_dim_names=("replicate", "shard"))


class Whole:
    """The encoder and the objectives of a run as all but its training see them, once in the memory of a machine. All ranks make it."""

    def __init__(self, encoder: Encoder, objectives: Mapping[str, nn.Module]):
        self.encoder, self.objectives = encoder, dict(objectives)
        self._shared = Shared(self._tensors())

    def _modules(self) -> tuple[nn.Module, ...]:
        return self.encoder, *self.objectives.values()

    def _tensors(self) -> Iterator[Tensor]:
        for module in self._modules():
            yield from (*module.parameters(), *module.buffers())

    def twins(self) -> tuple[Encoder, dict[str, nn.Module]]:
        """Copies to train, which share among them what these share; and the processors, which are read alone.

        The memory of parameters is that of these until they are sharded, so that nobody has two models.
        """
        encoders = {id(m): m for part in self._modules() for m in part.modules() if isinstance(m, Encoder)}
        known: dict[int, Any] = {id(m.processor): m.processor for m in encoders.values()}
        for p in self._tensors():
            if id(p) not in known and type(p) is nn.Parameter and self._shared.has(p):
                known[id(p)] = nn.Parameter(p.data, requires_grad=p.requires_grad)
                known[id(p)].__dict__.update(p.__dict__)
        return copy.deepcopy((self.encoder, self.objectives), known)

    @torch.no_grad()
    def fill(self, encoder: Encoder, objectives: Mapping[str, nn.Module]) -> None:
        """Take the weights and buffers of the copies. Every rank must call it."""
        distributed.barrier()  # who still reads those of before has to be done
        self._fill(self.encoder, encoder)
        for name, objective in self.objectives.items():
            self._fill(objective, objectives[name])
        self._shared.refresh()

    def leave(self) -> None:
        """Make room on the device, where nothing has changed since `fill`."""
        for x in self._tensors():
            if not self._shared.has(x):
                x.data = x.data.cpu()
        self._shared.back()

    def _fill(self, whole: nn.Module, sharded: nn.Module) -> None:
        into = {id(x) for x in (*whole.parameters(), *whole.buffers())}
        state, extra = sharded.state_dict(), {}
        for name, x in whole.state_dict(keep_vars=True).items():
            if not isinstance(x, Tensor):
                extra[name] = state[name]
            elif id(x) in into:  # a matrix that has two names comes once
                into.remove(id(x))
                found = full(state[name])
                if x.shape != found.shape:
                    self._shared.forget(x)
                    x.data = found.to(x.device)
                elif self._shared.has(x):
                    self._shared.write(x, found)
                else:
                    x.data.copy_(found)
        if extra:
            whole.load_state_dict(extra, strict=False)


def full(x: Tensor) -> Tensor:
    """All of a tensor that is spread over ranks, every one of which must ask; any other as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def part_of(x: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, where `like` is spread over ranks."""
    if not hasattr(like, "full_tensor") or hasattr(x, "full_tensor"):
        return x
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    device = like.to_local().device
    return distribute_tensor(x.to(device), like.device_mesh, like.placements, src_data_rank=None)


def shard(root: nn.Module, mesh: Any, entrance: str) -> None:
    """Spread the parameters below `root` over the ranks of `mesh`, on their devices.

    Every block of an encoder that has several is gathered when it computes and let go afterwards; what lies outside blocks (stems,
    embeddings, heads) is whole from the beginning of `root.<entrance>(…)` to the end of the backward pass.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if scalars := [name for name, p in root.named_parameters() if p.dim() == 0]:
        raise UserError(f"{SETTING}=: '{scalars[0]}' is a single number, which cannot be spread over ranks: choose ddp")
    for p in root.parameters():  # a convolution's can lie in another order, which a part could not
        p.data = p.data.contiguous()
    encoders = [m for m in root.modules() if isinstance(m, Encoder)]
    seen: set[int] = set()
    for block in blocks_of(e for e in encoders if e.depth > 1):
        if id(block) not in seen and any(True for _ in block.parameters()):
            seen.add(id(block))
            fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(root, entrance)
    for module in root.modules():  # what wants a gradient now is what can ever have one
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def copies(tensors: Iterable[Tensor]) -> int:
    """How many ranks hold the same parts: with `hsdp` one in every copy."""
    for x in tensors:
        if hasattr(x, "device_mesh"):
            mesh = x.device_mesh
            return mesh.shape[0] if mesh.ndim > 1 else 1
    return distributed.world_size()
