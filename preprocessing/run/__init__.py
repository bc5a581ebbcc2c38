"""In: videos and settings.
Out: feature folders: all stages of one video, and many videos on this machine or on Ray.
"""

from preprocessing.run.many_videos import Engine, Outcome, look_into, plan, run
from preprocessing.run.one_video import Preprocessor
from preprocessing.run.processes import separate_process
from preprocessing.run.progress import BatchProgress
from preprocessing.run.workers import Status

__all__ = [
    "BatchProgress",
    "Engine",
    "Outcome",
    "Preprocessor",
    "Status",
    "look_into",
    "plan",
    "run",
    "separate_process",
]
