"""``rcma-predict``."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from preprocessing.console import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    HelpFormatter,
    Reporter,
    add_common_arguments,
    print_failure,
    run_command,
)
from preprocessing.device import resolve_device
from preprocessing.errors import InputError
from preprocessing.files import refuse_to_overwrite
from preprocessing.inputs import Source, collect_sources
from preprocessing.names import as_video_id, refuse_shared_ids

if TYPE_CHECKING:
    from preprocessing.config import PreprocessConfig
    from preprocessing.features import Features
    from rcma.abaw import Format
    from rcma.config import FaceSource
    from rcma.output import OutputSettings, ReportedVideo
    from rcma.prediction import Prediction, SmoothKind

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
        "with a --checkpoint of its own); without: the public models that can be had on this machine",
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
        "--annotations", metavar="ANNOTATIONS", help="folder of VIDEO_ID.txt labels to show in the report"
    )
    parser.add_argument(
        "--overlay",
        metavar="OUT.mp4",
        help="the video with face box, words and gauge drawn in; a folder, if there are several videos",
    )
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


def _predict(args: argparse.Namespace) -> int:
    settings = _output_settings(args)
    device = resolve_device(args.device)
    from rcma.abaw import require_writable_ids
    from rcma.output import write_outputs

    checkpoints, inputs = _split_checkpoints(args.checkpoint, args.inputs)
    labels = _find_labels(args.annotations)
    predictor = _load_checkpoints(checkpoints, device=device) if checkpoints else _load_public_models()
    settings = replace(settings, **predictor.shown_as)
    folders, sources = _sort_inputs([Path(text) for text in inputs])
    named = [*((_id_of(folder), folder) for folder in folders), *((s.video_id, s.path) for s in sources)]
    refuse_shared_ids(named)
    video_ids = [video_id for video_id, _ in named]
    require_writable_ids(video_ids, settings.format, has_template=settings.template is not None)
    # Before the work, not after hours of it.
    refuse_to_overwrite(settings.paths(video_ids))
    failures = _Failures()
    made: dict[Path, Path] = {}
    if sources:
        made = _preprocess(predictor.preprocessing, sources, settings.folder / CACHE_FOLDER, failures, device=device)
        folders += list(made)
    usable = _usable_folders(predictor, folders, failures)
    # Again: a video may have given several people.
    refuse_to_overwrite(settings.paths([_id_of(folder) for folder in usable]))
    if settings.template is not None:
        from rcma.abaw import reconcile

        for remark in reconcile(settings.template, {_id_of(folder): n for folder, n in usable.items()}):
            print(remark, file=sys.stderr)
    if settings.overlay is not None and settings.overlay.suffix and len(usable) > 1:
        raise InputError(f"--overlay {settings.overlay}: there are {len(usable)} videos; give a folder")
    with Reporter(len(usable), unit="video") as reporter:
        predicted = _predict_folders(
            predictor,
            usable,
            labels,
            made,
            failures,
            reporter,
            # Their pictures are shown nowhere else.
            show_recordings=settings.report or settings.overlay is not None,
        )
        written = write_outputs(predicted, settings, status=reporter.status)
    for line in written.failures:
        failures.tell(line)
    for line in written.remarks:
        log.warning(line)
    where = settings.single_file_path if settings.format == "single-file" else settings.folder
    by = f" ({settings.predicted_by})" if settings.predicted_by else ""
    print(
        f"{written.n_frames} frames of {written.n_videos} videos are in {where}{by}"
        + (f"; {failures.n} failed" if failures.n else "")
    )
    return EXIT_SOME_FAILED if failures.n else EXIT_DONE


@dataclass(frozen=True)
class _Predictor:
    """What ``rcma-predict`` needs of trained checkpoints, or of public models."""

    preprocessing: PreprocessConfig
    """Settings for raw videos."""
    predict: Callable[[Features, Callable[[], Path]], Prediction]
    """From features and a function that finds their recording, or raises InputError."""
    check: Callable[[Features], None] = lambda _: None
    """Raises InputError for features that cannot be used."""
    remarks: Callable[[Mapping[str, FaceSource]], Iterable[str]] = lambda _: ()
    """What is to be said of the videos together, by the source of their faces."""
    shown_as: Mapping[str, Any] = field(default_factory=dict)
    """Fields of OutputSettings that say who predicted."""


def _load_checkpoints(names: Sequence[str], *, device: str) -> _Predictor:
    from rcma.fast_cpu import optimised_backbones
    from rcma.model import load_model
    from rcma.prediction import (
        check_features,
        faces_from_elsewhere,
        predict_frames,
        preprocessing_of,
        require_both_targets,
    )

    models = [load_model(name).to(device) for name in names]
    require_both_targets(models)
    # Of several models, they are made anew for each video: kept, each would take .8 GB.
    optimised = [optimised_backbones(model) for model in models] if len(models) == 1 else None

    def check(features: Features) -> None:
        for model in models:
            check_features(model, features)

    return _Predictor(
        # For one that needs the waveform, if there is any; the others are checked against the features.
        preprocessing=preprocessing_of(max(models, key=lambda model: model.settings.audio_input == "waveform")),
        predict=lambda features, _: predict_frames(models, features, optimised=optimised),
        check=check,
        remarks=lambda sources: faces_from_elsewhere(models, sources),
    )


def _load_public_models() -> _Predictor:
    """Load them and say on stdout which they are."""
    from rcma.experts import NOT_RCMA, PublicModels

    models = PublicModels()
    print(f"{NOT_RCMA}:")
    for line in models.describe():
        print(f"  {line}")
    if models.missing:
        print("not on this machine:")
        for line in models.missing:
            print(f"  {line}")
    config = models.preprocessing()
    speech = "without speech recognition" if config.speech.backend == "none" else f"speech.model={config.speech.model}"
    print(f"raw videos are preprocessed with default settings, {speech}, words.model={config.words.model}", flush=True)
    shown_as = {"experts": models.columns, "predicted_by": NOT_RCMA, "about": models.describe()}
    return _Predictor(config, models.predict, shown_as=shown_as)


class _Failures:
    """Counts what has failed, and names it on stderr."""

    def __init__(self) -> None:
        self.n = 0

    def tell(self, line: object) -> None:
        self.n += 1
        print_failure(line)


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
        smoothing=_parse_smoothing(args.smooth) if args.smooth else None,
        fill=args.fill,
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


def _find_labels(folder: str | None) -> dict[str, Path]:
    from rcma.abaw import find_annotations

    return find_annotations(Path(folder)) if folder else {}


def _sort_inputs(inputs: list[Path]) -> tuple[list[Path], list[Source]]:
    """Feature folders, and videos still to be preprocessed."""
    folders: dict[Path, None] = {}
    videos = []
    for given in inputs:
        below = [path.parent for path in sorted(given.glob("*/meta.json"))] if given.is_dir() else []
        if given.is_dir() and any(given.glob("*.npy")):
            # Not by meta.json: a folder that has lost it should be named as damaged, not searched for videos.
            folders.setdefault(given)
        elif below:
            folders.update(dict.fromkeys(below))
        else:
            videos.append(given)
    return list(folders), collect_sources(videos) if videos else []


def _id_of(folder: Path) -> str:
    """The video_id of a feature folder, which may be given as ``.``."""
    return as_video_id(folder.resolve().name)


def _preprocess(
    config: PreprocessConfig, sources: list[Source], out: Path, failures: _Failures, *, device: str
) -> dict[Path, Path]:
    """Feature folders of raw videos, each with its video; one video may give several, and one that fails gives none."""
    from preprocessing.cli import preprocess_and_report

    outcomes = preprocess_and_report(sources, out, config, device=device)
    # Named already.
    failures.n += sum(not outcome.done for outcome in outcomes)
    path_of = {source.video_id: source.path for source in sources}
    return {out / name: path_of[outcome.video_id] for outcome in outcomes for name in outcome.folders}


def _usable_folders(predictor: _Predictor, folders: list[Path], failures: _Failures) -> dict[Path, int]:
    """Frames of each folder; one that cannot be used is left out."""
    from preprocessing.features import load_features
    from rcma.data import face_source

    n_frames: dict[Path, int] = {}
    sources: dict[str, FaceSource] = {}
    for folder in folders:
        try:
            # Not kept open: thousands of memory-mapped videos would exhaust the open files a process may have.
            features = load_features(folder)
            predictor.check(features)
            n_frames[folder] = features.n_frames
            sources[features.video_id] = face_source(features.meta)
        except InputError as error:
            failures.tell(error)
    for remark in predictor.remarks(sources):
        log.warning(remark)
    return n_frames


def _predict_folders(
    predictor: _Predictor,
    folders: Iterable[Path],
    labels: Mapping[str, Path],
    given: Mapping[Path, Path],
    failures: _Failures,
    reporter: Reporter,
    *,
    show_recordings: bool,
) -> Iterator[ReportedVideo]:
    """Predict each folder; one that cannot be predicted is left out.

    Args:
        predictor: what predicts.
        folders: feature folders.
        labels: annotation files by video.
        given: videos that were given, by feature folder.
        failures: is told of each folder that cannot be predicted.
        reporter: is told of each video.
        show_recordings: whether recordings are shown; otherwise only what predicts may look for them.
    """
    from preprocessing.features import RecordingFinder, load_features
    from rcma.abaw import read_annotation
    from rcma.output import ReportedVideo

    finder = RecordingFinder()
    for folder in folders:
        try:
            features = load_features(folder)
            name = features.video_id
            reporter.status(name)
            annotation = read_annotation(labels[name]) if name in labels else None
            find = partial(finder.find, features.meta, given=given.get(folder))
            prediction = predictor.predict(features, find)
        except InputError as error:
            failures.tell(error)
            continue
        video = None
        if show_recordings:
            try:
                video = find()
            except InputError as error:
                log.warning(f"{name}: no pictures of the video: {error}")
        yield ReportedVideo(prediction, folder, video, annotation)
        # Not a NaN: it equals itself.
        spoke = [f"{who} {(values == values).any(axis=1).mean():.0%}" for who, values in prediction.experts.items()]
        reporter.finished(f"{name}: {features.n_frames} frames" + (f"; {', '.join(spoke)}" if spoke else ""))
