"""One stage in all processes that it takes: which devices there are, helper processes beside this one, and which of them failed first."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

from sslt.errors import RankLost, UserError, cause
from sslt.runs import Run, display, now

# Modules are looked for where rank 0 finds them: `-m` would begin with the working folder.
_WORKER = "import sys; sys.path[:] = {!r}; from sslt.worker import main; raise SystemExit(main())"
LEFT_ALONE = 3  # exit code of a rank that ends only because another did
_PATIENCE = 5.0  # seconds for rank 0 to fail by itself, when another rank has
_IMAGE_SIZES = {"cpu": 64, "gpu": 128}  # what max_image_size=auto stands for


def perform(verb: str, cfg: Any, run: Run) -> None:
    """Run a stage, with helper processes beside it when `trainer.devices` asks for them."""
    if "WORLD_SIZE" in os.environ and not {"RANK", "LOCAL_RANK"} & set(os.environ):
        raise UserError(
            f"the environment has WORLD_SIZE={os.environ['WORLD_SIZE']}, but no launcher's RANK: `unset WORLD_SIZE` (trainer.devices= says "
            f"how many processes there are), or start with torchrun"
        )
    world = devices(cfg.trainer)
    if world > 1 and "LOCAL_RANK" not in os.environ:
        with _workers(verb, cfg, run, world):
            stage(verb, cfg, run)
    else:
        stage(verb, cfg, run)


def stage(verb: str, cfg: Any, run: Run) -> None:
    """What every process of a run does."""
    quiet_libraries()
    import torch

    from sslt import distributed

    distributed.init(accelerator(cfg.trainer))
    torch.manual_seed(int(cfg.seed))
    if accelerator(cfg.trainer) == "gpu":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    try:
        importlib.import_module(f"sslt.stages.{verb}").main(cfg, run)
        distributed.barrier()
    finally:
        distributed.close()


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


@contextlib.contextmanager
def _workers(verb: str, cfg: Any, run: Run, world: int) -> Iterator[None]:
    """Start ranks 1…world-1 as processes of their own, and be rank 0.

    They get the composed config by a file, not by repeating the command line: so a sweep, a changed working folder or
    a time stamp in a path cannot make them do something else than rank 0.
    """
    from omegaconf import OmegaConf

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    if "OMP_NUM_THREADS" not in os.environ and accelerator(cfg.trainer) == "cpu":
        shared["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // world))
    (run / "logs").mkdir(exist_ok=True)
    handed = run / "logs" / "workers.yaml"
    handed.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    processes = []
    for r in range(1, world):
        with (run / "logs" / f"rank{r}.log").open("a") as out:
            env = {**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)}
            command = [sys.executable, "-c", _WORKER.format(sys.path), verb, str(handed), str(run.path.absolute())]
            processes.append(subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT))
    mine = {**shared, "RANK": "0", "LOCAL_RANK": "0"}
    old = {k: os.environ.get(k) for k in mine}
    os.environ.update(mine)
    if "OMP_NUM_THREADS" in shared:
        import torch

        torch.set_num_threads(int(shared["OMP_NUM_THREADS"]))
    done = threading.Event()
    threading.Thread(target=_watch, args=(processes, run, done), daemon=True).start()
    try:
        yield
        for p in processes:
            p.wait(60)
    except Exception as e:
        from sslt.distributed import connection_lost

        if not cause(e, connection_lost):
            raise
        given_up = time.monotonic() + _PATIENCE  # the one that failed may not have ended yet
        while (lost := _lost_rank(processes, run)) is None and time.monotonic() < given_up:
            time.sleep(0.1)
        raise lost or e from e
    finally:
        done.set()
        for p in processes:
            if p.poll() is None:
                p.kill()
            p.stdin.close()  # type: ignore[union-attr]
        for k, v in old.items():
            os.environ.pop(k, None)
            if v is not None:
                os.environ[k] = v


def _lost_rank(processes: list[subprocess.Popen], run: Run) -> UserError | RankLost | None:
    """What to say of the rank that ended in a way from which the others' ends follow; None where none did."""
    codes = {r: p.poll() for r, p in enumerate(processes, 1)}
    first = {r: code for r, code in codes.items() if code not in (None, 0, LEFT_ALONE)}
    if not first:
        return None
    r = min(first, key=lambda r: (first[r] != 2, first[r] > 0))  # a mistake, or killed, before what may come from it
    log_file = run / "logs" / f"rank{r}.log"
    said = [line.removeprefix("sslt: ") for line in log_file.read_text(errors="replace").splitlines() if line.startswith("sslt: ")]
    if first[r] == 2 and said:
        return UserError(said[-1])
    way = f"see {display(log_file)}; go on with: sslt {run.info.get('verb')} resume={run}"
    if first[r] < 0:
        why = ", perhaps because memory ran out" if first[r] == -signal.SIGKILL else ""
        return RankLost(f"rank {r} was ended by signal {-first[r]}{why}; {way}")
    return RankLost(f"rank {r} ended with code {first[r]}{f' ({said[-1]})' if said else ''}; {way}")


def _watch(processes: list[subprocess.Popen], run: Run, done: threading.Event) -> None:
    """If another rank fails, rank 0 may wait for it for ever, or work on for long: end it."""
    while not done.wait(0.2):
        if _lost_rank(processes, run) is not None:
            if done.wait(_PATIENCE):  # rank 0 usually fails by itself
                return
            lost = _lost_rank(processes, run)
            print(f"sslt: {lost}", file=sys.stderr, flush=True)
            for p in processes:
                p.kill()
            run.update(status="failed", error=f"{type(lost).__name__}: {lost}", ended=now())
            os._exit(2 if isinstance(lost, UserError) else 1)


def quiet_libraries() -> None:
    """What libraries say to their own developers is not for ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each of its retries without a network is a warning
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # Python processes that they start import nothing from the working folder
    logging.getLogger("timm").setLevel(logging.WARNING)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # what torchao does when transformers finds it
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # what torchao registers there
    for module in ("pytorch_lightning", "lightning_fabric", "torch", "timm", "transformers", "lightning_utilities"):
        warnings.filterwarnings("ignore", module=module)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
