"""A small SLURM on this machine, in a folder of its own: two nodes, a partition that is preempted and one that preempts it.

    python scripts/cluster/slurm.py start        # says what it lacks; --install has apt install it
    source .slurm/env                            # from here on sinfo, srun, sbatch and scancel mean this cluster
    srun -N2 --ntasks-per-node=1 sslt pretrain +task=simclr data=digits
    python scripts/cluster/slurm.py stop

It is real: munged, slurmctld and two slurmd under names and ports of their own. Nothing of the system's configuration is read or
written, and no service is started. It needs root, since slurmd starts the processes of a job as their user. Both nodes are this machine,
with as many CPUs as are asked for by --cpus, whether there are as many or not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "srun", "sbatch", "scontrol", "scancel")
PACKAGES = ("slurm-wlm", "munge")  # Debian's and Ubuntu's
FOLDER, NODES = ".slurm", ("node1", "node2")
SOON = 60  # seconds for the nodes to be idle

CONFIG = """\
ClusterName=small
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmUser=root
AuthType=auth/munge
# a requeued job waits for as long as its credentials hold, two minutes by default
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue}
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
# more CPUs than there are
SlurmdParameters=config_overrides
# no cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait={killwait}
{nodes}
PartitionName=low Nodes={names} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes={names} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class Lacking(Exception):
    """Why the cluster cannot be there, in one line."""


def lacking(install: bool = False) -> str | None:
    """What this machine lacks for a cluster, in words; None where it has all. install: have apt install the packages first."""
    if not sys.platform.startswith("linux") or os.geteuid():
        return "a small SLURM needs Linux and root: slurmd starts the processes of a job as their user"
    if (missing := _missing()) and install:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
            if subprocess.run(command, env=quiet, stdout=subprocess.DEVNULL).returncode:
                return f"`{' '.join(command)}` failed"
        missing = _missing()
    return f"no {', '.join(missing)} here: `apt-get install {' '.join(PACKAGES)}`, or start with --install" if missing else None


def start(folder: Path, cpus: int = 4, grace: int = 120, killwait: int = 30, requeue: int = 10) -> dict[str, str]:
    """Start a cluster in `folder`, which is made; returns the variables by which SLURM's commands find it. Raises `Lacking`.

    cpus: of each node. grace: seconds between the TERM of a job that is preempted and its end. killwait: between the TERM of one whose
    time is up and its KILL. requeue: for which a requeued job waits.
    """
    if reason := lacking():
        raise Lacking(reason)
    folder = folder.absolute()
    if _alive(folder):
        raise Lacking(f"a cluster runs in {folder} already: `stop` it first")
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("", "state", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir(mode=0o755, parents=True)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    controller, *ports = _free_ports(1 + len(NODES))
    host = socket.gethostname().partition(".")[0]
    nodes = [f"NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={p} CPUs={cpus}" for n, p in zip(NODES, ports, strict=True)]
    told = {"folder": folder, "host": host, "controller": controller, "requeue": requeue, "grace": grace, "killwait": killwait}
    (folder / "slurm.conf").write_text(CONFIG.format(nodes="\n".join(nodes), names=",".join(NODES), **told))
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    (folder / "env").write_text(f"export SLURM_CONF={folder}/slurm.conf\n")
    own = {**_environment(), **environment}
    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    try:  # --force: the folders above may be writable by others, as /tmp is
        _run(["munged", "--force", *(f"--{option}={folder}/munge.{name}" for option, name in munge.items())], own)
        _run(["slurmctld"], own)
        for node in NODES:
            _run(["slurmd", "-N", node], own)
        until = time.monotonic() + SOON
        while _run(["sinfo", "-h", "-N", "-p", "low", "-o", "%t"], own, check=False).split() != ["idle"] * len(NODES):
            if time.monotonic() > until:
                raise Lacking(f"the nodes are not idle after {SOON} s: see {folder}/*.log")
            time.sleep(0.5)
    except BaseException:
        stop(folder, keep=True)
        raise
    return environment


def stop(folder: Path, keep: bool = False) -> None:
    """End a cluster and all its jobs, and remove its folder. keep: leave that, and its logs."""
    folder = folder.absolute()
    own = {**_environment(), "SLURM_CONF": str(folder / "slurm.conf")}
    if "slurmctld" in _alive(folder):
        end_jobs(own)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _alive(folder).values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + 10
        while _alive(folder) and time.monotonic() < until:
            time.sleep(0.1)
    if not keep and (folder / "slurm.conf").exists():
        shutil.rmtree(folder)


def end_jobs(env: dict[str, str]) -> None:
    """End all jobs at once: KILL to every process of them, since what saves first may take long."""
    env = {**_environment(), **env}
    until = time.monotonic() + 15
    while (jobs := _run(["squeue", "-h", "-o", "%A"], env, check=False).split()) and time.monotonic() < until:
        _run(["scancel", "--full", "--signal=KILL", *jobs], env, check=False)
        _run(["scancel", *jobs], env, check=False)
        time.sleep(0.3)


def _missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=_environment()["PATH"]) is None]


def _environment() -> dict[str, str]:
    """This process's, without what another cluster has set, and with the folders of daemons, which a user's PATH may lack."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    return {**own, "PATH": os.pathsep.join(filter(None, [own.get("PATH"), "/usr/sbin", "/sbin"]))}


def _alive(folder: Path) -> dict[str, int]:
    """Process ids of the cluster's programs that run, by the files that they left: a number that another program has now is none."""
    found = {}
    for path in sorted(folder.glob("*.pid"), reverse=True):  # slurmd, slurmctld, then munged, by which they speak
        name = path.stem
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            program = {"munge": "munged"}.get(name, name.partition(".")[0])
            if Path(f"/proc/{pid}/comm").read_text().strip() == program and not _zombie(pid):
                found[name] = pid
    return found


def _zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("", 0))
        return [s.getsockname()[1] for s in sockets]


def _run(command: list[str], env: dict[str, str], check: bool = True) -> str:
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        raise Lacking(f"`{' '.join(command)}` ended with code {done.returncode}: {done.stderr.strip()[:300]}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("start", "stop"))
    parser.add_argument("folder", nargs="?", type=Path, default=Path(FOLDER))
    parser.add_argument("--install", action="store_true", help=f"have apt install {' and '.join(PACKAGES)} where they are missing")
    parser.add_argument("--cpus", type=int, default=4, help="of each node")
    args = parser.parse_args()
    try:
        if args.what == "stop":
            stop(args.folder)
        else:
            if reason := lacking(args.install):
                raise Lacking(reason)
            start(args.folder, args.cpus)
            print(f"two nodes are idle: `source {args.folder}/env`, then sinfo, srun, sbatch; `{parser.prog} stop {args.folder}` ends them")
    except Lacking as e:
        print(f"{parser.prog}: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
