"""What several benchmarks share: the clip they use by default, settings that need no network, the median of passes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from preprocessing.config import PreprocessConfig

BUNDLED_CLIP = min((Path(__file__).parent / "demo" / "clips").glob("*.mp4"))
BACKENDS = ("openai-whisper", "faster-whisper")


def settings(backend: str) -> PreprocessConfig:
    """What is measured: the defaults, with the models that need no network."""
    return PreprocessConfig.model_validate(
        {
            "speech": {"backend": backend, "model": "packaged", "language": "en"},
            "words": {"model": "packaged"},
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
