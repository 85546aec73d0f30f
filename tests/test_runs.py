"""Protects the run folder: files that are whole, runs that are found again, and folders that nothing is mixed into."""

from __future__ import annotations

import json

import pytest

from sslt.errors import UserError
from sslt.runs import (
    Run,
    _git_commit,
    all_runs,
    comparable,
    display,
    find_resumable,
    open_run,
    read_json,
    refuse_overwrite,
    versions,
    write_json,
)


def made(path, **info) -> Run:
    path.mkdir(parents=True)
    write_json(path / "run.json", info)
    return Run(path)


def test_json_is_whole_or_not_there(tmp_path):
    """A value that cannot be written leaves what was there, and nothing beside it; a file that is damaged is named."""
    write_json(tmp_path / "a.json", {"x": 1})

    class Unwritable:
        def __str__(self):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_json(tmp_path / "a.json", {"x": Unwritable()})
    assert read_json(tmp_path / "a.json") == {"x": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "none.json") == {}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_only_the_first_rank_writes(tmp_path):
    """Status and numbers are added to; another rank changes neither."""
    run, other = made(tmp_path / "run", status="running", verb="pretrain"), Run(tmp_path / "run", is_main=False)
    other.update(status="finished")
    other.add_metrics({"x": 2})
    assert not run.finished and run.metrics == {}
    run.add_metrics({"x": 1, "y": 2})
    run.add_metrics({"x": 3})
    run.update(status="finished")
    assert run.finished and run.info["verb"] == "pretrain" and run.metrics == {"x": 3, "y": 2}


def test_what_makes_a_command_another():
    """Order does not, nor where it writes and whether it goes on; any other setting does."""
    assert comparable(["b=1", "a=2", "resume=auto", "+resume=x", "hydra.run.dir=x", "debug=true"]) == ["a=2", "b=1"]
    assert comparable(["hydra.sweep.dir=x", "+debugged=1"]) == ["+debugged=1", "hydra.sweep.dir=x"]


def test_the_newest_unfinished_run_of_a_command_is_found(tmp_path):
    """By when it started; finished ones, other verbs and other settings are passed over."""
    runs = {
        "a": {"started": "2024-01-02", "status": "running", "verb": "pretrain", "overrides": ["x=1", "resume=auto"]},
        "b/1": {"started": "2024-01-03", "status": "interrupted", "verb": "pretrain", "overrides": ["x=1"]},
        "c": {"started": "2024-01-04", "status": "finished", "verb": "pretrain", "overrides": ["x=1"]},
        "d": {"started": "2024-01-05", "status": "running", "verb": "finetune", "overrides": ["x=1"]},
        "e": {"started": "2024-01-01", "status": "running", "verb": "pretrain", "overrides": ["x=2"]},
    }
    for name, info in runs.items():
        made(tmp_path / name, **info)
    assert [r.path.relative_to(tmp_path).as_posix() for r in all_runs(tmp_path)] == ["e", "a", "b/1", "c", "d"]
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "run.json").write_text("")  # nobody knows whose it is
    assert find_resumable("pretrain", ["x=1"], str(tmp_path)).path == tmp_path / "b" / "1"
    assert find_resumable("pretrain", ["x=3"], str(tmp_path)) is None


def test_opening_what_is_no_run(tmp_path):
    """The run below it, where there is one, or how to list them."""
    made(tmp_path / "outer" / "run")
    assert open_run(tmp_path / "outer" / "run").path == tmp_path / "outer" / "run"
    with pytest.raises(UserError, match=r"resume=.*outer is no run folder; did you mean .*run\?"):
        open_run(tmp_path / "outer", "resume")
    with pytest.raises(UserError, match="sslt list runs"):
        open_run(tmp_path / "nowhere")


def test_nothing_is_mixed_into_a_folder_with_files(here):
    """What Hydra and the logs put there before does not count; the way out names the setting."""
    folder = here / "run"
    refuse_overwrite(folder)
    for name in (".hydra", "logs", ".lock"):
        (folder / name).mkdir(parents=True)
    refuse_overwrite(folder)
    (folder / "metrics.csv").touch()
    with pytest.raises(UserError, match=r"^run already holds files.*resume=run$"):
        refuse_overwrite(folder)
    with pytest.raises(UserError, match=r"another hydra\.sweep\.dir=.*resume=run/NUMBER$"):
        refuse_overwrite(folder, "hydra.sweep.dir")
    assert display(folder / "x") == "run/x" and display(here.parent) == str(here.parent)


def test_the_commit_of_the_working_folder(here):
    """Of a branch, of a detached head, from a folder below; of a branch that is packed, its name; outside of any, none."""
    assert _git_commit() is None or not (here / ".git").exists()
    heads = here / ".git" / "refs" / "heads"
    heads.mkdir(parents=True)
    (heads / "main").write_text("abc\n")
    for head, expected in (("ref: refs/heads/main\n", "abc"), ("0123\n", "0123"), ("ref: refs/heads/packed\n", "ref: refs/heads/packed")):
        (here / ".git" / "HEAD").write_text(head)
        assert _git_commit() == expected == versions()["git"]
    assert json.dumps(versions()) and {"sslt", "torch", "numpy"} <= versions()["packages"].keys()
