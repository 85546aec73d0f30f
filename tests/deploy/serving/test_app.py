"""Protects what a server says over HTTP to what it is sent, without a model: codes, bounds, keys, counts, the page and the document."""

from __future__ import annotations

import asyncio
import base64
import json
import types
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from sslt.deploy.serving.app import create_app
from sslt.deploy.serving.batches import BatchQueue, Lost
from sslt.deploy.serving.inputs import Limits
from sslt.deploy.serving.service import Service

LIMITS = Limits(max_bytes=2000, max_items=5, max_pixels=100, max_characters=50, timeout=5.0)
ABOUT = {
    "run": "<b>mine</b>",
    "model": "bert",
    "digest": "0",
    "input": "a text",
    "answers": ["predict", "features"],
    "space": {"classes": []},
}
JSON = {"content-type": "application/json"}


class Keeper:
    """In the place of a worker and its supervisor: repeats what it is asked; "broken" cannot be answered, "lost" ends it."""

    def __init__(self) -> None:
        self.healthy, self.state, self.reason, self.worker = True, "ready", "", types.SimpleNamespace(pid=1)
        self.asked: list[Any] = []
        self.seconds = 0.0

    async def ask(self, kind: str, items: list[Any]) -> list[dict[str, Any]]:
        self.asked.append(items)
        await asyncio.sleep(self.seconds)
        if "lost" in items:
            raise Lost("the worker is gone")
        return [{"error": "broken", "status": 415} if item == "broken" else {"row": 9, "prediction": item} for item in items]

    async def watch(self) -> None:
        pass

    async def stop(self) -> None:
        pass


def served(
    test: Callable[[httpx.AsyncClient, Service, Keeper], Awaitable[None]],
    reads: str = "text",
    parts: tuple[str, ...] = (),
    key: str | None = None,
    limits: Limits = LIMITS,
    **more: Any,
) -> None:
    async def whole() -> None:
        keeper = Keeper()
        queue = BatchQueue(keeper.ask, **{"max_batch": 4, "max_wait": 0.005, "max_queue": 8, **more})
        about = {**ABOUT, "reads": reads, "parts": list(parts)}
        service = Service(about, limits, keeper, queue, key)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(create_app(service, "1", "http://127.0.0.1:1"))
        service.start()
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            await asyncio.wait_for(test(client, service, keeper), 30)
        await service.stop()

    asyncio.run(whole())


def test_rows_answer_inputs_in_order_and_one_broken_fails_alone():
    async def test(client, service, keeper):
        reply = await client.post("/predict", json={"inputs": ["a", "broken", 3, "b"]})
        assert reply.status_code == 200
        rows = reply.json()["predictions"]
        assert [row.get("prediction") for row in rows] == ["a", None, None, "b"] and [row["row"] for row in rows] == [0, 1, 2, 3]
        assert rows[1]["error"] == "broken" and "string" in rows[2]["error"] and sorted(keeper.asked[0]) == ["a", "b", "broken"]
        one = await client.post("/predict", json={"input": "c"})
        assert one.json() == {"predictions": [{"row": 0, "prediction": "c"}]}

    served(test)


BAD = [
    (b"{", JSON, 400, "no JSON"),
    (b"[" * 1900, JSON, 400, "no JSON"),
    (b"\xff\xfe", JSON, 400, "no JSON"),
    (b"[]", JSON, 422, "one object"),
    (b"{}", JSON, 422, "one object"),
    (b'{"inputs": ["a"], "input": "b"}', JSON, 422, "one object"),
    (b'{"inputs": ["a"], "temperature": 1}', JSON, 422, "temperature"),
    (b'{"inputs": "a"}', JSON, 422, "list"),
    (b'{"inputs": []}', JSON, 422, "no input"),
    (b'{"inputs": [1, null]}', JSON, 422, "string"),
    (b'{"input": "\\ud800"}', JSON, 422, "surrogate"),
    (b'{"inputs": ["a", "a", "a", "a", "a", "a"]}', JSON, 413, "at most 5"),
    (b'{"input": "' + b"x" * 51 + b'"}', JSON, 413, "at most 50"),
    (b'{"input": "broken"}', JSON, 415, "broken"),
    (b" " * 2001, JSON, 413, "2000 bytes"),
    (b" " * 100_000, JSON, 413, "2000 bytes"),
    (b"a: 1", {"content-type": "application/yaml"}, 415, "application/json"),
    (b"\xff", {"content-type": "text/plain; charset=utf-8"}, 415, "UTF-8"),
    (b"x", {"content-type": "image/png"}, 415, "not read"),
    (b"x", {"content-type": "multipart/form-data"}, 400, "boundary"),
    (b"--x\r\n\r\nabc", {"content-type": "multipart/form-data; boundary=x"}, 400, "cut short"),
    (b"--x\r\n\r\n\xff\r\n--x--\r\n", {"content-type": "multipart/form-data; boundary=x"}, 415, "UTF-8"),
]


