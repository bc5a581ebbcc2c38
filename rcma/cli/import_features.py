"""``rcma-import``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from preprocessing.console import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    HelpFormatter,
    Reporter,
    add_common_arguments,
    print_failure,
    run_command,
)
from preprocessing.errors import InputError
from rcma.cli.arguments import add_column_arguments, parse_columns
from rcma.config import MODALITIES


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-import``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-import",
        description="Import features from other tools: write feature folders with one vector per frame for face, audio "
        "and text, from tables with their own times. Tables are CSV, TSV or Parquet with a column of times "
        "(or start and end), or .npy with the rate of their rows after the folder: wav2vec@50. A folder holds a table "
        "for each video, VIDEO.csv. A frame gets the mean of the rows in its interval where rows are closer together "
        "than frames, otherwise the nearest row within half a step of the table. A model takes such features with "
        "model.face.kind=features, and likewise audio and text.",
        epilog="exit code: 0 all videos were imported; 1 some failed; 2 nothing could be imported\n\n"
        "example:\n  rcma-import --face openface --audio egemaps wav2vec@50 --rate 10 --out features",
        formatter_class=HelpFormatter,
    )
    for modality in MODALITIES:
        parser.add_argument(
            f"--{modality}",
            nargs="+",
            action="extend",
            default=[],
            metavar="TABLES",
            help=f"folders of {modality} tables; the columns of several folders are put side by side",
        )
    clock = parser.add_mutually_exclusive_group(required=True)
    clock.add_argument("--rate", type=float, metavar="HZ", help="frames at a fixed rate, from 0 s to the last row")
    clock.add_argument(
        "--clock", type=Path, metavar="PATH", help="frames of recordings or feature folders of these names"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FEATURES", help="output folder; only imported features are replaced"
    )
    add_column_arguments(parser, example="time=frameTime")
    add_common_arguments(parser, device=False)
    return run_command(_import, parser, argv)


def _import(args: argparse.Namespace) -> int:
    columns = parse_columns(args.columns)
    if args.rate is not None and not 0.0 < args.rate < math.inf:
        raise InputError(f"--rate {args.rate:g}: must be a number of frames a second above 0")
    # Imported here: torch is not needed for --help.
    from rcma.data import Clock, FeatureSource, import_video

    sources = {
        m: [FeatureSource(text, columns=columns, unit=args.unit) for text in getattr(args, m)]
        for m in MODALITIES
        if getattr(args, m)
    }
    if not sources:
        raise InputError("give tables of at least one modality: --face, --audio, --text")
    clock = Clock(rate=args.rate, like=args.clock)
    video_ids = sorted({name for of_modality in sources.values() for source in of_modality for name in source.files})
    n_failed = 0
    with Reporter(len(video_ids), unit="video") as reporter:
        for video_id in video_ids:
            reporter.status(video_id)
            try:
                lines = import_video(video_id, sources, clock, args.out / video_id)
            except InputError as error:
                n_failed += 1
                print_failure(error)
                continue
            reporter.finished(f"{video_id}: {'; '.join(lines)}")
    failed = f"; {n_failed} failed" if n_failed else ""
    print(f"{len(video_ids) - n_failed} feature folders are in {args.out}{failed}")
    return EXIT_SOME_FAILED if n_failed else EXIT_DONE
