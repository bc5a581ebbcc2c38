"""In: models, and the features of a video.
Out: values for each frame, smoothed and filled.
"""

from rcma.prediction.checkpoints import Checkpoints, FindRecording
from rcma.prediction.postprocess import FillKind, SmoothKind, finish
from rcma.prediction.prediction import FIRST_COLUMNS, Prediction
from rcma.prediction.sliding_window import predict_video

__all__ = [
    "FIRST_COLUMNS",
    "Checkpoints",
    "FillKind",
    "FindRecording",
    "Prediction",
    "SmoothKind",
    "finish",
    "predict_video",
]
