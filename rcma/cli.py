"""``rcma-train``, ``rcma-predict``, ``rcma-evaluate``, ``rcma-export``."""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.config import load_config
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
from preprocessing.inputs import Source, collect_sources, refuse_shared_ids
from rcma.config import TARGETS, TrainConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rcma.abaw import Location
    from rcma.checkpoint import TrainedRCMA
    from rcma.train import TrainingResult

SINGLE_FILE = "predictions.txt"
FOLDS_FILE = "folds.json"
N_FOLDS = 5
"""Beside the official split."""
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
    results = {}
    for number in range(N_FOLDS + 1):
        print(f"fold {number} of 0 to {N_FOLDS}", file=sys.stderr)
        results[number] = _train_one(args, run / f"fold_{number}", [f"data.fold={number}"])
    _print_folds(run, results)
    return EXIT_DONE


def _train_one(args: argparse.Namespace, run: Path, overrides: list[str]) -> TrainingResult:
    config = load_config(TrainConfig, Path(args.config), [*args.overrides, *overrides])
    # Imported here: torch is not needed for --help or for a mistake in the configuration.
    from rcma.train import EpochRow
    from rcma.train import train as run_training

    def describe(row: EpochRow) -> str:
        scores = f"valence {row.valence_ccc:.3f}, arousal {row.arousal_ccc:.3f}, mean {row.mean_ccc:.3f}"
        return f"loss {row.train_loss:.4f}; validation CCC {scores}; rate {row.learning_rate:.1e}; {row.seconds:.1f} s"

    with Reporter(config.train.epochs, unit="epoch") as reporter:
        return run_training(
            config,
            run,
            resume=args.resume,
            device=args.device,
            on_warning=lambda text: log.warning(text),
            on_batch=lambda epoch, done, total: reporter.status(f"epoch {epoch}, batch {done} of {total}"),
            on_epoch=lambda row: reporter.finished(describe(row), position=row.epoch),
        )


def _print_best(run: Path, result: TrainingResult) -> None:
    best = result.best
    how = ", stopped early" if result.stopped_early else ""
    print_table(
        f"{run}: best of {result.epochs} epochs{how}; "
        f"{result.n_frames} annotated frames of {result.n_videos} validation videos",
        ["epoch", "CCC valence", "CCC arousal", "CCC mean"],
        [[str(best.epoch), f"{best.valence_ccc:.3f}", f"{best.arousal_ccc:.3f}", f"{best.mean_ccc:.3f}"]],
    )


def _print_folds(run: Path, results: dict[int, TrainingResult]) -> None:
    """Scores of all folds with their mean and standard deviation; also as folds.json."""
    import numpy as np

    from rcma.files import replace_when_whole

    scores = np.array([[r.best.valence_ccc, r.best.arousal_ccc, r.best.mean_ccc] for r in results.values()])
    rows = [
        [str(fold), str(results[fold].n_videos), str(results[fold].best.epoch), *(f"{score:.3f}" for score in row)]
        for fold, row in zip(results, scores, strict=True)
    ]
    summary = {"mean": scores.mean(axis=0), "standard deviation": scores.std(axis=0, ddof=1)}
    rows += [[name, "", "", *(f"{score:.3f}" for score in values)] for name, values in summary.items()]
    columns = ["fold", "videos", "best epoch", "CCC valence", "CCC arousal", "CCC mean"]
    print_table(f"{run}: validation scores of {len(results)} folds", columns, rows)
    with replace_when_whole(run / FOLDS_FILE) as partial:
        content = [dict(zip(columns, row, strict=True)) for row in rows]
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def predict(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-predict``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-predict",
        description="Valence and arousal for each decoded frame, as files in the format of the ABAW challenge.",
        epilog="example:\n  rcma-predict --checkpoint run features/ my_video.mp4 --out predictions",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="feature folders, folders of them, or raw videos")
    parser.add_argument(
        "--checkpoint",
        required=True,
        nargs="+",
        metavar="RUN",
        help="run folder of rcma-train; of several, the predictions are averaged",
    )
    parser.add_argument("--out", required=True, metavar="PREDICTIONS", help="folder that receives the predictions")
    parser.add_argument(
        "--format",
        choices=("per-video", "single-file"),
        default="per-video",
        help=f"per-video: VIDEO_ID.txt, one line a frame; single-file: {SINGLE_FILE}, one line a frame of all videos",
    )
    parser.add_argument(
        "--template",
        metavar="SAMPLE_FILE",
        help="the organisers' sample file: a single file gets exactly its rows in its order, or is refused",
    )
    add_common_arguments(parser)
    return run_command(_predict, parser, argv)


