"""Every test runs in a folder of its own, with one cache for the session, quietly and on one thread."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Under nohup, or behind an & of a script, these are ignored, and by all that is started from here.
for _number, _handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# Small enough that a run takes a second; the parts are those a user gets.
TINY_IMAGES = [
    "encoder.args.layers=[1,1,1,1]",
    "encoder.args.channels=[8,8,16,16]",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
]
TINY_VIT = [
    "+encoder.args.embed_dim=16",
    "+encoder.args.num_heads=2",
    "encoder.args.depth=2",
    "encoder.processor.size=16",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
]
TINY_TEXT = [
    "encoder=bert_tiny",
    "encoder.config.hidden_size=32",
    "encoder.config.intermediate_size=64",
    "encoder.processor.vocab_size=1000",
    "encoder.processor.max_length=32",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
]
TINY_ITEMS = [
    "encoder.config.hidden_size=16",
    "encoder.config.num_hidden_layers=1",
    "encoder.processor.max_length=12",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
]


# Files that take longest. Workers get whole files: a long one that comes last is waited for by all others.
LONGEST = ("test_starters.py", "test_many_devices.py", "test_killed.py", "test_tasks.py", "test_resume.py", "test_every_target_whole.py")
LONGEST += ("test_nodes.py", "test_launchers.py", "test_sweep_folder.py", "test_fuzz.py", "test_rates.py", "test_ranks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, all others in their order; `make test` has xdist keep it."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of a session share, those of other workers, too, and the user's own does not see."""
    shared = os.environ.get("SSLT_TEST_CACHE")
    own = tmp_path_factory.getbasetemp()
    folder = Path(shared) if shared else (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _quick_pictures() -> Iterator[None]:
    """Commands in this process leave their pictures blank; those that are programs of their own do not."""
    import quick_pictures

    quick_pictures.blank()
    yield
    quick_pictures.truly()


@pytest.fixture(scope="session", autouse=True)
def _collected_before() -> Iterator[None]:
    """What importing sslt and all tests has made is there to stay: garbage is looked for in what comes after."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _composed_once() -> Iterator[None]:
    """Hydra composes a command once more beforehand, to look for `hydra.mode`: none that runs in this process sets it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda self, config_name, overrides: None)
        yield


@pytest.fixture
def true_pictures() -> Iterator[None]:
    """For tests of pictures: as users get them."""
    import quick_pictures

    quick_pictures.truly()
    yield
    quick_pictures.blank()


@pytest.fixture(autouse=True)
def _safe_path_ends() -> Iterator[None]:
    """A command keeps the processes that it starts from the working folder; scripts that the next test starts have theirs again."""
    yield
    os.environ.pop("PYTHONSAFEPATH", None)


def _work_in(folder: Path, cache: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(folder)
    patch.setenv("SSLT_CACHE", str(cache))
    patch.setattr("sslt.data.cache._root", None)  # not where a command of an earlier test put its own
    patch.setenv("WANDB_MODE", "offline")
    patch.delenv("SSLT_DEBUG", raising=False)


@pytest.fixture
def here(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    _work_in(tmp_path, cache, monkeypatch)
    return tmp_path


@contextlib.contextmanager
def working_in(folder: Path, cache: Path) -> Iterator[Path]:
    """What `here` is to one test, for a fixture that serves several."""
    with pytest.MonkeyPatch.context() as patch:
        _work_in(folder, cache, patch)
        yield folder


@pytest.fixture
def own_code(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, from which modules can be imported; the next test may give others the same names."""
    from sslt import signatures

    monkeypatch.syspath_prepend(str(here))
    yield here
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        places = (getattr(spec, "origin", None), *(getattr(spec, "submodule_search_locations", None) or ()))
        if any(place and Path(place).is_relative_to(here) for place in places):
            del sys.modules[name]
    signatures.signature.cache_clear()


@pytest.fixture
def sslt(here: Path):
    """Run a command in this process, `sslt("pretrain", ..., code=0)`; gives the exit code. code=None: whichever it is."""
    from sslt.cli import main

    def run(*args: str, code: int | None = 0) -> int:
        found = main([str(a) for a in args])
        assert code is None or found == code
        return found

    return run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    """Runs take no time: `fake_runs.Fake` stands in for `execute`, and tells which of them there were."""
    from fake_runs import Fake

    made = Fake()
    monkeypatch.setattr("sslt.execute.execute", made)
    return made
