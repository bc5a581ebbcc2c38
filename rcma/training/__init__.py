"""In: a configuration.
Out: a run folder.
"""

from rcma.training.loop import train
from rcma.training.run_folder import EpochRow, TrainingResult

__all__ = ["EpochRow", "TrainingResult", "train"]
