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
    print_failure,
    print_table,
    run_command,
)
from preprocessing.errors import InputError, describe_os_error
from preprocessing.inputs import Source, collect_sources, provided_folders, take_shard

if TYPE_CHECKING:
    from preprocessing.run import Preprocessor

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
        help="folder of VIDEO_ID.srt, .vtt or Whisper's .json (also VIDEO_ID.en.srt) that replace speech recognition",
    )
    instead.add_argument(
        "--cropped-aligned",
        metavar="DIR",
        help="Aff-Wild2's folder of faces (VIDEO_ID, VIDEO_ID_left, VIDEO_ID_right) that replace face detection",
    )
    instead.add_argument(
        "--overwrite",
        action="store_true",
        help="do finished videos again, and replace features that were made from another file of the same name; other "
        "files and folders are never replaced",
    )
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
    # Imported here: torch and FFmpeg are not needed for --help.
    from preprocessing.run import Engine, Preprocessor, preprocess_with_progress

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
    preprocessor = Preprocessor(config, device=args.device, transcripts=args.transcripts)
    if args.dry_run:
        return _dry_run(preprocessor, sources, out, overwrite=args.overwrite)
    engine = Engine(args.engine, args.workers, args.ray_address, args.gpus_per_worker)
    outcomes = preprocess_with_progress(preprocessor, sources, out, overwrite=args.overwrite, engine=engine)
    return EXIT_DONE if all(outcome.done for outcome in outcomes) else EXIT_SOME_FAILED


def _overrides(args: argparse.Namespace) -> list[str]:
    """``--set`` and the options that are settings by another name."""
    named = {"speech.language": args.language, "faces.subjects": args.subjects, "streams": args.stream}
    return [*args.overrides, *(f"{key}={value}" for key, value in named.items() if value is not None)]


def _warn_of_unused(cropped_aligned: Path, sources: Sequence[Source]) -> None:
    used = {name for source in sources for name in source.provided_faces or {}}
    unused = [name for name in provided_folders(cropped_aligned) if name not in used]
    if unused:
        named = ", ".join(unused[:_NAMES_IN_WARNING]) + (", ..." if len(unused) > _NAMES_IN_WARNING else "")
        log.warning("%s: no raw video for %d folders of faces (%s): not used", cropped_aligned, len(unused), named)


def _inspect(folders: list[Path]) -> int:
    from preprocessing.features import describe, draw_contact_sheet, load_features

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
            print_failure(describe_os_error(error) if isinstance(error, OSError) else error)
    return EXIT_SOME_FAILED if n_failed else EXIT_DONE


def _dry_run(preprocessor: Preprocessor, sources: list[Source], out: Path, *, overwrite: bool) -> int:
    finished, jobs = preprocessor.plan(sources, out, overwrite=overwrite)
    found = {job.source.video_id: look for job, look in preprocessor.look_into(jobs)}
    planned = {job.source.video_id: job for job in jobs}
    refused = [outcome for outcome in finished if not outcome.done]
    problems = {outcome.video_id: outcome.problem for outcome in refused}
    rows = []
    for source in sources:
        job = planned.get(source.video_id)
        if source.video_id in problems:
            rows.append([source.video_id, str(source.path), "", "", f"CANNOT BE DONE: {problems[source.video_id]}"])
            continue
        if job is None:
            rows.append([source.video_id, str(source.path), "", "", "nothing: already done"])
            continue
        look = found[source.video_id]
        if look.problem:
            problems[source.video_id] = look.problem
        todo = f"CANNOT BE DONE: {look.problem}" if look.problem else job.reason or "all stages"
        rows.append([source.video_id, str(source.path), f"{job.size / 1e6:.1f}", look.picture, todo])
    n_bytes = sum(job.size for job in jobs)
    title = f"{len(jobs)} of {len(sources)} videos to do, {n_bytes / 1e6:.1f} MB"
    title += f"; {len(finished) - len(refused)} already in {out}"
    print_table(title, ["video", "file", "MB", "picture", "to do"], rows)
    for problem in problems.values():
        print_failure(problem)
    return EXIT_SOME_FAILED if problems else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