def test_what_cannot_be_answered_is_refused_with_the_reason():
    async def test(client, service, keeper):
        for body, headers, code, reason in BAD:
            reply = await client.post("/predict", content=body, headers=headers)
            assert (reply.status_code, reason in reply.json()["error"]) == (code, True), (body[:80], reply.text)
        for chunked in (3000, 30_000):

            async def pieces(n: int = chunked):
                for _ in range(n // 100):
                    yield b" " * 100

            reply = await client.post("/predict", content=pieces(), headers=JSON)
            assert reply.status_code == 413 and reply.headers["connection"] == "close"
        assert (await client.get("/predict")).status_code == 405 and (await client.get("/x")).json()["error"].endswith("Not Found")
        assert keeper.asked == [["broken"]]

    served(test)


def test_other_kinds_of_inputs_are_checked_too():
    async def parts(client, service, keeper):
        right = [{"a": "x", "b": "y"}, ["x", "y"]]
        wrong = ["x", ["x"], {"a": "x"}, {"a": "x", "b": 1}, {"a": "x", "b": "y", "c": "z"}, {"a": "x" * 30, "b": "y" * 30}]
        for item in right:
            assert (await client.post("/predict", json={"input": item})).json()["predictions"][0]["prediction"] == {"a": "x", "b": "y"}
        for item in wrong:
            assert (await client.post("/predict", json={"input": item})).status_code in (413, 422), item

    async def histories(client, service, keeper):
        assert (await client.post("/predict", json={"input": ["x", 7]})).json()["predictions"][0]["prediction"] == ["x", "7"]
        for item in ("x", [["x"]], [None], {"history": []}, ["x" * 51]):
            assert (await client.post("/predict", json={"input": item})).status_code in (413, 422), item

    async def questions(client, service, keeper):
        for more, code in (({}, 200), ({"history": [["a", "b"]]}, 200), ({"history": ["ab"]}, 422), ({"history": [["a", 1]]}, 422)):
            reply = await client.post("/predict", json={"input": {"question": "q", "context": "c", **more}})
            assert reply.status_code == code, reply.text

    async def images(client, service, keeper):
        files = [("files", ("a.png", b"\x89PNG\r\n--x\r\n")), ("files", ("b.png", b""))]
        found = []
        keeper.ask = lambda kind, items: asyncio.sleep(0, [found.append(item) or {"prediction": 1} for item in items])
        service.queue.ask = keeper.ask
        assert (await client.post("/predict", files=files)).status_code == 200 and found == [files[0][1][1], b""]
        assert (await client.post("/predict", content=b"raw", headers={"content-type": "image/png"})).status_code == 200 and found[
            2
        ] == b"raw"
        text = base64.b64encode(b"x").decode()
        assert (await client.post("/predict", json={"inputs": [text, {"image": text}]})).status_code == 200 and found[3:] == [text] * 2
        assert (await client.post("/predict", json={"input": [1, 2]})).status_code == 422

    served(parts, "parts", ("a", "b"))
    served(histories, "history")
    served(questions, "question", ("question", "context"))
    served(images, "image")


def test_a_key_is_wanted_everywhere_but_of_health_and_the_page():
    async def test(client, service, keeper):
        for path in ("/info", "/metrics", "/client.py"):
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers={"x-api-key": "se cret"})).status_code == 200
        for given in ("", "se", "se cret ", "SE CRET", "se cret2", "ü"):
            reply = await client.post("/predict", json={"input": "a"}, headers={"x-api-key": given.encode()})
            assert reply.status_code == 401 and "se cret" not in reply.text
        assert (await client.post("/predict", json={"input": "a"}, headers={"authorization": "Bearer se cret"})).status_code == 200
        for path in ("/health", "/", "/openapi.json"):
            reply = await client.get(path)
            assert reply.status_code == 200 and "se cret" not in reply.text
        assert keeper.asked == [["a"]]

    served(test, key="se cret")


