"""An S3 server (moto) on this machine that fails as it is told: answers of 503, connections cut within an object."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

BUCKET = "bucket"


class FlakyS3:
    """`faults`: what becomes of the next GETs of objects whose key contains `.npy`, "503" or "cut"; `gets`: their keys."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Handler(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"  # answers `Expect: 100-continue`, which clients otherwise wait a second for

            def log(self, *args: Any) -> None: ...

        self.faults: list[str] = []
        self.gets: list[str] = []
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET" or ".npy" not in path:
            return self._app(environ, start_response)
        self.gets.append(path)
        fault = self.faults.pop(0) if self.faults else None
        if fault == "503":
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        body = self._app(environ, start_response)
        return self._half(body) if fault == "cut" else body

    def _half(self, body: Any) -> Iterator[bytes]:
        content = b"".join(body)
        yield content[: len(content) // 2]
        raise ConnectionError("cut on purpose")

    def close(self) -> None:
        self._server.shutdown()


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    """A server with an empty bucket, which this process's object stores open. Skips where moto is not installed."""
    for module in ("moto", "flask", "flask_cors", "s3fs", "boto3"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    import boto3
    import s3fs

    server = FlakyS3()
    about = {"AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in about.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    try:
        yield server
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.close()
