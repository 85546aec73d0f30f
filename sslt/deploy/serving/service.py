"""What a server does, without HTTP: checks inputs, has them answered, and says what became of each."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import logging
from collections.abc import Mapping
from typing import Any

from sslt.deploy.serving.batches import BatchQueue, Full, Lost
from sslt.deploy.serving.inputs import Limits, Reads, Refused, checked, items_of
from sslt.deploy.serving.metrics import Metrics
from sslt.deploy.serving.supervisor import Supervisor

log = logging.getLogger("sslt")
GRACE = 5.0  # seconds beyond a request's own that the last ones have when the server stops


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer: HTTP code, JSON, and perhaps headers."""

    status: int
    content: dict[str, Any]
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Service:
    """A run that answers. info: what `/info` says; queue: asks the worker; key: what requests have to know, None: nothing."""

    def __init__(self, info: dict[str, Any], limits: Limits, supervisor: Supervisor, queue: BatchQueue, key: str | None):
        self.info, self.limits, self.supervisor, self.queue = info, limits, supervisor, queue
        self.reads = Reads(info["reads"], tuple(info["parts"]))
        self.metrics = Metrics(lambda: len(self.queue), lambda: supervisor.healthy)
        self.queue.watcher, supervisor.told = self.metrics, self.metrics.restarts.inc
        self._key = None if key is None else key.encode()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to answer; to be called where the event loop runs."""
        self._tasks = [asyncio.create_task(self.queue.run()), asyncio.create_task(self.supervisor.watch())]

    async def stop(self) -> None:
        """End; whatever was to be answered is answered by then."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.supervisor.stop()

    @property
    def needs_key(self) -> bool:
        return self._key is not None

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether a request may ask: its `X-API-Key`, or `Authorization: Bearer`, is the key; compared in constant time."""
        if self._key is None:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._key)

    async def answer(self, kind: str, body: bytes, content_type: str) -> Reply:
        """What is said to a request of `kind`, "predict" or "features"."""
        if kind not in self.info["answers"]:
            return refusal(Refused(404, "this run is an encoder without a head, which predicts nothing: ask /features"))
        try:
            items = items_of(body, content_type, self.reads, self.limits)
        except Refused as e:
            return refusal(e)
        rows: list[dict[str, Any]] = [{} for _ in items]
        good: dict[int, tuple[Any, int]] = {}
        for i, item in enumerate(items):
            try:
                good[i] = checked(item, self.reads, self.limits)
            except Refused as e:
                rows[i] = {"error": str(e), "status": e.status}
        if good:
            try:
                known, sizes = zip(*good.values(), strict=True)
                answers = await self.queue.answers(kind, known, sizes, self.limits.timeout, len(body))
            except Full as e:
                return busy(e)
            except asyncio.TimeoutError:
                return Reply(504, {"error": f"there was no answer within {self.limits.timeout:g} seconds (timeout=)"})
            except Lost as e:
                return Reply(503, {"error": f"{e}: ask again"}, {"Retry-After": str(self.queue.seconds_left() + 5)})
            for i, answer in zip(good, answers, strict=True):
                rows[i] = answer
        rows = [{"row": i, **{k: v for k, v in row.items() if k != "row"}} for i, row in enumerate(rows)]
        refused = [row["status"] for row in rows if "error" in row]
        self.metrics.inputs(len(rows) - len(refused), len(refused))
        if len(refused) == len(rows):
            status = refused[0] if len(set(refused)) == 1 else 422
            return Reply(status, {"error": rows[0]["error"], f"{_named(kind)}": rows})
        return Reply(200, {_named(kind): rows})

    def health(self) -> Reply:
        """200 while the worker is there and answers."""
        if self.supervisor.healthy:
            return Reply(200, {"status": "ok", "queue": len(self.queue), "worker": self.supervisor.worker.pid})
        state = "starting" if self.supervisor.state == "ready" else self.supervisor.state  # dead, and not yet noticed
        return Reply(503, {"status": state, "reason": self.supervisor.reason or "the worker is dead"}, {"Retry-After": "5"})


def _named(kind: str) -> str:
    return "predictions" if kind == "predict" else kind


def refusal(e: Refused) -> Reply:
    return Reply(e.status, {"error": str(e)})


def busy(e: Full) -> Reply:
    return Reply(503, {"error": f"{e}: ask again in {e.after} s"}, {"Retry-After": str(e.after)})
