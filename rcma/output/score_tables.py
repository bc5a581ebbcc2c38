"""Tables of scores on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple

from preprocessing.console import print_table
from rcma.config import Target
from rcma.evaluate import MIN_VIDEOS_FOR_INTERVALS, Disagreement, Scores

MAX_VIDEOS_SHOWN = 50
"""Of more videos, only the worst are printed."""
N_WORST_SHOWN = 10


def print_scores(scores: Scores) -> None:
    """Print CCC, PCC and RMSE of each target, and over how many frames and videos."""
    n_other_length = sum(video.n_predicted != video.n_annotation_rows for video in scores.videos)
    over = f"CCC over {scores.n_frames} annotated frames of {len(scores.videos)} videos"
    over += f"; {scores.n_not_annotated} frames are not annotated" if scores.n_not_annotated else ""
    over += f"; {n_other_length} videos differ in length" if n_other_length else ""
    rows = []
    for name, measures in {**scores.by_target, "mean": scores.mean}.items():
        row = [name, *(f"{value:.3f}" for value in astuple(measures))]
        if scores.intervals is not None:
            low, high = scores.intervals.ends[name]
            row.insert(2, f"{low:.3f} to {high:.3f}")
        rows.append(row)
    columns = ["", "CCC", "PCC", "RMSE"]
    if scores.intervals is not None:
        columns.insert(2, "95 % interval of CCC")
    print_table(over, columns, rows)
    if scores.intervals is None:
        print(f"no intervals: they need at least {MIN_VIDEOS_FOR_INTERVALS} annotated videos")


def print_videos(scores: Scores, *, all_are_in: str) -> None:
    """Print a row for each video and target, which fits narrow terminals; of many videos, only the worst.

    Args:
        scores: of all videos.
        all_are_in: name of the file with all videos, for the title.
    """
    videos, title = list(scores.videos), "each video separately"
    if len(videos) > MAX_VIDEOS_SHOWN:
        # Videos without any CCC come last.
        videos.sort(key=lambda video: (math.isnan(video.mean_ccc), video.mean_ccc))
        videos = videos[:N_WORST_SHOWN]
        title = f"the {N_WORST_SHOWN} videos with the lowest mean CCC; {all_are_in} has all {len(scores.videos)}"
    rows = []
    for video in videos:
        longer_by = video.n_predicted - video.n_annotation_rows
        first = [video.video_id, str(video.n_compared), str(video.n_not_annotated)]
        first.append(f"{longer_by:+d}" if longer_by else "")
        for target, measures in video.by_target.items():
            rows.append([*first, target, *(f"{value:.3f}" for value in astuple(measures))])
            first = [""] * len(first)
    print_table(title, ["video", "frames", "not annotated", "longer by", "", "CCC", "PCC", "RMSE"], rows)


def print_disagreement(compared: Mapping[Target, Disagreement]) -> None:
    """Print how well the standard deviation of several models predicts the errors of their mean."""
    rows = []
    for target, one in compared.items():
        pairs = [(one.all.rmse, one.least.rmse), (one.all.ccc, one.least.ccc)]
        rows.append([target, f"{one.spearman:.3f}", *(f"{value:.3f}" for pair in pairs for value in pair)])
    if rows:
        print_table(
            "disagreement of the models: its rank correlation with the absolute error, and scores over all these "
            "frames and over the half on which they disagree least",
            ["", "Spearman", "RMSE", "of that half", "CCC", "of that half"],
            rows,
        )
