"""In: annotations, sample files and submissions of the ABAW challenge.
Out: arrays over frames; files in the challenge's formats; every problem of a submission.
"""

from rcma.abaw.reader import (
    CHALLENGE_FOLDER,
    PER_VIDEO_HEADER,
    SPLIT_FOLDERS,
    Location,
    Split,
    find_annotations,
    find_split,
    read_annotation,
    read_predictions,
    read_template,
)
from rcma.abaw.submission import check_submission
from rcma.abaw.writer import (
    EDITIONS,
    Format,
    per_video_file,
    reconcile,
    require_writable_ids,
    write_per_video,
    write_single_file,
)

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
