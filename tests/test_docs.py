"""The worked examples of docs/architecture.md run as written, and the README names only what exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sslt import groups, guide
from sslt.runs import Run

ROOT = Path(__file__).parents[1]


def test_examples_of_the_architecture_run(sslt, own_code):
    """Files are written and commands typed as the page shows them."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    files = re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", page, re.S)
    assert len(files) >= 7
    for name, content in files:
        (own_code / name).parent.mkdir(parents=True, exist_ok=True)
        (own_code / name).write_text(content)
    commands = re.findall(r"^    \$ sslt (.*)$", page, re.M)
    assert len(commands) >= 4
    for command in commands:
        sslt(*shlex.split(command))
    for name in ("spectral", "stripes", "mixed", "measured"):
        assert Run(own_code / name).finished
    sslt("evaluate", "from=mixed", code=2)  # without trust=


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "docs/clusters.md", "docs/data.md", "docs/memory.md"])
def test_commands_name_what_exists(page):
    """Every `sslt VERB`, +task=, +target=, data= and encoder= in the texts is real."""
    text = (ROOT / page).read_text()
    if page == "docs/architecture.md":
        text = text.split("## Add your own")[0]
    for verb in re.findall(r"^\s+(?:\$ )?sslt (\w+)", text, re.M):
        assert verb in (*guide.VERBS, "list", "completion"), verb
    for group in ("task", "target", "data", "encoder", "adaptation", "logger"):
        for value in re.findall(rf"(?<![\w.]){group}=([\w,]+)", text):
            for option in value.split(","):
                assert option in groups.options(group), f"{group}={option}"
