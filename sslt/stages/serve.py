"""`sslt serve`: answers over HTTP. What needs the model's libraries is imported in the worker alone, so that the server stays small."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from sslt import stored
from sslt.deploy.serving.inputs import Limits
from sslt.deploy.serving.worker import Worker, attend
from sslt.errors import UserError
from sslt.runs import Run, display, versions, write_text

log = logging.getLogger("sslt")
KEY = "SSLT_API_KEY"
ALONE = ("127.", "::1", "localhost")


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Serve `from=` until a signal comes. The model is in a worker process (`work`)."""
    from sslt.deploy.serving import server
    from sslt.deploy.serving.app import create_app
    from sslt.deploy.serving.batches import BatchQueue
    from sslt.deploy.serving.client import client_code
    from sslt.deploy.serving.service import GRACE, Service
    from sslt.deploy.serving.supervisor import Supervisor

    _check(cfg)
    key = _key(cfg)
    sock = server.bound(str(cfg.host), int(cfg.port))
    worker = Worker("sslt.stages.serve:work", [str(run.path.absolute())], hidden=(KEY,))
    try:
        about = versions()
        info = {"run": Path(str(cfg["from"])).name, **worker.start()} | _said(cfg, about)
        supervisor = Supervisor(worker, int(cfg.restarts), float(cfg.hangs))
        queue = BatchQueue(supervisor.ask, int(cfg.max_batch), cfg.max_wait_ms / 1000, int(cfg.max_queue), int(cfg.max_queue_bytes))
        service = Service(info, limits_of(cfg), supervisor, queue, key)
        address = server.address_of(sock)
        app = create_app(service, str(about["packages"].get("sslt", "0")), address)
        run.update(digest=info["digest"], address=address)
        if cfg.client is not None:
            write_text(Path(str(cfg.client)).expanduser(), client_code(address, service.reads))
        if not str(cfg.host).startswith(ALONE) and key is None:
            log.warning("host=%s: whoever reaches this machine may ask; api_key_file= or $%s sets a key", cfg.host, KEY)
        said = f"{cfg['from']} is served at {address} (to try it: {address}/, to end: Ctrl-C)"
        server.run(app, sock, float(cfg.timeout) + GRACE, lambda: print(said, flush=True))
        found = {"serve/inputs": 0, "serve/restarts": 0}
        for family in service.metrics.registry.collect():
            for sample in family.samples:
                if sample.name == "sslt_items_total":
                    found["serve/inputs"] += int(sample.value)
                elif sample.name == "sslt_worker_restarts_total":
                    found["serve/restarts"] = int(sample.value)
        run.add_metrics(found)
        print(f"ended: {found['serve/inputs']} inputs answered", flush=True)
        return found
    finally:
        worker.kill()
        sock.close()


def work(pipe: int, folder: str) -> int:
    """In the worker: open what the config in the run folder names, and answer."""
    from sslt.data import cache
    from sslt.execute import explained
    from sslt.processes import quiet_libraries

    run = Run(folder)
    cfg = run.config
    logging.basicConfig(level=logging.WARNING, format="worker: %(message)s")
    cache.set_cache_dir(cfg.cache_dir, cfg.get("shards"))
    quiet_libraries()

    def opened() -> Any:
        import torch

        from sslt.deploy.serving.model import Model
        from sslt.stages import common
        from sslt.stages.evaluate import load
        from sslt.stages.predict import parts_of_run

        if cfg.threads is not None:
            torch.set_num_threads(int(cfg.threads))
        torch.manual_seed(int(cfg.seed))
        try:
            encoder, target = load(cfg, None)
            parts = parts_of_run(cfg, target)
            return Model(encoder, target, parts, common.device_of(cfg), int(cfg.max_batch), limits_of(cfg))
        except Exception as e:
            raise explained(e, run) or e from e

    return attend(pipe, opened)


def limits_of(cfg: Any) -> Limits:
    """What one request may ask for."""
    return Limits(int(cfg.max_bytes), int(cfg.max_items), int(cfg.max_pixels), int(cfg.max_characters), float(cfg.timeout))


def _said(cfg: Any, about: dict[str, Any]) -> dict[str, Any]:
    """What /info says beside what the worker knows."""
    names = [name for name in cfg if name.startswith("max_") or name == "timeout"]
    return {"limits": {name: cfg[name] for name in names}, "versions": {"python": about["python"], **about["packages"]}}


def _check(cfg: Any) -> None:
    if cfg.max_items > cfg.max_queue:
        raise UserError(f"max_items={cfg.max_items} of one request do not fit into max_queue={cfg.max_queue}: raise that")
    if cfg.max_bytes > cfg.max_queue_bytes:
        raise UserError(f"max_bytes={cfg.max_bytes} of one request do not fit into max_queue_bytes={cfg.max_queue_bytes}: raise that")
    if cfg.trainer.devices not in (1, "auto", -1):
        raise UserError(f"trainer.devices={cfg.trainer.devices}: one device serves; start one server for each, on ports of their own")
    if str(cfg["from"]).startswith("scratch"):
        raise UserError(f"from={cfg['from']}: what is untrained has nothing to answer; give a run")


def _key(cfg: Any) -> str | None:
    """The key that requests have to know; it is neither logged nor kept."""
    if cfg.api_key_file is None:
        return os.environ.get(KEY) or None
    path = stored.located(str(cfg.api_key_file))
    if not stored.is_file(path):
        raise UserError(f"api_key_file={cfg.api_key_file}: there is no such file")
    lines = stored.text(path).split()
    if len(lines) != 1 or not lines[0].isascii():
        raise UserError(f"api_key_file={display(path)}: give a file with the key alone, in ASCII and without spaces")
    return lines[0]
