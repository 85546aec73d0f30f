"""`sslt merge`: fold an adapter into the weights it was made over."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from sslt import stored
from sslt.encoders import inserted
from sslt.encoders.load import load_encoder
from sslt.groups import command, starting
from sslt.report.end import say_next
from sslt.runs import RUN_FILE, Run
from sslt.stages import common
from sslt.targets import heads


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Write `encoder/`, whole, and `head/` where the run has one; they are used as those of any other run."""
    start, trust = stored.located(str(cfg["from"])), list(cfg.trust)
    encoder = load_encoder(str(start), None, trust, base=cfg.base)
    inserted.merge(encoder)
    if run.is_main:
        encoder.save(run / "encoder", f"# An encoder, merged\n\nThe adapter of `{start}` folded into its base. sslt evaluate from=FOLDER\n")
        head = start / "head" / "head.json"
        if stored.is_file(head):
            heads.save(run, heads.load(head.parent, encoder, trust), heads.node_of(head.parent))
        if stored.is_file(start / RUN_FILE):  # what `from=` a run knows of its data
            config = OmegaConf.load(run / "config.yaml")
            config.data = Run(start).config.data
            OmegaConf.save(config, run / "config.yaml")
    metrics = {"model/parameters": sum(p.numel() for p in encoder.parameters()), "model/stored_bytes": common.stored_bytes(run)}
    run.add_metrics(metrics)
    say_next(run, metrics, [command("evaluate", starting(run)), command("predict", starting(run), "input=FILE")])
    return metrics
