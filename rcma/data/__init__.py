"""In: feature folders and labels of any source; tables of features from other tools.
Out: windows of tensors, labels at the times of frames, folds, embeddings computed once; feature folders.
"""

from rcma.data.compatibility import (
    change_raw_video_settings,
    check_like_training,
    face_source,
    fixed_settings,
    other_source,
    settings_for_raw_videos,
)
from rcma.data.dataset import SharedBatches, WindowDataset, drop_modalities
from rcma.data.embeddings import Embeddings, embed_videos
from rcma.data.imports import Clock, FeatureSource, import_video
from rcma.data.labels import Labels, holds_tables, labels_at, open_labels
from rcma.data.normalisation import fit_normalisation
from rcma.data.splits import N_FOLDS, official_split
from rcma.data.training_data import TrainingData, open_training_data
from rcma.data.videos import Video
from rcma.data.windows import check_features, cut_window, overlap_average, windows

__all__ = [
    "N_FOLDS",
    "Clock",
    "Embeddings",
    "FeatureSource",
    "Labels",
    "SharedBatches",
    "TrainingData",
    "Video",
    "WindowDataset",
    "change_raw_video_settings",
    "check_features",
    "check_like_training",
    "cut_window",
    "drop_modalities",
    "embed_videos",
    "face_source",
    "fit_normalisation",
    "fixed_settings",
    "holds_tables",
    "import_video",
    "labels_at",
    "official_split",
    "open_labels",
    "open_training_data",
    "other_source",
    "overlap_average",
    "settings_for_raw_videos",
    "windows",
]
