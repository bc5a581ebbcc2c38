"""In: features of a video, and its recording.
Out: values a frame from public models, each of one modality, without a training run.
"""

from rcma.experts.audeering import AudeeringExpert
from rcma.experts.check import check_model, find_face
from rcma.experts.face import EMOTIONS, FaceExpert
from rcma.experts.fetch import OnProgress, fetch_model
from rcma.experts.registry import (
    FaceEntry,
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
)
from rcma.experts.voice import measure_voice, vocal_activation
from rcma.experts.words import LICENCE, WEIGHTS, SentenceEncoder, TextAffect, regress, sentence_values

__all__ = [
    "EMOTIONS",
    "LICENCE",
    "WEIGHTS",
    "AudeeringExpert",
    "FaceEntry",
    "FaceExpert",
    "OnProgress",
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
    "how_to_get",
    "is_accepted",
    "is_here",
    "locate",
    "measure_voice",
    "regress",
    "sentence_values",
    "vocal_activation",
]
