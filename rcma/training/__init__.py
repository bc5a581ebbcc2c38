"""In: a configuration.
Out: a run folder.
"""

from rcma.training.loop import EpochRow, TrainingResult, train

__all__ = [
    "EpochRow",
    "TrainingResult",
    "train",
]
