"""What several benchmarks share: the clip they use by default, settings, the median of passes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from preprocessing.config import PACKAGED, PreprocessConfig

BUNDLED_CLIP = min((Path(__file__).parent / "demo" / "clips").glob("*.mp4"))
BACKENDS = ("openai-whisper", "faster-whisper")

_checkpoints = os.environ.get("RCMA_TEST_WHISPER")
OPENAI_WHISPER = str(Path(_checkpoints) / "base.pt") if _checkpoints else "base"
"""Whisper base for openai-whisper: the checkpoint in ``$RCMA_TEST_WHISPER``, else the name, to be downloaded."""


def whisper_base(backend: str) -> str:
    """``speech.model`` that names Whisper base for a backend."""
    return OPENAI_WHISPER if backend == "openai-whisper" else PACKAGED


def settings(backend: str) -> PreprocessConfig:
    """What is measured: the defaults, with models of the ``offline-models`` extra where they serve."""
    return PreprocessConfig.model_validate(
        {
            "speech": {"backend": backend, "model": whisper_base(backend), "language": "en"},
            "words": {"model": PACKAGED},
        }
    )


def median_seconds(work: Callable[[], object], repeat: int) -> float:
    """Median time of ``repeat`` calls after one for warm-up, seconds."""
    times = []
    for _ in range(repeat + 1):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])
