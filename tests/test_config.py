"""Protects configs: every shipped one composes and fits what it builds, and every mistake is one line with the way out."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from sslt import config, groups, signatures
from sslt.errors import UserError
from sslt.ranges import SETTINGS

FILES = sorted(groups.CONFIG_DIR.glob("*/*.yaml"))
NAMES = [f"{p.parent.name}/{p.stem}" for p in FILES]
VERBS = ("pretrain", "finetune", "evaluate", "predict", "run", "merge", "compress", "bench", "export", "serve")
# What the code gives, not the config: an objective's encoder and classes, an alignment's features and the task beside it, a logger's
# folder, weights that exist already
GIVEN = {"words", "encoder", "n_classes", "space", "lexicon", "save_dir", "model", "params", "width", "task", "layer"}


def read(path: Path) -> dict[str, Any]:
    """A file with what it is made from (`defaults` of its own group, or into one of its keys)."""
    node = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    whole: dict[str, Any] = {}
    for item in node.pop("defaults", []):
        if isinstance(item, dict):
            ((where, name),) = item.items()
            if "@" in where and name:
                group, _, key = where.removeprefix("/").partition("@")
                whole[key] = read(groups.CONFIG_DIR / group / f"{name}.yaml")
        elif item != "_self_" and (base := path.parent / f"{item}.yaml").exists():
            whole |= read(base)
    merged: Any = OmegaConf.to_container(OmegaConf.merge(whole, node))
    return merged


def nodes() -> list[tuple[str, dict[str, Any]]]:
    """(file, node) of everything with a `_target_` in the shipped groups."""
    found = []
    for name, path in zip(NAMES, FILES, strict=True):
        found += [(name, node) for _, node in config.targets(read(path))]
    return found


NODES = nodes()


def parameters_of(target: str) -> dict[str, inspect.Parameter]:
    module, _, name = target.rpartition(".")
    return dict(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


# -------------------------------------------------------------------- the shipped files
def test_there_are_configs():
    """The folder is found, and the groups are those the guide and this file speak of."""
    assert {"data", "encoder", "objective", "views", "optimizer", "schedule", "adaptation", "logger"} <= set(groups.names())
    assert len(NODES) > 25


@pytest.mark.parametrize(("file", "node"), NODES, ids=[f"{f}:{n['_target_'].rpartition('.')[2]}" for f, n in NODES])
def test_a_config_lists_what_its_target_takes(file, node):
    """No key that the target does not take, and no type it does not want."""
    found = signatures.signature(node["_target_"])
    keys = set(node) - {"_target_"} - (set(config.OURS) if file == "trainer/default" else set())
    parameters = parameters_of(node["_target_"])
    assert keys <= set(parameters), "a key nothing reads"
    if found is not None:
        for key in keys:
            if node[key] != "???" and "${" not in str(node[key]):
                assert signatures.type_error(node[key], found.parameters[key]) is None, key


OWN = [(f, n) for f, n in NODES if n["_target_"].startswith("sslt.")]


@pytest.mark.parametrize(("file", "node"), OWN, ids=[f for f, _ in OWN])
def test_a_config_lists_all_its_target_takes(file, node):
    """What can be set is seen in the file: every parameter of sslt's own classes is in the YAML."""
    assert set(parameters_of(node["_target_"])) - GIVEN <= set(node)


@pytest.mark.parametrize(("file", "node"), OWN, ids=[f for f, _ in OWN])
def test_a_default_lives_in_one_place(file, node):
    """A parameter whose value the YAML gives has no second default in Python.

    But for `pretrained`, which is no part of a saved encoder: one that is loaded is built without naming it.
    """
    twice = {k for k, p in parameters_of(node["_target_"]).items() if k in node and p.default is not p.empty} - {"pretrained"}
    assert twice == set()


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("encoder/")])
def test_an_encoders_processor_settings_are_taken(name):
    """`processor:` is handed to the processor's `fit`: the keys are its parameters, all of them."""
    node = read(FILES[NAMES.index(name)])
    module, _, kind = node["_target_"].rpartition(".")
    fit = getattr(importlib.import_module(module), kind).Processor.fit
    assert set(inspect.signature(fit).parameters) - {"source"} == set(node["processor"])


