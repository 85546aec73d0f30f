"""Protects the client that a server hands out: typed at, it says in a line what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sslt.deploy.serving.client import client_code
from sslt.deploy.serving.inputs import IMAGE, TEXT, Reads

NOBODY = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (IMAGE, [], "python client.py photo.jpg"),
        (IMAGE, ["nowhere.png"], "nowhere.png"),
        (TEXT, [], "python client.py 'a text'"),
        (TEXT, ["a text"], f"{NOBODY} does not answer: "),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(tmp_path, kind, arguments, said):
    (tmp_path / "client.py").write_text(client_code(NOBODY, Reads(kind)), encoding="utf-8")
    done = subprocess.run([sys.executable, "-I", "-S", "client.py", *arguments], capture_output=True, text=True, cwd=tmp_path, env={})
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr and not done.stdout
