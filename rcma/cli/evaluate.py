"""``rcma-evaluate``."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from preprocessing.console import EXIT_DONE, EXIT_SOME_FAILED, HelpFormatter, add_common_arguments, run_command
from preprocessing.errors import InputError
from preprocessing.files import refuse_to_overwrite, replace_own
from rcma.cli.arguments import add_label_arguments, label_settings
from rcma.config import TARGETS, Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rcma.config import LabelSettings
    from rcma.output import PredictedFrames

SCORES_FILE = "scores.json"
N_RESAMPLES = 1000
"""Bootstrap samples."""

log = logging.getLogger("rcma")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-evaluate``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-evaluate",
        description="Print the CCC of each target over the concatenation of all annotated frames, which is the "
        "challenge's score, PCC and RMSE, 95 % bootstrap intervals over videos, and the scores of each video; write "
        "all of it to scores.json beside the predictions. Annotations are ABAW files, compared frame by frame (frames "
        "with -5 are left out; if the two files of a video differ in length, the frames that both have are compared), "
        "or tables of labels with times, interpolated to the times in frames.csv beside the predictions. If "
        "frames.csv has the disagreement of several models, its rank correlation with their errors is printed too.",
        epilog="exit code: 0 all annotated videos have predictions; 1 some have none; 2 nothing could be compared\n\n"
        "examples:\n  rcma-evaluate --predictions predictions --annotations annotations/Validation_Set\n"
        "  rcma-evaluate --predictions predictions --annotations ratings --columns time=timestamp --scale 1 9",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--predictions",
        required=True,
        metavar="PREDICTIONS",
        help="folder that rcma-predict wrote, or a single file of the challenge",
    )
    parser.add_argument(
        "--annotations",
        required=True,
        metavar="ANNOTATIONS",
        help="folder of VIDEO_ID.txt annotations, or a folder of tables of labels, or one table for all videos",
    )
    add_label_arguments(parser)
    add_common_arguments(parser, device=False)
    return run_command(_evaluate, parser, argv)


class _Compared(NamedTuple):
    """Predictions and annotations (n,n_targets) of each video."""

    targets: tuple[Target, ...]
    predictions: Mapping[str, NDArray[np.float32]]
    annotations: Mapping[str, NDArray[np.float32]]


def _evaluate(args: argparse.Namespace) -> int:
    from rcma.data import holds_tables
    from rcma.evaluate import Disagreement, as_json, compare_disagreement, evaluate
    from rcma.output import print_disagreement, print_scores, print_videos, read_frames

    path, annotations = Path(args.predictions), Path(args.annotations)
    folder = path if path.is_dir() else path.parent
    scores_file = folder / SCORES_FILE
    refuse_to_overwrite([scores_file])
    settings, frames = label_settings(args), read_frames(folder)
    only_table = path.is_dir() and frames is not None and not any(path.glob("*.txt"))
    if holds_tables(annotations) or only_table:
        targets, predictions, labels = _compare_by_time(frames, folder, annotations, settings)
    else:
        targets, predictions, labels = _compare_frames(path, annotations)
    scores = evaluate(predictions, labels, targets=targets, n_resamples=N_RESAMPLES)
    warnings = list(scores.warnings)
    disagreement: dict[Target, Disagreement] | None = None
    if frames is not None and frames.spreads and set(targets) <= set(frames.targets):
        columns = [frames.targets.index(target) for target in targets]
        spreads = {name: (frames.values[name][:, columns], sd[:, columns]) for name, sd in frames.spreads.items()}
        disagreement, more = compare_disagreement(predictions, labels, spreads, targets=targets)
        warnings += more
    for warning in warnings:
        log.warning(warning)
    print_scores(scores)
    print_videos(scores, all_are_in=SCORES_FILE)
    print_disagreement(disagreement or {})
    content = as_json(scores, disagreement) | {"annotations": args.annotations}
    with replace_own(scores_file) as new:
        new.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    # A score over part of the annotated videos is not the score that was requested.
    return EXIT_DONE if labels.keys() <= predictions.keys() else EXIT_SOME_FAILED


def _compare_frames(predictions: Path, annotations: Path) -> _Compared:
    """Read files of the challenge, which are compared row by row."""
    from rcma.abaw import find_annotations, read_annotation, read_predictions

    labels = {video_id: read_annotation(file) for video_id, file in find_annotations(annotations).items()}
    return _Compared(TARGETS, read_predictions(predictions), labels)


def _compare_by_time(
    frames: PredictedFrames | None, folder: Path, annotations: Path, settings: LabelSettings
) -> _Compared:
    """Take the predictions from their table, and the labels at the times in it."""
    import numpy as np

    from rcma.data import open_labels

    if frames is None:
        raise InputError(
            f"{folder}: no frames.csv or frames.parquet of rcma-predict in it; labels with their own times need the "
            "times in it: predict with --table csv"
        )
    known = open_labels(annotations, settings, video_ids=frames.values.keys())
    # For a video without predictions, only its name matters.
    labels = dict.fromkeys(known.videos, np.empty((0, len(frames.targets)), np.float32))
    for video_id in sorted(frames.values.keys() & set(known.videos)):
        labels[video_id] = known.at(video_id, frames.time_s[video_id], frames.targets, on_warning=log.warning)
    labelled = np.any([np.isfinite(values).any(axis=0) for values in labels.values()], axis=0)
    for k in np.flatnonzero(~labelled):
        log.warning(f"{annotations}: no label of {frames.targets[k]}; not compared")
    columns = np.flatnonzero(labelled)
    return _Compared(
        tuple(frames.targets[k] for k in columns),
        {name: values[:, columns] for name, values in frames.values.items()},
        {name: values[:, columns] for name, values in labels.items()},
    )
