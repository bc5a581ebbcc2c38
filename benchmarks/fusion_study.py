"""Which fusion does what, on made sequences whose structure is known.

usage: python benchmarks/fusion_study.py [--seeds N] [--epochs N] [--variants NAME ...]

Valence and arousal are smooth random signals. The face shows valence and is occluded for a while, the voice shows
arousal in much noise, words show valence in sparse bursts. In a third of the sequences the sign of the face's cue is
turned round: the face alone cannot tell; the voice carries, in noise, which sign holds, and words let one guess it.
Embeddings are given, so that backbones are not used and their parameters not counted.

Every variant has the same data, order of batches and number of epochs; the epoch is chosen on validation sequences,
and so is one of two learning rates, with the first seed. Scores are the challenge's CCC on test sequences, also with
the face or the words missing everywhere. Differences to rcma with its published 2 steps are taken seed by seed; one
smaller than twice its standard error is marked as not told apart. Seconds are CPU seconds of training on one thread.
Writes benchmarks/results/; the last line printed is the result, as JSON.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from results import write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rcma.config import MODALITIES, FusionSettings, Modality, ModelSettings
from rcma.data import drop_modalities
from rcma.evaluate import Scores, evaluate
from rcma.metrics import ccc_loss
from rcma.model import RCMA

LENGTH = 64
"""Frames of a sequence."""
N_SEQUENCES = {"train": 192, "validation": 64, "test": 128}
WIDTHS: dict[Modality, int] = {"face": 64, "audio": 64, "text": 16}
"""Widths of the embeddings: those of the small backbones, and short word vectors."""
N_NUISANCES = 2
"""Smooth signals in each modality that say nothing about the targets."""
SMOOTHING_FRAMES = 6.0
"""Standard deviation of the window that signals are smoothed with."""
SHARE_TURNED = 1 / 3
"""Sequences in which the face's cue has the other sign."""
BATCH_SIZE = 16
DROPOUT = 0.2
"""In fusion; the published 0.6, meant for layers of 512 and long training, is a row of its own."""
LEARNING_RATES = (4e-3, 1e-2)
SEARCH_SEEDS = 1
"""Seeds with which every rate is tried."""
REFERENCE = "rcma, 2 steps"
"""As published but for sizes and dropout; the others are compared with it."""


@dataclass(frozen=True)
class Sequences:
    """One split of made sequences, N of them."""

    embeddings: dict[Modality, NDArray[np.float32]]
    """(N,L,width); NaN where the mask is False."""
    masks: dict[Modality, NDArray[np.bool_]]
    """(N,L), True where the modality is there."""
    labels: NDArray[np.float32]
    """(N,L,2), valence and arousal in [-1,1]."""
    turned: NDArray[np.bool_]
    """(N,), True where the face's cue has the other sign."""

    def batch(self, index: slice | Tensor = slice(None), *, missing: Sequence[Modality] = ()) -> dict[str, Tensor]:
        """A batch for :class:`rcma.model.RCMA`, with ``labels``; ``missing`` modalities are masked everywhere."""
        labels = torch.from_numpy(self.labels)[index]
        batch = {"labels": labels, "frame_mask": torch.ones(labels.shape[:2], dtype=torch.bool)}
        for m in MODALITIES:
            batch[m] = torch.from_numpy(self.embeddings[m])[index]
            mask = torch.from_numpy(self.masks[m])[index]
            batch[f"{m}_mask"] = torch.zeros_like(mask) if m in missing else mask
        return batch


@dataclass(frozen=True)
class Variant:
    """One row of the study."""

    name: str
    settings: ModelSettings
    modality_dropout: float = 0.0
    """Probability that a modality is hidden from a training window."""


@dataclass(frozen=True)
class Outcome:
    """One variant trained with one seed at one learning rate."""

    validation: float
    test: Scores
    without_face: float
    without_text: float
    seconds_per_epoch: float
    """Median over epochs, CPU seconds of the training pass."""


def generate(seed: int, sizes: Mapping[str, int] = N_SEQUENCES) -> dict[str, Sequences]:
    """The splits of one seed; they share how signals are mixed into embeddings, and nothing else."""
    rng = np.random.default_rng(seed)
    cues: dict[Modality, int] = {"face": 1, "audio": 2, "text": 1}
    mixing = {m: rng.normal(size=(cues[m] + N_NUISANCES, WIDTHS[m])) / math.sqrt(cues[m] + N_NUISANCES) for m in cues}
    return {split: _generate_split(rng, n, mixing) for split, n in sizes.items()}


