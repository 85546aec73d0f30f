"""Whether the other machines of a run are there, while nobody sends anything: each node says so now and then, by torch's store.

A machine that crashes, or whose cable is cut, breaks no connection: whoever waits for it would wait for as long as ranks wait for one that
prepares data, half a day. So the first rank of each node counts up in the store of the first node, which looks whether all do; the others
look whether that answers.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

_LEFT = -(2**40)  # what is added to the count of a node that has ended


@contextlib.contextmanager
def beating(store: Callable[[], Any], seconds: float, silent: Callable[[int], None]) -> Iterator[None]:
    """Within, `silent(node)` is called, in a thread, when a node has not answered for `seconds`.

    store: makes a connection of its own to the store of the first node, since one that waits is locked. It does nothing where all ranks
    are on one machine, and on others than the first rank of each node.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    nodes = world // int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if nodes < 2 or os.environ.get("LOCAL_RANK") != "0":
        yield
        return
    heart = Heart(store, int(os.environ["RANK"]) * nodes // world, nodes, seconds, silent)
    heart.start()
    try:
        yield
    finally:
        heart.stop()


class Heart:
    """Node `node` of `nodes`: one thread that asks the store, and one that counts for how long nothing has come of it.

    Time is counted in looks, not by a clock: while a job is suspended nobody looks.
    """

    def __init__(self, store: Callable[[], Any], node: int, nodes: int, seconds: float, silent: Callable[[int], None]):
        self.connect, self.node, self.silent = store, node, silent
        self.every = min(5.0, seconds / 5)
        self.most = round(seconds / self.every)
        self.counts = dict.fromkeys(range(1, nodes) if node == 0 else (0,), 0)
        self.done = threading.Event()
        self.threads = [threading.Thread(target=f, daemon=True) for f in (self._beat, self._watch)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Say that nothing more comes of this node. What hangs is left alone."""
        self.done.set()
        for thread in self.threads:
            thread.join(self.every)

    def _beat(self) -> None:
        try:
            store = self.connect()
            while not self.done.wait(self.every):
                store.add(f"beat{self.node}", 1)
                for node in self.counts:
                    self.counts[node] = self.counts[node] + 1 if self.node else int(store.add(f"beat{node}", 0))
            store.add(f"beat{self.node}", _LEFT)
        except RuntimeError:  # the connection has broken, which whoever waits for a rank is told as well
            self.done.set()

    def _watch(self) -> None:
        before, looks = dict(self.counts), dict.fromkeys(self.counts, 0)
        while not self.done.wait(self.every):
            for node, count in list(self.counts.items()):
                looks[node] = looks[node] + 1 if count == before[node] and count >= 0 else 0
                before[node] = count
                if looks[node] >= self.most:
                    self.done.set()
                    self.silent(node)
                    return
