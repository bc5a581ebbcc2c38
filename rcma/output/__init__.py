"""In: predictions.
Out: what people look at: table, page, overlay and the challenge's files.
"""

from rcma.output.frames import PredictedFrames, read_frames
from rcma.output.overlay import write_overlay
from rcma.output.report import ReportedVideo, write_report
from rcma.output.score_tables import print_disagreement, print_scores, print_videos
from rcma.output.table import read_experts, read_spreads
from rcma.output.writer import SINGLE_FILE, OutputSettings, write_outputs

__all__ = [
    "SINGLE_FILE",
    "OutputSettings",
    "PredictedFrames",
    "ReportedVideo",
    "print_disagreement",
    "print_scores",
    "print_videos",
    "read_frames",
    "read_experts",
    "read_spreads",
    "write_outputs",
    "write_overlay",
    "write_report",
]
