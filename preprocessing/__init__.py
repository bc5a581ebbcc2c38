"""Raw video to aligned features: face crops, log-mel, words with times and their vectors, all on one clock.

``Preprocessor`` is loaded when it is first used, so that ``import preprocessing`` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preprocessing.run import Preprocessor

__all__ = ["Preprocessor"]


def __getattr__(name: str) -> Any:
    if name == "Preprocessor":
        from preprocessing.run import Preprocessor

        return Preprocessor
    raise AttributeError(f"module 'preprocessing' has no attribute {name!r}")
