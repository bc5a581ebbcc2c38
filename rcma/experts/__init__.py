"""In: features of a video, and its recording.
Out: values a frame from public models, each of one modality, without a training run.
"""

from rcma.experts.fuse import WEIGHTS as FUSION_WEIGHTS
from rcma.experts.fuse import fuse
from rcma.experts.public_models import NOT_RCMA, Expert, FindRecording, PublicModels, read_sound
from rcma.experts.voice import measure_voice, vocal_activation
from rcma.experts.words import LICENCE, WEIGHTS, SentenceEncoder, TextAffect, regress, sentence_values

__all__ = [
    "FUSION_WEIGHTS",
    "LICENCE",
    "NOT_RCMA",
    "WEIGHTS",
    "Expert",
    "FindRecording",
    "PublicModels",
    "SentenceEncoder",
    "TextAffect",
    "fuse",
    "measure_voice",
    "read_sound",
    "regress",
    "sentence_values",
    "vocal_activation",
]