def test_too_much_is_told_when_to_come_again_and_a_slow_answer_is_given_up():
    async def test(client, service, keeper):
        keeper.seconds = 0.2
        tasks = [asyncio.create_task(client.post("/predict", json={"inputs": ["a"] * 4})) for _ in range(4)]
        codes = sorted([reply.status_code for reply in await asyncio.gather(*tasks)])
        assert codes == [200, 200, 503, 503]
        refused = next(task.result() for task in tasks if task.result().status_code == 503)
        assert int(refused.headers["retry-after"]) >= 1
        keeper.seconds = 2.0
        assert (await client.post("/predict", json={"input": "a"})).status_code == 504

    served(test, limits=Limits(2000, 5, 100, 50, 1.0))


def test_health_follows_the_worker():
    async def test(client, service, keeper):
        assert (await client.get("/health")).json()["status"] == "ok"
        assert (await client.post("/predict", json={"input": "lost"})).status_code == 503
        keeper.healthy, keeper.state, keeper.reason = False, "dead", "it was killed"
        reply = await client.get("/health")
        assert reply.status_code == 503 and reply.json()["reason"] == "it was killed"

    served(test)


def test_bodies_that_wait_have_so_many_bytes_together():
    """One that is answered makes room for the next; which was refused says when to come again."""

    async def test(client, service, keeper):
        keeper.seconds = 0.2
        ask = lambda: client.post("/predict", json={"inputs": ["a" * 40]})  # noqa: E731
        replies = await asyncio.gather(ask(), ask())
        assert sorted(reply.status_code for reply in replies) == [200, 503]
        assert next(reply for reply in replies if reply.status_code == 503).headers["retry-after"] == "1"
        assert (await ask()).status_code == 200

    served(test, max_bytes=100)


def test_metrics_hold_littles_law():
    """The integral of requests in flight over time is the sum of their latencies, and all requests are counted by their codes."""

    async def test(client, service, keeper):
        keeper.seconds = 0.01
        await asyncio.gather(*(client.post("/predict", json={"inputs": ["a", "broken"]}) for _ in range(4)))
        await client.post("/predict", content=b"{")
        lines = dict(line.rsplit(" ", 1) for line in (await client.get("/metrics")).text.splitlines() if line[0] != "#")
        value = lambda name: float(lines[name])  # noqa: E731
        assert value('sslt_requests_total{code="200",path="/predict"}') == 4
        assert value('sslt_requests_total{code="400",path="/predict"}') == 1
        assert value('sslt_items_total{result="answered"}') == 4 and value('sslt_items_total{result="refused"}') == 4
        assert value("sslt_batch_items_sum") == 8 and value("sslt_queue_length") == 0 and value("sslt_healthy") == 1
        held, took = value('sslt_in_flight_seconds_total{path="/predict"}'), value('sslt_request_seconds_sum{path="/predict"}')
        assert held == pytest.approx(took, rel=1e-6) and took > 0.03 and value('sslt_in_flight{path="/predict"}') == 0

    served(test)


def test_the_page_and_the_document_hold_no_markup_of_others():
    async def test(client, service, keeper):
        reply = await client.get("/")
        assert (
            "<b>mine" not in reply.text and "&lt;b&gt;mine&lt;/b&gt;" in reply.text and "http" not in reply.text.split("<body", 1)[0][200:]
        )
        policy = reply.headers["content-security-policy"]
        nonce = policy.split("'nonce-")[1].split("'")[0]
        assert f'<script nonce="{nonce}">' in reply.text and "unsafe" not in policy
        found = (await client.get("/openapi.json")).json()
        body = found["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["oneOf"][0]["properties"]["inputs"]["maxItems"] == 5
        assert {"200", "413", "503"} <= found["paths"]["/features"]["post"]["responses"].keys()
        json.dumps(found, allow_nan=False)

    served(test)
