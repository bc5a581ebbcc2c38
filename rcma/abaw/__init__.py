"""In: annotations, sample files and submissions of the ABAW challenge.
Out: arrays over frames; files in the challenge's formats; every problem of a submission.
"""

from rcma.abaw.files import (
    CHALLENGE_FOLDER,
    EDITIONS,
    SPLIT_FOLDERS,
    Format,
    Split,
    find_annotations,
    find_split,
    per_video_file,
    read_annotation,
    read_predictions,
    read_template,
    reconcile,
    require_writable_ids,
    write_per_video,
    write_single_file,
)
from rcma.abaw.rows import PER_VIDEO_HEADER, Location
from rcma.abaw.submission import check_submission

__all__ = [
    "CHALLENGE_FOLDER",
    "EDITIONS",
    "PER_VIDEO_HEADER",
    "SPLIT_FOLDERS",
    "Format",
    "Location",
    "Split",
    "check_submission",
    "find_annotations",
    "find_split",
    "per_video_file",
    "read_annotation",
    "read_predictions",
    "read_template",
    "reconcile",
    "require_writable_ids",
    "write_per_video",
    "write_single_file",
]
