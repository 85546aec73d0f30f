"""How much load a server of `sslt serve` holds, beside a plain FastAPI loop around the same model.

Requests are sent when they are planned, at the times of a Poisson process of a given rate, whether or not earlier ones are answered, and
latency is counted from the planned time: a server that stalls is charged for all who would have waited (no coordinated omission; Tene,
2013, "How NOT to measure latency"). Rates are raised until the p99 exceeds `--p99` or errors come; the highest that holds is its capacity.

    python scripts/load.py from=RUN --p99 0.25                      # both servers, and the ratio
    python scripts/load.py from=RUN --p99 0.25 --soak 600           # then 10 minutes at 80 % of capacity: errors, growth of memory
    python scripts/load.py from=RUN --url http://127.0.0.1:8000     # a server that runs already

The plain server reads JSON and calls the model in the request, one input at a time, as most examples of FastAPI do. Both run on this
machine, on the loopback device, with the client beside them: on few cores the client takes some of what is measured. `--items` inputs a
request; texts are of `--words` words each, drawn by a seed; pictures are of random pixels.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np

PLAIN = """
import sys
import torch, uvicorn
from fastapi import FastAPI, Request
from omegaconf import OmegaConf
from sslt.deploy.serving.inputs import Limits, checked
from sslt.targets import heads
from sslt.deploy.serving.model import Model
from sslt.encoders.load import load_encoder
from pathlib import Path

limits = Limits(1 << 24, 64, 40_000_000, 100_000, 30.0)
run, sock = Path(sys.argv[1]), int(sys.argv[2])
encoder = load_encoder(str(run), None, [])
model = Model(encoder, heads.load(run / "head", encoder, []), (), torch.device("cpu"), 1, limits)
model.alike = None  # one input is one batch of one
app = FastAPI()

@app.post("/predict")
async def predict(request: Request):
    body = await request.json()
    return {"predictions": [model.answers("predict", [checked(item, model.reads, limits)[0]])[0] for item in body["inputs"]]}

