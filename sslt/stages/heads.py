"""`head/` of a run by the name that the stages know it by; it is read and written by `sslt.targets.heads`."""

from sslt.targets.heads import SIDE_MODELS, load, node_of, save

__all__ = ["SIDE_MODELS", "load", "node_of", "save"]
