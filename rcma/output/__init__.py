"""In: predictions.
Out: what people look at: table, page, overlay and the challenge's files.
"""

from rcma.output.overlay import write_overlay
from rcma.output.report import ReportedVideo, write_report
from rcma.output.table import read_experts, read_spreads
from rcma.output.writer import SINGLE_FILE, OutputSettings, write_outputs

__all__ = [
    "SINGLE_FILE",
    "OutputSettings",
    "ReportedVideo",
    "read_experts",
    "read_spreads",
    "write_outputs",
    "write_overlay",
    "write_report",
]
