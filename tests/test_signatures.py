"""Protects the reading of signatures without importing: it must say what Python itself would say."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from sslt import groups, signatures
from sslt.errors import nearest

# One of each kind: own class, inherited constructor, re-export, open signature, function, nested re-export
TARGETS = [
    "sslt.objectives.contrastive.NTXent",
    "sslt.schedules.Constant",
    "sslt.schedules.Cosine",
    "sslt.encoders.image.ImageEncoder",
    "sslt.encoders.text.TextEncoder",
    "sslt.data.views.image_views.ImageViews",
    "sslt.data.sources.texts.TextTable",
    "sslt.loggers.wandb_logger",
    "torch.optim.AdamW",
    "torch.optim.SGD",
    "pytorch_lightning.Trainer",
    "pytorch_lightning.loggers.CSVLogger",
]


@pytest.mark.parametrize("target", TARGETS)
def test_agrees_with_inspect(target):
    """Names in order, which are required, and whether any other is taken, as the imported object says."""
    module, _, name = target.rpartition(".")
    thing = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(thing).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    found = signatures.signature(target)
    assert found is not None
    assert list(found.parameters) == [p.name for p in named]
    assert found.required == {p.name for p in named if p.default is p.empty}
    assert found.open == any(p.kind is p.VAR_KEYWORD for p in parameters)


@pytest.mark.parametrize(
    ("annotation", "fits", "not_"),
    [
        ("Count", [1, 10**6], [0, -1, 1.0, True, None, "1"]),
        ("Natural | None", [0, 3, None], [-1, 0.5, "none"]),
        ("Share", [0, 1, 0.5], [-0.1, 1.5, True, "half"]),
        ("Positive", [1e-9, 3], [0, -1.0]),
        ("NonNegative", [0.0, 3], [-1e-9]),
        ("Share | list[Share]", [0.5, [0.1, 1]], [2, [0.5, 2], "x"]),
        ("list[Count]", [[1, 2], []], [[0], [1.5], 3]),
        ("tuple[Positive, Positive]", [[0.5, 2]], [[0.5], [0, 1], [1, 2, 3], 1.0]),
    ],
)
def test_numbers_out_of_range(annotation, fits, not_):
    """A range is part of the type: what lies outside is said in words."""
    tree = ast.parse(annotation, mode="eval").body
    assert [v for v in fits if signatures.type_error(v, tree)] == []
    for value in not_:
        said = signatures.type_error(value, tree)
        assert said and not {"Count", "Natural", "Share", "Positive", "NonNegative"} & set(said.replace("[", " ").split()), value


def test_views_and_objectives_say_what_their_numbers_may_be():
    """Every number of theirs has a range, but those whose constructor asks for something else than a range."""
    own = {"n_classes", "factors", "uniform", "l2", "seed", "length_penalty"}
    loose = []
    for path in [
        *groups.CONFIG_DIR.glob("objective/*.yaml"),
        *groups.CONFIG_DIR.glob("views/*.yaml"),
        *groups.CONFIG_DIR.glob("corruption/*.yaml"),
    ]:
        target = OmegaConf.load(path).get("_target_")
        for name, annotation in (signatures.signature(target).parameters if target else {}).items():
            if (
                annotation is not None
                and {"int", "float"} & {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)}
                and name not in own
            ):
                loose.append(f"{path.stem}.{name}")
    assert loose == []


@pytest.mark.parametrize("target", ["sslt.data.streams.sampling.Together", "sslt.data.streams.sampling.Sampling"])
def test_a_class_without_constructor_takes_nothing(target):
    """A class that has no `__init__`, nor has any base, takes no argument: a key for it is one that nothing reads."""
    found = signatures.signature(target)
    assert found == signatures.Signature({}, False, frozenset())


def test_dataclasses(own_code):
    """Fields are parameters; those with a value are optional."""
    (own_code / "own_package.py").write_text(
        "import dataclasses\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: int\n    y: float = 1.0\n"
        "@dataclasses.dataclass(frozen=True)\nclass B(A):\n    pass\n"
        "class C(A):\n    def __init__(self, z, *, v, w=1, **rest): ...\n"
    )
    a = signatures.signature("own_package.A")
    assert list(a.parameters) == ["x", "y"] and a.required == {"x"} and not a.open
    c = signatures.signature("own_package.C")
    assert list(c.parameters) == ["z", "v", "w"] and c.required == {"z", "v"} and c.open


def test_follows_relative_re_exports(own_code):
    """`from .inner import Thing as Other` in a package's `__init__`."""
    package = own_code / "own_other_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import Thing as Other\n")
    (package / "inner.py").write_text("from .deep import Base\nclass Thing(Base):\n    pass\n")
    (package / "deep.py").write_text("class Base:\n    def __init__(self, a, b=2): ...\n")
    found = signatures.signature("own_other_package.Other")
    assert list(found.parameters) == ["a", "b"] and found.required == {"a"}


