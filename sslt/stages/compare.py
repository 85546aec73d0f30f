"""`compare=scratch`: the same fine-tuning from fresh weights, beside the run and under the same budget."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from sslt.processes import perform
from sslt.runs import Run

SET_HERE = ("from", "word_vectors", "compare")


def compare(cfg: Any, run: Run, overrides: list[str]) -> None:
    """Run the baseline in `RUN/scratch`, then print both with the difference."""
    from sslt.groups import command, starting
    from sslt.report.end import say_next
    from sslt.report.tables import print_table

    start = str(cfg["from"] if cfg.word_vectors is None else cfg.word_vectors)
    baseline = Run(run / "scratch")
    same = OmegaConf.merge(cfg, {"from": f"scratch:{run.path}", "word_vectors": None, "compare": "baseline", "baseline": False})
    if not baseline.finished:
        baseline.start("finetune", same, [o for o in overrides if o.partition("=")[0] not in SET_HERE] + [f"from=scratch:{run.path}"])
        perform("finetune", same, baseline)
        baseline.update(status="finished")
    ours, theirs = run.metrics, baseline.metrics
    rows = []
    primary = run.info.get("primary")
    episodes = [k for k in ours if k.startswith("episodes/")]
    for key in dict.fromkeys([f"test/{primary}", *episodes, "test/f1", f"val/{primary}", "train/steps", "train/seconds"]):
        if key in ours and key in theirs:
            gain = ours[key] - theirs[key]
            rows.append({"metric": key, "from": ours[key], "scratch": theirs[key], "difference": gain})
    run.add_metrics({f"scratch/{r['metric']}": r["scratch"] for r in rows} | {f"gain/{rows[0]['metric']}": rows[0]["difference"]})
    print_table(f"from {start}, against scratch", rows)
    majority, scratch = ours.get(f"majority/{primary}"), theirs.get(f"test/{primary}")
    if majority is not None and scratch is not None and scratch <= majority + 0.02:
        share, steps = f"{100 * majority:.1f} %", theirs["train/steps"]
        print(f"  from scratch it sits at the majority's share ({share}) after {steps} steps, too few to say what pretraining is worth;")
        print("  raise trainer.max_steps for both")
    say_next(run, {}, [command("evaluate", starting(run)), command("predict", starting(run), "input=FILE")])
