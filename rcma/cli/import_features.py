"""``rcma-import``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from rcma.config import Modality
    from rcma.data import FeatureSource


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-import``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-import",
        description="Tables of features made elsewhere, each on a clock of its own, as feature folders: one vector a "
        "frame for each of face, audio and text. Tables are CSV, TSV or Parquet with a column of times (or of start "
        "and end), or .npy with the rate of their rows after the folder: wav2vec@50. A folder has one for each video, "
        "VIDEO.csv. Rows get to frames by time: the mean of the rows in the frame's interval where rows are closer "
        "together than frames, else the nearest row within half a step of the table. A model takes such features "
        "with model.face.kind=features, and likewise audio and text.",
        epilog="exit code: 0 all videos are imported; 1 some are not; 2 nothing could be imported\n\n"
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
            help=f"folders of tables of {modality}; columns of several are put side by side",
        )
    clock = parser.add_mutually_exclusive_group(required=True)
    clock.add_argument("--rate", type=float, metavar="HZ", help="frames at a fixed rate, from 0 s to the last row")
    clock.add_argument(
        "--clock", metavar="PATH", help="frames of recordings, or of feature folders, with the names of the tables"
    )
    parser.add_argument(
        "--out", required=True, metavar="FEATURES", help="folder of feature folders; only imported ones are replaced"
    )
    add_column_arguments(parser, example="time=frameTime")
    add_common_arguments(parser, device=False)
    return run_command(_import, parser, argv)


def _import(args: argparse.Namespace) -> int:
    columns = parse_columns(args.columns)
    if args.rate is not None and not 0.0 < args.rate < math.inf:
        raise InputError(f"--rate {args.rate:g}: must be frames in a second, more than 0")
    from rcma.data import Clock, FeatureSource, import_video

    given: dict[Modality, Sequence[str]] = {m: getattr(args, m) for m in MODALITIES if getattr(args, m)}
    if not given:
        raise InputError("give tables of one modality or more: --face, --audio, --text")
    sources: dict[Modality, list[FeatureSource]] = {
        m: [FeatureSource(text, columns=columns, unit=args.unit) for text in texts] for m, texts in given.items()
    }
    clock = Clock(rate=args.rate, like=None if args.clock is None else Path(args.clock))
    out = Path(args.out)
    video_ids = sorted({name for of_modality in sources.values() for source in of_modality for name in source.files})
    n_failed = 0
    with Reporter(len(video_ids), unit="video") as reporter:
        for video_id in video_ids:
            reporter.status(video_id)
            try:
                lines = import_video(video_id, sources, clock, out / video_id)
            except InputError as error:
                n_failed += 1
                print_failure(error)
                continue
            reporter.finished(f"{video_id}: {'; '.join(lines)}")
    print(f"{len(video_ids) - n_failed} feature folders are in {out}" + (f"; {n_failed} failed" if n_failed else ""))
    return EXIT_SOME_FAILED if n_failed else EXIT_DONE
