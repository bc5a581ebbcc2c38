"""``rcma-evaluate``."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.console import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    HelpFormatter,
    add_common_arguments,
    print_table,
    run_command,
)
from preprocessing.files import refuse_to_overwrite, replace_own
from rcma.config import TARGETS, Target

if TYPE_CHECKING:
    from rcma.evaluate import DetailedScores, Disagreement

SCORES_FILE = "scores.json"
MAX_VIDEOS_SHOWN = 50
"""Of more videos, ``rcma-evaluate`` prints only the worst."""
N_WORST_SHOWN = 10

log = logging.getLogger("rcma")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-evaluate``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-evaluate",
        description="The challenge's score, CCC of each target over the concatenation of all annotated frames, with "
        "PCC and RMSE, 95 % bootstrap intervals over videos, and every video by itself; all of it is also in "
        "scores.json beside the predictions. Frames marked -5 are left out; where a video's two files differ in "
        "length, the frames that both have are compared. Where the table beside the predictions says how far several "
        "models disagree, it also says how well that ranks their errors.",
        epilog="exit code: 0 all annotated videos have predictions; 1 some have none; 2 nothing could be compared\n\n"
        "example:\n  rcma-evaluate --predictions predictions --annotations annotations/Validation_Set",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--predictions", required=True, metavar="PREDICTIONS", help="folder of VIDEO_ID.txt files, or a single file"
    )
    parser.add_argument(
        "--annotations", required=True, metavar="ANNOTATIONS", help="folder of VIDEO_ID.txt annotations"
    )
    add_common_arguments(parser, device=False)
    return run_command(_evaluate, parser, argv)


def _evaluate(args: argparse.Namespace) -> int:
    from rcma.abaw import find_annotations, read_annotation, read_predictions
    from rcma.evaluate import as_json, compare_disagreement, disagreement_as_json, evaluate_in_detail
    from rcma.output import read_spreads

    path = Path(args.predictions)
    folder = path if path.is_dir() else path.parent
    predictions = read_predictions(path)
    scores_file = folder / SCORES_FILE
    refuse_to_overwrite([scores_file])
    annotations = {
        video_id: read_annotation(file) for video_id, file in find_annotations(Path(args.annotations)).items()
    }
    scores = evaluate_in_detail(predictions, annotations)
    for warning in scores.warnings:
        log.warning(warning)
    _print_scores(scores)
    _print_videos(scores)
    content = as_json(scores) | {"annotations": args.annotations}
    if spreads := read_spreads(folder):
        compared, warnings = compare_disagreement(predictions, annotations, spreads)
        for warning in warnings:
            log.warning(warning)
        _print_disagreement(compared)
        content["disagreement"] = disagreement_as_json(compared)
    with replace_own(scores_file) as new:
        new.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    # A score over part of the annotated videos is not the score that was asked for.
    return EXIT_DONE if annotations.keys() <= predictions.keys() else EXIT_SOME_FAILED


def _print_scores(scores: DetailedScores) -> None:
    """The challenge's table, and what it is taken over."""
    from rcma.evaluate import MIN_VIDEOS_FOR_INTERVALS

    n_other_length = sum(video.n_predicted != video.n_annotation_rows for video in scores.videos)
    over = f"CCC over {scores.n_frames} annotated frames of {len(scores.videos)} videos"
    over += f"; {scores.n_not_annotated} rows are not annotated (-5)" if scores.n_not_annotated else ""
    over += f"; {n_other_length} videos differ in length" if n_other_length else ""
    rows = []
    for name in (*TARGETS, "mean"):
        measures = getattr(scores, name)
        row = [name, f"{measures.ccc:.3f}", f"{measures.pcc:.3f}", f"{measures.rmse:.3f}"]
        if scores.intervals is not None:
            low, high = getattr(scores.intervals, name)
            row.insert(2, f"{low:.3f} to {high:.3f}")
        rows.append(row)
    columns = ["", "CCC", "PCC", "RMSE"]
    if scores.intervals is not None:
        columns.insert(2, "95 % interval of CCC")
    print_table(over, columns, rows)
    if scores.intervals is None:
        print(f"no intervals: of fewer than {MIN_VIDEOS_FOR_INTERVALS} annotated videos they would mean little")


def _print_videos(scores: DetailedScores) -> None:
    """Two rows a video, which fits narrow terminals; of many videos, only the worst."""
    videos, title = list(scores.videos), "each video by itself"
    if len(videos) > MAX_VIDEOS_SHOWN:
        # Those without any CCC, which tell nothing of the predictions, come last.
        videos.sort(key=lambda video: (math.isnan(video.mean_ccc), video.mean_ccc))
        videos = videos[:N_WORST_SHOWN]
        title = f"the {N_WORST_SHOWN} videos with the lowest mean CCC; {SCORES_FILE} has all {len(scores.videos)}"
    rows = []
    for video in videos:
        longer_by = video.n_predicted - video.n_annotation_rows
        counts = [str(video.n_compared), str(video.n_not_annotated), f"{longer_by:+d}" if longer_by else ""]
        for of_video, target in zip(([video.video_id, *counts], [""] * 4), TARGETS, strict=True):
            rows.append([*of_video, target, *(f"{value:.3f}" for value in astuple(getattr(video, target)))])
    print_table(title, ["video", "frames", "-5", "longer by", "", "CCC", "PCC", "RMSE"], rows)


def _print_disagreement(compared: Mapping[Target, Disagreement]) -> None:
    """What the standard deviation of several models says of their mean's errors."""
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