def _generate_split(rng: np.random.Generator, n: int, mixing: Mapping[Modality, NDArray[np.float64]]) -> Sequences:
    valence, arousal = np.tanh(_smooth(rng, n)), np.tanh(_smooth(rng, n))  # (N,L)
    turned = rng.random(n) < SHARE_TURNED  # (N,)
    sign = np.where(turned, -1.0, 1.0)[:, None]  # (N,1)
    # What each modality knows, before it is mixed with what does not matter.
    cues: dict[Modality, list[NDArray[np.float64]]] = {
        "face": [sign * valence + 0.5 * rng.normal(size=(n, LENGTH)) + 0.2 * _smooth(rng, n)],
        "audio": [
            arousal + 1.0 * rng.normal(size=(n, LENGTH)) + 0.3 * _smooth(rng, n),
            1.5 * sign + 0.7 * rng.normal(size=(n, LENGTH)),
        ],
        "text": [valence + 0.4 * rng.normal(size=(n, LENGTH))],
    }
    masks: dict[Modality, NDArray[np.bool_]] = {
        "face": ~_stretches(rng, n, count=1, lengths=(8, 24)),
        "audio": np.ones((n, LENGTH), np.bool_),
        "text": _stretches(rng, n, count=3, lengths=(2, 6)),
    }
    embeddings: dict[Modality, NDArray[np.float32]] = {}
    for m in MODALITIES:
        signals = np.stack([*cues[m], *(_smooth(rng, n) for _ in range(N_NUISANCES))], axis=-1)  # (N,L,k)
        mixed = signals @ mixing[m] + 0.3 * rng.normal(size=(n, LENGTH, WIDTHS[m]))
        embeddings[m] = np.where(masks[m][..., None], mixed, np.nan).astype(np.float32)
    return Sequences(embeddings, masks, np.stack([valence, arousal], axis=-1).astype(np.float32), turned)


