"""Protects the scripts that set the small cluster up: what is missing is named, and nothing but their own is ended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from small_cluster import SCRIPTS, script


@pytest.fixture
def own():
    return script("slurm")


def test_what_is_missing_is_named_with_the_way_to_it(own, here, monkeypatch):
    """Packages are not installed unless that is asked for."""
    monkeypatch.setattr(own.os, "geteuid", lambda: 0)
    monkeypatch.setattr(own.sys, "platform", "linux")
    monkeypatch.setattr(own.shutil, "which", lambda name, path: None if name in ("munged", "srun") else name)
    monkeypatch.setattr(own.subprocess, "run", lambda *_, **__: pytest.fail("nothing is to be run"))
    assert own.lacking() == "no munged, srun here: `apt-get install slurm-wlm munge`, or start with --install"
    with pytest.raises(own.Lacking, match="no munged, srun here"):
        own.start(here / "cluster")
    assert not (here / "cluster").exists()


def test_installing_is_by_apt_and_tells_when_it_fails(own, monkeypatch):
    monkeypatch.setattr(own.os, "geteuid", lambda: 0)
    monkeypatch.setattr(own.sys, "platform", "linux")
    monkeypatch.setattr(own.shutil, "which", lambda name, path: None)
    asked = []
    monkeypatch.setattr(
        own.subprocess, "run", lambda command, **_: asked.append(command) or subprocess.CompletedProcess(command, len(asked) - 1)
    )
    assert own.lacking(install=True) == "`apt-get install -y --no-install-recommends slurm-wlm munge` failed"
    assert asked[0] == ["apt-get", "update"]


@pytest.mark.parametrize("name", ["slurm", "namespaces"])
def test_without_root_there_is_none(name, monkeypatch):
    own = script(name)
    monkeypatch.setattr(own.os, "geteuid", lambda: 1000)
    assert "root" in own.lacking()


def test_stopping_ends_no_process_that_has_taken_a_number(own, here):
    """A file of process numbers may be older than the machine's start."""
    (here / "cluster").mkdir()
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (here / "cluster" / "slurmctld.pid").write_text(str(other.pid))
        (here / "cluster" / "munge.pid").write_text("no number")
        own.stop(here / "cluster")
        assert other.poll() is None and (here / "cluster" / "slurmctld.pid").exists()  # no folder of a cluster, so it stays
    finally:
        other.communicate(b"\n")


@pytest.mark.parametrize("name", ["slurm.py", "namespaces.py"])
def test_a_script_tells_in_one_line_why_it_cannot(name, here):
    """As a user without rights, or on a system without the programs, sees it."""
    code = f"import os, runpy, sys; os.geteuid = lambda: 1000; sys.argv = ['{name}', 'start']; "
    code += f"runpy.run_path('{SCRIPTS / name}', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"{name}: ") and done.stderr.count("\n") == 1 and "root" in done.stderr
