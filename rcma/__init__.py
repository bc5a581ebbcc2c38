"""Continuous valence and arousal for each frame of a video, from face, voice and words.

The names below are loaded when they are first used, so that ``import rcma`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rcma import metrics
    from rcma.model import load_model, published
    from rcma.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "load_model", "metrics", "published"]

_NAMES = {"load_model": "rcma.model.checkpoint", "Predictor": "rcma.predictor"}
_MODULES = {"metrics": "rcma.metrics", "published": "rcma.model.published"}


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'rcma' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
