"""What Prometheus is told of a server."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PATHS = ("/predict", "/features", "/health", "/info", "/metrics", "/", "/openapi.json", "/client.py")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts requests by path and code, how long they took, how many are answered at a time, and batches.

    `sslt_in_flight_seconds_total` is the integral of `sslt_in_flight` over time: its rate is the mean number of requests in the server,
    which is the rate of requests times their mean latency (Little, 1961, "A proof for the queuing formula L = λW").
    """

    def __init__(self, queue_length: Callable[[], int], healthy: Callable[[], bool]):
        self.registry = r = CollectorRegistry()
        self.requests = Counter("sslt_requests", "requests answered", ["path", "code"], registry=r)
        about = "from the head of a request to the end of its answer"
        self.seconds = Histogram("sslt_request_seconds", about, ["path"], buckets=SECONDS, registry=r)
        self.in_flight = Gauge("sslt_in_flight", "requests that are not answered yet", ["path"], registry=r)
        self.in_flight_seconds = Counter("sslt_in_flight_seconds", "requests in flight, integrated over time", ["path"], registry=r)
        self.batches = Histogram("sslt_batch_items", "items of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=r)
        self.items = Counter("sslt_items", "items of requests, by what became of them", ["result"], registry=r)
        self.restarts = Counter("sslt_worker_restarts", "workers started because one was gone", registry=r)
        Gauge("sslt_queue_length", "items that wait for a batch", registry=r).set_function(queue_length)
        Gauge("sslt_healthy", "1 while the worker can answer", registry=r).set_function(lambda: float(healthy()))
        self._flying = dict.fromkeys((*PATHS, "other"), 0)
        self._since = dict.fromkeys(self._flying, time.monotonic())
        self._flown = dict.fromkeys(self._flying, 0.0)  # seconds in flight that `in_flight_seconds` has not been told of
        # a request pays for what is counted: looking a label up takes longer than counting
        self._took, self._answered = functools.cache(self.seconds.labels), functools.cache(self.requests.labels)
        self._became = functools.cache(self.items.labels)

    @contextlib.contextmanager
    def request(self, path: str) -> Iterator[Callable[[int], None]]:
        """While a request is answered; gives what is told its code."""
        path, codes, began = path if path in PATHS else "other", [499], time.monotonic()
        self._fly(path, 1, began)
        try:
            yield codes.append
        finally:
            now = time.monotonic()
            self._fly(path, -1, now)
            self._took(path).observe(now - began)
            self._answered(path, codes[-1]).inc()

    def _fly(self, path: str, change: int, now: float) -> None:
        self._flown[path] += self._flying[path] * (now - self._since[path])
        self._flying[path] += change
        self._since[path] = now

    def inputs(self, answered: int, refused: int) -> None:
        """What became of the inputs of a request."""
        self._became("answered").inc(answered)
        self._became("refused").inc(refused)

    def batch(self, items: int) -> None:
        self.batches.observe(items)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        now = time.monotonic()
        for path, flying in self._flying.items():
            self._fly(path, 0, now)
            self.in_flight.labels(path).set(flying)
            self.in_flight_seconds.labels(path).inc(self._flown[path])
            self._flown[path] = 0.0
        return generate_latest(self.registry)
