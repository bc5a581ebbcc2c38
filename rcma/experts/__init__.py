"""In: features of a video, and its recording.
Out: values a frame from public models, each of one modality, without a training run.
"""

from rcma.experts.voice import measure_voice, vocal_activation
from rcma.experts.words import LICENCE, WEIGHTS, SentenceEncoder, TextAffect, regress, sentence_values

__all__ = [
    "LICENCE",
    "WEIGHTS",
    "SentenceEncoder",
    "TextAffect",
    "measure_voice",
    "regress",
    "sentence_values",
    "vocal_activation",
]
