"""``rcma-predict``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from rcma.cli.arguments import add_label_arguments, label_settings, split_checkpoints

if TYPE_CHECKING:
    from rcma.output import OutputSettings
    from rcma.prediction import Prediction
    from rcma.predictor import Predictor, PreparedVideo


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-predict``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-predict",
        description="Valence and arousal for each decoded frame: the challenge's files, a table and a report. "
        "Without --checkpoint, public models of one modality each predict together; they are not RCMA.",
        epilog="examples:\n  rcma-predict --checkpoint run features/ my_video.mp4 --out predictions --report\n"
        "  rcma-predict talk.mp4 --out predictions --report",
        formatter_class=HelpFormatter,
    )
    _add_model_arguments(parser)
    _add_output_arguments(parser)
    _add_raw_video_arguments(parser)
    add_common_arguments(parser)
    return run_command(_predict, parser, argv)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="feature folders, folders of them, or raw videos")
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        action="append",
        default=[],
        metavar="RUN",
        help="run folder of rcma-train, its best.safetensors, or a Hugging Face Hub name such as org/model; "
        "predictions of several are averaged, and the table and the report show how far they disagree (give each "
        "Hub name with a separate --checkpoint); without: the public models that are available on this machine",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="file of rcma-calibrate, which fits the public models to your own labels; not with --checkpoint",
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
        help="values of frames without any modality: those of the nearest frame, 0, or none",
    )


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        required=True,
        metavar="PREDICTIONS",
        type=Path,
        help="folder for the predictions; those of an earlier run are replaced, other files never",
    )
    parser.add_argument(
        "--format",
        choices=("per-video", "single-file", "none"),
        help="per-video: VIDEO_ID.txt, one line per frame; single-file: predictions.txt, one line per frame of all "
        "videos; none: no such files; default: that of --edition, or per-video",
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
        type=Path,
        help="the organisers' sample file: the single file gets exactly its rows in its order, or is refused",
    )
    parser.add_argument(
        "--table",
        choices=("csv", "parquet", "none"),
        default="csv",
        help="frames.csv or frames.parquet: a row for each frame, with its time and which of face, audio and text it "
        "had; with several checkpoints also the standard deviation of their predictions, without a checkpoint the "
        "values of each public model and their spread",
    )
    parser.add_argument(
        "--report", action="store_true", help="write report.html: player, curves, words and faces in a single file"
    )
    parser.add_argument(
        "--annotations",
        metavar="ANNOTATIONS",
        type=Path,
        help="labels to show in the report: a folder of VIDEO_ID.txt, or tables with their own times",
    )
    add_label_arguments(parser)
    parser.add_argument(
        "--overlay",
        metavar="OUT.mp4",
        type=Path,
        help="write the video with face box, words and valence-arousal plane drawn in; a folder for several videos",
    )


def _add_raw_video_arguments(parser: argparse.ArgumentParser) -> None:
    raw = parser.add_argument_group("preprocessing of raw videos")
    raw.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change one setting, for example speech.backend=faster-whisper; the others are those of the training; "
        "settings that change the model's input are refused; may be given many times",
    )
    raw.add_argument("--language", metavar="CODE", help="speech.language, such as en; default: detected")
    raw.add_argument(
        "--workers",
        type=worker_count,
        metavar="N",
        help="videos processed at the same time; default: one for every two cores, at most 8",
    )


def _predict(args: argparse.Namespace) -> int:
    from preprocessing.inputs import sort_inputs
    from rcma.abaw import reconcile
    from rcma.data import open_labels
    from rcma.output import write_outputs
    from rcma.predictor import Predictor

    settings = _output_settings(args)
    failures: list[object] = []

    def on_failure(problem: object) -> None:
        failures.append(problem)
        print_failure(problem)

    checkpoints, given = split_checkpoints(args.checkpoint, args.inputs)
    predictor = Predictor(
        checkpoints or None,
        device=args.device,
        settings=_raw_video_settings(args),
        fill=args.fill,
        smooth=_parse_smoothing(args.smooth),
        changes=args.report,
        calibration=args.calibration,
    )
    _print_models(predictor)
    settings.check_targets(predictor.targets)
    inputs = sort_inputs([Path(text) for text in given])
    # Before the work, not after hours of it.
    settings.check_videos(inputs.video_ids)
    of_labels = label_settings(args)
    labels = open_labels(args.annotations, of_labels, video_ids=inputs.video_ids) if args.annotations else None
    # Kept beside the predictions: a second run need not compute them.
    features = settings.folder / "features"
    videos = predictor.prepare(inputs, features=features, workers=args.workers, progress=True, on_failure=on_failure)
    n_frames = {video.video_id: video.n_frames for video in videos}
    # Again: a video may have given several people.
    settings.check_videos([*n_frames])
    if labels is not None and not n_frames.keys() <= set(inputs.video_ids):
        labels = open_labels(args.annotations, of_labels, video_ids=[*n_frames])
    for remark in reconcile(settings.template, n_frames) if settings.template else ():
        print(remark, file=sys.stderr)
    with Reporter(len(videos), unit="video") as reporter:
        predicted = predictor.predict_many(videos, status=reporter.status, on_failure=on_failure)
        n_videos, n_predicted = write_outputs(
            _report_each(predicted, reporter),
            settings,
            labels=labels,
            predicted_by=predictor.models.name,
            about=predictor.models.describe(),
            status=reporter.status,
            on_failure=on_failure,
        )
    where = settings.single_file if settings.format == "single-file" else settings.folder
    by = f" ({predictor.models.name})" if predictor.models.name else ""
    failed = f"; {len(failures)} failed" if failures else ""
    print(f"{n_predicted} frames of {n_videos} videos are in {where}{by}{failed}")
    return EXIT_SOME_FAILED if failures else EXIT_DONE


def _output_settings(args: argparse.Namespace) -> OutputSettings:
    from rcma.output import OutputSettings

    table_kind = None if args.table == "none" else args.table
    settings = OutputSettings(
        args.out, args.format, args.edition, args.template, table_kind, has_report=args.report, overlay=args.overlay
    )
    if args.fill == "nan" and settings.format != "none":
        raise InputError("--fill nan: the challenge's files hold a number for each frame; add --format none")
    if args.annotations and not args.report:
        raise InputError("--annotations: labels are shown in the report; add --report")
    return settings


def _report_each(
    predicted: Iterable[tuple[PreparedVideo, Prediction]], reporter: Reporter
) -> Iterator[tuple[PreparedVideo, Prediction]]:
    for video, prediction in predicted:
        yield video, prediction
        # Not a NaN: it equals itself.
        shares = [f"{name} {(values == values).any(axis=1).mean():.0%}" for name, values in prediction.experts.items()]
        reporter.finished("; ".join([f"{video.video_id}: {video.n_frames} frames", *shares]))


def _print_models(predictor: Predictor) -> None:
    """Print which public models predict; a run says itself how its model was trained."""
    models = predictor.models
    if not models.name:
        return
    for title, lines in ((f"{models.name}:", models.describe()), ("not on this machine:", models.missing)):
        if lines:
            print("\n  ".join([title, *lines]))
    speech, words = predictor.preprocessing.speech, predictor.preprocessing.words.model
    recognised = "without speech recognition" if speech.backend == "none" else f"speech.model={speech.model}"
    print(f"raw videos are preprocessed with default settings, {recognised}, words.model={words}", flush=True)


def _raw_video_settings(args: argparse.Namespace) -> dict[str, object]:
    language = {"speech.language": args.language} if args.language else {}
    return dict(map(parse_override, args.overrides)) | language


def _parse_smoothing(text: str | None) -> Any:
    """Kind and extent in seconds, for :class:`rcma.Predictor`."""
    if text is None:
        return None
    kind, _, number = text.partition(":")
    try:
        extent_s = float(number)
    except ValueError:
        extent_s = math.nan
    if kind not in ("median", "gaussian") or not 0.0 < extent_s < math.inf:
        raise InputError(f"--smooth {text}: must be median:SECONDS or gaussian:SECONDS, for example median:0.5")
    return kind, extent_s
