"""Protects a server as a user starts one: answers equal to `sslt predict`, a killed worker, a drain, and mistakes of the command line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from conftest import TINY_TEXT

KEY = "open-sesame-4711"


def call(url: str, content: object = None, key: str | None = KEY) -> tuple[int, dict]:
    """(HTTP code, JSON)."""
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"X-API-Key": key})
    body = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
    try:
        with urlopen(Request(url, body, headers), timeout=60) as reply:
            return reply.status, json.load(reply)
    except HTTPError as e:
        return e.code, json.load(e)


def until(true, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextlib.contextmanager
def server(*args: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`sslt serve` on a free port; gives its process and address."""
    command = [Path(sys.executable).with_name("sslt"), "serve", "port=0", "trainer.accelerator=cpu", *args]
    env = {**os.environ, "SSLT_API_KEY": KEY}
    with Path("served.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: process.poll() is not None or "is served at" in Path("served.log").read_text())
        found = re.findall(r"served at (\S+)", said := Path("served.log").read_text())
        assert found, said
        yield process, found[0]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def run(sslt, here: Path) -> Path:
    """A classifier of texts with TF-IDF beside it, and what it predicts for a file."""
    sslt("finetune", "+target=docs", "from=scratch", *TINY_TEXT, "trainer.max_steps=3", "baseline=false", "hydra.run.dir=run")
    rng, words = (
        np.random.default_rng(0),
        [
            "the",
            "mail",
            "of",
            "a",
            "request",
            "is",
            "read",
            "by",
            "an",
            "event",
            "loop",
            "that",
            "waits",
            "for",
            "tests",
            "of",
            "logging",
            "and",
            "xml",
        ],
    )
    lines = [" ".join(rng.choice(words, n)) for n in rng.integers(1, 60, 48)]
    (here / "lines.txt").write_text("\n".join(lines) + "\n")
    sslt("predict", "from=run", "input=lines.txt", "trainer.accelerator=cpu", "hydra.run.dir=predicted")
    return here / "run"


def test_a_server_whole(run, here):
    """One server from its start to its end."""
    lines = (here / "lines.txt").read_text().splitlines()
    wanted = [json.loads(line) for line in (here / "predicted" / "predictions.jsonl").read_text().splitlines()]
    assert (run / "head" / "model.safetensors").exists() and "beside" in json.loads((run / "head" / "head.json").read_text())
    with server("from=run", "client=client.py", "max_batch=8", "hydra.run.dir=served") as (process, url):
        health = call(f"{url}/health", key=None)
        assert health[0] == 200 and call(f"{url}/info", key=None)[0] == 401
        info = call(f"{url}/info")[1]
        assert (
            info["exact"]
            and info["space"]["classes"]
            and info["digest"] == json.loads((here / "served" / "run.json").read_text())["digest"]
        )

        # answers, one at a time, many at once, and many requests at a time
        alone = [call(f"{url}/predict", {"input": line})[1]["predictions"][0] for line in lines[:6]]
        assert [{**row, "row": i} for i, row in enumerate(alone)] == wanted[:6]
        assert call(f"{url}/predict", {"inputs": lines})[1]["predictions"] == wanted
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda i: call(f"{url}/predict", {"inputs": lines[i : i + 3]}), range(45)))
        for i, (code, said) in enumerate(found):
            assert code == 200 and said["predictions"] == [{**wanted[i + k], "row": k} for k in range(3)]

        # mistakes
        assert call(f"{url}/predict", {"input": {"image": "x"}})[0] == 422 and call(f"{url}/predict", b"{")[0] == 400
        assert call(f"{url}/predict", {"input": "x" * 200_000})[0] == 413 and call(f"{url}/predict", b" " * 20_000_000)[0] == 413

        # the client, which needs nothing
        made = subprocess.run(
            [sys.executable, "-I", "-S", "client.py", *lines[:2]], env={"SSLT_API_KEY": KEY}, capture_output=True, text=True
        )
        assert [json.loads(line) for line in made.stdout.splitlines()] == wanted[:2], made.stderr

        # a worker that is killed shows, and is replaced by one that says the same
        os.kill(health[1]["worker"], signal.SIGKILL)
        until(lambda: call(f"{url}/health")[0] == 503)
        until(lambda: call(f"{url}/health")[0] == 200)
        assert call(f"{url}/health")[1]["worker"] != health[1]["worker"]
        assert call(f"{url}/predict", {"inputs": lines})[1]["predictions"] == wanted

        # what is in flight when the end comes is answered
        with ThreadPoolExecutor(4) as pool:
            last = [pool.submit(call, f"{url}/predict", {"inputs": lines}) for _ in range(4)]
            until(lambda: call(f"{url}/health")[1]["queue"] > 40)
            process.terminate()
            assert [said.result()[1]["predictions"] == wanted for said in last] == [True] * 4
        assert process.wait(30) == 0
    with pytest.raises(OSError):
        call(f"{url}/health")
    assert json.loads((here / "served" / "run.json").read_text())["status"] == "finished"
    kept = "".join(p.read_text(errors="replace") for p in [here / "served.log", *(here / "served").rglob("*")] if p.is_file())
    assert KEY not in kept and KEY not in (here / "client.py").read_text() and "Traceback" not in kept


def test_mistakes_are_one_line(sslt, here, capsys):
    """A port in use, a host that is none, a key file that is not there, what is no run: said at once, and no folder stays."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for args, words in (
            ((f"port={port}",), f"port={port} is in use"),
            (("port=70000",), "up to 65535"),
            (("port=0", "host=999.1.1.1"), "host=999.1.1.1"),
            (("api_key_file=nowhere",), "there is no such file"),
            (("max_items=3000",), "max_queue=1024"),
            (("max_bytes=1000000000",), "max_queue_bytes=268435456"),
            (("trainer.devices=2",), "trainer.devices=2"),
        ):
            sslt("serve", "from=nothing", *args, code=2)
            said = capsys.readouterr().err.strip().splitlines()
            assert len(said) == 1 and words in said[0], said
    assert not (here / "runs").exists()
