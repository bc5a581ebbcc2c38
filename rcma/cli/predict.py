"""``rcma-predict``."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from preprocessing.config import parse_override
from preprocessing.console import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    HelpFormatter,
    Reporter,
    add_common_arguments,
    print_failure,
    run_command,
    worker_count,
)
from preprocessing.errors import InputError
from rcma.cli.arguments import add_label_arguments, label_settings

if TYPE_CHECKING:
    from rcma.abaw import Format
    from rcma.data import Labels
    from rcma.output import OutputSettings
    from rcma.prediction import Prediction, SmoothKind
    from rcma.predictor import Predictor, PreparedVideo

CACHE_FOLDER = "features"
"""Where ``rcma-predict`` puts the features of raw videos, below its --out, so that a second run need not make them."""

log = logging.getLogger("rcma")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-predict``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-predict",
        description="Valence and arousal for each decoded frame: the challenge's files, a table, a page to look at. "
        "Without --checkpoint, public models of one modality each predict together; they are not RCMA.",
        epilog="examples:\n  rcma-predict --checkpoint run features/ my_video.mp4 --out predictions --report\n"
        "  rcma-predict talk.mp4 --out predictions --report",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="feature folders, folders of them, or raw videos")
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        action="append",
        default=[],
        metavar="RUN",
        help="run folder of rcma-train, its best.safetensors, or a Hugging Face Hub name such as org/model; "
        "predictions of several are averaged, and the table and the report show how far they disagree (each Hub name "
        "with a --checkpoint of its own); without: the public models that are available on this machine",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="what rcma-calibrate made: fits the public models to your own labels; not with --checkpoint",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="PREDICTIONS",
        help="folder that receives the predictions; those of an earlier run are replaced, other files never",
    )
    _add_challenge_arguments(parser)
    parser.add_argument(
        "--table",
        choices=("csv", "parquet", "none"),
        default="csv",
        help="frames.csv or frames.parquet: a row a frame, with its time, which of face, audio and text it had, and "
        "with several checkpoints the standard deviation of their predictions; without a checkpoint what each public "
        "model says, and their spread",
    )
    parser.add_argument(
        "--smooth",
        metavar="KIND:SECONDS",
        help="median:SECONDS (whole width) or gaussian:SECONDS (standard deviation), by the frames' times",
    )
    parser.add_argument(
        "--fill",
        choices=("nearest", "neutral", "nan"),
        default="nearest",
        help="what frames get of which nothing is known: the nearest frame's values, 0, or nothing",
    )
    parser.add_argument(
        "--report", action="store_true", help="report.html: player, curves, words and faces, in one file to look at"
    )
    parser.add_argument(
        "--annotations",
        metavar="ANNOTATIONS",
        help="labels to show in the report: a folder of VIDEO_ID.txt, or tables with times of their own",
    )
    add_label_arguments(parser)
    parser.add_argument(
        "--overlay",
        metavar="OUT.mp4",
        help="the video with face box, words and gauge drawn in; a folder, if there are several videos",
    )
    _add_raw_video_arguments(parser)
    add_common_arguments(parser)
    return run_command(_predict, parser, argv)


def _add_challenge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=("per-video", "single-file", "none"),
        help="per-video: VIDEO_ID.txt, one line a frame; single-file: predictions.txt, one line a frame of all videos; "
        "none: no such files (default: that of --edition, or per-video)",
    )
    parser.add_argument(
        "--edition",
        type=int,
        metavar="N",
        help="edition of the ABAW challenge: its format, and the name of the single file",
    )
    parser.add_argument(
        "--template",
        metavar="SAMPLE_FILE",
        help="the organisers' sample file: a single file gets exactly its rows in its order, or is refused",
    )


def _add_raw_video_arguments(parser: argparse.ArgumentParser) -> None:
    raw = parser.add_argument_group("preprocessing of raw videos")
    raw.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change one setting, for example speech.backend=faster-whisper; without, the settings are those of the "
        "training; those that change what the model sees are refused; may be given many times",
    )
    raw.add_argument("--language", metavar="CODE", help="speech.language: such as en; without, it is detected")
    raw.add_argument(
        "--workers",
        type=worker_count,
        metavar="N",
        help="videos at the same time; without: one for two cores, at most 8",
    )


def _predict(args: argparse.Namespace) -> int:
    settings = _output_settings(args)
    from preprocessing.inputs import sort_inputs
    from rcma.output import write_outputs
    from rcma.predictor import Predictor

    checkpoints, given = _split_checkpoints(args.checkpoint, args.inputs)
    failures = _Failures()
    predictor = Predictor(
        checkpoints or None,
        device=args.device,
        settings=_raw_video_settings(args),
        fill=args.fill,
        smooth=_parse_smoothing(args.smooth) if args.smooth else None,
        changes=args.report,
        calibration=args.calibration,
    )
    _print_models(predictor)
    settings.check_targets(predictor.targets)
    inputs = sort_inputs([Path(text) for text in given])
    # Before the work, not after hours of it.
    settings.check_videos(inputs.video_ids)
    labels = _open_labels(args, inputs.video_ids)
    videos = predictor.prepare(
        inputs, features=settings.folder / CACHE_FOLDER, workers=args.workers, progress=True, on_failure=failures.tell
    )
    video_ids = [video.video_id for video in videos]
    # Again: a video may have given several people.
    settings.check_videos(video_ids)
    if not set(video_ids) <= set(inputs.video_ids):
        labels = _open_labels(args, video_ids)
    for remark in settings.reconcile({video.video_id: video.n_frames for video in videos}):
        print(remark, file=sys.stderr)
    with Reporter(len(videos), unit="video") as reporter:
        predicted = predictor.predict_many(videos, status=reporter.status, on_failure=failures.tell)
        n_videos, n_frames = write_outputs(
            _tell_of_each(predicted, reporter),
            settings,
            labels=labels,
            predicted_by=predictor.models.name,
            about=predictor.models.describe(),
            status=reporter.status,
            on_failure=failures.tell,
        )
    where = settings.single_file_path if settings.format == "single-file" else settings.folder
    by = f" ({predictor.models.name})" if predictor.models.name else ""
    failed = f"; {failures.n} failed" if failures.n else ""
    print(f"{n_frames} frames of {n_videos} videos are in {where}{by}{failed}")
    return EXIT_SOME_FAILED if failures.n else EXIT_DONE


def _open_labels(args: argparse.Namespace, video_ids: Sequence[str]) -> Labels | None:
    from rcma.data import open_labels

    if not args.annotations:
        return None
    return open_labels(Path(args.annotations), label_settings(args), video_ids=video_ids)


def _tell_of_each(
    predicted: Iterable[tuple[PreparedVideo, Prediction]], reporter: Reporter
) -> Iterator[tuple[PreparedVideo, Prediction]]:
    for video, prediction in predicted:
        yield video, prediction
        # Not a NaN: it equals itself.
        spoke = [f"{who} {(values == values).any(axis=1).mean():.0%}" for who, values in prediction.experts.items()]
        reporter.finished("; ".join([f"{video.video_id}: {video.n_frames} frames", *spoke]))


def _print_models(predictor: Predictor) -> None:
    """Say on stdout which public models predict; of RCMA its run says it."""
    models = predictor.models
    if not models.name:
        return
    for title, lines in ((f"{models.name}:", models.describe()), ("not on this machine:", models.missing)):
        if lines:
            print("\n  ".join([title, *lines]))
    speech, words = predictor.preprocessing.speech, predictor.preprocessing.words.model
    recognised = "without speech recognition" if speech.backend == "none" else f"speech.model={speech.model}"
    print(f"raw videos are preprocessed with default settings, {recognised}, words.model={words}", flush=True)


class _Failures:
    """Counts what has failed, and names it on stderr."""

    def __init__(self) -> None:
        self.n = 0

    def tell(self, line: object) -> None:
        self.n += 1
        print_failure(line)


def _raw_video_settings(args: argparse.Namespace) -> dict[str, object]:
    language = {"speech.language": args.language} if args.language else {}
    return dict(map(parse_override, args.overrides)) | language


def _output_settings(args: argparse.Namespace) -> OutputSettings:
    """What the options ask for; raises InputError where they contradict each other."""
    from rcma.abaw import EDITIONS, read_template
    from rcma.output import SINGLE_FILE, OutputSettings

    wanted: Format | Literal["none"] | None = args.format
    if args.edition is not None:
        if args.edition not in EDITIONS:
            known = ", ".join(map(str, EDITIONS))
            raise InputError(f"--edition {args.edition}: had no valence-arousal track of its own; these had: {known}")
        if wanted not in (None, EDITIONS[args.edition]):
            raise InputError(f"--format {wanted}: edition {args.edition} takes {EDITIONS[args.edition]}")
        wanted = EDITIONS[args.edition]
    wanted = wanted or "per-video"
    if args.template and wanted != "single-file":
        raise InputError("--template: goes with --format single-file")
    if args.fill == "nan" and wanted != "none":
        raise InputError("--fill nan: the challenge's files hold a number for each frame; add --format none")
    if args.annotations and not args.report:
        raise InputError("--annotations: labels are shown in the report; add --report")
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    overlay = Path(args.overlay) if args.overlay else None
    if overlay is not None and overlay.suffix not in ("", ".mp4"):
        raise InputError(f"--overlay {overlay}: must end in .mp4, or be a folder")
    return OutputSettings(
        folder=out,
        format=None if wanted == "none" else wanted,
        single_file=f"ABAW{args.edition}_VA.txt" if args.edition else SINGLE_FILE,
        template=read_template(Path(args.template)) if args.template else None,
        table=None if args.table == "none" else args.table,
        report=args.report,
        overlay=overlay,
    )


def _parse_smoothing(text: str) -> tuple[SmoothKind, float]:
    kind, _, number = text.partition(":")
    try:
        extent_s = float(number)
    except ValueError:
        extent_s = math.nan
    if kind not in ("median", "gaussian") or not 0.0 < extent_s < math.inf:
        raise InputError(f"--smooth {text}: must be median:SECONDS or gaussian:SECONDS, for example median:0.5")
    return kind, extent_s  # type: ignore[return-value]


def _split_checkpoints(given: Sequence[Sequence[str]], inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Checkpoints and inputs: ``--checkpoint RUN INPUT ...`` gives the inputs to --checkpoint as well."""
    from rcma.model import is_run

    checkpoints, others = [], []
    for first, *more in given:
        checkpoints += [first, *(text for text in more if is_run(Path(text)))]
        others += [text for text in more if text not in checkpoints]
    others += inputs
    if not others:
        raise InputError("give INPUT...: feature folders, folders of them, or raw videos")
    return checkpoints, others
