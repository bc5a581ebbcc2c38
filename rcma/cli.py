"""``rcma-train``, ``rcma-predict``, ``rcma-evaluate``, ``rcma-check-submission``, ``rcma-export``."""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from preprocessing.config import load_config
from preprocessing.console import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    HelpFormatter,
    Reporter,
    add_common_arguments,
    add_config_arguments,
    print_failure,
    print_table,
    run_command,
)
from preprocessing.device import resolve_device
from preprocessing.errors import InputError
from preprocessing.files import refuse_to_overwrite, replace_own
from preprocessing.inputs import Source, collect_sources
from preprocessing.names import as_video_id, refuse_shared_ids
from rcma.config import TARGETS, Target, TrainConfig

if TYPE_CHECKING:
    from preprocessing.config import PreprocessConfig
    from preprocessing.features import Features
    from rcma.abaw import Format
    from rcma.config import FaceSource
    from rcma.evaluate import DetailedScores, Disagreement
    from rcma.output import OutputSettings, ReportedVideo
    from rcma.prediction import Prediction, SmoothKind
    from rcma.training import TrainingResult

FOLDS_FILE = "folds.json"
SCORES_FILE = "scores.json"
N_FOLDS = 5
"""Beside the official split."""
MAX_VIDEOS_SHOWN = 50
"""Of more videos, ``rcma-evaluate`` prints only the worst."""
N_WORST_SHOWN = 10
CACHE_FOLDER = "features"
"""Where ``rcma-predict`` puts the features of raw videos, below its --out, so that a second run need not make them."""

log = logging.getLogger("rcma")


def train(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-train``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-train",
        description="Train recursive cross-modal attention on feature folders and ABAW annotations.",
        epilog="example:\n  rcma-train --config configs/rcma.yaml --set data.features=features --out run",
        formatter_class=HelpFormatter,
    )
    add_config_arguments(parser, required=True, example="model.fusion.steps=3")
    parser.add_argument(
        "--out", required=True, metavar="RUN", help="folder of the run: configuration, weights, log, scores"
    )
    parser.add_argument(
        "--fold",
        choices=("0", "1", "2", "3", "4", "5", "all"),
        help="data.fold: 0 is the official split; all: one run after the other in RUN/fold_0 to fold_5, and a table",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on after the last finished epoch of RUN; start, if there is none"
    )
    add_common_arguments(parser)
    return run_command(_train, parser, argv)


def _train(args: argparse.Namespace) -> int:
    run = Path(args.out)
    if args.fold != "all":
        fold = [f"data.fold={args.fold}"] if args.fold else []
        _print_best(run, _train_one(args, run, fold))
        return EXIT_DONE
    refuse_to_overwrite([run / FOLDS_FILE])
    results = {}
    for number in range(N_FOLDS + 1):
        print(f"fold {number} of 0 to {N_FOLDS}", file=sys.stderr)
        results[number] = _train_one(args, run / f"fold_{number}", [f"data.fold={number}"])
    _print_folds(run, results)
    return EXIT_DONE


def _train_one(args: argparse.Namespace, run: Path, overrides: list[str]) -> TrainingResult:
    config = load_config(TrainConfig, Path(args.config), [*args.overrides, *overrides])
    # Imported here: torch is not needed for --help or for a mistake in the configuration.
    from rcma.training import EpochRow
    from rcma.training import train as run_training

    targets = config.model.targets

    def describe(row: EpochRow) -> str:
        scores = {"valence": row.valence_ccc, "arousal": row.arousal_ccc, "mean": row.mean_ccc}
        shown = ", ".join(f"{name} {scores[name]:.3f}" for name in (*targets, *(["mean"] if len(targets) > 1 else [])))
        released = f", backbone groups {row.released}" if row.released else ""
        return (
            f"loss {row.train_loss:.4f}; validation CCC {shown}; rate {row.learning_rate:.1e}{released}; "
            f"{row.seconds:.1f} s"
        )

    with Reporter(config.train.epochs, unit="epoch") as reporter:
        return run_training(
            config,
            run,
            resume=args.resume,
            device=args.device,
            on_warning=lambda text: log.warning(text),
            on_embedded=lambda done, total: reporter.status(f"outputs of frozen backbones, video {done} of {total}"),
            on_batch=lambda epoch, done, total: reporter.status(f"epoch {epoch}, batch {done} of {total}"),
            on_epoch=lambda row: reporter.finished(describe(row), position=row.epoch),
        )


