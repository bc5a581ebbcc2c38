"""Compare fusions on synthetic sequences with a known structure, see synthetic_sequences.py.

usage: python benchmarks/fusion_study.py [--seeds N] [--epochs N] [--variants NAME ...]

Embeddings are given: backbones are not used, and their parameters are not counted. Every variant has the same data,
order of batches and number of epochs; the epoch is chosen on validation sequences, and so is one of two learning rates,
with the first seed. Scores are the challenge's CCC on test sequences, also with the face or the words missing
everywhere. Differences to rcma with its published 2 steps are paired by seed; one smaller than twice its standard
error is not significant. Seconds are CPU seconds of training on one thread. Writes benchmarks/results/; the last line
printed is the result, as JSON.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measuring import Measurement, argument_parser, print_rows, rounded, write_result
from synthetic_sequences import LENGTH, WIDTHS, Sequences, generate
from torch import Tensor

from rcma.config import MODALITIES, TARGETS, FusionSettings, Modality, ModelSettings
from rcma.data import drop_modalities
from rcma.metrics import ccc, ccc_loss
from rcma.model import RCMA

N_SEQUENCES = {"train": 192, "validation": 64, "test": 128}
BATCH_SIZE = 16
DROPOUT = 0.2
"""In fusion; the published 0.6, meant for layers of 512 and long training, is a row of its own."""
LEARNING_RATES = (4e-3, 1e-2)
SEARCH_SEEDS = 1
"""Seeds with which every rate is tried."""
REFERENCE = "rcma, 2 steps"
"""As published but for sizes and dropout; the others are compared with it."""


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

    scores: Mapping[str, float]
    """CCC on validation and test sequences, by the names that they have in the result."""
    seconds_per_epoch: float
    """Median over epochs, CPU seconds of the training pass."""


def variants() -> list[Variant]:
    """All rows; the head is linear unless named, so that rows differ in fusion alone."""
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
    """Apply :func:`rcma.data.drop_modalities` to each window of a batch."""
    names = [f"{m}_mask" for m in modalities]
    windows = [
        drop_modalities({name: batch[name][window] for name in names}, probability, random)
        for window in range(len(batch["labels"]))
    ]
    return {**batch, **{name: torch.stack([window[name] for window in windows]) for name in names}}


def used_parameters(model: RCMA) -> list[torch.nn.Parameter]:
    """Parameters that embeddings pass through: all but the backbones."""
    return [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]


@torch.no_grad()
def score(model: RCMA, sequences: Sequences, *, missing: Sequence[Modality] = ()) -> dict[str, float]:
    """CCC of each target over all frames of a split, and ``ccc``, their mean."""
    model.eval()
    predicted = model(sequences.batch(missing=missing)).flatten(0, 1).numpy()
    labels = sequences.labels.reshape(predicted.shape)
    scores = {target: ccc(predicted[:, k], labels[:, k]) for k, target in enumerate(TARGETS)}
    return {"ccc": float(np.mean(list(scores.values()))), **scores}


def run(variant: Variant, splits: Mapping[str, Sequences], *, rate: float, epochs: int, seed: int) -> Outcome:
    """Train one variant and test the epoch that is best on validation sequences."""
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
        reached = score(model, splits["validation"])["ccc"]
        if reached > best:
            best, weights = reached, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    without = {
        f"ccc_without_{m}": score(model, splits["test"], missing=[m])["ccc"] if model.modalities != (m,) else math.nan
        for m in MODALITIES
        if m != "audio"
    }
    scores = {**score(model, splits["test"]), "ccc_validation": best, **without}
    return Outcome(scores, seconds_per_epoch=statistics.median(seconds))


def study(
    chosen: Sequence[Variant],
    *,
    seeds: int,
    epochs: int,
    sizes: Mapping[str, int],
    on_outcome: Callable[[str], None] = lambda line: None,
) -> Iterator[list[Measurement]]:
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
                on_outcome(f"seed {seed}  {variant.name}  {rate:g}: {by_rate[rate][-1].scores['ccc']:.3f}")
        rates = {name: best_rate(by_rate) for name, by_rate in tried.items()}
        outcomes = {name: by_rate[rates[name]] for name, by_rate in tried.items()}
        reference = outcomes.get(REFERENCE, [])
        yield [summarise(v, outcomes[v.name], reference, rate=rates[v.name]) for v in chosen]


def best_rate(by_rate: Mapping[float, Sequence[Outcome]]) -> float:
    """The learning rate with the best mean validation score over the first seeds."""

    def reached(rate: float) -> float:
        return statistics.mean(outcome.scores["ccc_validation"] for outcome in by_rate[rate][:SEARCH_SEEDS])

    return max(by_rate, key=reached)


def summarise(
    variant: Variant, outcomes: Sequence[Outcome], reference: Sequence[Outcome], *, rate: float
) -> Measurement:
    """One row of the result; None where a figure is undefined."""
    row: Measurement = {
        "seeds": len(outcomes),
        "name": variant.name,
        "settings": {
            "modalities": list(variant.settings.modalities),
            "head": variant.settings.head,
            "modality_dropout": variant.modality_dropout,
            **variant.settings.fusion.model_dump(mode="json"),
        },
        "parameters": sum(parameter.numel() for parameter in used_parameters(RCMA(variant.settings))),
        "ccc_of_seeds": [outcome.scores["ccc"] for outcome in outcomes],
    }
    for name in outcomes[0].scores:
        row[name], row[f"{name}_std"] = mean_and_std([outcome.scores[name] for outcome in outcomes])
    paired = zip(outcomes, reference, strict=False)
    mean, std = mean_and_std([one.scores["ccc"] - other.scores["ccc"] for one, other in paired])
    error = std / math.sqrt(len(outcomes))
    row |= {
        "difference": mean,
        "difference_std": std,
        "difference_standard_error": error,
        "significant": variant.name != REFERENCE and abs(mean) >= 2 * error,
        "seconds_per_epoch": statistics.median(outcome.seconds_per_epoch for outcome in outcomes),
        "learning_rate": rate,
    }
    content: Measurement = rounded(row)
    return content


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a sample; NaN where there are too few."""
    mean = float(np.mean(values)) if values else math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def main(argv: Sequence[str] | None = None) -> None:
    """Train all variants and write the result."""
    known = {variant.name: variant for variant in variants()}
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: 5")
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
    columns = ["name", "ccc", "ccc_std", *TARGETS, "ccc_without_face", "ccc_without_text"]
    columns += ["difference", "difference_standard_error", "significant", "parameters", "seconds_per_epoch"]
    for rows in results:
        print_rows(f"differences of ccc to {REFERENCE}, paired by seed", rows, columns)
        write_result("fusion-study", [{"epochs": args.epochs, **row} for row in rows])


if __name__ == "__main__":
    main()