print("is served at", sock, flush=True)
uvicorn.run(app, port=sock, log_level="warning")
"""


def bodies(reads: str, items: int, words: int, side: int, count: int = 64) -> list[bytes]:
    """Bodies of requests: texts of random words around `words` long, or PNGs of `side` pixels."""
    rng = np.random.default_rng(0)
    vocabulary = [
        "the",
        "a",
        "of",
        "and",
        "to",
        "in",
        "is",
        "it",
        "was",
        "that",
        "film",
        "good",
        "bad",
        "story",
        "of",
        "an",
        "actor",
        "who",
        "plays",
        "not",
        "very",
        "well",
        "but",
        "often",
        "with",
        "some",
    ]

    def one() -> str:
        if reads == "text":
            return " ".join(rng.choice(vocabulary, max(1, int(rng.normal(words, words / 4)))))
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    return [json.dumps({"inputs": [one() for _ in range(items)]}).encode() for _ in range(count)]


class Client:
    """Sends requests that are made already, each on a connection of its own that is kept: with little work of its own beside a server."""

    def __init__(self, url: str, key: str | None):
        self.host, port = url.removeprefix("http://").rstrip("/").rsplit(":", 1)
        self.port, self.key = int(port), f"X-API-Key: {key}\r\n" if key else ""
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def request(self, body: bytes) -> bytes:
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"POST /predict HTTP/1.1\r\nHost: {self.host}\r\n{self.key}{kind}\r\n".encode() + body

    async def ask(self, request: bytes) -> int:
        """The HTTP code of the answer, once all of it is there; 0 where there is none."""
        try:
            while self.free and self.free[-1][0].at_eof():  # the server has closed it, idle as it was
                self.free.pop()[1].close()
            reader, writer = self.free.pop() if self.free else await asyncio.open_connection(self.host, self.port)
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
        except (OSError, asyncio.IncompleteReadError):
            return 0
        if "connection: close" in head:
            writer.close()
        else:
            self.free.append((reader, writer))
        return int(head.split(" ", 2)[1])


async def offered(url: str, sent: list[bytes], rate: float, seconds: float, seed: int, key: str | None) -> dict[str, float]:
    """Latencies at `rate` requests a second over `seconds`, from the planned times: p50, p95, p99 in seconds, and the share of errors."""
    rng, client = np.random.default_rng(seed), Client(url, key)
    planned = np.cumsum(rng.exponential(1 / rate, max(1, int(rate * seconds))))
    took, requests = np.zeros(len(planned)), [client.request(body) for body in sent]
    await client.ask(requests[0])
    began = time.perf_counter()

    async def ask(i: int) -> bool:
        code = await client.ask(requests[i % len(requests)])
        took[i] = time.perf_counter() - began - planned[i]
        return code != 200

    tasks = []
    for i, at in enumerate(planned):
        if (left := began + at - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        tasks.append(asyncio.create_task(ask(i)))
    errors = sum(await asyncio.gather(*tasks))
    lasted = time.perf_counter() - began
    p50, p95, p99 = np.quantile(took, [0.5, 0.95, 0.99]).tolist()
    return {"rate": rate, "p50": p50, "p95": p95, "p99": p99, "errors": errors / len(planned), "answered": (len(planned) - errors) / lasted}


def told(name: str, found: dict[str, float]) -> None:
    times = "  ".join(f"{k} {1000 * found[k]:7.1f} ms" for k in ("p50", "p95", "p99"))
    print(f"{name:8} {found['rate']:8.1f}/s  {times}  errors {100 * found['errors']:.2f} %", flush=True)


def capacity(name: str, url: str, sent: list[bytes], args: argparse.Namespace) -> float:
    """The highest rate whose p99 is at most `args.p99`, without errors: doubled until it fails, then four steps between, to 4 %."""

    def holds(rate: float) -> bool:
        found = asyncio.run(offered(url, sent, rate, args.seconds, int(rate), args.key))
        told(name, found)
        return found["p99"] <= args.p99 and not found["errors"]

    best, rate = 0.0, args.start
    while holds(rate):
        best, rate = rate, 2 * rate
    high = rate
    for _ in range(4):
        low = best or high / 4
        middle = (low * high) ** 0.5
        best, high = (middle, high) if holds(middle) else (best, middle)
    return best


def soak(url: str, pid: int, sent: list[bytes], rate: float, seconds: float, key: str | None) -> dict[str, float]:
    """`seconds` at a rate, in parts: errors, p99 and how much memory the server and its worker have after each."""
    parts = max(2, int(seconds // 30))
    memory, found = [], []
    for i in range(parts):
        found.append(asyncio.run(offered(url, sent, rate, seconds / parts, i, key)))
        told("soak", found[-1])
        memory.append(resident(pid))
        print(f"         server and worker have {memory[-1] / 2**20:.1f} MiB", flush=True)
    half = memory[len(memory) // 2 - 1 :]  # what is warmed up
    growth = (half[-1] - half[0]) / 2**20
    print(f"growth over the second half: {growth:+.1f} MiB")
    worst = {k: max(part[k] for part in found) for k in ("p99", "errors")}
    return {"rate": rate, "seconds": seconds, **worst, "resident_mib": memory[-1] / 2**20, "growth_mib": growth}


def resident(pid: int) -> int:
    """Bytes in memory of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = [int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in (str(pid), *children)]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server, once it says where it is."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        while "is served at" not in log.read_text():
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="from=RUN, and more settings of sslt serve", nargs="+")
    parser.add_argument("--p99", type=float, default=0.25, help="seconds that 99 of 100 requests may take")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each rate")
    parser.add_argument("--start", type=float, default=8.0, help="requests a second to begin with")
    parser.add_argument("--items", type=int, default=1)
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--soak", type=float, default=0.0, help="seconds at 80 %% of the capacity")
    parser.add_argument("--rate", type=float, help="measure this rate alone, or soak at it")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain server")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--key", default=os.environ.get("SSLT_API_KEY"))
    parser.add_argument("--log", type=Path, default=Path("load.log"))
    parser.add_argument("--json", type=Path, help="a file for what was found")
    args = parser.parse_args()
    source = next(a.partition("=")[2] for a in args.run if a.startswith("from="))
    soaked: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        pid, url = 0, args.url
        if url is None:
            folder = Path(f"load-{time.time_ns()}")
            command = [sys.executable, "-m", "sslt", "serve", "port=0", f"hydra.run.dir={folder}", *args.run]
            pid = stack.enter_context(started(command, args.log)).pid
            url = re.findall(r"served at (\S+)", args.log.read_text())[0]
        with urlopen(Request(f"{url}/info", headers={"X-API-Key": args.key or ""})) as reply:
            reads = json.load(reply)["reads"]
        sent = bodies(reads, args.items, args.words, args.side)
        if args.rate and not args.soak:
            told("ours", asyncio.run(offered(url, sent, args.rate, args.seconds, 0, args.key)))
            return
        ours = args.rate or capacity("ours", url, sent, args)
        if args.soak and pid:
            soaked = soak(url, pid, sent, args.rate or 0.8 * ours, args.soak, args.key)
    if args.rate or args.url or args.no_plain:
        return
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with started([sys.executable, "-c", PLAIN, source, str(port)], args.log):
        time.sleep(1)
        plain = capacity("plain", f"http://127.0.0.1:{port}", sent, args)
    ratio = f"{ours / plain:.1f} times as many" if plain else "the plain one holds none of these rates"
    if args.json:
        args.json.write_text(json.dumps({"p99": args.p99, "ours": ours, "plain": plain, "soak": soaked}) + "\n")
    print(f"at a p99 of {1000 * args.p99:.0f} ms: {ours:.1f}/s, a plain loop {plain:.1f}/s: {ratio}")


if __name__ == "__main__":
    main()
