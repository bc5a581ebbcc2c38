"""In: features of a video, and its recording.
Out: values a frame from public models, each of one modality, without a training run.
"""

from rcma.experts.audeering import AudeeringExpert
from rcma.experts.calibrate import Calibration, LabelledVideo, fit_calibration, load_calibration, save_calibration
from rcma.experts.check import check_model, find_face
from rcma.experts.face import EMOTIONS, FaceExpert
from rcma.experts.fetch import OnProgress, fetch_model
from rcma.experts.fuse import WEIGHTS as FUSION_WEIGHTS
from rcma.experts.fuse import fuse
from rcma.experts.public_models import NOT_RCMA, Expert, PublicModels, read_sound
from rcma.experts.registry import (
    FaceEntry,
    PackagedEntry,
    VoiceEntry,
    accept_licence,
    available,
    destination,
    entries,
    find_entry,
    find_file,
    how_to_get,
    is_accepted,
    is_here,
    locate,
    packaged,
)
from rcma.experts.voice import measure_voice, vocal_activation
from rcma.experts.words import WEIGHTS, SentenceEncoder, TextAffect, regress, sentence_values

__all__ = [
    "EMOTIONS",
    "FUSION_WEIGHTS",
    "NOT_RCMA",
    "WEIGHTS",
    "AudeeringExpert",
    "Calibration",
    "Expert",
    "FaceEntry",
    "FaceExpert",
    "LabelledVideo",
    "OnProgress",
    "PackagedEntry",
    "PublicModels",
    "SentenceEncoder",
    "TextAffect",
    "VoiceEntry",
    "accept_licence",
    "available",
    "check_model",
    "destination",
    "entries",
    "fetch_model",
    "find_entry",
    "find_face",
    "find_file",
    "fit_calibration",
    "fuse",
    "how_to_get",
    "is_accepted",
    "is_here",
    "load_calibration",
    "locate",
    "measure_voice",
    "packaged",
    "read_sound",
    "regress",
    "save_calibration",
    "sentence_values",
    "vocal_activation",
]
