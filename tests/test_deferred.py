"""Protects starts that cost what is used: Lightning and timm come without what they would import for nobody, and nobody misses it.

Each in a process of its own, since it is about what was imported.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

START = (
    "from sslt import deferred; deferred.few_metrics(); import sys, pytorch_lightning; from pytorch_lightning.core.module import Metric; "
)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_lightning_brings_two_classes_of_torchmetrics():
    """Those that it compares with, and none of the libraries of other metrics; its version is known."""
    many = "('transformers', 'torchvision', 'scipy.signal', 'torchmetrics.text', 'torchmetrics.functional')"
    code = f"{START} print([m for m in {many} if m in sys.modules]); import torchmetrics; print(torchmetrics.Metric is Metric)"
    code += "; from lightning_utilities.core.imports import compare_version; import operator"
    code += "; print(compare_version('torchmetrics', operator.ge, '1.0'), compare_version('torchmetrics', operator.ge, '99'))"
    assert python(code).split("\n") == ["[]", "True", "True False"]


@pytest.mark.parametrize(
    "use",
    [
        "from torchmetrics import Accuracy; metric = Accuracy('binary')",
        "import torchmetrics; metric = torchmetrics.classification.BinaryAccuracy()",
        "import torchmetrics.classification as c; metric = c.BinaryAccuracy()",
        "from torchmetrics.functional.classification import binary_accuracy; from torchmetrics import MeanMetric; metric = MeanMetric()",
    ],
)
def test_whoever_wants_more_of_it_gets_all(use):
    """By its names and by its submodules, of the same classes that Lightning has; each module once."""
    once = "import torchmetrics.classification as c, sys; print(c is torchmetrics.classification is sys.modules[c.__name__])"
    code = f"{START} {use}; print(isinstance(metric, Metric)); import torchmetrics; print(len(torchmetrics.__all__) > 50); {once}"
    code += "; print(c.BinaryAccuracy is torchmetrics.classification.accuracy.BinaryAccuracy, torchmetrics.metric.Metric is Metric)"
    assert python(code).split() == ["True"] * 5


def test_another_version_is_imported_whole():
    code = (
        "from sslt import deferred; deferred._PARTS['Metric'] = 'torchmetrics.elsewhere'; deferred.few_metrics(); import pytorch_lightning"
    )
    code += "; import torchmetrics; print(torchmetrics.Metric is torchmetrics.metric.Metric, torchmetrics.Accuracy.__name__)"
    assert python(code) == "True Accuracy"


def test_what_is_there_stays():
    code = "import torchmetrics; from sslt import deferred; deferred.few_metrics(); import sys"
    assert python(f"{code}; print(sys.modules['torchmetrics'] is torchmetrics, torchmetrics.Accuracy.__name__)") == "True Accuracy"


def test_timm_comes_without_wandb_which_can_be_had_afterwards():
    code = "from sslt import deferred; import sys; timm = deferred.timm(); print('wandb' in sys.modules, timm.is_model('resnet18'))"
    code += "; import wandb; print(wandb.__name__); deferred.timm(); print(wandb is sys.modules['wandb'])"
    assert python(code) == "False True\nwandb\nTrue"
