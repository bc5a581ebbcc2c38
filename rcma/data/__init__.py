"""In: feature folders and labels.
Out: windows of tensors, folds, and embeddings that are computed once.
"""

from rcma.data.compatibility import (
    change_raw_video_settings,
    check_like_training,
    face_source,
    fixed_settings,
    other_source,
    settings_for_raw_videos,
)
from rcma.data.embeddings import Embeddings, embed_videos
from rcma.data.windows import (
    SharedBatches,
    TrainingData,
    Video,
    WindowDataset,
    check_face_size,
    check_sound,
    check_vectors,
    cut_window,
    drop_modalities,
    fit_normalisation,
    labels_at,
    open_training_data,
    overlap_average,
    windows,
)

__all__ = [
    "Embeddings",
    "SharedBatches",
    "TrainingData",
    "Video",
    "WindowDataset",
    "change_raw_video_settings",
    "check_face_size",
    "check_like_training",
    "check_sound",
    "check_vectors",
    "cut_window",
    "drop_modalities",
    "embed_videos",
    "face_source",
    "fit_normalisation",
    "fixed_settings",
    "labels_at",
    "open_training_data",
    "other_source",
    "overlap_average",
    "settings_for_raw_videos",
    "windows",
]
