"""One stage in all processes that it takes, and which devices there are."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings
from typing import Any

from sslt import ends, handing, heartbeat, machine
from sslt.errors import UserError, cause
from sslt.runs import Run, now

log = logging.getLogger("sslt")
_PER_RANK = ("batch_size", "batch_tokens", "episodes.training.per_step")  # of which a step has as many times more as there are ranks
_IMAGE_SIZES = {"cpu": 64, "gpu": 128}  # what max_image_size=auto stands for


def perform(verb: str, cfg: Any, run: Run) -> None:
    """Run a stage in all processes that it takes: those that somebody else has started, or those that `trainer.devices` asks for."""
    if "WORLD_SIZE" in os.environ and not {"RANK", "LOCAL_RANK"} & set(os.environ):
        raise UserError(
            f"the environment has WORLD_SIZE={os.environ['WORLD_SIZE']}, but no launcher's RANK: `unset WORLD_SIZE` (trainer.devices= says "
            f"how many processes there are), or start with torchrun"
        )
    first = handing.leader()
    if first is not None and not first.place.nodes:
        _among_ranks(verb, cfg, run, first)
        return
    if first is None and int(cfg.trainer.get("num_nodes") or 1) > 1 and "LOCAL_RANK" not in os.environ:
        raise UserError(
            f"trainer.num_nodes={cfg.trainer.num_nodes}: type trainer.num_nodes= and trainer.address=HOST:PORT on every node, and "
            f"trainer.node=0, 1, … on each; or trainer.num_nodes=1"
        )
    world = devices(cfg.trainer)
    if first is not None:
        from sslt.launch import free_port, launch_or_raise

        first.await_all()
        first.hand(verb, cfg, run, devices=world, port=(port := free_port()))
        launch_or_raise(verb, cfg, run, world, first.place, port)
    elif world > 1 and "LOCAL_RANK" not in os.environ:
        from sslt.launch import launch_or_raise

        launch_or_raise(verb, cfg, run, world)
    else:
        stage(verb, cfg, run)


def _among_ranks(verb: str, cfg: Any, run: Run, first: handing.Leader) -> None:
    """Be rank 0 of those that a launcher has started."""
    (run / "logs").mkdir(parents=True, exist_ok=True)
    ends.forget(run)
    first.hand(verb, cfg, run)
    try:
        stage(verb, cfg, run)
    except Exception as e:
        from sslt.distributed import connection_lost

        if not cause(e, connection_lost):
            raise
        raise ends.settled(run, first.place.count, {0: ends.LEFT_ALONE}) or e from e
    ends.forget(run)


def stage(verb: str, cfg: Any, run: Run) -> None:
    """What every process of a run does."""
    quiet_libraries()
    import torch

    from sslt import distributed

    own = importlib.import_module(f"sslt.stages.{verb}")
    machine.collect_as_usual()
    joined = distributed.init(accelerator(cfg.trainer))
    torch.manual_seed(int(cfg.seed))
    if accelerator(cfg.trainer) == "gpu":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    seconds = distributed.patience().total_seconds()
    try:
        with heartbeat.beating(distributed.own_store, seconds, lambda node: _silent(run, node, seconds)):
            if "strategy" in cfg.trainer:
                keep_steps(cfg, run)
            own.main(cfg, run)
            distributed.barrier()
    finally:
        if joined:
            distributed.close()


def keep_steps(cfg: Any, run: Run) -> None:
    """Have a run that other ranks go on with make steps of as many samples as it began with: `batch_size` is of one rank, and changes.

    Another one than the run began with was typed for these ranks, and is taken as it is. `trainer.lanes` becomes what the run began with;
    where the ranks there are do not divide it, as many as there are ranks. Raises `UserError` for lanes that these cannot be.
    """
    from omegaconf import OmegaConf

    from sslt import distributed

    sizes = {key: value for key in _PER_RANK if (value := OmegaConf.select(cfg, key)) is not None}
    world, before = distributed.world_size(), distributed.broadcast_object(run.info.get("step") if distributed.rank() == 0 else None)
    typed = cfg.trainer.get("lanes")
    if not isinstance(before, dict):  # it begins, or is of a version that did not note it
        if typed is not None and (typed < 1 or typed % world):
            raise UserError(f"trainer.lanes={typed} cannot be shared by {world} rank{'s' * (world > 1)}: give a multiple of {world}")
        OmegaConf.update(cfg, "trainer.lanes", typed or world, force_add=True)
        run.update(step={"ranks": world, "lanes": typed or world, **sizes})
        return
    ranks = before.get("ranks")
    if not isinstance(ranks, int) or ranks < 1:
        return
    lanes = before.get("lanes", ranks)  # before there were lanes, what was random belonged to ranks
    if typed not in (None, lanes):
        raise UserError(f"trainer.lanes={typed}: the run began with {lanes}, which its random numbers belong to; leave it out")
    fits = isinstance(lanes, int) and lanes > 0 and lanes % world == 0
    OmegaConf.update(cfg, "trainer.lanes", lanes if fits else world, force_add=True)
    if not fits:
        log.info("%d rank%s cannot share the run's %s lanes evenly: views and dropout are drawn anew", world, "s" * (world > 1), lanes)
    if ranks == world:
        return
    for key, size in sizes.items():
        if isinstance(size, int) and before.get(key) == size:
            OmegaConf.update(cfg, key, new := max(round(size * ranks / world), 1))
            log.info("%s=%d on %d rank%s was %d on %d: a step has as many samples", key, new, world, "s" * (world > 1), size, ranks)


def _silent(run: Run, node: int, seconds: float) -> None:
    """End this process, from a thread, because a node has not answered; what waits for it cannot be called back."""
    text = ends.note_silent(run, node, seconds)
    first = handing.leader()
    tells = first is not None and not first.place.nodes  # otherwise who has started this rank says what it leaves
    if tells:
        with contextlib.suppress(OSError):
            run.update(status="failed", error=text, ended=now())
        os.write(2, f"sslt: {text}\n".encode())
    os._exit(1 if tells else ends.LEFT_ALONE)


def accelerator(trainer: Any) -> str:
    """ "gpu" or "cpu", "auto" resolved."""
    name = str(trainer.accelerator)
    if name not in ("auto", "cpu", "gpu", "cuda"):
        raise UserError(f"trainer.accelerator={name}: sslt trains on cpu or gpu (auto takes a gpu where there is one)")
    if name == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "gpu"
    if name == "auto":
        return "cpu"
    raise UserError(f"trainer.accelerator={name}: torch finds no GPU on this machine; set trainer.accelerator=cpu")


def devices(trainer: Any) -> int:
    """How many processes train: `trainer.devices`, where auto is every GPU, or one process on a CPU."""
    wanted = trainer.devices
    if wanted == "auto" or wanted == -1:
        if accelerator(trainer) == "cpu":
            return 1
        import torch

        return torch.cuda.device_count()
    try:
        n = int(wanted)
    except (TypeError, ValueError):
        n = 0
    if n < 1:
        raise UserError(f"trainer.devices={wanted}: give a number of devices, or auto")
    if n > 1 and accelerator(trainer) == "gpu":
        import torch

        if n > torch.cuda.device_count():
            raise UserError(f"trainer.devices={n}, but this machine has {torch.cuda.device_count()} GPUs")
    return n


def settle(cfg: Any, run: Run) -> None:
    """Write down what `auto` stands for where a run must stay the same on another machine."""
    if cfg.get("max_image_size") == "auto":
        before = run.config.get("max_image_size") if run.info else None
        cfg.max_image_size = before or image_size(cfg)


def image_size(cfg: Any) -> Any:
    """`max_image_size`, resolved."""
    return _IMAGE_SIZES[accelerator(cfg.trainer)] if cfg.max_image_size == "auto" else cfg.max_image_size


def quiet_libraries() -> None:
    """What libraries say to their own developers is not for ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each of its retries without a network is a warning
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # Python processes that they start import nothing from the working folder
    logging.getLogger("timm").setLevel(logging.WARNING)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # what torchao does when transformers finds it
    for module in ("pytorch_lightning", "lightning_fabric", "torch", "timm", "transformers", "lightning_utilities"):
        warnings.filterwarnings("ignore", module=module)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