def _print_best(run: Path, result: TrainingResult) -> None:
    best = result.best
    how = f" ({result.ending})" if result.ending else ""
    print_table(
        f"{run}: best of {result.epochs} epochs{how}; "
        f"{result.n_frames} annotated frames of {result.n_videos} validation videos",
        ["epoch", "CCC valence", "CCC arousal", "CCC mean"],
        [[str(best.epoch), f"{best.valence_ccc:.3f}", f"{best.arousal_ccc:.3f}", f"{best.mean_ccc:.3f}"]],
    )


def _print_folds(run: Path, results: dict[int, TrainingResult]) -> None:
    """Scores of all folds with their mean and standard deviation; also as folds.json."""
    import numpy as np

    scores = np.array([[r.best.valence_ccc, r.best.arousal_ccc, r.best.mean_ccc] for r in results.values()])
    rows = [
        [str(fold), str(results[fold].n_videos), str(results[fold].best.epoch), *(f"{score:.3f}" for score in row)]
        for fold, row in zip(results, scores, strict=True)
    ]
    summary = {"mean": scores.mean(axis=0), "standard deviation": scores.std(axis=0, ddof=1)}
    rows += [[name, "", "", *(f"{score:.3f}" for score in values)] for name, values in summary.items()]
    columns = ["fold", "videos", "best epoch", "CCC valence", "CCC arousal", "CCC mean"]
    print_table(f"{run}: validation scores of {len(results)} folds", columns, rows)
    with replace_own(run / FOLDS_FILE) as new:
        content = [dict(zip(columns, row, strict=True)) for row in rows]
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def predict(argv: Sequence[str] | None = None) -> int:
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
    from rcma.fast_cpu import quicker_forms
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
    quicker = [quicker_forms(model) for model in models] if len(models) == 1 else None

    def check(features: Features) -> None:
        for model in models:
            check_features(model, features)

    return _Predictor(
        # For one that needs the waveform, if there is any; the others are checked against the features.
        preprocessing=preprocessing_of(max(models, key=lambda model: model.settings.audio_input == "waveform")),
        predict=lambda features, _: predict_frames(models, features, quicker=quicker),
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


def evaluate(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-evaluate``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-evaluate",
        description="The challenge's score, CCC of each target over the concatenation of all annotated frames, with "
        "PCC and RMSE, 95 % bootstrap intervals over videos, and every video by itself; all of it is also in "
        "scores.json beside the predictions. Frames marked -5 are left out; where a video's two files differ in "
        "length, the frames that both have are compared. Where the table beside the predictions says how far several "
        "models disagree, it also says how well that ranks their errors.",
        epilog="exit code: 0 all annotated videos have predictions; 1 some have none; 2 nothing could be compared\n\n"
        "example:\n  rcma-evaluate --predictions predictions --annotations annotations/Validation_Set",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--predictions", required=True, metavar="PREDICTIONS", help="folder of VIDEO_ID.txt files, or a single file"
    )
    parser.add_argument(
        "--annotations", required=True, metavar="ANNOTATIONS", help="folder of VIDEO_ID.txt annotations"
    )
    add_common_arguments(parser, device=False)
    return run_command(_evaluate, parser, argv)


def _evaluate(args: argparse.Namespace) -> int:
    from rcma.abaw import find_annotations, read_annotation, read_predictions
    from rcma.evaluate import as_json, compare_disagreement, disagreement_as_json, evaluate_in_detail
    from rcma.output import read_spreads

    path = Path(args.predictions)
    folder = path if path.is_dir() else path.parent
    predictions = read_predictions(path)
    scores_file = folder / SCORES_FILE
    refuse_to_overwrite([scores_file])
    annotations = {
        video_id: read_annotation(file) for video_id, file in find_annotations(Path(args.annotations)).items()
    }
    scores = evaluate_in_detail(predictions, annotations)
    for warning in scores.warnings:
        log.warning(warning)
    _print_scores(scores)
    _print_videos(scores)
    content = as_json(scores) | {"annotations": args.annotations}
    if spreads := read_spreads(folder):
        compared, warnings = compare_disagreement(predictions, annotations, spreads)
        for warning in warnings:
            log.warning(warning)
        _print_disagreement(compared)
        content["disagreement"] = disagreement_as_json(compared)
    with replace_own(scores_file) as new:
        new.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    # A score over part of the annotated videos is not the score that was asked for.
    return EXIT_DONE if annotations.keys() <= predictions.keys() else EXIT_SOME_FAILED


def _print_scores(scores: DetailedScores) -> None:
    """The challenge's table, and what it is taken over."""
    from rcma.evaluate import MIN_VIDEOS_FOR_INTERVALS

    n_other_length = sum(video.n_predicted != video.n_annotation_rows for video in scores.videos)
    over = f"CCC over {scores.n_frames} annotated frames of {len(scores.videos)} videos"
    over += f"; {scores.n_not_annotated} rows are not annotated (-5)" if scores.n_not_annotated else ""
    over += f"; {n_other_length} videos differ in length" if n_other_length else ""
    rows = []
    for name in (*TARGETS, "mean"):
        measures = getattr(scores, name)
        row = [name, f"{measures.ccc:.3f}", f"{measures.pcc:.3f}", f"{measures.rmse:.3f}"]
        if scores.intervals is not None:
            low, high = getattr(scores.intervals, name)
            row.insert(2, f"{low:.3f} to {high:.3f}")
        rows.append(row)
    columns = ["", "CCC", "PCC", "RMSE"]
    if scores.intervals is not None:
        columns.insert(2, "95 % interval of CCC")
    print_table(over, columns, rows)
    if scores.intervals is None:
        print(f"no intervals: of fewer than {MIN_VIDEOS_FOR_INTERVALS} annotated videos they would mean little")


def _print_videos(scores: DetailedScores) -> None:
    """Two rows a video, which fits narrow terminals; of many videos, only the worst."""
    videos, title = list(scores.videos), "each video by itself"
    if len(videos) > MAX_VIDEOS_SHOWN:
        # Those without any CCC, which tell nothing of the predictions, come last.
        videos.sort(key=lambda video: (math.isnan(video.mean_ccc), video.mean_ccc))
        videos = videos[:N_WORST_SHOWN]
        title = f"the {N_WORST_SHOWN} videos with the lowest mean CCC; {SCORES_FILE} has all {len(scores.videos)}"
    rows = []
    for video in videos:
        longer_by = video.n_predicted - video.n_annotation_rows
        counts = [str(video.n_compared), str(video.n_not_annotated), f"{longer_by:+d}" if longer_by else ""]
        for of_video, target in zip(([video.video_id, *counts], [""] * 4), TARGETS, strict=True):
            rows.append([*of_video, target, *(f"{value:.3f}" for value in astuple(getattr(video, target)))])
    print_table(title, ["video", "frames", "-5", "longer by", "", "CCC", "PCC", "RMSE"], rows)


def _print_disagreement(compared: Mapping[Target, Disagreement]) -> None:
    """What the standard deviation of several models says of their mean's errors."""
    rows = []
    for target, one in compared.items():
        pairs = [(one.all.rmse, one.least.rmse), (one.all.ccc, one.least.ccc)]
        rows.append([target, f"{one.spearman:.3f}", *(f"{value:.3f}" for pair in pairs for value in pair)])
    if rows:
        print_table(
            "disagreement of the models: its rank correlation with the absolute error, and scores over all these "
            "frames and over the half on which they disagree least",
            ["", "Spearman", "RMSE", "of that half", "CCC", "of that half"],
            rows,
        )


def check_submission(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-check-submission``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-check-submission",
        description="Whether a submission to the challenge would be accepted, and all that is wrong with it: header, "
        "order, coverage, duplicates, spelling, range, nan, columns, cut-off files, and valence or arousal that never "
        "changes in the whole submission or in a video of more than 25 rows. A 'note' is no reason to reject it.",
        epilog="exit code: 0 accepted; 1 refused; 2 the submission or the sample file cannot be read\n\n"
        "example:\n  rcma-check-submission predictions.txt --template CVPR_6th_ABAW_VA_test_set_sample.txt",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "submission",
        metavar="FILE",
        help="the file for all videos (editions 5 and later), or the folder of VIDEO.txt files (editions 2 and 3)",
    )
    parser.add_argument(
        "--template",
        metavar="SAMPLE_FILE",
        help="the organisers' sample file; without it, coverage and order are not checked",
    )
    add_common_arguments(parser, device=False)
    return run_command(_check_submission, parser, argv)


def _check_submission(args: argparse.Namespace) -> int:
    from rcma.abaw import check_submission as check

    report = check(Path(args.submission), template=Path(args.template) if args.template else None)
    verdict = "refused" if report.problems else "accepted"
    print(f"{args.submission}: {verdict}; {report.n_rows} rows of {report.n_videos} videos")
    for problem in report.problems:
        print(f"  wrong: {problem}")
    for remark in report.remarks:
        print(f"  note: {remark}")
    if not args.template:
        print("  note: coverage and order were not checked: give the organisers' sample file as --template")
    return EXIT_SOME_FAILED if report.problems else EXIT_DONE


def export(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-export``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-export",
        description="A trained model as a folder for the Hugging Face Hub: configuration, weights, and a model card "
        "written from the run's own settings and scores, without paths of this machine.",
        epilog="example:\n  rcma-export run --out my-model --license cc-by-nc-4.0\n  hf upload org/my-model my-model",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="RUN", help="run folder of rcma-train, or what rcma-predict takes else")
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="new folder: config.json, model.safetensors, README.md"
    )
    parser.add_argument(
        "--license", metavar="ID", help="licence of the weights, as the Hub names it: mit, cc-by-nc-4.0"
    )
    parser.add_argument("--name", metavar="TEXT", help="title of the model card; made from the settings if not given")
    parser.add_argument("--dataset", metavar="ID", help="training data, as the Hub names it: org/dataset")
    add_common_arguments(parser, device=False)
    return run_command(_export, parser, argv)


def _export(args: argparse.Namespace) -> int:
    for option in ("license", "dataset"):
        given = getattr(args, option)
        if given is not None and not re.fullmatch(r"[\w./-]+", given):
            raise InputError(
                f"--{option} {given!r}: give its identifier on the Hugging Face Hub, a word without spaces"
            )
    if args.name is not None and (not args.name.strip() or len(args.name.splitlines()) > 1):
        raise InputError(f"--name {args.name!r}: give one line of text")
    from rcma.model import export_model, load_model

    out = Path(args.out)
    model = load_model(args.checkpoint)
    export_model(model, out, name=args.name, license=args.license, dataset=args.dataset)
    print(f"{out} holds the model, read again to be sure; after a look at its README.md, share it with")
    print(f"  hf auth login && hf upload org/model {shlex.quote(str(out))}")
    print("and use it with")
    print("  rcma-predict --checkpoint org/model video.mp4 --out predictions")
    return EXIT_DONE
