"""Starting the ranks of this machine: torch's elastic agent does it, for one machine and for several, and says how each ended.

The process that a user has typed is the agent; every rank, 0 too, is a program of its own (`worker.py`) in a session of its own, so that
Ctrl-C comes to the agent alone, which passes it on. Ranks get the composed config by a file, not by repeating the command line: so a
sweep, a changed working folder or a time stamp in a path cannot make them do something else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

from sslt import ends, signals
from sslt.errors import INTERRUPTED, MISTAKE, RankLost, UserError
from sslt.places import Place
from sslt.runs import Run

# Modules are looked for where this process finds them: `-m` would begin with the working folder.
_WORKER = "import os, sys; sys.path[:] = os.environ['SSLT_PATH'].split(os.pathsep); from sslt.worker import main; raise SystemExit(main())"
SAVING = 600  # seconds that ranks have to save, once a signal has come
_LOCAL = "127.0.0.1"  # a machine's own name may lead elsewhere, or nowhere


def launch_or_raise(verb: str, cfg: Any, run: Run, devices: int, place: Place | None = None, port: int = 0) -> None:
    """Run a stage in `devices` processes of this machine, and of all nodes of `place`, which meet at `port` of the first.

    Raises what is to be told of ranks that did not end well: `UserError`, `RankLost`, `signals.Interrupted`, `signals.Stopped`.
    """
    from omegaconf import OmegaConf

    nodes, node = (place.count, place.index) if place else (1, 0)
    (run / "logs").mkdir(parents=True, exist_ok=True)
    handed = run / "logs" / "workers.yaml"
    if node == 0:
        ends.forget(run)
        handed.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    told = {"SSLT_PATH": os.pathsep.join(sys.path), "SSLT_RUN": json.dumps([verb, str(handed), str(run.path.absolute())])}
    if "OMP_NUM_THREADS" not in os.environ and str(cfg.trainer.accelerator) != "gpu":
        told["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // devices))
    if place and (name := _interface(place)):
        told["GLOO_SOCKET_IFNAME"] = name
    sys.stdout.flush()
    first = node * devices
    with _environment(told):
        codes, came = _agent(devices, nodes, node, f"{place.address}:{port}" if place else f"{_LOCAL}:0", run)
    found = ends.settled(run, nodes * devices, {first + r: code for r, code in codes.items()}, came, node)
    if found is not None and place and isinstance(found, RankLost):
        found = RankLost(f"node {node} ({socket.gethostname()}): {found}")
    if found is not None:
        raise found
    if node == 0:
        ends.forget(run)


def launch(verb: str, cfg: Any, run: Run, devices: int, place: Place, port: int) -> int:
    """`launch_or_raise` on another than the first node, which tells the rest; returns the exit code."""
    from sslt.data import cache

    cache.set_cache_dir(cfg.cache_dir, cfg.get("shards"))
    try:
        launch_or_raise(verb, cfg, run, devices, place, port)
    except UserError:
        return MISTAKE  # the first node says it
    except RankLost as e:
        print(f"sslt: {e}", file=sys.stderr)
        return 1
    except (signals.Interrupted, signals.Stopped):
        return INTERRUPTED
    return 0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


def _agent(devices: int, nodes: int, node: int, endpoint: str, run: Run) -> tuple[dict[int, int], int | None]:
    """Start the ranks and wait for them: exit codes of those that failed, first to end first, and a signal that came meanwhile."""
    from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    class OwnLogs(LogsSpecs):
        """Ranks write where they want to: the first of all to the terminal, the others to logs/rankR.log."""

        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            for environment in envs.values():
                environment["TORCHELASTIC_ERROR_FILE"] = ""
            nowhere = dict.fromkeys(envs, "")
            return LogsDest(nowhere, dict(nowhere), {}, {}, dict(nowhere))

        @property
        def root_log_dir(self) -> str:
            return ""

    for name in list(logging.root.manager.loggerDict):  # what it tells its developers
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    own: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_configs": {"is_host": True}}
    if nodes > 1:  # whose places are known, and are to stay
        own = {"rdzv_backend": "static", "rdzv_configs": {"rank": node, "timeout": 900}}
    if "shutdown_timeout" in LaunchConfig.__dataclass_fields__:
        own["shutdown_timeout"] = SAVING
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=devices,
        run_id="sslt",
        rdzv_endpoint=endpoint,
        local_addr=_LOCAL if nodes == 1 else endpoint.rpartition(":")[0],
        max_restarts=0,
        logs_specs=OwnLogs(),
        signals_to_handle="",  # they are ours
        **own,
    )
    with _gone_is_closed(), _Passing(run, range(node * devices, (node + 1) * devices), SignalException) as watch:
        try:
            elastic_launch(config, sys.executable)("-c", _WORKER)
        except ChildFailedError as e:
            failed = sorted(e.failures.values(), key=lambda f: f.timestamp)
            return {f.local_rank: f.exitcode for f in failed}, watch.came
        except SignalException:
            pass
        except (RuntimeError, TimeoutError) as e:  # of the network
            if watch.came is None:
                raise RankLost(f"the ranks could not be started at {endpoint}: {str(e).splitlines()[0][:200]}") from e
    return {}, watch.came


@contextlib.contextmanager
def _gone_is_closed() -> Iterator[None]:
    """Within, torch's agent may end a rank that has just ended by itself: it looks before, and between that and the signal the rank can go.

    Its error would take the place of how the ranks ended.
    """
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    own = SubprocessHandler.close

    def close(self: Any, *args: Any, **how: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            own(self, *args, **how)

    SubprocessHandler.close = close  # type: ignore[method-assign]
    try:
        yield
    finally:
        SubprocessHandler.close = own  # type: ignore[method-assign]


class _Passing(signals.Watch):
    """Has the agent pass the first signal on to its ranks and wait for them; of more, only a second Ctrl-C is passed on."""

    def __init__(self, run: Run, ranks: range, exception: Any):
        super().__init__(waits=True)
        self.run, self.ranks, self.exception = run, ranks, exception

    def _arrived(self, number: int, frame: Any) -> None:
        if self.came is None:
            self.came = number
            raise self.exception(signals.name(number), signal.Signals(number))
        if number == signal.SIGINT:
            for found in ends.records(self.run, self.ranks).values():
                with contextlib.suppress(OSError):
                    if "pid" in found:
                        os.kill(int(found["pid"]), number)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables, for the processes that are started within."""
    names = (*values, "TORCHELASTIC_SIGNALS_TO_HANDLE")  # which the agent sets
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _interface(place: Place) -> str | None:
    """The network interface by which the other nodes are reached, where nobody has chosen one: gloo would go by this machine's name."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return None
    try:
        import fcntl
        import struct

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            if place.index:
                s.connect((place.address, place.port))
                wanted = s.getsockname()[0]
            else:
                wanted = socket.gethostbyname(place.address)
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):
                    asked = fcntl.ioctl(s.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                    if socket.inet_ntoa(asked[20:24]) == wanted:
                        return name
    except (ImportError, OSError):
        pass
    return None
