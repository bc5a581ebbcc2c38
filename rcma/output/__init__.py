"""In: predictions and scores.
Out: the challenge's files, table, report and overlays; scores on the terminal.
"""

from rcma.output.overlay import write_overlay
from rcma.output.report import ReportedVideo, write_report
from rcma.output.score_tables import print_disagreement, print_scores, print_videos
from rcma.output.table import PredictedFrames, read_experts, read_frames
from rcma.output.writer import OutputSettings, write_outputs

__all__ = [
    "OutputSettings",
    "PredictedFrames",
    "ReportedVideo",
    "print_disagreement",
    "print_scores",
    "print_videos",
    "read_experts",
    "read_frames",
    "write_outputs",
    "write_overlay",
    "write_report",
]
