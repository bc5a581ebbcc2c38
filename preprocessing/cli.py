"""``rcma-preprocess``: videos in, feature folders out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

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
    worker_count,
)
from preprocessing.errors import InputError, describe_os_error
from preprocessing.inputs import collect_sources, take_shard

_EXAMPLES = """examples:
  rcma-preprocess recordings/ interview.mp4 --out features --language en
  rcma-preprocess videos/ --out features --cropped-aligned Aff-Wild2/cropped_aligned
  rcma-preprocess --inspect features/interview"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-preprocess``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-preprocess",
        description="Turn raw video into aligned features of face, voice and words: one folder for each video.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="video files, folders of them, .txt files with one path per line"
    )
    parser.add_argument("--out", metavar="FEATURES", help="folder that receives one folder for each video")
    parser.add_argument(
        "--inspect",
        nargs="+",
        metavar="FOLDER",
        help="only print the contents of feature folders, and draw contact_sheet.png in each",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")
    add_config_arguments(parser, required=False, example="speech.backend=faster-whisper")
    settings = parser.add_argument_group("settings by another name")
    settings.add_argument("--language", metavar="CODE", help="speech.language, such as en; default: detected")
    settings.add_argument(
        "--subjects", choices=("main", "all"), help="faces.subjects; all: one folder per person visible for long"
    )
    settings.add_argument(
        "--stream",
        type=int,
        action="append",
        metavar="N",
        help="streams: number of the video or audio stream to use, as ffprobe counts; may be given for both",
    )
    _add_existing_results(parser)
    _add_parallel_arguments(parser)
    add_common_arguments(parser)
    return run_command(_main, parser, argv)


def _add_existing_results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("existing results")
    group.add_argument(
        "--transcripts",
        metavar="DIR",
        help="folder of VIDEO_ID.srt, .vtt or Whisper's .json (also VIDEO_ID.en.srt) that replace speech recognition",
    )
    group.add_argument(
        "--cropped-aligned",
        metavar="DIR",
        help="Aff-Wild2's folder of faces (VIDEO_ID, VIDEO_ID_left, VIDEO_ID_right) that replace face detection",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="process finished videos again, and replace features that were made from another file of the same name; "
        "other files and folders are never replaced",
    )


def _add_parallel_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("parallel processing")
    group.add_argument(
        "--workers",
        type=worker_count,
        metavar="N",
        help="videos processed at the same time; default: one for every two cores, at most 8, or on Ray as many as fit",
    )
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster")
    group.add_argument("--ray-address", metavar="HOST:PORT", help="cluster; default: a local one is started")
    group.add_argument(
        "--gpus-per-worker",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="of a GPU for each worker, on Ray",
    )
    group.add_argument(
        "--shard", metavar="I/N", help="only every N-th video from the I-th, such as 3/16 in a Slurm array"
    )


def _main(args: argparse.Namespace) -> int:
    if args.inspect:
        return _inspect([Path(text) for text in args.inspect])
    if not args.inputs or not args.out:
        raise InputError("give INPUT... and --out FEATURES, or --inspect FOLDER; --help shows examples")
    if args.ray_address and args.engine != "ray":
        raise InputError("--ray-address: needs --engine ray")
    # Imported here: --help does without FFmpeg.
    from preprocessing.run import Engine, Preprocessor, preprocess_with_progress, print_plan

    config = load_config(PreprocessConfig, Path(args.config) if args.config else None, _overrides(args))
    cropped_aligned = Path(args.cropped_aligned) if args.cropped_aligned else None
    sources = collect_sources([Path(text) for text in args.inputs], cropped_aligned=cropped_aligned)
    if args.shard:
        sources = take_shard(sources, args.shard)
    out = Path(args.out)
    preprocessor = Preprocessor(config, device=args.device, transcripts=args.transcripts)
    if args.dry_run:
        problems = print_plan(preprocessor, sources, out, overwrite=args.overwrite)
        for problem in problems:
            print_failure(problem)
        return EXIT_SOME_FAILED if problems else EXIT_DONE
    engine = Engine(args.engine, args.workers, args.ray_address, args.gpus_per_worker)
    outcomes = preprocess_with_progress(preprocessor, sources, out, overwrite=args.overwrite, engine=engine)
    return EXIT_DONE if all(outcome.done for outcome in outcomes) else EXIT_SOME_FAILED


def _overrides(args: argparse.Namespace) -> list[str]:
    """``--set`` and the options that are settings by another name."""
    named = {"speech.language": args.language, "faces.subjects": args.subjects, "streams": args.stream}
    return [*args.overrides, *(f"{key}={value}" for key, value in named.items() if value is not None)]


def _inspect(folders: Sequence[Path]) -> int:
    from preprocessing.features import describe, draw_contact_sheet, load_features

    code = EXIT_DONE
    for folder in folders:
        try:
            features = load_features(folder)
            print_table(str(folder), ("", ""), describe(features))
            picture = folder / "contact_sheet.png"
            draw_contact_sheet(features, picture)
            print(picture)
        except (InputError, OSError) as error:
            print_failure(describe_os_error(error) if isinstance(error, OSError) else error)
            code = EXIT_SOME_FAILED
    return code


if __name__ == "__main__":
    sys.exit(main())
