"""In: videos and settings.
Out: feature folders: all stages of one video, and many videos on this machine or on Ray.
"""

from preprocessing.run.preprocessor import Engine, Preprocessor
from preprocessing.run.processes import separate_process
from preprocessing.run.progress import preprocess_with_progress, print_plan
from preprocessing.run.video_worker import Outcome
from preprocessing.run.workers import Status

__all__ = [
    "Engine",
    "Outcome",
    "Preprocessor",
    "Status",
    "preprocess_with_progress",
    "print_plan",
    "separate_process",
]
