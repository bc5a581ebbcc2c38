"""``rcma-preprocess``: videos in, feature folders out."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.config import PreprocessConfig, load_config
from preprocessing.console import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    HelpFormatter,
    add_common_arguments,
    add_config_arguments,
    print_table,
    run_command,
)
from preprocessing.device import resolve_device
from preprocessing.errors import InputError
from preprocessing.inputs import Source, collect_sources, take_shard

if TYPE_CHECKING:
    from preprocessing.batch import Engine, Outcome

log = logging.getLogger("rcma.preprocessing")

_EXAMPLES = """examples:
  rcma-preprocess recordings/ interview.mp4 --out features --language en
  rcma-preprocess videos/ --out features --cropped-aligned Aff-Wild2/cropped_aligned
  rcma-preprocess --inspect features/interview"""
_NAMES_IN_WARNING = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-preprocess``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-preprocess",
        description="Turn raw video into aligned features of face, voice and words: one folder for each video.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="video files, folders of them, .txt files with one path a line"
    )
    parser.add_argument("--out", metavar="FEATURES", help="folder that receives one folder for each video")
    parser.add_argument(
        "--inspect",
        nargs="+",
        metavar="FOLDER",
        help="print what feature folders hold, and draw contact_sheet.png in each; nothing else is done",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    add_config_arguments(parser, required=False, example="speech.backend=faster-whisper")
    settings = parser.add_argument_group("settings by another name")
    settings.add_argument("--language", metavar="CODE", help="speech.language: such as en; without, it is detected")
    settings.add_argument(
        "--subjects", choices=("main", "all"), help="faces.subjects: all gives each lasting person a folder"
    )
    settings.add_argument(
        "--stream",
        type=int,
        action="append",
        metavar="N",
        help="streams: number of the video or audio stream to use, as ffprobe counts; may be given for both",
    )
    instead = parser.add_argument_group("what is there already")
    instead.add_argument(
        "--transcripts",
        metavar="DIR",
        help="folder of VIDEO_ID.srt, .vtt or Whisper's .json that replace speech recognition",
    )
    instead.add_argument(
        "--cropped-aligned",
        metavar="DIR",
        help="Aff-Wild2's folder of faces (VIDEO_ID, VIDEO_ID_left, VIDEO_ID_right) that replace face detection",
    )
    instead.add_argument("--overwrite", action="store_true", help="do finished videos again")
    many = parser.add_argument_group("many at once")
    many.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="videos that are worked on at the same time; without: one for two cores, at most 8, or what Ray has",
    )
    many.add_argument("--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster")
    many.add_argument("--ray-address", metavar="HOST:PORT", help="of the cluster; without, a local one is started")
    many.add_argument(
        "--gpus-per-worker", type=float, default=0.25, metavar="SHARE", help="of a GPU, on Ray with --device cuda"
    )
    many.add_argument("--shard", metavar="I/N", help="do every N-th video from the I-th, such as 3/16 in a Slurm array")
    add_common_arguments(parser)
    return run_command(_main, parser, argv)


def _main(args: argparse.Namespace) -> int:
    if args.inspect:
        return _inspect([Path(text) for text in args.inspect])
    if not args.inputs or not args.out:
        raise InputError("give INPUT... and --out FEATURES, or --inspect FOLDER; --help shows examples")
    from preprocessing.batch import Engine

    config = load_config(PreprocessConfig, Path(args.config) if args.config else None, _overrides(args))
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: at least 1 is needed")
    if args.ray_address and args.engine != "ray":
        raise InputError("--ray-address: goes with --engine ray")
    cropped_aligned = Path(args.cropped_aligned) if args.cropped_aligned else None
    sources = collect_sources([Path(text) for text in args.inputs], cropped_aligned=cropped_aligned)
    if cropped_aligned is not None:
        _warn_of_unused(cropped_aligned, sources)
    if args.shard:
        sources = take_shard(sources, args.shard)
    out = Path(args.out)
    transcripts = Path(args.transcripts) if args.transcripts else None
    if args.dry_run:
        return _dry_run(sources, out, config, transcripts=transcripts, overwrite=args.overwrite)
    outcomes = preprocess_and_report(
        sources,
        out,
        config,
        device=resolve_device(args.device),
        transcripts=transcripts,
        overwrite=args.overwrite,
        engine=Engine(args.engine, args.workers, args.ray_address, args.gpus_per_worker),
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
    engine: Engine | None = None,
) -> list[Outcome]:
    """Process all ``sources`` with a progress display; print a closing table, and each failure as one line on stderr.

    Raises:
        InputError: the request as a whole cannot be carried out; see :func:`preprocessing.batch.run`.
    """
    # Imported here: torch and FFmpeg are not needed for --help.
    from preprocessing.batch import plan, run
    from preprocessing.progress import BatchProgress

    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    outcomes, jobs = plan(sources, out, config, transcripts=transcripts, overwrite=overwrite)
    if outcomes:
        print(f"already done: {len(outcomes)} of {len(sources)} videos", file=sys.stderr)
    with BatchProgress({job.source.video_id: job.size for job in jobs}) as progress:
        for outcome in run(jobs, config, device=device, transcripts=transcripts, engine=engine, status=progress.report):
            progress.finished(outcome)
            outcomes.append(outcome)
    order = {source.video_id: position for position, source in enumerate(sources)}
    outcomes.sort(key=lambda outcome: order[outcome.video_id])
    _print_closing_table(outcomes, out)
    for outcome in outcomes:
        if not outcome.done:
            print(f"failed: {outcome.problem}", file=sys.stderr)
    return outcomes


def _overrides(args: argparse.Namespace) -> list[str]:
    """``--set`` and the options that are settings by another name."""
    named = {"speech.language": args.language, "faces.subjects": args.subjects, "streams": args.stream}
    return [*args.overrides, *(f"{key}={value}" for key, value in named.items() if value is not None)]


def _warn_of_unused(cropped_aligned: Path, sources: Sequence[Source]) -> None:
    used = {name for source in sources for name in source.provided_faces or {}}
    unused = sorted(path.name for path in cropped_aligned.iterdir() if path.is_dir() and path.name not in used)
    if unused:
        named = ", ".join(unused[:_NAMES_IN_WARNING]) + (", ..." if len(unused) > _NAMES_IN_WARNING else "")
        log.warning("%s: no raw video for %d folders of faces (%s): not used", cropped_aligned, len(unused), named)


def _inspect(folders: list[Path]) -> int:
    from preprocessing.inspection import describe, draw_contact_sheet
    from preprocessing.store import load_features

    n_failed = 0
    for folder in folders:
        try:
            features = load_features(folder)
            print_table(str(folder), ("", ""), describe(features))
            picture = folder / "contact_sheet.png"
            draw_contact_sheet(features, picture)
            print(picture)
        except (InputError, OSError) as error:
            n_failed += 1
            print(f"failed: {error}", file=sys.stderr)
    return EXIT_SOME_FAILED if n_failed else EXIT_DONE


def _dry_run(
    sources: list[Source], out: Path, config: PreprocessConfig, *, transcripts: Path | None, overwrite: bool
) -> int:
    from preprocessing.batch import plan

    finished, jobs = plan(sources, out, config, transcripts=transcripts, overwrite=overwrite)
    planned = {job.source.video_id: job for job in jobs}
    rows = []
    problems = []
    for source in sources:
        job = planned.get(source.video_id)
        if job is None:
            rows.append([source.video_id, str(source.path), "", "", "nothing: already done"])
            continue
        try:
            picture, todo = _look_into(source, config), job.reason or "all stages"
        except InputError as error:
            picture, todo = "", f"CANNOT BE DONE: {error}"
            problems.append(str(error))
        rows.append([source.video_id, str(source.path), f"{job.size / 1e6:.1f}", picture, todo])
    n_bytes = sum(job.size for job in jobs)
    title = f"{len(jobs)} of {len(sources)} videos to do, {n_bytes / 1e6:.1f} MB; {len(finished)} already in {out}"
    print_table(title, ["video", "file", "MB", "picture", "to do"], rows)
    return EXIT_SOME_FAILED if problems else EXIT_DONE


def _look_into(source: Source, config: PreprocessConfig) -> str:
    """Size of a video's pictures; raises InputError when it cannot be read."""
    from preprocessing.video import picture_size

    width, height = picture_size(source.path, streams=config.streams)
    return f"{width}x{height}"


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