def _predict(args: argparse.Namespace) -> int:
    if args.template and args.format != "single-file":
        raise InputError("--template: goes with --format single-file")
    device = resolve_device(args.device)
    from rcma.abaw import read_template
    from rcma.checkpoint import is_run, load_model
    from rcma.inference import require_both_targets

    # "--checkpoint RUN INPUT ..." gives the inputs to --checkpoint as well: after the first, runs alone are its own.
    first, *more = args.checkpoint
    checkpoints = [first, *(text for text in more if is_run(Path(text)))]
    inputs = [*(text for text in more if text not in checkpoints), *args.inputs]
    if not inputs:
        raise InputError("give INPUT...: feature folders, folders of them, or raw videos")

    template = read_template(Path(args.template)) if args.template else None
    models = [load_model(checkpoint).to(device) for checkpoint in checkpoints]
    require_both_targets(models)
    folders, sources = _sort_inputs([Path(text) for text in inputs])
    refuse_shared_ids(
        [*((folder.resolve().name, folder) for folder in folders), *((s.video_id, s.path) for s in sources)]
    )
    out = Path(args.out)
    n_failed = 0
    if sources:
        # Those of the others are checked against the features.
        made = _preprocess(models[0], sources, out / CACHE_FOLDER, device=device)
        n_failed += len(sources) - len(made)
        folders += made
    predictions = _predict_folders(models, folders, out, template=template, per_video=args.format == "per-video")
    n_failed += len(folders) - len(predictions)
    if args.format == "single-file" and predictions:
        from rcma.abaw import write_single_file

        write_single_file(out / SINGLE_FILE, predictions, template=template)
    n_frames = sum(len(prediction) for prediction in predictions.values())
    where = out / SINGLE_FILE if args.format == "single-file" else out
    print(
        f"{n_frames} frames of {len(predictions)} videos are in {where}" + (f"; {n_failed} failed" if n_failed else "")
    )
    return EXIT_SOME_FAILED if n_failed else EXIT_DONE


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


def _preprocess(model: TrainedRCMA, sources: list[Source], out: Path, *, device: str) -> list[Path]:
    from preprocessing.cli import preprocess_and_report
    from rcma.inference import preprocessing_of

    outcomes = preprocess_and_report(sources, out, preprocessing_of(model), device=device)
    return [out / name for outcome in outcomes for name in outcome.folders]


def _predict_folders(
    models: list[TrainedRCMA], folders: list[Path], out: Path, *, template: Sequence[Location] | None, per_video: bool
) -> dict[str, NDArray[np.float32]]:
    """Predict each folder; one that cannot be used is named on stderr and left out."""
    from preprocessing.store import load_features
    from rcma.abaw import check_template, write_per_video
    from rcma.inference import check_features, predict_average

    n_frames: dict[Path, int] = {}
    for folder in folders:
        try:
            # Not kept open: thousands of memory-mapped videos would exhaust the open files a process may have.
            features = load_features(folder)
            for model in models:
                check_features(model, features)
            n_frames[folder] = features.n_frames
        except InputError as error:
            print(f"failed: {error}", file=sys.stderr)
    if template is not None:
        # Before the work, not after hours of it.
        check_template(template, {folder.resolve().name: n for folder, n in n_frames.items()})
    predictions = {}
    with Reporter(len(n_frames), unit="video") as reporter:
        for folder in n_frames:
            features = load_features(folder)
            reporter.status(features.video_id)
            prediction = predict_average(models, features)
            if per_video:
                write_per_video(out, features.video_id, prediction)
            predictions[features.video_id] = prediction
            reporter.finished(f"{features.video_id}: {len(prediction)} frames")
    return predictions


def evaluate(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-evaluate``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-evaluate",
        description="The challenge's score: CCC of each target over the concatenation of all annotated frames.",
        epilog="example:\n  rcma-evaluate --predictions predictions --annotations annotations/Validation_Set",
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
    from rcma.evaluate import evaluate as score
    from rcma.files import replace_when_whole

    path = Path(args.predictions)
    predictions = read_predictions(path)
    annotations = {
        video_id: read_annotation(file) for video_id, file in find_annotations(Path(args.annotations)).items()
    }
    scores = score(predictions, annotations)
    for warning in scores.warnings:
        log.warning(warning)
    values = {target: getattr(scores, target) for target in (*TARGETS, "mean")}
    print_table(
        f"CCC over {scores.n_frames} annotated frames of {scores.n_videos} videos",
        list(values),
        [[f"{value:.3f}" for value in values.values()]],
    )
    with replace_when_whole((path if path.is_dir() else path.parent) / "scores.json") as partial:
        # JSON has no NaN.
        content = {name: None if math.isnan(value) else value for name, value in values.items()}
        content |= {"n_videos": scores.n_videos, "n_frames": scores.n_frames, "annotations": args.annotations}
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    # A score over part of the annotated videos is not the score that was asked for.
    return EXIT_DONE if annotations.keys() <= predictions.keys() else EXIT_SOME_FAILED


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
    from rcma.checkpoint import export_model, load_model

    out = Path(args.out)
    model = load_model(args.checkpoint)
    export_model(model, out, name=args.name, license=args.license, dataset=args.dataset)
    print(f"{out} holds the model, read again to be sure; after a look at its README.md, share it with")
    print(f"  hf auth login && hf upload org/model {shlex.quote(str(out))}")
    print("and use it with")
    print("  rcma-predict --checkpoint org/model video.mp4 --out predictions")
    return EXIT_DONE
