"""A wheel holds everything a user needs outside the repository: configs too."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_runs_outside_the_repository(tmp_path):
    """Built, unpacked elsewhere and run with nothing else of sslt in sight."""
    tree, out, site = tmp_path / "tree", tmp_path / "out", tmp_path / "site"
    for name in ("sslt", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    out.mkdir()
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(out)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    expected = {f"sslt/configs/{p.relative_to(ROOT / 'configs')}" for p in (ROOT / "configs").rglob("*.yaml")}
    expected |= {str(p.relative_to(ROOT)) for p in (ROOT / "sslt").rglob("*.py")}
    assert expected <= set(names)
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "elsewhere").mkdir()
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from sslt.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "pretrain", "+task=simclr", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert done.returncode == 0 and "_target_: sslt.objectives.contrastive.NTXent" in done.stdout, done.stderr
