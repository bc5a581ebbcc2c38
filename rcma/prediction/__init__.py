"""In: a model, and a video or its features.
Out: values a frame, smoothed and filled.
"""

from rcma.prediction.postprocess import FillKind, Prediction, SmoothKind, finish
from rcma.prediction.predictor import (
    check_features,
    faces_from_elsewhere,
    predict,
    predict_frames,
    predict_video,
    preprocessed,
    preprocessing_of,
    require_both_targets,
    to_abaw_columns,
)

__all__ = [
    "FillKind",
    "Prediction",
    "SmoothKind",
    "check_features",
    "faces_from_elsewhere",
    "finish",
    "predict",
    "predict_frames",
    "predict_video",
    "preprocessed",
    "preprocessing_of",
    "require_both_targets",
    "to_abaw_columns",
]
