"""``rcma-train``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.config import load_config
from preprocessing.console import (
    EXIT_DONE,
    HelpFormatter,
    Reporter,
    add_common_arguments,
    add_config_arguments,
    print_table,
    run_command,
)
from preprocessing.files import refuse_to_overwrite, replace_own
from rcma.config import TrainConfig

if TYPE_CHECKING:
    from rcma.training import TrainingResult

FOLDS_FILE = "folds.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-train``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-train",
        description="Train recursive cross-modal attention on feature folders and labels: ABAW annotations, or tables "
        "of labels with their own times.",
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
        help="data.fold: 0 is the official split; all: one run after the other in RUN/fold_0 (where there is an "
        "official split) to fold_5, and a table",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue after the last finished epoch of RUN; start, if there is none"
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
    folds = _folds(args)
    for number in folds:
        print(f"fold {number} of {folds[0]} to {folds[-1]}", file=sys.stderr)
        results[number] = _train_one(args, run / f"fold_{number}", [f"data.fold={number}"])
    _print_folds(run, results)
    return EXIT_DONE


def _folds(args: argparse.Namespace) -> range:
    """From 0, which is the official split, if there is one."""
    from rcma.data import N_FOLDS, official_split, open_labels

    data = load_config(TrainConfig, Path(args.config), args.overrides).data
    has_split = official_split(open_labels(data.annotations, data.labels), data.split)
    return range(0 if has_split else 1, N_FOLDS + 1)


def _train_one(args: argparse.Namespace, run: Path, overrides: list[str]) -> TrainingResult:
    config = load_config(TrainConfig, Path(args.config), [*args.overrides, *overrides])
    # Imported here: torch is not needed for --help or for a mistake in the configuration.
    from rcma.training import EpochRow
    from rcma.training import train as run_training

    def describe(row: EpochRow) -> str:
        scores = {**row.ccc, "mean": row.mean_ccc} if len(row.ccc) > 1 else row.ccc
        shown = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        unfrozen = f", unfrozen groups {row.unfrozen_groups}" if row.unfrozen_groups else ""
        return (
            f"loss {row.train_loss:.4f}; validation CCC {shown}; rate {row.learning_rate:.1e}{unfrozen}; "
            f"{row.seconds:.1f} s"
        )

    with Reporter(config.train.epochs, unit="epoch") as reporter:
        return run_training(
            config,
            run,
            resume=args.resume,
            device=args.device,
            on_status=reporter.status,
            on_epoch=lambda row: reporter.finished(describe(row), position=row.epoch),
        )


def _print_best(run: Path, result: TrainingResult) -> None:
    best = result.best
    how = f" ({result.ending})" if result.ending else ""
    print_table(
        f"{run}: best of {result.epochs} epochs{how}; "
        f"{result.n_frames} annotated frames of {result.n_videos} validation videos",
        ["epoch", *(f"CCC {target}" for target in best.ccc), "CCC mean"],
        [[str(best.epoch), *(f"{score:.3f}" for score in (*best.ccc.values(), best.mean_ccc))]],
    )


def _print_folds(run: Path, results: dict[int, TrainingResult]) -> None:
    """Scores of all folds with their mean and standard deviation; also as folds.json."""
    import numpy as np

    scores = np.array([[*r.best.ccc.values(), r.best.mean_ccc] for r in results.values()])
    rows = [
        [str(fold), str(results[fold].n_videos), str(results[fold].best.epoch), *(f"{score:.3f}" for score in row)]
        for fold, row in zip(results, scores, strict=True)
    ]
    summary = {"mean": scores.mean(axis=0), "standard deviation": scores.std(axis=0, ddof=1)}
    rows += [[name, "", "", *(f"{score:.3f}" for score in values)] for name, values in summary.items()]
    targets = next(iter(results.values())).best.ccc
    columns = ["fold", "videos", "best epoch", *(f"CCC {target}" for target in targets), "CCC mean"]
    print_table(f"{run}: validation scores of {len(results)} folds", columns, rows)
    with replace_own(run / FOLDS_FILE) as new:
        content = [dict(zip(columns, row, strict=True)) for row in rows]
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
