"""Protects the fuzzer's eyes (what is planted is seen) and, by a short seeded part of it, that sslt meets what is hostile or broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

# Name → (Python that stands for a command, its outcome, what its cause names). `here` is the working folder of the case.
PLANTED = {
    "quiet": ("print('done'); open('result', 'w').close()", "ok", ""),
    "mistake": ("import sys; print('sslt: there is no such file', file=sys.stderr); code = 2", "user error", ""),
    "marker": ("open('../EXECUTED', 'w').close()", "EXECUTED", "marker"),
    "system": ("import os; os.system('true')", "EXECUTED", "started a program"),
    "popen": ("import subprocess; subprocess.run(['true'])", "EXECUTED", "started a program"),
    "import": ("open('evil.py', 'w').write('x = 1'); import sys; sys.path.insert(0, '.'); import evil", "EXECUTED", "evil.py"),
    "pickle": ("import pickle; pickle.loads(b'cposix\\nsystem\\n.')", "EXECUTED", "unpickled posix.system"),
    "changed": ("import os; os.utime('victim.txt', (1, 1))", "EXECUTED", "work/victim.txt changed"),
    "came": ("import os; f = os.open('..', os.O_RDONLY); os.mkdir('outside/new', dir_fd=f)", "EXECUTED", "outside/new came"),
    "went": ("import os; f = os.open('../outside', os.O_RDONLY); os.remove('victim.txt', dir_fd=f)", "EXECUTED", "victim.txt went"),
    "elsewhere": ("open('../x', 'w')", "EXECUTED", "wrote"),
    "by a link": ("import os; os.symlink('../x', 'link'); open('link', 'a')", "EXECUTED", "wrote x"),
    "a link": (
        "import os; os.symlink('../outside/victim.txt', 'l'); open('n', 'w').close(); os.replace('n', 'l'); os.remove('l')",
        "ok",
        "",
    ),
    "moved": ("import os; os.rename('../outside/last.ckpt', 'mine')", "EXECUTED", "last.ckpt"),
    "traceback": ("raise ValueError('planted')", "traceback", "ValueError"),
    "swallowed": (
        "import traceback, sys\ntry: 1 / 0\nexcept ZeroDivisionError: traceback.print_exc()\ncode = 0",
        "traceback",
        "ZeroDivisionError",
    ),
    "defect": ("import sys; print('sslt: KeyError: x (load.py:7)', file=sys.stderr); code = 1", "exit 1", "KeyError (load.py:7)"),
    "exit": ("raise SystemExit(3)", "exit 1", "exit 3"),
    "sleep": ("import time; time.sleep(60)", "hang", "<string>"),
    "pipe": ("import os; os.mkfifo('p'); open('p')", "hang", ""),
    "abort": ("import os; os.abort()", "crash", "signal 6"),
    "silent": ("code = 2", "bad message", "no message"),
    "long": ("import sys; print('sslt: ' + 'x' * 700, file=sys.stderr); code = 2", "bad message", "letters"),
    "lines": ("import sys; print('sslt: a\\nb\\nc\\nd', file=sys.stderr); code = 2", "bad message", "lines"),
    "advice": ("import sys; print('sslt: set weights_only=False', file=sys.stderr); code = 2", "bad message", "load code"),
}
RUN = """
import json, sys
from pathlib import Path
sys.path.insert(0, {scripts!r})
from fuzzing.case import Case, Planned
from fuzzing.runner import Runner

def act(argv):
    known = {{"code": 0}}
    exec(argv[0], known)
    return known["code"]

planned = [Planned(name, lambda place, code=code: Case([code])) for name, code in json.loads(Path("planted.json").read_text()).items()]
found = {{r.name: [r.outcome, r.cause] for r in Runner(Path("cases"), act, timeout=0.7, jobs=4).run(planned)}}
Path("found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> dict[str, list[str]]:
    """name → outcome and cause, all run at once."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.json").write_text(json.dumps({name: code for name, (code, _, _) in PLANTED.items()}))
    subprocess.run([sys.executable, "-c", RUN.format(scripts=str(SCRIPTS))], cwd=folder, check=True, timeout=60)
    left = {p.name for p in (folder / "cases").iterdir()}
    assert left == {
        name for name, (_, outcome, _) in PLANTED.items() if outcome not in ("ok", "user error")
    }  # folders of bad cases are kept, of others not
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_seen(name, planted):
    """Each outcome by its own sign alone; what is in order is not called bad."""
    _, outcome, cause = PLANTED[name]
    assert planted[name][0] == outcome and cause in planted[name][1]


def test_sslt_meets_what_is_hostile_or_broken(tmp_path):
    """A short seeded part: nothing runs, hangs or ends in a traceback, and of each kind some work and some are refused."""
    report, counts = tmp_path / "report.jsonl", {"commands": 30, "folders": 18, "files": 10}
    asked = [a for kind, n in counts.items() for a in (f"--{kind}", str(n))]
    command = [sys.executable, str(SCRIPTS / "fuzz.py"), *asked, "--seed", "125", "--folder", str(tmp_path / "f"), "--report", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"}, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in report.read_text().splitlines()]
    for kind, n in counts.items():
        own = [r["outcome"] for r in found if r["name"].startswith(kind)]
        assert len(own) == n and {"ok", "user error"} <= set(own)
