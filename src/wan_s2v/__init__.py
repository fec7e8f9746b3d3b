"""A portrait and a voice become a film shot: Wan2.2-S2V under one small runtime.

Importing this package is cheap; torch and the models load when a public name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_s2v.clips import ClipPlan
    from wan_s2v.errors import WanS2VError
    from wan_s2v.family import load_pipeline
    from wan_s2v.models.transformer import WanS2VTransformer
    from wan_s2v.pipeline import WanS2VPipeline
    from wan_s2v.result import S2VClip, S2VOutput

__version__ = "0.1.0"
__all__ = [
    "ClipPlan",
    "S2VClip",
    "S2VOutput",
    "WanS2VError",
    "WanS2VPipeline",
    "WanS2VTransformer",
    "__version__",
    "load_pipeline",
]

_HOMES = {
    "ClipPlan": "wan_s2v.clips",
    "S2VClip": "wan_s2v.result",
    "S2VOutput": "wan_s2v.result",
    "WanS2VError": "wan_s2v.errors",
    "WanS2VPipeline": "wan_s2v.pipeline",
    "WanS2VTransformer": "wan_s2v.models.transformer",
    "load_pipeline": "wan_s2v.family",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wan_s2v' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
