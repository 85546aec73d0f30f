"""The HTTP side: routes, bodies that are read within bounds, and the OpenAPI document."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sslt.deploy.serving.batches import Full, within
from sslt.deploy.serving.client import client_code
from sslt.deploy.serving.inputs import Refused
from sslt.deploy.serving.page import page
from sslt.deploy.serving.schema import described
from sslt.deploy.serving.service import Reply, Service, busy, refusal

_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
DRAINED = 4  # times `max_bytes` that are read and thrown away, so that the client gets to read why its body is refused


def create_app(service: Service, version: str, address: str) -> FastAPI:
    """The ASGI app of a service. address: where it is reached, for the client's code."""

    @contextlib.asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    # its pages of documentation load scripts from elsewhere: there is the document alone
    app = FastAPI(title="sslt serve", version=version, lifespan=living, docs_url=None, redoc_url=None, openapi_url=None)

    def asked(kind: str) -> Callable[[Request], Awaitable[Response]]:
        async def ask(request: Request) -> Response:
            if (refused := _unknown(service, request)) is not None:
                return refused
            try:
                service.queue.admit(1, 0, service.limits.timeout)  # before a body is read for nothing
                async with within(service.limits.timeout):
                    body = await _body(request, service.limits.max_bytes)
            except Full as e:
                return _sent(busy(e))
            except Refused as e:
                return _sent(refusal(e), close=True)
            except asyncio.TimeoutError:
                return _sent(Reply(408, {"error": "the body did not come in time"}), close=True)
            return _sent(await service.answer(kind, body, request.headers.get("content-type", "")))

        return ask

    for kind in ("predict", "features"):
        answer = asked(kind)  # twice: by FastAPI, which adds a quarter to the time of a request, for the document alone
        app.add_route(f"/{kind}", answer, methods=["POST"], include_in_schema=False)
        app.post(f"/{kind}", summary=_SUMMARIES[kind], openapi_extra=described(kind, service))(answer)

    @app.get("/health", summary="200 while the model can answer, else 503; needs no key")
    async def health() -> Response:
        return _sent(service.health())

    @app.get("/info", summary="what is served, and within which limits")
    async def info(request: Request) -> Response:
        return _unknown(service, request) or JSONResponse(service.info)

    @app.get("/metrics", summary="for Prometheus")
    async def metrics(request: Request) -> Response:
        return _unknown(service, request) or Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/client.py", summary="a client in Python, of its standard library alone")
    async def client(request: Request) -> Response:
        return _unknown(service, request) or PlainTextResponse(client_code(address, service.reads), media_type="text/x-python")

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        found = app.openapi()
        if service.needs_key:
            found.setdefault("components", {})["securitySchemes"] = {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
        return JSONResponse(found)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; connect-src 'self'"
        return HTMLResponse(page(service.info, service.needs_key, nonce), headers={"Content-Security-Policy": policy})

    async def unmet(request: Request, e: Exception) -> Response:
        assert isinstance(e, HTTPException)
        return _sent(Reply(e.status_code, {"error": f"{request.method} {request.url.path[:200]}: {e.detail}"}, dict(e.headers or {})))

    app.add_exception_handler(HTTPException, unmet)
    app.add_middleware(_Counted, service=service)
    return app


_SUMMARIES = {
    "predict": "what `sslt predict` answers to each input",
    "features": "the encoder's pooled features of each input",
}


class _Counted:
    """Tells the metrics of every request, and browsers not to guess."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        with self.service.metrics.request(scope["path"]) as told:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    told(message["status"])
                    message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
                await send(message)

            try:
                await self.app(scope, receive, noted)
            except Exception:
                told(500)
                raise


def _unknown(service: Service, request: Request) -> Response | None:
    if service.knows(request.headers):
        return None
    return _sent(Reply(401, {"error": "this server wants a key: X-API-Key: KEY"}, {"WWW-Authenticate": "Bearer"}), close=True)


def _sent(reply: Reply, close: bool = False) -> Response:
    """close: the rest of a body that nobody reads must not be taken for the next request."""
    text = _JSON.encode(reply.content)
    headers = {**reply.headers, **({"Connection": "close"} if close else {})}
    return Response(text, reply.status, headers, media_type="application/json")


async def _body(request: Request, most: int) -> bytes:
    """The body, of at most so many bytes. Raises `Refused` for a longer one, of which nothing is kept."""
    declared = request.headers.get("content-length", "0")
    size, kept = 0, bytearray()
    too_long = declared.isdigit() and int(declared) > most
    if not (too_long and int(declared) > DRAINED * most):
        async for chunk in request.stream():
            size += len(chunk)
            too_long = too_long or size > most
            if too_long:
                kept.clear()
                if size > DRAINED * most:
                    break
            else:
                kept += chunk
    if too_long:
        raise Refused(413, f"the request has more than {most} bytes (max_bytes=)")
    return bytes(kept)
