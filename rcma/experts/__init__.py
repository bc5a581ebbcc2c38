"""In: features of a video, and its recording.
Out: values for each frame from public models of one modality each, without a training run.
"""

from rcma.experts.audeering import AudeeringExpert
from rcma.experts.calibrate import Calibration, LabelledVideo, fit_calibration, load_calibration, save_calibration
from rcma.experts.check import check_model, find_face
from rcma.experts.face import EMOTIONS, FaceExpert
from rcma.experts.fetch import fetch_model
from rcma.experts.fuse import WEIGHTS as FUSION_WEIGHTS
from rcma.experts.fuse import fuse
from rcma.experts.public_models import NOT_RCMA, PublicModels
from rcma.experts.registry import Entry, FaceEntry, VoiceEntry, entries, find_entry, packaged
from rcma.experts.words import WEIGHTS, SentenceEncoder, TextAffect, regress

__all__ = [
    "EMOTIONS",
    "FUSION_WEIGHTS",
    "NOT_RCMA",
    "WEIGHTS",
    "AudeeringExpert",
    "Calibration",
    "Entry",
    "FaceEntry",
    "FaceExpert",
    "LabelledVideo",
    "PublicModels",
    "SentenceEncoder",
    "TextAffect",
    "VoiceEntry",
    "check_model",
    "entries",
    "fetch_model",
    "find_entry",
    "find_face",
    "fit_calibration",
    "fuse",
    "load_calibration",
    "packaged",
    "regress",
    "save_calibration",
]
