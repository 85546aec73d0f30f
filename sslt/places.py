"""Who started this process: a person, or a launcher or scheduler that has started others like it for the same command.

With one that did, there are two kinds. **Ranks** (torchrun; `srun` with several tasks a node) are each what `trainer.devices` would have
started, and nothing more is to be started. **Nodes** (`trainer.num_nodes=` typed on each; `srun` with one task a node) each start the
ranks of their own machine. Of both the first alone reads the command line; the others do what it says (`handing.py`).
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import subprocess
from collections.abc import Mapping

from sslt.errors import UserError

PORTS = range(20000, 30000)  # of which a SLURM step takes one by its number, so that several on a machine do not meet
_AGENT = "TORCHELASTIC_RUN_ID"


@dataclasses.dataclass(frozen=True)
class Place:
    """One of `count` processes of a command, the `index`th, which find each other at `address`:`port`.

    nodes: each is a machine that starts its own ranks; otherwise each is a rank. environment: variables that a rank is told its
    place by, where its starter uses others than torch's.
    """

    index: int
    count: int
    address: str
    port: int
    nodes: bool
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def found(overrides: list[str], environ: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process by the command line and the environment; None where it is the only one.

    Raises `UserError` where these say half of it.
    """
    typed = {o.partition("=")[0].lstrip("+"): o.partition("=")[2] for o in overrides}
    step = _step(environ)
    if _AGENT not in environ and (typed.get("trainer.num_nodes", "1") != "1"):
        return _by_hand(typed, environ, step)
    if "WORLD_SIZE" in environ and ("RANK" in environ or "LOCAL_RANK" in environ):
        return _of_torch(environ)
    return step


def reachable(place: Place) -> Place:
    """The same place with an address that this machine knows: names of SLURM's nodes need not be those of their machines.

    Raises `UserError` where nobody knows any: torch would ask for a quarter of an hour.
    """
    if _known(place.address):
        return place
    address = _node_address(place.address)
    if address is None or not _known(address):
        way = "give it by trainer.address=HOST:PORT" if place.nodes else "MASTER_ADDR and SLURM's NodeAddr are where it is looked for"
        raise UserError(f"this command's first process is on {place.address}, but this machine knows no address of that name: {way}")
    told = {**place.environment, **({"MASTER_ADDR": address} if "MASTER_ADDR" in place.environment else {})}
    return dataclasses.replace(place, address=address, environment=told)


def _known(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except (OSError, UnicodeError):
        return False


def _node_address(node: str) -> str | None:
    """What SLURM reaches a node at; None where it is not asked or says nothing."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    try:
        done = subprocess.run(["scontrol", "show", "node", "-o", node], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    m = re.search(r"\bNodeAddr=(\S+)", done.stdout)
    return m[1] if m else None


def _of_torch(environ: Mapping[str, str]) -> Place | None:
    """torchrun's ranks, or those of anything that sets torch's variables."""
    rank, world = _number(environ, "RANK" if "RANK" in environ else "LOCAL_RANK", 0), _number(environ, "WORLD_SIZE", 1)
    if world == 1:
        return None
    if rank >= world:
        raise UserError(f"the environment has RANK={rank} of WORLD_SIZE={world}: ranks are counted from 0; start with torchrun")
    if lacking := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]:
        raise UserError(f"the environment has RANK and WORLD_SIZE={world}, but no {lacking[0]}: unset them, or start with torchrun")
    told = {"RANK": str(rank)}
    return Place(rank, world, environ["MASTER_ADDR"], _number(environ, "MASTER_PORT", 1), nodes=False, environment=told)


def _by_hand(typed: dict[str, str], environ: Mapping[str, str], step: Place | None) -> Place | None:
    """The node that `trainer.num_nodes=`, `trainer.address=` and `trainer.node=` say; a scheduler knows the last two by itself."""
    count = _typed(typed, "trainer.num_nodes", 1)
    if count == 1:
        return None
    if step is not None and not step.nodes:
        raise UserError(f"trainer.num_nodes={count} starts the ranks of each node, but srun started {step.count} tasks: start one a node")
    host, _, port = typed.get("trainer.address", f"{step.address}:{step.port}" if step else "").rpartition(":")
    if not host or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65536:
        raise UserError(
            f"trainer.num_nodes={count} needs trainer.address=HOST:PORT, where node 0 can be reached by the others, a free port of it"
        )
    if "trainer.node" not in typed and step is None:
        raise UserError(f"trainer.num_nodes={count}: say which one this is: trainer.node=0 at trainer.address, then 1 … {count - 1}")
    index = _typed(typed, "trainer.node", 0) if "trainer.node" in typed else step.index if step else 0
    if index >= count:
        raise UserError(f"trainer.node={index}: with trainer.num_nodes={count} they are 0 … {count - 1}")
    return Place(index, count, host.strip("[]"), int(port), nodes=True)


def _step(environ: Mapping[str, str]) -> Place | None:
    """What `srun` says: a rank where a node has several tasks, otherwise a node."""
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        return None
    tasks, nodes = _number(environ, "SLURM_STEP_NUM_TASKS", 1), _number(environ, "SLURM_STEP_NUM_NODES", 1)
    if tasks == 1:
        return None
    names = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    address = first_host(names)
    number = 101 * _number(environ, "SLURM_JOB_ID", 0) + _number(environ, "SLURM_STEP_ID", 0)
    port = PORTS[number % len(PORTS)]
    index = _number(environ, "SLURM_PROCID", 0)
    if tasks == nodes:
        return Place(index, tasks, address, port, nodes=True)
    if tasks % nodes:
        raise UserError(f"srun started {tasks} tasks on {nodes} nodes: give each as many, --ntasks-per-node=")
    told = {
        "RANK": str(index),
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": environ.get("SLURM_LOCALID", str(index % (tasks // nodes))),
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "GROUP_RANK": environ.get("SLURM_NODEID", str(index // (tasks // nodes))),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    return Place(index, tasks, address, port, nodes=False, environment=told)


def first_host(names: str) -> str:
    """The first of SLURM's list of hosts: `gpu[003-007,12],login1` → gpu003."""
    m = re.match(r"([^\[,]*)(?:\[(\d+)[^\]]*\])?([^,\[]*)", names)
    return "".join(part or "" for part in m.groups()) if m else names


def restarted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether an agent or a scheduler has started this command before and starts it again, to go on."""
    counts = (environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count not in ("", "0") for count in counts)


def job(environ: Mapping[str, str] = os.environ) -> str | None:
    """What a command that is started again has in common with its former start; None where nobody would start it again."""
    if "SLURM_JOB_ID" in environ:
        return f"slurm {environ['SLURM_JOB_ID']}"
    if _AGENT in environ and environ.get("MASTER_PORT"):
        return f"torchrun {environ[_AGENT]} {environ.get('MASTER_ADDR')}:{environ['MASTER_PORT']}"
    return None


def _number(environ: Mapping[str, str], name: str, least: int) -> int:
    try:
        n = int(environ.get(name, "1" if least else "0"))
    except ValueError:
        n = least - 1
    if n < least:
        raise UserError(f"the environment has {name}={environ[name]!a}, which is no number from {least}: unset it, or start with torchrun")
    return n


def _typed(typed: dict[str, str], name: str, least: int) -> int:
    if not re.fullmatch(r"\d{1,6}", typed[name]) or int(typed[name]) < least:
        raise UserError(f"{name}={typed[name]}: give a whole number, {least} or more")
    return int(typed[name])
