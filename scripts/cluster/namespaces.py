"""Two network namespaces of this machine, joined by one cable (a pair of veth devices), as two machines are.

    python scripts/cluster/namespaces.py start       # names and addresses
    ip netns exec sslt0 sslt pretrain +task=simclr trainer.num_nodes=2 trainer.address=10.77.0.1:29500 trainer.node=0 hydra.run.dir=run &
    ip netns exec sslt1 sslt pretrain +task=simclr trainer.num_nodes=2 trainer.address=10.77.0.1:29500 trainer.node=1 hydra.run.dir=run
    python scripts/cluster/namespaces.py cut         # and `mend`
    python scripts/cluster/namespaces.py stop

It needs Linux, root and iproute2. The addresses are known within the two namespaces alone; nothing else of the machine's network changes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

ADDRESSES = ("10.77.0.1", "10.77.0.2")


class Lacking(Exception):
    """Why there can be no namespaces, in one line."""


def lacking() -> str | None:
    """What this machine lacks for network namespaces, in words; None where it has all."""
    if not sys.platform.startswith("linux") or os.geteuid():
        return "network namespaces need Linux and root"
    if shutil.which("ip") is None:
        return "no ip here: `apt-get install iproute2`"
    try:
        with two_nodes(f"sslt-try{os.getpid()}-"):
            return None
    except Lacking as e:
        return str(e)


class Nodes:
    """Two namespaces, PREFIX0 and PREFIX1."""

    addresses = ADDRESSES

    def __init__(self, prefix: str = "sslt"):
        self.names = tuple(f"{prefix}{i}" for i in range(2))

    def start(self) -> None:
        """Make them. Raises `Lacking` where the system refuses."""
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", "node0", "netns", self.names[0], "type", "veth", "peer", "name", "node1", "netns", self.names[1])
        for i, name in enumerate(self.names):
            _ip("-n", name, "address", "add", f"{ADDRESSES[i]}/24", "dev", f"node{i}")
            for device in ("lo", f"node{i}"):
                _ip("-n", name, "link", "set", device, "up")

    def stop(self) -> None:
        """Remove them, with the cable; processes within have no network any more."""
        for name in self.names:
            with contextlib.suppress(Lacking):
                _ip("netns", "delete", name)

    def popen(self, node: int, command: list[str], **more: Any) -> subprocess.Popen[str]:
        """Start a command on a node; its process is the command itself."""
        return subprocess.Popen(["ip", "netns", "exec", self.names[node], *command], text=True, **more)

    def cut(self) -> None:
        """Pull the cable out: what is sent vanishes, and nobody is told."""
        _ip("-n", self.names[1], "link", "set", "node1", "down")

    def mend(self) -> None:
        _ip("-n", self.names[1], "link", "set", "node1", "up")

    def sent(self, node: int) -> int:
        """Bytes that a node has sent to the other so far, headers and acknowledgements included."""
        (link,) = json.loads(_ip("-n", self.names[node], "-s", "-j", "link", "show", "dev", f"node{node}"))
        return int(link["stats64"]["tx"]["bytes"])


@contextlib.contextmanager
def two_nodes(prefix: str = "sslt") -> Iterator[Nodes]:
    """Two namespaces that are there within. Raises `Lacking`."""
    nodes = Nodes(prefix)
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.stop()


def _ip(*args: str) -> str:
    done = subprocess.run(["ip", *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Lacking(f"`ip {' '.join(args)}`: {done.stderr.strip()[:200]}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("start", "stop", "cut", "mend"))
    parser.add_argument("--prefix", default="sslt", help="of the namespaces' names")
    args = parser.parse_args()
    nodes = Nodes(args.prefix)
    try:
        if args.what == "start" and (reason := lacking()):
            raise Lacking(reason)
        getattr(nodes, args.what)()
    except Lacking as e:
        print(f"{parser.prog}: {e}", file=sys.stderr)
        return 1
    if args.what == "start":
        print("\n".join(f"ip netns exec {name} COMMAND    # at {at}" for name, at in zip(nodes.names, ADDRESSES, strict=True)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
