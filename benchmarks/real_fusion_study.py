"""Compare fusions on continuous labels of real people.

usage: python benchmarks/real_fusion_study.py PATH [--held-out OTHER] [--seeds N] [--systems NAME ...] [--keep FOLDER]

PATH is laid out like the emotion labels of AVEC 2019 (cross-cultural emotion): ``labels/SESSION.csv`` with columns
timestamp, arousal, valence and liking, separated by semicolons, and a folder of the same layout for each unimodal
system, whose predictions are the features: the columns of ``visual-*`` are the picture, all others the voice. Two
sessions may be the two ends of one conversation; the pairs of AVEC 2019 are known here.

Folds hold out whole conversations. In each, two of the training conversations are for validation: they choose the
learning rate and the epoch of every network, and the strength of ridge regression; nothing is fitted again. CCC is
pooled over the held-out rows of all folds. Differences have a bootstrap over conversations and seeds. One contrast was
chosen before the study was run: RCMA with 2 steps against concatenation, both with a linear head, mean of arousal and
valence; it has a sign-flip test over conversations, too.

With ``--held-out``, everything is trained on all of PATH and tested on the sessions of OTHER instead; their predictions
go to ``--out``, and they are scored if OTHER has labels. ``--keep`` keeps the predictions of each training, so that an
interrupted study resumes. Writes benchmarks/results/, figures only; the last line printed is the result, as JSON.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparisons import bootstrap, compare, pooled_ccc, sign_flip_test
from joblib import Memory
from measuring import Measurement, argument_parser, print_rows, rounded, write_result
from numpy.typing import NDArray
from sessions import (
    TARGETS,
    Fold,
    Predictions,
    Session,
    divide,
    held_out_fold,
    read_sessions,
    score,
    write_predictions,
)
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from preprocessing.errors import InputError
from rcma.config import Modality, ModelSettings
from rcma.data import Video, cut_window, fit_normalisation, overlap_average, windows
from rcma.metrics import training_loss
from rcma.model import RCMA

LENGTH = 150
"""Rows of a window, 30 s."""
BATCH_SIZE = 8
EPOCHS = 12
CHANNELS = (24, 24)
DROPOUT = 0.2
LEARNING_RATES = (3e-3, 7e-3, 1.5e-2)
"""Each is tried in each fold, with the first seed."""
STRENGTHS = (1e2, 1e3, 1e4, 1e5)
"""Of ridge regression on standardised columns."""
CONTRAST = ("rcma, 2 steps", "concat")
CONTRAST_SEEDS = 10
REFERENCES = ("picture", "mean of all systems", "ridge, both", "concat", "rcma, 2 steps")
"""With which every system is compared."""

Train = Callable[..., tuple[float, Predictions]]
""":func:`train_network`, which may return what it returned before."""


@dataclass(frozen=True)
class System:
    """A network of the study."""

    name: str
    fusion: Mapping[str, Any]
    modalities: tuple[Modality, ...] = ("face", "audio")
    head: str | None = "linear"
    """None: as published for the kind of fusion."""
    view: str = "plain"
    """View of the features, see :class:`Session`."""


def systems() -> dict[str, System]:
    """All networks; the head is linear unless named, so that rows differ in fusion alone."""
    concat = {"kind": "concat"}
    chosen = (
        System("picture", concat, modalities=("face",)),
        System("voice", concat, modalities=("audio",)),
        System("concat", concat),
        System("concat, hidden head", concat, head="rjcma"),
        System("concat, picture twice", concat, view="picture twice"),
        System("concat, look-ahead", concat, view="look-ahead"),
        System("cross-attention", {"kind": "cross-attention"}),
        System("jca", {"kind": "jca"}, head=None),
        System("rjcma", {"kind": "rjcma"}, head="rjcma"),
        System("rcma, 1 step", {"steps": 1}),
        System("rcma, 2 steps", {"steps": 2}),
        System("rcma, 3 steps", {"steps": 3}),
        System("rcma, any length", {"steps": 2, "time": "relative"}),
    )
    return {system.name: system for system in chosen}


def train_network(
    system: System, fold: Fold, fold_name: str, *, rate: float, seed: int, epochs: int
) -> tuple[float, Predictions]:
    """Train one network; the validation score of its best epoch, and its predictions of the test sessions."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    videos = {s.name: s.videos[system.view] for s in (*fold.train, *fold.validation, *fold.test)}
    model = build(system, [videos[s.name] for s in fold.train])
    whole = {name: _whole_session(model, video) for name, video in videos.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    best, weights = -math.inf, model.state_dict()
    for _ in range(epochs):
        model.train()
        for batch in _batches([whole[s.name] for s in fold.train], random):
            loss = training_loss(model(batch), batch["labels"], over="batch", mse_weight=0.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        reached = score({s.name: predict(model, whole[s.name], hop=LENGTH) for s in fold.validation}, fold.validation)
        if reached > best:
            best, weights = reached, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    print(f"{system.name}, {fold_name}, rate {rate:g}, seed {seed}: validation {best:.3f}", file=sys.stderr, flush=True)
    return best, {s.name: predict(model, whole[s.name], hop=LENGTH // 2) for s in fold.test}


def build(system: System, videos: Sequence[Video]) -> RCMA:
    """Make a network with random weights that standardises with the statistics of the training videos."""
    settings = ModelSettings.model_validate(
        {
            "targets": TARGETS,
            "modalities": system.modalities,
            "length": LENGTH,
            "face": {"kind": "features"},
            "audio": {"kind": "features"},
            "tcn": {"face": CHANNELS, "audio": CHANNELS, "kernel_size": 5, "dropout": DROPOUT},
            "fusion": {"dropout": DROPOUT, **system.fusion},
            "head": system.head,
        }
    )
    vectors = videos[0].features().vectors
    model = RCMA(settings.with_widths({m: vectors[m].shape[1] for m in system.modalities}))
    fitted = fit_normalisation(videos, model.settings)
    model.set_normalisation(fitted.audio_mean, fitted.audio_std, fitted.text_mean, fitted.text_std, fitted.vectors)
    return model


def _whole_session(model: RCMA, video: Video) -> dict[str, Tensor]:
    """One window over all T rows, with ``labels``."""
    features = video.features()
    if features.n_frames < LENGTH:
        raise InputError(f"{video.video_id}: {features.n_frames} rows, but a window has {LENGTH}")
    cut = cut_window(features, 0, model=model.settings, length=features.n_frames, audio_alignment="start")
    return {**cut, "labels": torch.from_numpy(video.labels)}


def _batches(whole: Sequence[Mapping[str, Tensor]], random: np.random.Generator) -> Iterator[dict[str, Tensor]]:
    """Consecutive windows from a random row on, in random order."""
    places = []
    for session in whole:
        n = len(session["labels"])
        first = int(random.integers(min(LENGTH, n - LENGTH + 1)))
        places += [(session, start) for start in range(first, n - LENGTH + 1, LENGTH)]
    order = random.permutation(len(places))
    for chosen in np.array_split(order, math.ceil(len(places) / BATCH_SIZE)):
        cut = [places[number] for number in chosen]
        yield {
            name: torch.stack([session[name][start : start + LENGTH] for session, start in cut]) for name in whole[0]
        }


@torch.inference_mode()
def predict(model: RCMA, session: Mapping[str, Tensor], *, hop: int) -> NDArray[np.float32]:
    """(T,2), the mean of overlapping windows; no session is shorter than a window."""
    model.eval()
    n = len(session["labels"])
    starts = windows(n, LENGTH, hop)
    batch = {
        name: torch.stack([x[start : start + LENGTH] for start in starts])
        for name, x in session.items()
        if name != "labels"
    }
    return overlap_average(starts, model(batch).numpy(), n)


def references(folds: Sequence[Fold]) -> dict[str, list[Predictions]]:
    """Predictions of all test sessions without networks, as those of a single seed."""
    columns: dict[str, tuple[Modality, ...]] = {"voice": ("audio",), "picture": ("face",), "both": ("face", "audio")}
    found: dict[str, list[Predictions]] = {
        "mean of all systems": [{s.name: s.untrained for fold in folds for s in fold.test}]
    }
    for name, modalities in columns.items():
        found[f"ridge, {name}"] = [_merge(fit_ridge(fold, modalities) for fold in folds)]
    return found


def fit_ridge(fold: Fold, modalities: Sequence[Modality]) -> Predictions:
    """Predict with ridge regression, whose strength is chosen on the validation sessions."""

    def columns(session: Session) -> NDArray[np.float32]:
        vectors = session.videos["look-ahead"].features().vectors
        return np.concatenate([vectors[m] for m in modalities], axis=1)

    x, y = (np.concatenate(parts) for parts in zip(*((columns(s), s.labels) for s in fold.train), strict=True))
    labelled = np.isfinite(y).all(axis=1)
    candidates = []
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), Ridge(strength)).fit(x[labelled], y[labelled])
        candidates.append((score({s.name: model.predict(columns(s)) for s in fold.validation}, fold.validation), model))
    _, best = max(candidates, key=lambda candidate: candidate[0])
    return {s.name: best.predict(columns(s)).astype(np.float32) for s in fold.test}


def _merge(predictions: Iterable[Predictions]) -> Predictions:
    return {name: values for of_fold in predictions for name, values in of_fold.items()}


def study(
    chosen: Sequence[System], folds: Sequence[Fold], train: Train, *, seeds: int, contrast_seeds: int, epochs: int
) -> Iterator[dict[str, list[Predictions]]]:
    """After each seed, the predictions of all test sessions by every system and each of its seeds so far."""

    def outcome(system: System, fold: Fold, rate: float, seed: int) -> tuple[float, Predictions]:
        return train(system, fold, fold.name, rate=rate, seed=seed, epochs=epochs)

    found: dict[str, list[Predictions]] = {system.name: [] for system in chosen}
    for seed in range(max(seeds, contrast_seeds)):
        for system in chosen:
            if seed < seeds or (seed < contrast_seeds and system.name in CONTRAST):
                of_folds = []
                for fold in folds:
                    rate = max(LEARNING_RATES, key=lambda rate: outcome(system, fold, rate, 0)[0])
                    of_folds.append(outcome(system, fold, rate, seed)[1])
                found[system.name].append(_merge(of_folds))
        yield found


def summarise(predictions: Mapping[str, Sequence[Predictions]], sessions: Sequence[Session]) -> list[Measurement]:
    """One row for each system, and one for the contrast."""
    conversations = sorted({s.conversation for s in sessions})

    def units(values: Predictions) -> list[NDArray[np.float32]]:
        return [np.concatenate([values[s.name] for s in sessions if s.conversation == c]) for c in conversations]

    labels = units({s.name: s.labels for s in sessions})
    by_system = {name: [units(of_seed) for of_seed in seeds] for name, seeds in predictions.items()}
    resampled = {name: bootstrap(seeds, labels) for name, seeds in by_system.items()}

    def difference(one: str, other: str) -> dict[str, Any]:
        found = compare(by_system[one], by_system[other], labels, resampled=(resampled[one], resampled[other]))
        return {"difference": found.mean, "interval": [found.low, found.high], "significant": found.significant}

    rows: list[Measurement] = []
    for name, seeds in by_system.items():
        scores = pooled_ccc(seeds, labels)[:, 0]  # (S,K)
        together = pooled_ccc([[np.mean(parts, axis=0) for parts in zip(*seeds, strict=True)]], labels)[0, 0]
        against = [other for other in REFERENCES if other in by_system and other != name]
        row = {
            "system": name,
            "seeds": len(seeds),
            **dict(zip(TARGETS, scores.mean(axis=0), strict=True)),
            "mean": scores.mean(),
            "mean_of_seeds": list(scores.mean(axis=1)),
        }
        if len(seeds) > 1:
            row["ensemble"] = {**dict(zip(TARGETS, together, strict=True)), "mean": together.mean()}
        rows.append({**row, "against": {other: difference(name, other) for other in against}})
    one, other = CONTRAST
    if one in by_system and other in by_system:
        n = min(len(by_system[one]), len(by_system[other]))
        p = sign_flip_test(by_system[one][:n], by_system[other][:n], labels)
        rows.append({"contrast": list(CONTRAST), "seeds": n, **difference(one, other), "sign_flip_p": p})
    content: list[Measurement] = rounded(rows)
    return content


def print_study(rows: Sequence[Measurement]) -> None:
    """Print the result as a table; n.s. stands for no significant difference."""

    def shown(difference: Mapping[str, Any]) -> str:
        low, high = difference["interval"]
        return f"{difference['difference']:+.3f} [{low:+.3f}, {high:+.3f}]" + (
            "" if difference["significant"] else " n.s."
        )

    flat = []
    for row in rows:
        if "system" in row:
            against = {f"against {name}": shown(difference) for name, difference in row["against"].items()}
            flat.append({**row, **against, "ensemble": row["ensemble"]["mean"] if "ensemble" in row else None})
        else:
            one, other = row["contrast"]
            print(f"{one} against {other}, {row['seeds']} seeds: {shown(row)}, sign-flip p = {row['sign_flip_p']:.3f}")
    columns = ["system", *TARGETS, "mean", "ensemble", *(f"against {name}" for name in REFERENCES)]
    print_rows("differences of the mean, 95 % intervals over conversations and seeds", flat, columns)


def main(argv: Sequence[str] | None = None) -> None:
    """Train all systems and write the result."""
    known = systems()
    parser = argument_parser(__doc__)
    parser.add_argument("path", type=Path, metavar="PATH", help="folder with labels and systems")
    parser.add_argument(
        "--held-out", type=Path, metavar="OTHER", help="sessions to predict after training on all of PATH"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="with --held-out, for the predictions as CSV")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="of every network; default: 5")
    parser.add_argument("--contrast-seeds", type=int, default=CONTRAST_SEEDS, metavar="N", help="default: 10")
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N", help=f"of every training; default: {EPOCHS}")
    parser.add_argument("--systems", nargs="+", choices=known, default=list(known), metavar="NAME", help="networks")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the predictions of each network, to resume")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sessions = read_sessions(args.path, folder / "features")
        folds = divide(sessions)
        if args.held_out is not None:
            folds = [held_out_fold(sessions, read_sessions(args.held_out, folder / "others"))]
        tested = [s for fold in folds for s in fold.test]
        memory = Memory(args.keep or folder / "trainings", verbose=0)
        # A fold is known by its name: its feature folders have other names in each run.
        train = memory.cache(train_network, ignore=["fold"])
        found = references(folds)
        chosen = [known[name] for name in args.systems]
        plan = {"seeds": args.seeds, "contrast_seeds": args.contrast_seeds, "epochs": args.epochs}
        for of_networks in study(chosen, folds, train, **plan):
            predictions = {**found, **of_networks}
            if args.out is not None:
                write_predictions(args.out, predictions, tested)
            if labelled := [s for s in tested if np.isfinite(s.labels).any()]:
                rows = summarise(predictions, labelled)
                print_study(rows)
                write_result(
                    "real-fusion-study" + ("-held-out" if args.held_out else ""),
                    [{"epochs": args.epochs, **row} for row in rows],
                )


if __name__ == "__main__":
    main()
