"""What an attacker puts into files: names of code, pickles, interpolations, bombs, and files that are none."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import socket
import zipfile
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.case import Place

PLANTED = ("hubconf.py", "x.py", "yaml.py", "torch.py", "sitecustomize.py", "modeling_evil.py", "evil.pt", "evil.npy", "x.yaml", "setup.py")


class _Runs:
    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def pickled(place: Place, rng: Random) -> bytes:
    """A pickle that leaves the marker, in one of several forms: plain, text, torch's two, numpy's."""
    evil = rng.choice([_Runs(os.system, place.shell), _Runs(exec, place.python), _Runs(eval, place.python)])
    form = rng.choice(["plain", "text", "optimized", "zip", "legacy", "npy"])
    if form == "zip":
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as z:
            z.writestr("archive/data.pkl", pickle.dumps(evil, 2))
            z.writestr("archive/version", "3\n")
            z.writestr("archive/byteorder", "little")
        return held.getvalue()
    if form == "legacy":
        parts = [pickle.dumps(p, 2) for p in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, evil, [])]
        return b"".join(parts)
    if form == "npy":
        return npy(evil)
    whole = pickle.dumps(evil, 0 if form == "text" else 4)
    return pickletools.optimize(whole) if form == "optimized" else whole


def npy(evil: Any, shape: str = "(1,)") -> bytes:
    """A .npy file whose array holds a pickled object."""
    head = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}"
    head += " " * (63 - (10 + len(head)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + pickle.dumps(evil, 2)


def evil_npy(place: Place) -> bytes:
    """`npy` with what leaves the marker."""
    return npy(_Runs(os.system, place.shell))


def plant(folder: Path, place: Place, rng: Random) -> None:
    """Code and pickles under names that something could look for, in a folder and in the working folder."""
    hub = folder / "h"
    hub.mkdir(exist_ok=True)
    for home in (folder, hub, place.work):
        for name in PLANTED:
            path = home / name
            if path.exists():
                continue
            if name.endswith(".py"):
                path.write_text(f"{place.python}\ndef x(*a, **k):\n    {place.python}\n    return {{}}\n")
            elif name.endswith(".yaml"):
                path.write_text(
                    f"# @package _global_\ncallbacks:\n- {{_target_: torch.hub.load, repo_or_dir: {hub}, model: x, source: local}}\n"
                )
            else:
                path.write_bytes(pickled(place, rng))


def nodes(place: Place, folder: Path) -> dict[str, dict[str, Any]]:
    """name → a node whose making would run code or write a file."""
    run, victim = {"_target_": "os.system", "command": place.shell}, str(place.victim)
    handlers = {"version": 1, "handlers": {"f": {"class": "logging.FileHandler", "filename": victim, "mode": "w"}},
                "root": {"handlers": ["f"]}}  # fmt: skip
    lightning = "pytorch_lightning"
    made = {
        "os.system": run,
        "posix.system": {"_target_": "posix.system", "command": place.shell},
        "subprocess.Popen": {"_target_": "subprocess.Popen", "args": ["sh", "-c", place.shell]},
        "subprocess.check_output": {"_target_": "subprocess.check_output", "_args_": [["sh", "-c", place.shell]]},
        "builtins.eval": {"_target_": "builtins.eval", "_args_": [place.python]},
        "builtins.exec": {"_target_": "builtins.exec", "_args_": [place.python]},
        "builtins.open": {"_target_": "builtins.open", "file": victim, "mode": "w"},
        "builtins.__import__": {"_target_": "builtins.__import__", "name": "x"},
        "os.remove": {"_target_": "os.remove", "path": victim},
        "os.rename": {"_target_": "os.rename", "src": victim, "dst": str(place.work / "stolen")},
        "shutil.rmtree": {"_target_": "shutil.rmtree", "path": str(place.outside)},
        "runpy.run_path": {"_target_": "runpy.run_path", "path_name": str(folder / "x.py")},
        "importlib.import_module": {"_target_": "importlib.import_module", "name": "x"},
        "x.x": {"_target_": "x.x"},
        "bad.x.x": {"_target_": f"{folder.name}.x.x"},
        "torch.hub.load": {"_target_": "torch.hub.load", "repo_or_dir": str(folder / "h"), "model": "x", "source": "local"},
        "torch.load": {"_target_": "torch.load", "f": str(folder / "evil.pt"), "weights_only": False},
        "torch.save": {"_target_": "torch.save", "obj": 1, "f": victim},
        "torch.jit.load": {"_target_": "torch.jit.load", "f": str(folder / "evil.pt")},
        "numpy.load": {"_target_": "numpy.load", "file": str(folder / "evil.npy"), "allow_pickle": True},
        "numpy.savetxt": {"_target_": "numpy.savetxt", "fname": victim, "X": [1]},
        "joblib.load": {"_target_": "joblib.load", "filename": str(folder / "evil.pt")},
        "pandas.read_pickle": {"_target_": "pandas.read_pickle", "filepath_or_buffer": str(folder / "evil.pt")},
        "logging.config.dictConfig": {"_target_": "logging.config.dictConfig", "config": handlers},
        "logging.FileHandler": {"_target_": "logging.FileHandler", "filename": victim, "mode": "w"},
        "hydra.utils.instantiate": {"_target_": "hydra.utils.instantiate", "_recursive_": False, "config": run},
        "hydra.utils.call": {"_target_": "hydra.utils.call", "config": run},
        "hydra.utils.get_method": {"_target_": "hydra.utils.get_method", "path": "x.x"},
        "hydra._internal.utils._locate": {"_target_": "hydra._internal.utils._locate", "path": "x.x"},
        "functools.partial": {
            "_target_": "functools.partial",
            "_args_": [{"_target_": "hydra.utils.get_method", "path": "os.system"}, place.shell],
        },
        "partial": {**run, "_partial_": True},
        "nested": {"_target_": "builtins.dict", "x": run},
        "spaces": {**run, "_target_": " os.system "},
        "sslt.config.build": {"_target_": "sslt.config.build", "_args_": [run]},
        "sslt.execute.os.system": {**run, "_target_": "sslt.execute.os.system"},
        "sslt.processes.subprocess.Popen": {"_target_": "sslt.processes.subprocess.Popen", "args": ["sh", "-c", place.shell]},
        "sslt.objectives.os.system": {**run, "_target_": "sslt.objectives.contrastive.os.system"},
        "sslt.runs.write_json": {"_target_": "sslt.runs.write_json", "path": victim, "value": 1},
        "sslt.data.cache.write_atomic": {"_target_": "sslt.data.cache.write_atomic", "path": victim, "text": "x"},
        "sslt.data.cache.shutil.rmtree": {"_target_": "sslt.data.cache.shutil.rmtree", "path": str(place.outside)},
        "sslt.cli.main": {"_target_": "sslt.cli.main", "argv": ["pretrain", "+task=simclr", f"hydra.run.dir={place.outside}/new"]},
        "sslt.report.curves.MetricsCSV": {"_target_": "sslt.report.curves.MetricsCSV", "path": victim},
        "sslt.callbacks.checkpoint.Checkpoint": {
            "_target_": "sslt.callbacks.checkpoint.Checkpoint",
            "folder": str(place.outside),
            "every_minutes": 0.0,
        },
        "sslt.encoders.load.load_encoder": {"_target_": "sslt.encoders.load.load_encoder", "what": str(folder), "trust": ["x", "os"]},
        "ModelCheckpoint": {
            "_target_": f"{lightning}.callbacks.ModelCheckpoint",
            "dirpath": str(place.outside),
            "filename": "last",
            "enable_version_counter": False,
            "every_n_train_steps": 1,
        },
        "LambdaCallback": {"_target_": f"{lightning}.callbacks.LambdaCallback", "on_fit_start": {**run, "_partial_": True}},
        "CSVLogger": {"_target_": f"{lightning}.loggers.CSVLogger", "save_dir": str(place.outside), "name": "runs", "version": "one"},
        "TensorBoardLogger": {"_target_": f"{lightning}.loggers.TensorBoardLogger", "save_dir": str(place.outside)},
        "SimpleProfiler": {
            "_target_": f"{lightning}.profilers.SimpleProfiler",
            "dirpath": str(place.outside),
            "filename": "victim",
        },
        "Trainer": {"_target_": f"{lightning}.Trainer", "default_root_dir": str(place.outside), "profiler": "simple"},
        "transformers": {
            "_target_": "transformers.AutoModel.from_pretrained",
            "pretrained_model_name_or_path": str(folder),
            "trust_remote_code": True,
        },
        "timm.create_model": {"_target_": "timm.create_model", "model_name": "resnet18", "checkpoint_path": str(folder / "evil.pt")},
    }
    return made


def odd_values(place: Place, rng: Random) -> list[Any]:
    """Values that a JSON or YAML file may hold where another was."""
    deep: Any = []
    for _ in range(60):
        deep = [deep]
    return [
        None, True, False, 0, -1, 3, 1.5, -0.5, 1e308, float("nan"), float("inf"), 10**30, 2**63, -(10**12),
        "", " ", "x", "0", "nan", "\ud800", "\x00", "é中文🙂", "x" * 5000, "../../outside", str(place.victim), "/dev/zero",
        "/proc/self/mem",
        "~", "$HOME", "%s%n", "a\nb", "-1", "--help", "file:///etc/passwd", "http://127.0.0.1:9/x", "sslt.errors.UserError", "os.system",
        [], [1], [None], ["a", "b"], [[1, 2], [3]], deep, {}, {"a": 1}, {"": None}, {"a": {"b": {"c": []}}}, {"_target_": 3},
        {"_target_": None}, {"_target_": ""}, {"_target_": "."}, {"_target_": "sslt"}, {"_target_": ["os.system"]},
        "${oc.env:HOME}", "${x}", "${oc.decode:${oc.env:X}}", "${oc.create:{_target_:os.system}}", "${now:%Y}", "${hydra:runtime.cwd}",
        "???", "${", list(range(2000)), {str(i): i for i in range(2000)}, "sslt.encoders.image.ImageEncoder",
    ]  # fmt: skip


def overrides(place: Place, bad: Path) -> list[str]:
    """Overrides that would run code, write elsewhere or change Hydra itself."""
    node = f"{{_target_:os.system,command:'{place.shell}'}}"
    hub = f"{{_target_:torch.hub.load,repo_or_dir:{bad}/h,model:x,source:local}}"
    up = "../" * 12 + "proc/self/cwd/bad"
    logging = f"{{version:1,handlers:{{f:{{class:logging.FileHandler,filename:{place.victim},mode:w}}}},root:{{handlers:[f]}}}}"
    first = [  # what has run code or written elsewhere before, and its like
        f"+target={up}/x", f"++hydra.job_logging={logging}", f"callbacks=[{node}]", f"+x@_global_={up}/x", f"hydra.searchpath=[file://{bad}]",
        f"++hydra.run.dir={place.outside}", f"callbacks=[{hub}]", f"cache_dir={place.outside}/new", "trust=[os]",
        f"++stages.pretrain.values.callbacks=[{node}]", f"++stages.finetune.choices.target={up}/x", f"+logger={up}/x",
        f"logger={{csv:{node}}}", f"hydra.job_logging={logging}", f"optimizer={up}/x", "++trust=[x,os]", f"++hydra.callbacks.x={node}",
        f"++logger.csv.save_dir={place.outside}", f"objective={node}", f"from={bad}",
    ]  # fmt: skip
    groups = [
        f"+task={up}/x", f"+joint={up}/x", f"+shift={up}/x", f"logger={up}/x", f"data={up}/x", f"+objective@callbacks={up}/x",
        f"+../bad/x@_global_={up}/x", "+target=../../../bad/x", "hydra/job_logging=default", "hydra/launcher=basic",
        f"hydra/launcher={up}/x",
        f"+hydra/callbacks={up}/x", "hydra/output=default",
    ]  # fmt: skip
    nodes = [
        f"++callbacks=[{node}]", f"'callbacks'=[{node}]", 'callbacks=[{"_target_":os.system}]', f"+callbacks.0={node}", f"+x={node}",
        "++encoder._target_=x.x", "++views.x._target_=os.system", f"++logger.x={node}", "++_target_=os.system", f"++hydra.sweeper={node}",
        f"++objective._target_=os.system ++objective.command='{place.shell}'", f'curve.overrides=["callbacks=[{node}]"]',
    ]  # fmt: skip
    settings = [
        f"+hydra.job_logging={logging}", f"++hydra.hydra_logging={logging}", f"++hydra.searchpath=[file://{bad}]", "hydra.mode=MULTIRUN",
        "hydra.sweeper._target_=os.system", "hydra.verbose=true", "hydra.job.chdir=true", f"hydra.run.dir={place.outside}/new",
        f"++hydra.output_subdir={place.outside}/new", "++hydra.job.env_set.PYTHONPATH=bad", f"++cache_dir={place.outside}/new",
        "+trust=[torch]", "'trust'=[os]", "resume=auto", "++resume=null", "from=x", "from=null", "data.path=/dev/zero",
        f"data=text_files data.path={place.victim}", "logger=csv", "trainer.devices=1000000", "trainer.devices=2", "compare=scratch",
        "debug=true", "++stages.evil.values.x=1", f"++stages.pretrain.added.hydra={node}", "stages=null",
        f"++stages.pretrain.values.hydra.job_logging={logging}", "+encoder.args.layers=${stages.pretrain.values.x}",
    ]  # fmt: skip
    grammar = [
        "${oc.env:HOME}=1", "seed=${oc.env:HOME}", "seed=${oc.decode:1}", "--config-dir=bad", "--multirun", "-m", "--cfg=job", "--help", "",
        "=",
        "==", "+", "~", "~trainer", "~objective", "x", "seed=", "seed=1 seed=2", "seed=[1", "seed='", "seed=\x00", "seed=\ud800",
        "seed=" + "9" * 5000, "callbacks=" + "[" * 500, "trainer.max_steps=nan",
    ]  # fmt: skip
    return [*first, *groups, *nodes, *settings, *grammar]


def raw_contents(place: Place) -> dict[str, bytes]:
    """name → bytes in place of a small file."""
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    return {
        "alias bomb": bomb.encode(),
        "merge keys": b"a: &a {x: 1}\nb:\n  <<: *a\n  <<: [*a, *a]\n",
        "recursive alias": b"a: &a [*a]\n",
        "python/object/apply": f"!!python/object/apply:os.system ['{place.shell}']\n".encode(),
        "python/object/new": f"x: !!python/object/new:os.system ['{place.shell}']\n".encode(),
        "python/name": b"verb: !!python/name:os.system\n",
        "python/module": b"verb: !!python/module:x\n",
        "deep lists": b"[" * 100_000,
        "deep closed lists": b"[" * 50_000 + b"]" * 50_000,
        "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "deep blocks": b"".join(b" " * i + b"a:\n" for i in range(900)),
        "digits": b'{"verb": ' + b"9" * 5000 + b"}",
        "yaml digits": b"verb: " + b"9" * 5000 + b"\n",
        "float": b'{"verb": 1e99999, "dim": -1e99999, "args": NaN}',
        "surrogates": b'{"verb": "\\ud800", "_target_": "\\udfff", "classes": ["\\ud800"]}',
        "null": b"null\n",
        "list": b"[]\n",
        "list of lists": b"[[[]]]\n",
        "number": b"3\n",
        "text": b'"text"\n',
        "bare text": b"text\n",
        "empty": b"",
        "blank": b" \n\t\n",
        "brace": b"{",
        "empty object": b"{}\n",
        "NUL": b"\x00" * 100,
        "binary": bytes(range(256)) * 4,
        "utf-16": '{"verb": "pretrain"}'.encode("utf-16"),
        "BOM": b'\xef\xbb\xbf{"verb": "pretrain"}',
        "latin-1": b'{"verb": "pr\xe9train"}',
        "complex keys": b"? [a, b]\n: 1\n? {c: d}\n: 2\n1: 3\nnull: 4\n",
        "duplicate keys": b'{"verb": "pretrain", "verb": "run", "verb": null}',
        "documents": b"--- {a: 1}\n--- {b: 2}\n",
        "timestamp": b"verb: 2020-01-01\nfrom: 2020-01-01T00:00:00Z\n",
        "binary tag": b"verb: !!binary aGk=\nx: !!set {a, b}\n",
        "million spaces": b" " * 2_000_000 + b"{}",
        "million keys": b"{" + b",".join(b'"k%d":1' % i for i in range(100_000)) + b"}",
        "missing value": b"from: ???\n",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
    }


def no_file(kind: str, path: Path, place: Place) -> None:
    """Put something in the place of a file that is not what a file is."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f"{path.name}.was"))
    else:
        path.unlink(missing_ok=True)
    links = {"/dev/zero": "/dev/zero", "/dev/urandom": "/dev/urandom", "loop": path.name, "above": "..", "broken": "nowhere/at/all",
             "victim": str(place.victim), "outside": str(place.outside), "itself": ".", "stdin": "/dev/stdin",
             "proc": "/proc/self/mem"}  # fmt: skip
    if kind in links:
        path.symlink_to(links[kind])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
        (path / "x").write_text("x")
    elif kind == "socket":
        back = os.getcwd()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as s:
            os.chdir(path.parent)  # names of sockets are short
            s.bind(path.name)
        os.chdir(back)
    elif kind == "sparse":
        with path.open("wb") as f:
            f.truncate(1 << 37)
    elif kind == "unreadable":
        path.write_text("{}")
        path.chmod(0)


NO_FILES = ("pipe", "/dev/zero", "/dev/urandom", "loop", "above", "broken", "victim", "outside", "itself", "stdin", "proc", "folder",
    "socket",
            "sparse", "gone", "unreadable")  # fmt: skip
