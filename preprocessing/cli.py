"""``rcma-preprocess``: videos in, feature folders out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.config import PreprocessConfig, load_config
from preprocessing.console import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    HelpFormatter,
    Reporter,
    add_common_arguments,
    add_config_arguments,
    print_table,
    run_command,
)
from preprocessing.device import resolve_device
from preprocessing.errors import InputError
from preprocessing.inputs import Source, collect_sources

if TYPE_CHECKING:
    from preprocessing.pipeline import Outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-preprocess``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-preprocess",
        description="Turn raw video into aligned features of face, voice and words: one folder for each video.",
        epilog="example:\n  rcma-preprocess recordings/ interview.mp4 --out features --set speech.language=en",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="video files, folders of them, .txt files with one path a line"
    )
    parser.add_argument(
        "--out", required=True, metavar="FEATURES", help="folder that receives one folder for each video"
    )
    add_config_arguments(parser, required=False, example="speech.backend=faster-whisper")
    parser.add_argument(
        "--transcripts",
        metavar="DIR",
        help="folder of VIDEO_ID.srt, .vtt or Whisper's .json that replace speech recognition",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="videos that are worked on at the same time"
    )
    parser.add_argument("--overwrite", action="store_true", help="do finished videos again")
    add_common_arguments(parser)
    return run_command(_preprocess, parser, argv)


def _preprocess(args: argparse.Namespace) -> int:
    if args.workers > 1:
        # Idle threads that spin take the time of the other workers: on two busy cores, detection took three times as
        # long. One worker alone is quicker with them. Read when PyTorch is loaded, so it must come before.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    config = load_config(PreprocessConfig, Path(args.config) if args.config else None, args.overrides)
    if args.workers < 1:
        raise InputError(f"--workers {args.workers}: at least 1 is needed")
    sources = collect_sources([Path(text) for text in args.inputs])
    outcomes = preprocess_and_report(
        sources,
        Path(args.out),
        config,
        device=resolve_device(args.device),
        transcripts=Path(args.transcripts) if args.transcripts else None,
        overwrite=args.overwrite,
        workers=args.workers,
    )
    return EXIT_DONE if all(outcome.done for outcome in outcomes) else EXIT_SOME_FAILED


def preprocess_and_report(
    sources: list[Source],
    out: Path,
    config: PreprocessConfig,
    *,
    device: str,
    transcripts: Path | None = None,
    overwrite: bool = False,
    workers: int = 1,
) -> list[Outcome]:
    """Process all ``sources`` with a progress display; print a closing table, and each failure as one line on stderr.

    Raises:
        InputError: the request as a whole cannot be carried out; see :func:`preprocessing.pipeline.preprocess_many`.
    """
    # Imported here: torch and FFmpeg are not needed for --help.
    from preprocessing.pipeline import preprocess_many

    outcomes = []
    with Reporter(len(sources), unit="video") as reporter:
        for outcome in preprocess_many(
            sources,
            out,
            config,
            device=device,
            transcripts=transcripts,
            overwrite=overwrite,
            workers=workers,
            status=reporter.status,
        ):
            reporter.finished(_line(outcome))
            outcomes.append(outcome)
    order = {source.video_id: position for position, source in enumerate(sources)}
    outcomes.sort(key=lambda outcome: order[outcome.video_id])
    _print_closing_table(outcomes, out)
    for outcome in outcomes:
        if not outcome.done:
            print(f"failed: {outcome.problem}", file=sys.stderr)
    return outcomes


def _line(outcome: Outcome) -> str:
    if not outcome.done:
        return f"{outcome.video_id}: failed"
    if outcome.skipped:
        return f"{outcome.video_id}: already done"
    return f"{outcome.video_id}: {outcome.n_frames} frames, {outcome.n_words} words, {outcome.seconds:.1f} s"


def _print_closing_table(outcomes: list[Outcome], out: Path) -> None:
    rows = []
    for outcome in outcomes:
        if outcome.done:
            cells = [str(outcome.n_frames), f"{outcome.face_share:.0%}", str(outcome.n_words), outcome.language]
            seconds = "" if outcome.skipped else f"{outcome.seconds:.1f}"
            remarks = "; ".join((*(["already done"] if outcome.skipped else []), *outcome.warnings))
            rows.append([outcome.video_id, *cells, seconds, remarks])
        else:
            rows.append([outcome.video_id, "", "", "", "", f"{outcome.seconds:.1f}", f"FAILED: {outcome.problem}"])
    columns = ["video", "frames", "faces", "words", "language", "seconds", "remarks"]
    n_failed = sum(not outcome.done for outcome in outcomes)
    title = f"{len(outcomes) - n_failed} of {len(outcomes)} videos are in {out}"
    print_table(title + (f"; {n_failed} failed" if n_failed else ""), columns, rows)


if __name__ == "__main__":
    sys.exit(main())
