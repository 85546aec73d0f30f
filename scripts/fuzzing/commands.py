"""Commands with mistakes in them: a grammar over verbs, groups, options, keys, values, flags and the environment."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from random import Random

from fuzzing.case import Case, Place
from fuzzing.goods import FINETUNE, HERE, IMAGES, MEASURE, PRETRAIN, STEPS, TEXT, Goods
from sslt import groups, guide

NUMBERS = [
    "0", "1", "-1", "2", "0.5", "-0.5", "1e24", "1e-24", "1e400", "-1e400", "nan", "inf", "-inf", "99999999999999999999999",
    "-9223372036854775809", "true", "null", "'1'", "[]", "{}", "[1]", "{a:1}", "[0.5,2]", "[-1,nan]", "x", "''",
]  # fmt: skip
VALUES = [
    "0x10", "1_000", "01", "1.", ".5", "+1", "--1", "true", "false", "True", "yes", "null", "None", "~", "???", "", "''", '""', "' '",
    "x", "é",
    "中文", "🙂", "\u202e", "\udcff", "a b", "a,b", "1,2", "[", "]", "[]", "[1]", "[1,2,3]", "[[]]", "[a,b]", "[1,", "{", "}", "{}",
    "{a:1}",
    "{a:{b:[1]}}", "{a", "{_target_:x}", "{_target_:os.system,command:true}", "'", '"', "'a", 'a"', "\\", "\\'", "a\\,b", "a=b", "=",
    "a:b", ":",
    "${seed}", "${", "${}", "${x}", "${oc.env:NOWHERE}", "${oc.env:HOME}", "${oc.env:NOWHERE,3}", "${oc.decode:x}", "${now:%Y}",
    "${hydra:job.name}",
    "${hydra.job.num}", "$HOME", "~/x", "/", ".", "..", "/dev/null", "/dev/zero", "/proc/self/mem", "nowhere/at/all", "a" * 300, "a" * 3000,
    "b/" * 1500, "9" * 5000, "[" * 200, "{a:" * 200, "range(1,3)", "choice(1,2)", "glob(*)", "interval(0,1)", "shuffle(1,2)", "int(x)",
    "float(nan)",
    "str(1)", "json_str(1)", "sort(a,b)", "tag(x,1)", "extend_list(1)", "\n", "a\nb", "\t", "\r", "\x1b[31m", "%s", "%(x)s", "{0}", "@",
    "#", "!", "&",
    ";", "|", "`x`", "$(x)", "*", "?", "<", ">", "00:00:01", "00:00:00", "1:2", "-00:00:01", "99:99:99", "0:0:0:0:1", "2020-01-01",
]  # fmt: skip
_ENDS_SOON = ("max_steps", "max_epochs", "max_time", "default_max_epochs", "batch_size", "devices", "samples")  # big ones only take long
_LONG = ("1e24", "99999999999999999999999", "99:99:99", "0:0:0:0:1", "9" * 5000, "inf")
_FLAGS = ["--cfg", "--cfg job", "--cfg=job", "--cfg all", "--cfg hydra", "--cfg x", "-c job", "-m", "--multirun", "--run", "-r", "--info",
    "--info all",
          "--info x", "-i config", "--shell-completion", "-sc install=bash", "--package x", "--package trainer --cfg job",
          "-p optimizer -c job",
          "--config-dir nowhere", "--config-dir", "--config-dir=", "--config-dir .", "--config-dir /dev/null", "-cd outside",
          "--config-name x",
          "--config-name finetune", "-cn", "--config-path .", "-cp", "--experimental-rerun x", "--hydra-help", "--version", "-V",
          "--resolve",
          "--resolve --cfg job", "--help", "-h", "-x", "--x", "--x=1", "-", "--", "---", "-mm", "-c", "--cfg job --run", "-m --cfg job",
          "--run --cfg job",
          "--cfg job -m", "--cfg job --cfg all", "--info plugins"]  # fmt: skip
_ENVIRONMENT = [
    {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "0"}, {"WORLD_SIZE": "x"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "1"}, {"RANK": "3"},
    {"LOCAL_RANK": "x"},
    {"WORLD_SIZE": "2", "RANK": "5", "LOCAL_RANK": "5"}, {"SSLT_CACHE": "/dev/null"}, {"SSLT_CACHE": "/proc/x"}, {"SSLT_CACHE": ""},
    {"SSLT_CACHE": "a" * 3000}, {"SSLT_CACHE": "victim.txt"}, {"SSLT_CACHE": "${x}"}, {"SSLT_DATA": "/dev/null"}, {"SSLT_DATA": ""},
    {"SSLT_DATA": "é"},
    {"SSLT_DATA": "${x}"}, {"SSLT_DEBUG": "1"}, {"SSLT_DEBUG": "x"}, {"OMP_NUM_THREADS": "x"}, {"HOME": "/proc/nowhere"}, {"HOME": ""},
    {"HYDRA_FULL_ERROR": "0"}, {"LANG": "C", "LC_ALL": "C"}, {"COLUMNS": "1"}, {"COLUMNS": "x"}, {"TMPDIR": "/proc/nowhere"},
    {"SLURM_NTASKS": "2"},
    {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, {"MASTER_ADDR": "x", "MASTER_PORT": "x"}, {"CUDA_VISIBLE_DEVICES": "7"}, {"TERM": "dumb"},
    {"PYTHONWARNINGS": "error"}, {"LOCAL_RANK": "0"}, {"TORCHELASTIC_RUN_ID": "x"}, {"NO_COLOR": "1"}, {"SSLT_CACHE": "~/x"},
]  # fmt: skip
_OTHER = [[], ["list"], ["list", "runs"], ["completion"], ["completion", "bash"], ["completion", "fisch"], ["__complete"], ["-h"], ["-V"],
    ["help"],
          ["__complete", "sslt pretrain +task="], ["list", "taks"], ["list", "tasks", "data"], ["__complete", "sslt 'x"], ["list",
          "--config-dir"],
          ["list", "tasks", "--config-dir", "nowhere"], ["__complete", "sslt pretrain --config-dir /dev/null +task="]]  # fmt: skip
_FROM = ["{images}", "{tuned}", "{text}", "{adapter}", "scratch", "scratch:{images}", "scratch:nowhere", "resnet18", "resnet81", "a/b",
    "a/b/c", "nowhere",
         "torchvision/resnet18", "torchvision/x", "", ".", "/", "~", "{images}/encoder", "{images}/checkpoints", "{images}/config.yaml",
         "{chain}",
         "timm/resnet18", "bert-base-uncased", "hf://x", "https://x/y", "{tuned}/head", "{images}/", "../{images}"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Start:
    """A verb and settings with which it does something and ends soon; chosen: the options whose keys it has, by group."""

    verb: str
    argv: list[str]
    chosen: dict[str, str] = dataclasses.field(default_factory=dict)


def _start(rng: Random) -> Start:
    images = {"data": "image_folder", "encoder": "resnet_small", "optimizer": "adamw", "schedule": "cosine", "trainer": "default"}
    texts = {**images, "data": "docs", "encoder": "bert_tiny"}
    kind = rng.choice(
        ["simclr"] * 3 + ["mlm", "task", "task", "finetune", "finetune", "finetune text", "evaluate", "predict", "merge", "run", "run"]
    )
    if kind == "simclr":
        argv = ["+task=simclr", "data=digits", *IMAGES, *PRETRAIN]
        return Start("pretrain", argv, {**images, "objective": "ntxent", "views": "simclr"})
    if kind == "mlm":
        argv = ["+task=mlm", "data=docs", *TEXT, *PRETRAIN]
        return Start("pretrain", argv, {**texts, "objective": "masked_lm", "views": "mask_tokens"})
    if kind == "task":
        task = rng.choice(list(groups.options("task")))
        return Start("pretrain", [f"+task={task}", *PRETRAIN], {**images, "objective": task})
    if kind == "finetune":
        chosen = {**images, "objective": "classification", "views": "light", "adaptation": "full"}
        return Start("finetune", ["+target=digits", "from={images}", *FINETUNE], chosen)
    if kind == "finetune text":
        return Start("finetune", ["+target=docs", "from={text}", *FINETUNE], {**texts, "objective": "classification"})
    if kind == "evaluate":
        return Start("evaluate", ["from={images}", *MEASURE] if rng.random() < 0.5 else ["from={tuned}", "trainer.accelerator=cpu"])
    if kind == "predict":
        return Start("predict", ["from={tuned}", "data=digits", "trainer.accelerator=cpu"])
    if kind == "merge":
        return Start("merge", ["from={adapter}", "trainer.accelerator=cpu"])
    argv = [
        "+task=simclr",
        "+target=digits",
        *IMAGES,
        *HERE,
        *STEPS,
        "batch_size=32",
        "val_every_n_epochs=0",
        "finetune.labels_per_class=4",
    ]
    return Start("run", argv, {**images, "objective": "ntxent"})


@functools.cache
def keys(verb: str) -> tuple[str, ...]:
    """Dotted keys that a verb reads, of every group as well."""
    found = set()
    for stage in ("pretrain", "finetune", "evaluate") if verb == "run" else (verb,):
        for key in groups.top_level_keys(stage):
            found |= {key, *(f"{key}.{inner}" for inner in groups.keys_of(key))}
        for key, value in groups.plain_values(stage).items():
            found |= {f"{key}.{inner}" for inner in value} if isinstance(value, dict) else set()
    return tuple(sorted(found))


def _own_keys(start: Start) -> list[str]:
    """Keys of the verb itself and of the options that were chosen, which are there when the command is composed."""
    values = [f"{group}.{key}" for group, option in start.chosen.items() for key in groups.own_values(group, option) if key != "_target_"]
    nested = [f"{key}.{inner}" for key, value in groups.plain_values(start.verb).items() if isinstance(value, dict) for inner in value]
    return sorted({*values, *nested, *groups.plain_values(start.verb)}) or ["seed"]


def _key(start: Start, rng: Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(_own_keys(start))
    key = rng.choice(keys(start.verb))
    how = rng.random()
    if how < 0.6:
        return key
    if how < 0.72:  # misspelt
        at = rng.randrange(len(key))
        return key[:at] + rng.choice(["", key[at] * 2, "x", "_", ".", "-", "é"]) + key[at + 1 :]
    return rng.choice([
        f"{key}.x", f"{key}.x.y.z", f"x.{key}", f"{key}.", f".{key}", f"{key}..x", f"{key}[0]", f"{key}.0", key.upper(), f" {key}",
        f"{key} ",
        "_target_", f"{key}._target_", f"{key}@x", f"{key}@_global_", f"x@{key}", f"hydra.{key}", "hydra.run.dir", "hydra.sweep.dir",
        "hydra.job.name",
        "hydra/launcher", "hydra.mode", "hydra.verbose", "hydra.job.chdir", "hydra.output_subdir", "hydra", "defaults", "", "x", "é",
        "stages",
        "a" * 3000, "callbacks", "trust", "resume", "name", "data@x", "joint", "shift", "from", "input", "base", "cache_dir",
    ])  # fmt: skip


def _setting(start: Start, rng: Random) -> str:
    key = _key(start, rng)
    prefix = rng.choice([""] * 6 + ["+", "++", "~", "+++", "+~", "-", "~+", "@"])
    value = rng.choice(NUMBERS if rng.random() < 0.5 else VALUES)
    if key.rpartition(".")[2] in _ENDS_SOON and value in _LONG:
        value = "0"
    if prefix == "~" and rng.random() < 0.6:
        return f"~{key}"
    if key.startswith("hydra.") and ("dir" in key) and value.startswith(("/", "~", "..")):
        value = "/proc/no/such"
    return f"{prefix}{key}{rng.choice(['='] * 12 + ['==', ' = ', ':', ''])}{value}"


def _group(rng: Random) -> str:
    group = rng.choice(groups.names())
    option = rng.choice(
        [*groups.options(group)] * 3 + ["x", "", "null", "[a,b]", "_common", "../common", "a/b", f"{group}.yaml", "none", "a,b", "'x y'"]
    )
    prefix = rng.choice(["+", "+", "", "", "++", "~"])
    where = rng.choice([""] * 6 + ["@x", "@_global_", "@target", "@shift.target", "@", "@hydra.x", "@trainer"])
    return f"{prefix}{rng.choice(['', '', '', '/'])}{group}{where}={option}"


def _mistake(start: Start, argv: list[str], rng: Random) -> list[str]:
    """A command with one more thing that is wrong, or merely unusual."""
    kind = rng.choice(["setting"] * 8 + ["group"] * 3 + ["flag", "flag", "token", "twice", "without", "order", "from"])
    if kind == "setting":
        return [*argv, _setting(start, rng)]
    if kind == "group":
        return [*argv, _group(rng)]
    if kind == "flag":
        at = rng.choice([0, len(argv)])
        return [*argv[:at], *rng.choice(_FLAGS).split(" "), *argv[at:]]
    if kind == "token":
        return [*argv, rng.choice([*VALUES, "pretrain", "=1", "seed", "seed=", "seed:1", "-seed=1", "seed =1", "é=é", "a" * 5000])]
    if kind == "twice":
        return [*argv, rng.choice(argv or ["seed=1"])]
    if kind == "without":
        left = rng.randrange(len(argv)) if argv else 0
        return [a for i, a in enumerate(argv) if i != left]
    if kind == "order":
        return rng.sample(argv, len(argv))
    return [a for a in argv if not a.startswith("from=")] + [f"from={rng.choice(_FROM)}"]


def plan(number: int, seed: int, goods: Goods) -> Callable[[Place], Case]:
    """The case of a number: one to three mistakes in a command that would work; now and then another kind of command."""
    rng = Random(f"{seed} commands {number}")
    env: dict[str, str] = {}
    if rng.random() < 0.05:
        argv = list(rng.choice(_OTHER))
        if rng.random() < 0.5:
            argv.append(rng.choice([*VALUES, *_FLAGS]))
    else:
        start = _start(rng)
        verb, rest = start.verb, start.argv
        for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
            rest = _mistake(start, rest, rng)
        if rng.random() < 0.08:
            verb = rng.choice([*guide.VERBS, "pretrian", "", "run ", "Pretrain", "é", "sslt", "pretrain=1", "+task=simclr", "-m"])
        argv = [verb, *rest]
        if rng.random() < 0.08:
            env = dict(rng.choice(_ENVIRONMENT))
    names = [n for n in ("images", "tuned", "text", "adapter", "chain") if any(f"{{{n}}}" in a for a in argv)]
    goods.need(*names)
    for name in names:
        argv = [a.replace(f"{{{name}}}", goods[name]) for a in argv]
    argv = [a.replace("\x00", "") for a in argv]  # no command line can hold it
    console = number % 100 == 7

    def make(place: Place) -> Case:
        goods.fill(place)
        return Case(argv, env=env, console=console, long=True)

    return make
