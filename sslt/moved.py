"""What runs of earlier versions call by other names: classes that have moved, settings that were renamed.

A run folder outlives the layout of the package. The names in it are brought up to date when it is read, before anything looks at them, so
that what may stand where (`trusted.py`) and what a class takes (`signatures.py`) is asked of present names alone.
"""

from __future__ import annotations

from typing import Any

# former module → present one, of classes that a saved `_target_` may name
MODULES = {
    "sslt.data.corruptions": "sslt.data.views.corruptions",
    "sslt.data.docs": "sslt.data.sources.docs",
    "sslt.data.episodes": "sslt.data.streams.episodes",
    "sslt.data.image_tables": "sslt.data.sources.image_tables",
    "sslt.data.image_views": "sslt.data.views.image_views",
    "sslt.data.images": "sslt.data.sources.images",
    "sslt.data.multi_crop": "sslt.data.views.multi_crop",
    "sslt.data.omniglot": "sslt.data.sources.omniglot",
    "sslt.data.sampling": "sslt.data.streams.sampling",
    "sslt.data.text_sets": "sslt.data.sources.text_sets",
    "sslt.data.text_views": "sslt.data.views.text_views",
    "sslt.data.texts": "sslt.data.sources.texts",
    "sslt.data.views": "sslt.data.views.base",
    "sslt.objectives.classification": "sslt.targets.classification",
}
# former name of a class → present one, where the rest of its module has stayed
CLASSES = {f"sslt.data.sources.texts.{name}": f"sslt.data.sources.running_text.{name}" for name in ("TextFiles", "TextLines")}
# former setting → present one, at the top of a saved config.yaml
SETTINGS = {"words": "late_fusion"}
# present class → settings it did not have, and what it did without them
LATER: dict[str, dict[str, Any]] = {
    "sslt.data.sources.texts.TextTable": {"answer": "class", "separator": None},
    "sslt.data.sources.texts.HuggingFaceText": {"answer": "class", "separator": None},
    "sslt.data.sources.image_tables.HuggingFaceImages": {"answer": "class", "separator": None},
    "sslt.data.sources.images.Arrays": {"answer": "class"},
}


def settings(plain: dict[str, Any]) -> dict[str, Any]:
    """A whole saved config with the present names of its settings and classes."""
    return up_to_date({SETTINGS.get(k, k): v for k, v in plain.items()})


def head(about: dict[str, Any]) -> dict[str, Any]:
    """What `head.json` says, as it is said since there are other answers than classes."""
    if "space" in about or "classes" not in about:
        return about
    return {**about, "answer": "class", "space": {"classes": about["classes"]}}


def up_to_date(plain: Any) -> Any:
    """A copy of a plain config in which every `_target_` has its present name, and the settings that came later."""
    if isinstance(plain, dict):
        found = {k: present(v) if k == "_target_" and isinstance(v, str) else up_to_date(v) for k, v in plain.items()}
        target = found.get("_target_")
        return {**LATER.get(target, {}), **found} if isinstance(target, str) else found
    if isinstance(plain, list):
        return [up_to_date(v) for v in plain]
    return plain


def present(target: str) -> str:
    """The present name of a class; its own, where it has not moved."""
    module, _, name = target.rpartition(".")
    target = f"{MODULES[module]}.{name}" if module in MODULES else target
    return CLASSES.get(target, target)