def _smooth(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Smooth Gaussian signals of unit variance, (n,L)."""
    reach = math.ceil(3 * SMOOTHING_FRAMES)
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTHING_FRAMES) ** 2)
    noise = rng.normal(size=(n, LENGTH + 2 * reach))
    return np.lib.stride_tricks.sliding_window_view(noise, len(window), axis=1) @ (window / np.linalg.norm(window))


def _stretches(rng: np.random.Generator, n: int, *, count: int, lengths: tuple[int, int]) -> NDArray[np.bool_]:
    """(n,L), True in ``count`` stretches of random place and length (both ends included); they may overlap."""
    size = rng.integers(lengths[0], lengths[1] + 1, size=(n, count, 1))
    begin = (rng.random((n, count, 1)) * (LENGTH - size + 1)).astype(int)
    frame = np.arange(LENGTH)
    return np.asarray(((frame >= begin) & (frame < begin + size)).any(axis=1))


def variants() -> list[Variant]:
    """All rows; the head is linear where nothing else is said, so that rows differ in fusion alone."""
    face, audio, text = MODALITIES
    return [
        *(_variant(m, modalities=(m,)) for m in MODALITIES),
        *(_variant(f"{m} + {n}", modalities=(m, n)) for m, n in ((face, audio), (face, text), (audio, text))),
        _variant("concat", kind="concat"),
        _variant("cross-attention", kind="cross-attention"),
        _variant("jca", kind="jca"),
        _variant("rjcma", kind="rjcma"),
        _variant("rcma, 1 step", steps=1),
        _variant(REFERENCE, steps=2),
        _variant("rcma, 3 steps", steps=3),
        _variant("rcma, dropout 0.6", dropout=0.6),
        _variant("rcma, any length", time="relative"),
        _variant("rcma, modality dropout", modality_dropout=0.2),
        _variant("concat, head of rjcma", kind="concat", head="rjcma"),
        _variant("rcma, head of rjcma", head="rjcma"),
        _variant("rjcma, its own head", kind="rjcma", head="rjcma"),
        _variant("jca, its own head", kind="jca", head=None),
    ]


def _variant(
    name: str,
    *,
    modalities: tuple[Modality, ...] = MODALITIES,
    head: str | None = "linear",
    modality_dropout: float = 0.0,
    **fusion: Any,
) -> Variant:
    channels = (16,)
    settings = ModelSettings.model_validate(
        {
            "modalities": modalities,
            "length": LENGTH,
            "text_width": WIDTHS["text"],
            "face": {"kind": "small"},
            "audio": {"kind": "small"},
            "tcn": {"face": channels, "audio": channels, "text": channels, "kernel_size": 7, "dropout": 0.0},
            "fusion": FusionSettings(**{"dropout": DROPOUT, **fusion}),
            "head": head,
        }
    )
    return Variant(name, settings, modality_dropout)


def hide_modalities(
    batch: Mapping[str, Tensor], modalities: Sequence[Modality], probability: float, random: np.random.Generator
) -> dict[str, Tensor]:
    """A batch with :func:`rcma.data.drop_modalities` done to each of its windows."""
    names = [f"{m}_mask" for m in modalities]
    windows = [
        drop_modalities({name: batch[name][window] for name in names}, probability, random)
        for window in range(len(batch["labels"]))
    ]
    return {**batch, **{name: torch.stack([window[name] for window in windows]) for name in names}}


def used_parameters(model: RCMA) -> list[torch.nn.Parameter]:
    """Those that embeddings pass through: all but the backbones."""
    return [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]


@torch.no_grad()
def score(model: RCMA, sequences: Sequences, *, missing: Sequence[Modality] = ()) -> Scores:
    """The challenge's score of a split."""
    model.eval()
    predicted = model(sequences.batch(missing=missing)).numpy()
    names = [f"{number:04d}" for number in range(len(predicted))]
    return evaluate(dict(zip(names, predicted, strict=True)), dict(zip(names, sequences.labels, strict=True)))


def run(variant: Variant, splits: Mapping[str, Sequences], *, rate: float, epochs: int, seed: int) -> Outcome:
    """Train one variant and test the epoch that validation prefers."""
    torch.manual_seed(seed)
    model = RCMA(variant.settings)
    optimizer = torch.optim.Adam(used_parameters(model), lr=rate, fused=True)
    # Generators of their own: whatever a variant draws, the order of batches is the same for all.
    order, hiding = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    best, weights, seconds = -math.inf, model.state_dict(), []
    for _ in range(epochs):
        model.train()
        begin = time.process_time()
        for index in torch.randperm(len(splits["train"].labels), generator=order).split(BATCH_SIZE):
            batch = splits["train"].batch(index)
            if variant.modality_dropout:
                batch = hide_modalities(batch, model.modalities, variant.modality_dropout, hiding)
            loss = ccc_loss(model(batch), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.process_time() - begin)
        reached = score(model, splits["validation"]).mean
        if reached > best:
            best, weights = reached, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)

    def without(m: Modality) -> float:
        return score(model, splits["test"], missing=[m]).mean if model.modalities != (m,) else math.nan

    return Outcome(
        validation=best,
        test=score(model, splits["test"]),
        without_face=without("face"),
        without_text=without("text"),
        seconds_per_epoch=statistics.median(seconds),
    )


def study(
    chosen: Sequence[Variant],
    *,
    seeds: int,
    epochs: int,
    sizes: Mapping[str, int],
    on_outcome: Callable[[str], None] = lambda line: None,
) -> Iterator[list[dict[str, Any]]]:
    """Train all variants, seed by seed; after each seed, the rows over all seeds so far.

    Each learning rate is tried with the first seeds; the one with the best mean validation score is kept for all.
    """
    tried: dict[str, dict[float, list[Outcome]]] = {v.name: {rate: [] for rate in LEARNING_RATES} for v in chosen}
    for seed in range(seeds):
        splits = generate(seed, sizes)
        for variant in chosen:
            by_rate = tried[variant.name]
            for rate in by_rate if seed < SEARCH_SEEDS else [best_rate(by_rate)]:
                by_rate[rate].append(run(variant, splits, rate=rate, epochs=epochs, seed=seed))
                on_outcome(f"seed {seed}  {variant.name}  {rate:g}: {by_rate[rate][-1].test.mean:.3f}")
        rates = {name: best_rate(by_rate) for name, by_rate in tried.items()}
        outcomes = {name: by_rate[rates[name]] for name, by_rate in tried.items()}
        reference = outcomes.get(REFERENCE, [])
        yield [summarise(v, outcomes[v.name], reference, rate=rates[v.name]) for v in chosen]


