"""``rcma-calibrate``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.console import EXIT_DONE, HelpFormatter, add_common_arguments, print_table, run_command
from preprocessing.errors import InputError
from preprocessing.files import refuse_to_overwrite
from rcma.cli.arguments import add_label_arguments, label_settings
from rcma.config import TARGETS

if TYPE_CHECKING:
    from rcma.experts import Calibration

log = logging.getLogger("rcma")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-calibrate``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-calibrate",
        description="Fit the public models of rcma-predict to a few labelled videos: a ridge regression for each "
        "target over the outputs of the models. Prints CCC before and after, on held-out videos.",
        epilog="example:\n  rcma-predict my_videos/ --out predictions\n"
        "  rcma-calibrate --predictions predictions --annotations labels --out calibration.safetensors\n"
        "  rcma-predict more_videos/ --calibration calibration.safetensors --out calibrated",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--predictions",
        required=True,
        metavar="PREDICTIONS",
        help="folder of rcma-predict, run without --checkpoint, or the frames.csv or frames.parquet in it",
    )
    parser.add_argument(
        "--annotations",
        required=True,
        metavar="ANNOTATIONS",
        help="labels of at least three videos: a folder of VIDEO_ID.txt, or tables with their own times",
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="file to write; only a file of rcma-calibrate is replaced"
    )
    add_label_arguments(parser)
    add_common_arguments(parser, device=False)
    return run_command(_calibrate, parser, argv)


def _calibrate(args: argparse.Namespace) -> int:
    from rcma.data import open_labels
    from rcma.experts import LabelledVideo, fit_calibration, save_calibration
    from rcma.output import read_experts

    out = Path(args.out)
    refuse_to_overwrite([out])
    columns, predictions = read_experts(Path(args.predictions))
    labels = open_labels(Path(args.annotations), label_settings(args), video_ids=predictions.keys())
    if without := sorted(set(labels.videos) - predictions.keys()):
        log.warning(f"{args.predictions}: no prediction of {', '.join(without)}: not used")
    videos = []
    for name in sorted(predictions.keys() & set(labels.videos)):
        time_s, values, fused = predictions[name]
        of_frames = labels.at(name, time_s, TARGETS, on_warning=log.warning)
        videos.append(LabelledVideo(name, values, fused, of_frames))
    if not videos:
        raise InputError(f"{args.predictions} and {args.annotations} have no video in common; names must be equal")
    calibration = fit_calibration(videos, columns)
    save_calibration(calibration, out)
    _print_scores(calibration)
    print(f"{out} uses {', '.join(calibration.models)}; rcma-predict --calibration {out} applies it")
    return EXIT_DONE


def _print_scores(calibration: Calibration) -> None:
    rows, worse = [], []
    for target, s in calibration.description.scores.items():
        before, after = (float("nan") if value is None else value for value in (s.ccc_before, s.ccc_after))
        rows.append([target, f"{before:.3f}", f"{after:.3f}", str(s.n_videos), str(s.n_frames), str(s.n_folds)])
        if not after > before:
            worse.append(target)
    title = "CCC over labelled frames, each video held out from the fit that predicts it"
    print_table(title, ["", "before", "after", "videos", "frames", "folds"], rows)
    print(
        "These figures depend on the number of videos, not of frames. Two videos of one person count as two: expect "
        "less on new people."
    )
    if worse:
        log.warning(f"{' and '.join(worse)}: not better than without calibration on held-out videos")
