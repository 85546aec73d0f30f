"""Protects the page to try a run, in a browser where there is one: a text and a picture are answered, and what is said is never markup."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import uvicorn
from test_app import ABOUT, LIMITS, Keeper

from sslt.deploy.serving.app import create_app
from sslt.deploy.serving.batches import BatchQueue
from sslt.deploy.serving.service import Service

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
websockets = pytest.importorskip("websockets.sync.client")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


class Rows(Keeper):
    """Says markup, and how probable it is."""

    async def ask(self, kind: str, items: list[Any]) -> list[dict[str, Any]]:
        self.asked += items
        names = {"<img src=x onerror=document.title='broken'>": 0.75, "b": 0.25}
        return [{"prediction": next(iter(names)), "score": 0.75, "scores": names} for _ in items]


@contextlib.contextmanager
def served(reads: str) -> Iterator[tuple[Keeper, str]]:
    keeper = Rows()
    queue = BatchQueue(keeper.ask, 4, 0.001, 8)
    service = Service({**ABOUT, "reads": reads, "parts": []}, LIMITS, keeper, queue, "a key")  # type: ignore[arg-type]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(service, "1", ""), log_level="warning"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])))
        thread.start()
        yield keeper, f"http://127.0.0.1:{sock.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def browser(folder: Path, url: str) -> Iterator[Any]:
    """A page of Chromium; gives what sends it a command of its DevTools protocol."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0"]
    process = subprocess.Popen([*command, f"--user-data-dir={folder}", url], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        told, end = folder / "DevToolsActivePort", time.monotonic() + 120
        while not told.exists() or not told.read_text():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        with urlopen(f"http://127.0.0.1:{told.read_text().split()[0]}/json/list") as reply:
            page = next(target for target in json.load(reply) if target["type"] == "page")
        numbers = itertools.count(1)
        with websockets.connect(page["webSocketDebuggerUrl"], max_size=None) as socket_:

            def send(method: str, **params: Any) -> Any:
                number = next(numbers)
                socket_.send(json.dumps({"id": number, "method": method, "params": params}))
                while (found := json.loads(socket_.recv(timeout=60))).get("id") != number:
                    pass
                return found["result"]

            yield send
    finally:
        process.kill()
        process.wait()


def seen(send: Any, script: str) -> Any:
    return send("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")


def until(send: Any, script: str) -> None:
    end = time.monotonic() + 60
    while not seen(send, script):
        assert time.monotonic() < end, seen(send, "document.body.innerText")
        time.sleep(0.05)


ASK = "document.querySelector('#secret input').value = 'a key'; document.querySelector('#form').requestSubmit()"


@pytest.mark.parametrize("reads", ["text", "image"])
def test_the_page_answers(here, reads):
    picture = here / "a.png"
    picture.write_bytes(b"\x89PNG whatever")
    with served(reads) as (keeper, url), browser(here / "profile", url) as send:
        until(send, "document.querySelector('#fields') && document.querySelector('#fields').children.length > 0")
        if reads == "image":
            root = send("DOM.getDocument")["root"]["nodeId"]
            field = send("DOM.querySelector", nodeId=root, selector="#field-image")["nodeId"]
            send("DOM.setFileInputFiles", nodeId=field, files=[str(picture)])
        else:
            seen(send, "document.querySelector('#field-text').value = 'a <b>text</b>'")
        seen(send, "document.querySelector('#form').requestSubmit()")  # without the key
        until(send, "document.querySelector('#answer').className === 'wrong'")
        assert "key" in seen(send, "document.querySelector('#answer').textContent") and keeper.asked == []
        seen(send, ASK)
        until(send, "document.querySelectorAll('#scores tr').length === 2")
        assert "0.75" in seen(send, "document.querySelector('#answer').textContent")
        assert seen(send, "document.title") == "<b>mine</b>" and seen(send, "document.querySelectorAll('#answer *').length") == 0
        assert keeper.asked == [base64.b64encode(picture.read_bytes()).decode() if reads == "image" else "a <b>text</b>"]