def best_rate(by_rate: Mapping[float, Sequence[Outcome]]) -> float:
    """The learning rate with the best mean validation score over the first seeds."""
    return max(by_rate, key=lambda rate: _mean([outcome.validation for outcome in by_rate[rate][:SEARCH_SEEDS]]))


def summarise(
    variant: Variant, outcomes: Sequence[Outcome], reference: Sequence[Outcome], *, rate: float
) -> dict[str, Any]:
    """One row of the result; None where a figure says nothing."""
    fusion = variant.settings.fusion
    difference = [a.test.mean - b.test.mean for a, b in zip(outcomes, reference, strict=False)]
    mean, error = _mean(difference), _std(difference) / math.sqrt(max(len(difference), 1))
    row = {
        "seeds": len(outcomes),
        "name": variant.name,
        "settings": {
            "modalities": list(variant.settings.modalities),
            "head": variant.settings.head,
            "modality_dropout": variant.modality_dropout,
            **fusion.model_dump(mode="json"),
        },
        "parameters": sum(parameter.numel() for parameter in used_parameters(RCMA(variant.settings))),
        "ccc": _mean([outcome.test.mean for outcome in outcomes]),
        "ccc_std": _std([outcome.test.mean for outcome in outcomes]),
        "ccc_of_seeds": [round(outcome.test.mean, 4) for outcome in outcomes],
        "valence": _mean([outcome.test.ccc["valence"] for outcome in outcomes]),
        "valence_std": _std([outcome.test.ccc["valence"] for outcome in outcomes]),
        "arousal": _mean([outcome.test.ccc["arousal"] for outcome in outcomes]),
        "arousal_std": _std([outcome.test.ccc["arousal"] for outcome in outcomes]),
        "ccc_validation": _mean([outcome.validation for outcome in outcomes]),
        "ccc_without_face": _mean([outcome.without_face for outcome in outcomes]),
        "ccc_without_face_std": _std([outcome.without_face for outcome in outcomes]),
        "ccc_without_text": _mean([outcome.without_text for outcome in outcomes]),
        "ccc_without_text_std": _std([outcome.without_text for outcome in outcomes]),
        "difference": mean,
        "difference_std": _std(difference),
        "difference_standard_error": error,
        "told_apart": variant.name != REFERENCE and abs(mean) >= 2 * error,
        "seconds_per_epoch": statistics.median(outcome.seconds_per_epoch for outcome in outcomes),
        "learning_rate": rate,
    }
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
    return {key: None if value != value else value for key, value in rounded.items()}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _std(values: Sequence[float]) -> float:
    """Of a sample; NaN for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """What was found, to standard output."""
    table = Table(caption=f"difference to {REFERENCE}, ± standard error; (brackets): not told apart")
    for heading in ("", "CCC", "valence", "arousal", "no face", "no words", "difference", "parameters", "s/epoch"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in rows:
        difference = "-"
        if row["name"] != REFERENCE and row["difference"] is not None:
            difference = f"{row['difference']:+.3f} ± {_number(row['difference_standard_error'])}"
            difference = difference if row["told_apart"] else f"({difference})"
        table.add_row(
            row["name"],
            f"{_number(row['ccc'])} ± {_number(row['ccc_std'])}",
            _number(row["valence"]),
            _number(row["arousal"]),
            _number(row["ccc_without_face"]),
            _number(row["ccc_without_text"]),
            difference,
            f"{row['parameters']:,}",
            f"{row['seconds_per_epoch']:.2f}",
        )
    Console(width=140).print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".replace("0.", ".")


def main(argv: Sequence[str] | None = None) -> None:
    """Train all variants and write the result."""
    known = {variant.name: variant for variant in variants()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many; default: 5")
    parser.add_argument("--epochs", type=int, default=26, metavar="N", help="of every training; default: 26")
    parser.add_argument("--variants", nargs="+", choices=known, default=list(known), metavar="NAME", help="rows")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    results = study(
        [variant for name, variant in known.items() if name in args.variants],
        seeds=args.seeds,
        epochs=args.epochs,
        sizes=N_SEQUENCES,
        on_outcome=lambda line: print(f"{time.perf_counter() - begin:6.0f} s  {line}", file=sys.stderr),
    )
    for rows in results:
        print_table(rows)
        write_result("fusion-study", [{"epochs": args.epochs, **row} for row in rows])


if __name__ == "__main__":
    main()
