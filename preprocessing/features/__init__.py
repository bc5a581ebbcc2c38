"""In: times, arrays and words of one video.
Out: the feature folder, written, read and inspected; times turned into indices.
"""

from preprocessing.features.align import PATCH_ROWS, Alignment, cut_patches, frame_word, patch_start
from preprocessing.features.contact_sheet import draw_contact_sheet
from preprocessing.features.facts import describe
from preprocessing.features.folder import (
    Features,
    FeatureWriter,
    Word,
    features_from_vectors,
    load_features,
    load_meta,
    own_source,
    save_features,
)
from preprocessing.features.recordings import RecordingFinder

__all__ = [
    "PATCH_ROWS",
    "Alignment",
    "FeatureWriter",
    "Features",
    "RecordingFinder",
    "Word",
    "cut_patches",
    "describe",
    "draw_contact_sheet",
    "features_from_vectors",
    "frame_word",
    "load_features",
    "load_meta",
    "own_source",
    "patch_start",
    "save_features",
]
