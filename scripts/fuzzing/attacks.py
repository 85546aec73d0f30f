"""What is done to a folder: nodes that name code, other values and contents, pickles, links, archives, what is no file.

Each attack gets the folder `bad`, the case's place and the seed, and says in words what it did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import damage, hostile
from fuzzing.case import Place

_READ = ("config.yaml", "run.json", "sslt.json", "head.json", "config.json", "meta.json", "tokenizer.json", "tokenizer_config.json",
         "text_processor.json", "metrics.csv", "train.csv")  # fmt: skip


# ---------------------------------------------------------------- places in files
def _files(bad: Path, *endings: str) -> list[Path]:
    return sorted(p for p in bad.rglob("*") if p.is_file() and not p.is_symlink() and p.name not in hostile.PLANTED
                  and (not endings or p.name.endswith(endings)))  # fmt: skip


def _likely(files: list[Path], rng: Random) -> Path:
    """One of the files; mostly of those that sslt reads."""
    read = [p for p in files if p.name in _READ or p.suffix in (".safetensors", ".ckpt", ".npy")]
    return rng.choice(read if read and rng.random() < 0.85 else files)


def _read(path: Path) -> Any:
    import yaml

    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def _write(path: Path, value: Any) -> None:
    import yaml

    path.write_text(json.dumps(value) if path.suffix == ".json" else yaml.safe_dump(value, allow_unicode=True), errors="surrogatepass")


def _paths(node: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    items = node.items() if isinstance(node, dict) else enumerate(node[:20]) if isinstance(node, list) else ()
    for key, value in items:
        yield from _paths(value, (*at, key))


def _get(node: Any, at: tuple) -> Any:
    for key in at:
        node = node[key]
    return node


def _put(node: Any, at: tuple, value: Any) -> Any:
    if not at:
        return value
    _get(node, at[:-1])[at[-1]] = value
    return node


def _structured(bad: Path, rng: Random) -> tuple[Path, Any] | None:
    """A JSON or YAML file of the folder and what is in it; those that say what to make are likelier."""
    found = [p for p in _files(bad, ".json", ".yaml") if p.stat().st_size < 200_000]
    if not found:
        return None
    path = _likely(found, rng)
    return path, _read(path)


def _next(known: Sequence[Any], turn: int) -> Any:
    return known[turn % len(known)]


def _name(path: Path, place: Place) -> str:
    return str(path.relative_to(place.root if path.is_relative_to(place.cache) else place.work))


# ---------------------------------------------------------------- attacks
def _node(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """A node that names code, where a node stands or could."""
    name, node = _next(list(hostile.nodes(place, bad).items()), turn)
    known = {"config.yaml": ("encoder", "objective", "data", "views", "optimizer", "schedule", "trainer", "logger", "adaptation",
    "callbacks",
                             "joint", "shift", "episodes", "test_time", "corruption", "sampling", "checkpoint"),
             "head.json": ("objective",), "sslt.json": ("args", "processor", "adapter", "base"), "run.json": ("from", "data",
             "stages")}  # fmt: skip
    files = _files(bad, *known) or _files(bad, ".json", ".yaml")
    path = rng.choice(files)
    content = _read(path)
    if path.name == "config.yaml" and rng.random() < 0.4:
        at, node = ("callbacks",), [node]
    elif rng.random() < 0.6 and isinstance(content, dict) and path.name in known:
        at = (rng.choice(known[path.name]),)
        inner = content.get(at[0])
        if isinstance(inner, dict) and rng.random() < 0.5:
            at = (*at, rng.choice([*inner, "x", "_args_"]))
            node = [node] if at[-1] == "_args_" else node
        elif at[0] == "logger":
            node = {"csv": node}
    elif path.name == "sslt.json" and rng.random() < 0.5:
        at, node = ("_target_",), node["_target_"]
    else:
        at = rng.choice(list(_paths(content)))
    _write(path, _put(content, at, node))
    return f"{_name(path, place)}: {name} at {'.'.join(map(str, at)) or 'the top'}: {json.dumps(node)}"


def _value(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """Another value somewhere, a key more or a key less."""
    if not (found := _structured(bad, rng)):
        return _raw(bad, place, rng, turn)
    path, content = found
    at = rng.choice([*(p for p in _paths(content) if p), ()])
    parent = _get(content, at[:-1]) if at else None
    value = rng.choice(hostile.odd_values(place, rng))
    if isinstance(parent, dict) and rng.random() < 0.3:
        old = parent.pop(at[-1])
        if rng.random() < 0.5:
            parent[f"{at[-1]}x"] = old
            told = f"{at[-1]} renamed"
        else:
            told = f"{'.'.join(map(str, at))} left out"
    else:
        content = _put(content, at, value)
        told = f"{'.'.join(map(str, at)) or 'the top'} = {value!r:.200}"
    try:
        _write(path, content)
    except (ValueError, RecursionError, UnicodeError):
        _write(path, {"x": "x"})
    return f"{_name(path, place)}: {told}"


def _interpolation(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """A value that Hydra or OmegaConf would compute."""
    node = f"{{_target_:os.system,command:'{place.shell}'}}"
    text = rng.choice([
        "${oc.env:HOME}", f"${{oc.create:{node}}}", f"${{oc.decode:\"{node}\"}}", "${oc.env:SSLT_SECRET,x}", "${seed}", "${hydra:runtime}",
        "${eval:1}", "${callbacks}", "${oc.dict.values:trainer}", "${oc.select:trainer}", "${now:%s}", "${python_version:}", "${a:${b}}",
    ])  # fmt: skip
    found = _structured(bad, rng)
    if not found:
        return "nothing"
    path, content = found
    at = rng.choice([*(p for p in _paths(content) if p), ()])
    _write(path, _put(content, at, text))
    return f"{_name(path, place)}: {'.'.join(map(str, at))} = {text}"


def _override(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """Hostile overrides in run.json, of which a run that goes on is told."""
    path = rng.choice(_files(bad, "run.json"))
    about = _read(path)
    known = hostile.overrides(place, bad)
    chosen: list[Any] = [_next(known, turn), *rng.sample(known, rng.choice([0, 0, 0, 1]))]
    if rng.random() < 0.05:
        chosen = [rng.choice(hostile.odd_values(place, rng))]
    kept = about.get("overrides", [])
    about["overrides"] = rng.choice([[*kept, *chosen], [*chosen, *kept], chosen])
    if rng.random() < 0.15:
        about["config_dir"] = rng.choice([str(bad), "bad", "/", "", 3, ["bad"]])
    path.write_text(json.dumps(about))
    return f"{_name(path, place)}: overrides {chosen!r:.400}, config_dir {about.get('config_dir')!r}"


def _raw(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """Another content for a small file."""
    path = _likely(_files(bad, ".json", ".yaml", ".csv", ".txt") or _files(bad), rng)
    name, content = _next(list(hostile.raw_contents(place).items()), turn)
    path.write_bytes(content)
    return f"{_name(path, place)} holds {name}"


def _no_file(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """What is no file where a file or folder stood."""
    folders = sorted(p for p in bad.rglob("*") if p.is_dir() and not p.is_symlink())
    path = rng.choice(folders) if folders and rng.random() < 0.2 else _likely(_files(bad), rng)
    kind = _next(hostile.NO_FILES, turn)
    hostile.no_file(kind, path, place)
    return f"{_name(path, place)} is {kind}"


def _pickle(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """A pickle where weights or arrays stand, or beside them under a name that a library looks for."""
    files = _files(bad, ".safetensors", ".ckpt", ".npy", ".npz", ".parquet", ".pt")
    extra = [
        "pytorch_model.bin",
        "model.bin",
        "training_args.bin",
        "adapter_model.bin",
        "model.ckpt",
        "model.pt",
        "tf_model.h5",
        "model.pkl",
    ]
    path = rng.choice(files or _files(bad))
    if path.suffix == ".npy" and rng.random() < 0.7:
        path.write_bytes(hostile.evil_npy(place))
        return f"{_name(path, place)} is an array of pickled objects"
    if path.suffix == ".safetensors" and rng.random() < 0.6:
        other = path.with_name(rng.choice(extra))
        other.write_bytes(hostile.pickled(place, rng))
        if rng.random() < 0.7:
            path.unlink()
        return f"{_name(other, place)} is a pickle, {path.name} is {'there' if path.exists() else 'gone'}"
    path.write_bytes(hostile.pickled(place, rng))
    return f"{_name(path, place)} is a pickle"


def _checkpoint(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """A checkpoint in which something is of another kind."""
    import torch

    path = rng.choice(_files(bad, "last.ckpt"))
    state = torch.load(path, map_location="cpu", weights_only=True)
    at = rng.choice([p for p in _paths(state) if p])
    odd = [
        *hostile.odd_values(place, rng),
        torch.zeros(3),
        torch.full((1,), float("nan")),
        torch.zeros(0),
        torch.ones(2, dtype=torch.int64),
    ]
    value = rng.choice(odd)
    if rng.random() < 0.3 and isinstance(_get(state, at[:-1]), dict):
        del _get(state, at[:-1])[at[-1]]
        value = "left out"
    else:
        _put(state, at, value)
    torch.save(state, path)
    return f"{_name(path, place)}: {'.'.join(map(str, at))} = {value!r:.200}"


def _bytes(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """Damaged bytes."""
    path = _likely([p for p in _files(bad) if p.stat().st_size], rng)
    return f"{_name(path, place)}: {damage.damage(path, rng)}"


def _place_of_a_run(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """Places in a stored config that lie elsewhere."""
    path = rng.choice(_files(bad, "config.yaml") or _files(bad, "run.json"))
    content = _read(path)
    elsewhere = rng.choice([str(place.outside), "../outside", str(place.outside / "runs" / "one"), str(place.victim)])
    values: dict[str, Any] = {"cache_dir": elsewhere, "from": elsewhere, "trust": ["os", "x", "torch"], "name": elsewhere, "debug": "x",
                              "logger": {"csv": {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": elsewhere, "name": "",
                                                 "version": ""}}}  # fmt: skip
    key = rng.choice(list(values))
    if key == "logger" and rng.random() < 0.5:
        values[key]["csv"]["name"] = "../../../outside/runs"
    content[key] = values[key]
    _write(path, content)
    return f"{_name(path, place)}: {key} = {values[key]}"


def _links_out(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """Links in the places that a run that goes on writes to."""
    name = _next(_WRITTEN, turn)
    path = bad / name
    path.parent.mkdir(exist_ok=True)
    kind = "outside" if "." not in path.name else "victim"
    hostile.no_file(kind, path, place)
    return f"{_name(path, place)} is a link to {kind}"


def _zip(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """Archives whose members lie elsewhere or are bombs, in place of arrays and checkpoints."""
    import zipfile

    files = _files(bad, ".npz", ".ckpt", ".npy", ".safetensors", ".parquet") or _files(bad)
    path = rng.choice(files)
    member = rng.choice(["../../outside/victim.txt", str(place.victim), "archive/data.pkl", "x_train.npy", "archive/../../victim.txt"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(member, b"\x00" * rng.choice([10, 100_000_000]))
    return f"{_name(path, place)} is an archive of {member}"


def _itself(bad: Path, place: Place, rng: Random, turn: int) -> str:
    """An encoder whose base is itself, a run that is its own parent, a chain that holds itself."""
    path = rng.choice(_files(bad, "sslt.json", "run.json") or _files(bad, ".json"))
    content = _read(path)
    if not isinstance(content, dict):
        content = {}
    where = rng.choice([str(bad), "bad", str(bad / "encoder"), str(path.parent), ".", "", "scratch:bad", "resnet18", "a/b", "../bad"])
    if path.name == "sslt.json":
        content["base"] = rng.choice(
            [{"from": where, "fingerprint": "x" * 20, "max_length": 32}, {"from": where}, where, {}, {"from": None}]
        )
        content.setdefault("adapter", {"kind": "lora", "r": 8})
    else:
        content["from"] = where
    _write(path, content)
    return f"{_name(path, place)}: its base is {where!r}, {content.get('base')!r}"


_WRITTEN = (
    "logs/sslt.log", "command.txt", "config.0.yaml", "logs", "checkpoints", "metrics.csv", "encoder", ".lock", "metrics.json", "plots",
    "head",
    "config.yaml", "checkpoints/.last.ckpt.tmp", "versions.json", "predictions.csv", "logs/workers.yaml", "checkpoints/last.ckpt",
    "pictures", "confusion_test.json", "encoder/README.md", "head/head.json",
)  # fmt: skip
Attack = Callable[[Path, Place, Random, int], str]
ATTACKS: dict[str, Attack] = {
    "node": _node, "override": _override, "value": _value, "no file": _no_file, "raw": _raw, "pickle": _pickle,
    "interpolation": _interpolation, "links out": _links_out,
    "checkpoint": _checkpoint,
    "place of a run": _place_of_a_run, "bytes": _bytes,
    "zip": _zip, "itself": _itself,
}  # fmt: skip
ORDER = ("node", "override", "value", "no file", "raw", "pickle", "node", "override", "interpolation", "links out", "value", "checkpoint",
         "override", "place of a run", "no file", "bytes", "zip", "itself")  # fmt: skip


def turn(number: int) -> tuple[str, int]:
    """Which attack the case of a number is, and how many of its kind came before: from lists it takes one after the other."""
    rounds, at = divmod(number, len(ORDER))
    name = ORDER[at]
    return name, rounds * ORDER.count(name) + ORDER[:at].count(name)