def test_how_far_re_exports_are_followed(own_code):
    """Through eight modules to the ninth; those that name each other in a circle end in nothing."""
    for i in range(8):
        (own_code / f"own_step{i}.py").write_text(f"from own_step{i + 1} import Thing\n")
    (own_code / "own_step8.py").write_text("class Thing:\n    def __init__(self, a): ...\n")
    assert list(signatures.signature("own_step0.Thing").parameters) == ["a"]
    (own_code / "own_circle.py").write_text("from own_circle import Thing\n")
    assert signatures.signature("own_circle.Thing") is None


def test_what_is_not_there():
    """A module that cannot be found does not exist; one that can, does, and nothing is imported to tell."""
    assert not signatures.exists("no_such_package.Thing")
    assert not signatures.exists("sslt.no_such_module.Thing")
    assert signatures.exists("sslt.schedules.Cosine") and signatures.exists("torch.optim.AdamW")
    assert signatures.signature("no_such_package.Thing") is None


def test_reads_without_importing():
    """Asking for torch's and Lightning's signatures imports neither."""
    code = (
        "import sys; from sslt import signatures as s;"
        "assert s.signature('torch.optim.AdamW') and s.signature('pytorch_lightning.Trainer');"
        "assert s.signature('sslt.encoders.image.ImageEncoder');"
        "assert not {'torch', 'pytorch_lightning', 'sslt.encoders.image'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("annotation", "fits", "wrong"),
    [
        ("int", [1, -1], [1.5, "1", True, None, [1], {"a": 1}, 10**20]),
        ("float", [1, 1.5, float("inf")], ["1", True, None, [1.0], {"a": 1}, float("nan")]),
        ("str", ["a", ""], [1, None, True]),
        ("bool", [True, False], [0, 1, "true", None]),
        ("int | None", [1, None], ["1", 1.5]),
        ("Optional[float]", [1, None, 0.5], ["x"]),
        ("Union[int, str]", [1, "a"], [1.5, None]),
        ("list[float]", [[1.0], []], [1.0, "12", None, ["a"], [None], [[1.0]]]),
        ("list[list[int]]", [[[1]], []], [[1]]),
        ("list[float | None]", [[None, 1]], [["a"]]),
        ("tuple[int, int]", [[1, 2], (1, 2)], [3, [1], [1, "a"], [1, 2, 3]]),
        ("tuple[int, ...]", [[1, 2, 3], []], [["a"]]),
        ("'int | None'", [None, 3], ["x"]),
    ],
)
def test_types(annotation, fits, wrong):
    """Plain values against plain annotations; a bool is no number, a whole number is a float."""
    tree = ast.parse(annotation, mode="eval").body
    for value in fits:
        assert signatures.type_error(value, tree) is None, value
    for value in wrong:
        assert signatures.type_error(value, tree), value


def test_what_cannot_be_told_is_let_through():
    """Own classes, callables and nodes are built later; None of an unknown annotation, too."""
    for annotation in ("Encoder", "Callable[[int], int]", "dict[str, Any]", "Any", "int | Encoder"):
        tree = ast.parse(annotation, mode="eval").body
        assert signatures.type_error("x", tree) is None
    assert signatures.type_error(3, None) is None
    assert signatures.type_error({"_target_": "x.Y"}, ast.parse("int", mode="eval").body) is None


def test_the_message_names_what_is_wanted():
    """Python's None is YAML's null."""
    assert signatures.type_error("x", ast.parse("int | None", mode="eval").body) == "int or null"


def test_nearest_names():
    """The closest name where one is close, else what there is, else nothing: never a wrong guess."""
    assert nearest("resnet_smal", ["resnet_small", "bert_tiny"]) == "; did you mean 'resnet_small'?"
    assert nearest("qqqq", ["b", "a"]) == "; there is: a, b"
    assert nearest("qqqq", [f"name{i}" for i in range(50)]) == ""
    assert nearest("x", []) == ""