@pytest.mark.parametrize("path", [*FILES, *groups.CONFIG_DIR.glob("*.yaml")], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_file_says_what_it_is(path):
    """The first comment is what `sslt list` shows: one line, not empty, not too long for a terminal."""
    text = groups.describe(path)
    assert 5 <= len(text) <= 120


# -------------------------------------------------------------------- composing
@pytest.mark.parametrize("task", sorted(groups.options("task")))
def test_every_task_composes(task):
    """A task is complete: objective, views, encoder and data are chosen, and it is named."""
    cfg = config.compose("pretrain", [f"+task={task}"])
    assert cfg.name == task
    for part in ("objective", "views", "encoder", "data", "optimizer", "schedule", "trainer"):
        assert cfg[part]["_target_"], part


def test_every_labelled_data_set_is_a_target():
    """Whatever can have labels can be fine-tuned on; running text cannot. Texts to write and histories have targets by what is asked."""
    others = {"summarize": ["scitldr", "dialogsum", "text_to_text"], "translate": ["multi30k"], "dialogue": ["sgd", "dialogues"]}
    others |= {"next_item": ["aisles", "interactions", "movielens", "video"]}
    assert others.keys() <= set(groups.options("target"))
    named = {"text_files", "text_lines", *(name for names in others.values() for name in names)}
    assert set(groups.options("data")) - set(groups.options("target")) == named


@pytest.mark.parametrize("target", sorted(groups.options("target")))
def test_every_target_composes(target):
    """A target needs nothing but what to start from, and the place of your own data."""
    by_name = {"hf_images": "name", "hf_text": "name"}
    by_path = ("image_folder", "webdataset", "masks", "text_csv", "arrays", "text_tags", "text_pairs", "qa")
    place = by_name.get(target, "path" if target in by_path else None)
    own = [f"data.{place}=x"] if place else []
    cfg = config.compose("finetune", [f"+target={target}", "from=x", *own])
    assert cfg.data["_target_"]  # the answers of some data choose the objective
    assert cfg.objective is None if target in ("scenes", "masks", "nuclei") else cfg.objective["_target_"].startswith("sslt.targets.")


@pytest.mark.parametrize(
    ("verb", "overrides"),
    [("evaluate", ["from=x"]), ("predict", ["from=x", "input=y"]), ("run", []), ("pretrain", ["+task=mlm", "logger=wandb"])],
)
def test_other_verbs_compose(verb, overrides):
    """Groups of which nothing was chosen are there, as null."""
    cfg = config.compose(verb, overrides)
    for key in groups.top_level_keys(verb):
        assert key in cfg


@pytest.mark.parametrize("name", [n for n in NAMES if n.split("/")[0] not in ("task", "target")])
def test_every_option_can_be_chosen(name):
    """Each shipped option fits into a verb that reads its group, once its missing values are given."""
    group, option = name.split("/")
    content = yaml.safe_load(FILES[NAMES.index(name)].read_text(encoding="utf-8")) or {}
    missing = [f"{group}.{k}=x" for k, v in content.items() if v == "???"]
    verbs = {"objective": "pretrain", "views": "pretrain", "corruption": "evaluate", "test_time": "evaluate", "method": "compress"}
    verb = verbs.get(group, "finetune")
    verb = {"trainer/devices": "evaluate", "trainer/one_device": "serve"}.get(name, verb)  # for what does not train
    start = [] if verb == "pretrain" else ["from=x"]
    plus = "+" if group in ("joint", "shift", "episodes", "corruption", "test_time") else ""
    cfg = config.compose(verb, [*start, f"{plus}{group}={option}", *missing])
    assert set(content) - {"defaults"} <= set(cfg[group])


def test_who_reads_the_own_files_does_not_change_them():
    """They are parsed once in a process, for all commands that follow."""
    for verb, given in (("pretrain", ["+task=mlm"]), ("finetune", ["+target=digits", "from=x", "optimizer=sgd"]), ("run", [])):
        config.compose(verb, given)
    chosen = groups.own_values("encoder", "resnet_small")
    assert chosen and groups.plain_values("finetune") and groups.own_defaults("predict")
    for path in [*FILES, *groups.CONFIG_DIR.glob("*.yaml")]:
        assert groups._load(path) == (yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def test_composing_imports_nothing_heavy():
    """Help, mistakes and `--cfg` must answer at once: no torch, Lightning or transformers to compose any verb."""
    code = (
        "import sys; from sslt import cli, config;"
        "config.compose('pretrain', ['+task=simclr']); config.compose('pretrain', ['+task=mlm', 'logger=tensorboard']);"
        "config.compose('finetune', ['+target=docs', 'from=x', 'adaptation=partial']); config.compose('evaluate', ['from=x']);"
        "heavy = {'torch', 'pytorch_lightning', 'transformers', 'timm', 'sklearn', 'matplotlib', 'wandb', 'numpy'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_composes_inside_a_running_hydra_job():
    """A chain composes its stages while Hydra runs it: the outer state is as it was afterwards, also after a mistake."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(groups.CONFIG_DIR), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        config.compose("pretrain", ["+task=mlm"])
        with pytest.raises(UserError):
            config.compose("pretrain", ["+task=nothing"])
        assert GlobalHydra.instance().hydra is outer
        compose("evaluate", overrides=["from=x"])


# -------------------------------------------------------------------- mistakes
SIMCLR = ["+task=simclr"]


MISTAKES = [
    # a key that nothing reads
    ("pretrain", [*SIMCLR, "optimizer.lrr=1"], r"optimizer\.lrr.*did you mean 'lr'"),
    ("pretrain", [*SIMCLR, "+optimizer.lrr=1"], r"optimizer\.lrr.*AdamW does not take it.*did you mean 'lr'"),
    ("pretrain", [*SIMCLR, "+objective.temprature=1"], r"objective\.temprature.*did you mean 'temperature'"),
    ("pretrain", [*SIMCLR, "optimzer.lr=1"], r"optimzer\.lr.*did you mean 'optimizer'"),
    ("pretrain", [*SIMCLR, "encodr.processor.size=1"], r"encodr\.processor\.size.*did you mean 'encoder'"),
    ("pretrain", [*SIMCLR, "batchsize=3"], r"batchsize.*did you mean 'batch_size'"),
    ("pretrain", [*SIMCLR, "+batchsize=3"], r"batchsize.*did you mean 'batch_size'"),
    ("pretrain", [*SIMCLR, "trainer.max_epoch=3"], r"trainer\.max_epoch.*did you mean 'max_epochs'"),
    ("finetune", ["+target=digits", "from=x", "label_frac=0.1"], r"label_frac.*did you mean 'label_fraction'"),
    ("evaluate", ["from=x", "knn.kk=3"], r"knn\.kk"),
    ("pretrain", [*SIMCLR, "data.path=x"], r"data\.path"),
    ("finetune", ["+target=digits", "from=x", "adaptation=probe", "+adaptation.blocks=2"], r"adaptation\.blocks"),
    ("pretrain", [*SIMCLR, "+encoder.processor.sizes=32"], r"encoder\.processor\.sizes"),
    # a group or an option that is not there
    ("pretrain", ["+taks=simclr"], r"taks.*did you mean 'task'"),
    ("pretrain", [*SIMCLR, "dota=digits"], r"dota.*did you mean 'data'"),
    ("pretrain", ["+task=simclrr"], r"no task 'simclrr'.*did you mean 'simclr'"),
    ("pretrain", [*SIMCLR, "data=digit"], r"no data 'digit'.*did you mean 'digits'"),
    ("pretrain", [*SIMCLR, "encoder=resnet_smal"], r"no encoder 'resnet_smal'.*did you mean 'resnet_small'"),
    ("finetune", ["+target=dgits", "from=x"], r"no target 'dgits'.*did you mean 'digits'"),
    ("pretrain", ["task=simclr"], r"\+task="),
    # a value that is missing
    ("finetune", ["+target=digits"], r"'from' has no value.*from="),
    ("pretrain", [*SIMCLR, "data=image_folder"], r"'data\.path' has no value.*data\.path="),
    ("pretrain", ["encoder=timm"], r"'encoder\.name' has no value"),
    # a value of the wrong type
    ("pretrain", ["+task=simclr", "views.flip=-1"], r"views\.flip=-1.*a float from 0 to 1"),
    ("pretrain", ["+task=simclr", "views.scale=[0.5]"], r"views\.scale=\[0\.5\].*a list of 2, each a float from 0 to 1"),
    ("pretrain", ["+task=simclr", "objective.out=0"], r"objective\.out=0.*an int from 1"),
    ("pretrain", ["+task=dino", "views.small.n=0"], r"views\.small\.n=0.*an int from 1"),
    ("pretrain", [*SIMCLR, "trainer.node=one"], r"trainer\.node='one'.*single int"),
    ("pretrain", ["+task=simclr", "trainer.max_time=nan"], r"trainer\.max_time=nan is no number"),
    ("finetune", ["+target=digits", "from=scratch", "optimizer.lr=inf"], r"optimizer\.lr=inf is no number"),
    ("finetune", ["+target=digits", "from=scratch", "objective.dropout=1.5"], r"objective\.dropout=1\.5.*a float from 0 to 1"),
    ("pretrain", [*SIMCLR, "objective.temperature=hot"], r"objective\.temperature='hot'.*wrong type.*float"),
    ("pretrain", [*SIMCLR, "objective.norm=1"], r"objective\.norm=1.*wrong type.*bool"),
    ("pretrain", [*SIMCLR, "objective.hidden=1.5"], r"objective\.hidden=1\.5.*wrong type.*int"),
    ("pretrain", [*SIMCLR, "views.scale=0.2"], r"views\.scale=0\.2.*wrong type.*list"),
    ("pretrain", [*SIMCLR, "trainer.accumulate_grad_batches=two"], r"trainer\.accumulate_grad_batches='two'.*int"),
    ("pretrain", [*SIMCLR, "batch_size=many"], r"batch_size='many'.*wrong type"),
    ("finetune", ["+target=digits", "from=x", "label_fraction=half"], r"label_fraction='half'.*wrong type"),
    # what cannot be read or built
    ("pretrain", [*SIMCLR, "views.scale=[1"], r"cannot read an override"),
    ("pretrain", [*SIMCLR, "name=é"], r"cannot read an override: .*data\.path='é\.csv'"),
    ("pretrain", [*SIMCLR, "name={a: [好]}"], r"cannot read an override: .*words=\{good: \['好'\]\}"),
    ("pretrain", [*SIMCLR, "objective._target_=no_such_package.Thing"], r"objective\._target_=no_such_package\.Thing.*installed"),
    ("pretrain", [*SIMCLR, "objective._target_=sslt.objectives.contrastive.NTXnt"], r"NTXnt"),
]


@pytest.mark.parametrize(("verb", "overrides", "says"), MISTAKES, ids=[f"{v} {o[-1]}" for v, o, _ in MISTAKES])
def test_a_mistake_is_one_clear_line(verb, overrides, says):
    """What is wrong, where, and the nearest name that would be right; never Hydra's own traceback or paragraphs."""
    with pytest.raises(UserError) as caught:
        config.compose(verb, overrides)
    message = str(caught.value)
    assert re.search(says, message), message
    assert len(message.splitlines()) == 1 and len(message) < 400


def test_a_users_own_folder_of_configs(tmp_path):
    """`--config-dir` adds options; mistakes in them and nearest names among them are found too."""
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text(
        "# my own\n_target_: sslt.objectives.contrastive.NTXent\ntemperature: 0.1\nhidden: 8\nout: 8\nnorm: true\n"
    )
    (tmp_path / "objective" / "broken.yaml").write_text("_target_: sslt.objectives.contrastive.NTXent\ntemp: 0.1\n")
    folder = str(tmp_path)
    assert config.compose("pretrain", [*SIMCLR, "objective=mine"], folder).objective.temperature == 0.1
    assert groups.options("objective", folder)["mine"] == "my own"
    with pytest.raises(UserError, match=r"objective\.temp"):
        config.compose("pretrain", [*SIMCLR, "objective=broken"], folder)
    with pytest.raises(UserError, match="did you mean 'mine'"):
        config.compose("pretrain", [*SIMCLR, "objective=minee"], folder)


def test_what_a_group_chooses_below_itself_is_read():
    """The unlabelled data of +joint=, which its YAMLs name among their defaults only."""
    args = ["+target=digits", "from=scratch", "+joint=simclr", "data@joint.data=cifar10"]
    chosen = config.compose("finetune", args).joint.data
    assert chosen._target_ == read(groups.CONFIG_DIR / "data" / "cifar10.yaml")["_target_"]
    assert "data" in groups.keys_of("joint") and "" not in groups.keys_of("joint")


# -------------------------------------------------------------------- building
def test_build_makes_nested_objects_of_plain_values():
    """Lists and dicts arrive as Python's own, arguments of the call are added."""
    node = OmegaConf.create({"_target_": "sslt.schedules.Cosine", "warmup": 0.1, "final": 0.0})
    assert config.build(node)(1.0) == pytest.approx(0.0)
    views = config.build(OmegaConf.load(groups.CONFIG_DIR / "views" / "light.yaml"))
    assert type(views.scale) is list


def test_build_lets_the_users_mistakes_through():
    """A UserError raised while building keeps its message; another error names what could not be built."""
    node = OmegaConf.create({"_target_": "sslt.adaptation.blocks.Partial", "blocks": 0, "patterns": [], "layer_decay": 1.0})
    with pytest.raises(UserError, match=r"adaptation\.blocks=0"):
        config.build(node)
    with pytest.raises(UserError, match=r"cannot build sslt\.schedules\.Cosine"):
        config.build(OmegaConf.create({"_target_": "sslt.schedules.Cosine", "warmup": 0.1}))


def test_another_part_than_the_recipes_own_has_its_own_values():
    """An optimizer's rate is no other's; what the chosen part does not take is left out; the same part by name keeps the recipe's."""
    lars = config.compose("pretrain", ["+task=simclr", "optimizer=lars"]).optimizer
    assert lars.lr == read(groups.CONFIG_DIR / "optimizer" / "lars.yaml")["lr"]
    assert config.compose("pretrain", ["+task=simclr", "optimizer=lars", "optimizer.lr=0.7"]).optimizer.lr == 0.7
    assert "betas" not in config.compose("pretrain", ["+task=bigan", "optimizer=lars"]).optimizer
    assert (
        config.compose("pretrain", ["+task=simclr", "optimizer=adamw"]).optimizer.lr
        == config.compose("pretrain", ["+task=simclr"]).optimizer.lr
    )
    assert set(config.compose("finetune", ["+target=digits", "from=x", "views=plain"]).views) == {"_target_", "n"}
    assert config.compose("pretrain", ["+task=jigsaw", "encoder=resnet18"]).encoder.processor.size == 32  # it takes that
    with pytest.raises(UserError, match="a rate for one of them"):
        groups.fit_recipe("pretrain", ["+task=simclr", "optimizer=adamw,lars"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("~trainer.devices", "'trainer.devices' has no value"),
        ("~checkpoint.every_minutes", "checkpoint.every_minutes"),
        ("~encoder.args", "'encoder.args' has no value"),
        ("~data", "data=null"),
        ("~views", "views=null"),
        ("~cache_dir", "cache_dir=None"),
        ("cache_dir=[a]", "cache_dir="),
        ("callbacks=[1]", r"callbacks\[0\]=1 names no class"),
        ("callbacks=[{a:1}]", "callbacks"),
        ("data=[]", "data"),
        ("views.n=1e24", "views.n"),
        ("views.n={a:1}", "views.n"),
        ("+dropout.lr=1", "dropout"),
        ("seed={a:1}", "seed"),
        ("batch_size=100000000000000000000", "batch_size"),
        ("optimizer.betas=[a,b]", "optimizer.betas"),
        ("trainer.max_steps={a:1}", "trainer.max_steps"),
        ("objective={_target_:null}", "objective._target_=None"),
        ("objective.temperature=nan", "objective.temperature"),
    ],
)
def test_what_is_no_value_of_its_key_names_the_key(override, says):
    """Taken out with ~, a mapping where a number belongs, a list of what is no class, a number that is none."""
    with pytest.raises(UserError, match=says):
        config.compose("pretrain", ["+task=simclr", override])


OUT_OF_RANGE = {
    "pretrain": [
        "batch_size=0",
        "seed=-1",
        "seed=5000000000",
        "online_probe.every_n_epochs=-1",
        "dropout=2",
        "windows=0",
        "checkpoint.every_minutes=-1",
    ],
    "finetune": ["label_fraction=2", "label_fraction=0", "labels_per_class=0", "labels_per_class=2.5", "val_every_n_epochs=-1"],
    "evaluate": ["shots=[0]", "draws=0", "knn.k=0", "knn.temperature=0", "curve.fractions=[0.1,2]", "batch_size=-1", "data_overrides=yes"],
    "predict": ["batch_size=0", "seed=-2", "windows=-1"],
    "merge": ["seed=-1"],
    "bench": ["rounds=0", "batch_sizes=[0]", "threads=0", "max_seconds=0", "warmup=-1"],
    "export": ["max_error=0", "tolerance=2", "batch_size=0", "windows=0"],
    "compress": ["tolerance=2", "tolerance=-0.1", "batch_size=0"],
}


@pytest.mark.parametrize("verb", OUT_OF_RANGE)
def test_settings_of_verbs_have_ranges(verb):
    start = {"pretrain": ["+task=simclr"], "finetune": ["+target=digits", "from=x"]}.get(verb, ["from=x"])
    whole = config.compose(verb, start)
    for setting in OUT_OF_RANGE[verb]:
        key, _, value = setting.partition("=")
        cfg = copy.deepcopy(whole)
        OmegaConf.update(cfg, key, yaml.safe_load(value))
        with pytest.raises(UserError, match=re.escape(key) + ".* it takes "):
            config.check(cfg, verb)


def test_every_number_of_a_verb_has_a_range():
    """A new setting of a verb's YAML gets one, too."""

    def numbers(node: Any, path: str = "") -> set[str]:
        if isinstance(node, dict):
            return set().union(*(numbers(v, f"{path}.{k}".lstrip(".")) for k, v in node.items())) if node else set()
        inner = node[0] if isinstance(node, list) and node else node
        return {path} if isinstance(inner, (int, float)) and not isinstance(inner, bool) else set()

    found = set().union(*(numbers(groups.plain_values(verb)) for verb in VERBS))
    assert found <= set(SETTINGS) and {"shots", "knn.k", "seed"} <= found


def test_what_a_user_adds_is_looked_at_before_it_is_read(here):
    """Groups of the user's own too, by name and by the defaults of another: a pipe, aliases without end, no YAML."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefg", "bcdefgh", strict=True))
    for name, content in {"mine/bomb": bomb, "other/by_name": "defaults:\n  - /mine: bomb\nx: 1\n", "mine/bad": "a: [1\n"}.items():
        path = here / "own" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    os.mkfifo(here / "own" / "mine" / "pipe.yaml")
    for choice, says in {"mine=bomb": "aliases", "other=by_name": "aliases", "mine=bad": "damaged", "mine=pipe": "a pipe"}.items():
        for written in (f"+{choice}", f"+{choice.replace('=', '@x=')}"):
            with pytest.raises(UserError, match=says):
                config.compose("pretrain", ["+task=simclr", written], str(here / "own"))


def test_a_group_that_is_filled_by_hand_has_what_all_its_options_have():
    with pytest.raises(UserError, match=r"'shift.* has no value: choose one of .*dann"):
        config.compose("finetune", ["+target=docs", "from=x", "+shift.target=[1]"])


WRITTEN = [
    "a/b-c_d.csv",
    "résumé/1",
    "back\\slash",
    "ends\\",
    "1",
    "1e3",
    "nan",
    "-inf",
    "null",
    "True",
    "two words",
    "a,b",
    "it's",
    "it\\'s",
    "[x",
    "k=v",
    "",
    None,
    True,
    3,
    0.5,
    ["a b", 1],
    {"k": "a, b"},
]


@pytest.mark.parametrize("value", WRITTEN, ids=repr)
def test_a_written_value_is_read_as_what_it_was(value):
    """A chain hands its stages settings in Hydra's grammar: whatever a text holds, it stays one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(f"key={groups.written(value)}")
    assert not override.is_sweep_override() and override.value() == value
