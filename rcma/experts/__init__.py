"""In: features of a video, and its recording.
Out: values for each frame from public models of one modality each, without a training run.
"""

from rcma.experts.calibrate import Calibration, LabelledVideo, fit_calibration, load_calibration, save_calibration
from rcma.experts.check import check_model, find_face
from rcma.experts.public_models import PublicModels
from rcma.experts.registry import entries, find_entry, packaged
from rcma.experts.words import WEIGHTS, SentenceEncoder, regress

__all__ = [
    "WEIGHTS",
    "Calibration",
    "LabelledVideo",
    "PublicModels",
    "SentenceEncoder",
    "check_model",
    "entries",
    "find_entry",
    "find_face",
    "fit_calibration",
    "load_calibration",
    "packaged",
    "regress",
    "save_calibration",
]
