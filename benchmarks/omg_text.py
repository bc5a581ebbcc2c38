"""The text branch alone on real labels: arousal and valence of OMG-Emotion's utterances, beside baselines.

usage: python benchmarks/omg_text.py [--data FOLDER]

The words of an utterance, as noisy speech recognition left them, become vectors (WordEncoder, packaged MiniLM, frozen),
pass the temporal convolutions (TemporalConvNet), are averaged and end in a head with two outputs. The loss is 1 - CCC
over batches of whole videos. Rows:

    constant                    the mean of the training labels; it has no CCC
    tf-idf + ridge              scikit-learn with its defaults, words alone
    vectors + ridge             the averaged word vectors without the convolutions, spread as the labels
    kernel ridge                the same vectors, compared by a Gaussian of their distance (scikit-learn's KernelRidge)
    text                        the network
    kernel ridge, in context    beside an utterance's own words, those of the other utterances of the same YouTube video
    text, in context            and split, earlier and later, weighted by how far away they are

Splits as given. The published splits divide YouTube videos, never their segments (column "video"; 231 segments of 125
videos in the training split). Every choice (settings, epochs, penalties, spread of the predictions) is made on the
training split alone, on five folds made as those splits are: they hold out whole segments. "Held out" are the scores on
these folds, and beside them those of what was chosen when whole videos are held out instead. The candidates
and their scores are part of the result. What the candidates have in common (the width, the hidden layer, the dropout,
the learning rate) was found by trials on the same folds, so held-out scores flatter. The networks are then trained on
the whole training split with five seeds; each row is their averaged prediction, "one seed" the mean and standard
deviation over the seeds. CCC is over all utterances of a part; those without words are predicted, too. The 95 %
intervals come from drawing the validation split's YouTube videos anew, 2000 times.

The validation split chooses no number in a row. It is not untouched: an earlier version (a linear head, whole videos
held out) scored nothing for arousal there, and kernel ridge was scored on it with many settings. That segments are held
out instead, and that kernels and a hidden layer were tried at all, came after those scores; the kernel rows flatter for
that. Nothing was changed after the scores in the result were seen.

LEAK: the splits as published share videos: 392 of the 617 validation utterances are from YouTube videos that are in the
training split, too. The column "leak-free" has the other 225 utterances alone. Published validation CCC with these
splits, leak included, arousal and valence: text CNN .078 and .25.

Writes benchmarks/results/; the last line printed is the result, as JSON.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from results import write_result
from torch import Tensor, nn

from preprocessing.config import PACKAGED, WordSettings
from preprocessing.console import error_console, print_table
from preprocessing.errors import InputError
from preprocessing.speech import WordEncoder
from rcma.metrics import ccc, ccc_loss
from rcma.model import TemporalConvNet

DATA = Path(__file__).parents[2] / "shared" / "data" / "omg"
VARIABLE = "RCMA_OMG"
TARGETS = ("arousal", "valence")
SEEDS = 5
FOLDS = 5
DRAWS = 2000
"""Of the validation split's YouTube videos, for the intervals."""
RIDGE = (100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Candidates for the penalty of ridge regression on vectors, held out like every other choice."""
KERNEL_RIDGE = tuple((width, penalty) for width in (0.3, 1.0, 3.0) for penalty in (0.3, 1.0, 3.0, 10.0))
"""Candidates for kernel ridge: the Gaussian's factor, times the number of dimensions, and the penalty."""

Array = NDArray[np.float64]
Measurement = dict[str, Any]
Unit = Literal["segment", "link"]


@dataclass(frozen=True)
class Utterance:
    """What one person says in one go."""

    link: str
    """Of the YouTube video."""
    segment: str
    """Of that video, a stretch of many utterances; the published splits divide videos between segments."""
    start_s: float
    """In that video."""
    words: tuple[str, ...]
    """Without punctuation; empty where nothing was recognised or no transcript exists."""
    labels: tuple[float, float]
    """Arousal in [0, 1] and valence in [-1, 1]."""


@dataclass(frozen=True)
class TextSettings:
    """Of the network and its training."""

    channels: tuple[int, ...] = (64,)
    """Width of each level of the convolutions."""
    kernel_size: int = 2
    """Taps of each convolution, in words."""
    hidden: int = 128
    """Width of the head's hidden layer (linear, batch norm, leaky ReLU, linear); 0 for a linear head."""
    dropout: float = 0.3
    """Of the input's dimensions (for all words of an utterance), within the convolutions, before each linear layer."""
    word_dropout: float = 0.1
    """Probability that a word's vector is zeroed in training."""
    learning_rate: float = 1e-3
    """Of Adam."""
    weight_decay: float = 1e-2
    """Of Adam, decoupled."""
    epochs: int = 12
    """At most; as many as were best on held-out segments are used, for each target its own number."""
    batch: int = 400
    """Utterances in a batch, at least; videos are not divided."""
    decay: float = 0.0
    """Weight of the next utterance's words, of the one after it the square, ...; 0 for no context."""


TEXT = TextSettings()
CANDIDATES = (
    replace(TEXT, hidden=0),
    TEXT,
)
CANDIDATES_IN_CONTEXT = (
    replace(TEXT, decay=0.7),
    replace(TEXT, decay=0.9),
)
DECAYS = tuple(settings.decay for settings in CANDIDATES_IN_CONTEXT)


# ---- data


def read_split(folder: Path, split: str) -> list[Utterance]:
    """Labelled utterances of ``Train`` or ``Validation``, in the order of the labels.

    Raises:
        InputError: a file is missing, lacks a column, or has something else than a number as a label.
    """
    key = ("link", "video", "utterance")
    transcripts_file, labels_file = (folder / f"omg_{split}{kind}.csv" for kind in ("Transcripts", "Videos"))
    transcripts = {
        tuple(row[c] for c in key): row["transcript"] for row in _rows(transcripts_file, (*key, "transcript"))
    }
    utterances = []
    for number, row in enumerate(_rows(labels_file, (*key, "start", *TARGETS)), start=1):
        try:
            start_s, arousal, valence = (float(row[column]) for column in ("start", *TARGETS))
        except ValueError:
            raise InputError(f"{labels_file}: utterance {number}: start, arousal and valence must be numbers") from None
        words = transcripts.get(tuple(row[c] for c in key), "").split()
        utterances.append(Utterance(row["link"], row["video"], start_s, tuple(words), (arousal, valence)))
    return utterances


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a csv file with a header; what a short row lacks is empty."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path}: no column {missing[0]!r}; it needs {', '.join(columns)}")
            yield from reader
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give OMG-Emotion's folder by --data") from None


def labels_of(utterances: Sequence[Utterance]) -> Array:
    """(N, 2): arousal, valence."""
    return np.array([utterance.labels for utterance in utterances], dtype=np.float64).reshape(-1, 2)


def leak_free(utterances: Sequence[Utterance], train: Sequence[Utterance]) -> NDArray[np.bool_]:
    """(N,): whether nothing of the utterance's YouTube video is in the training split."""
    seen = {utterance.link for utterance in train}
    return np.array([utterance.link not in seen for utterance in utterances], dtype=bool)


def folds(
    utterances: Sequence[Utterance], unit: Unit, count: int = FOLDS
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Indices to fit and to hold out, ``count`` times; no segment, or no YouTube video, is in both."""
    from sklearn.model_selection import GroupKFold

    groups = [u.link if unit == "link" else f"{u.link} {u.segment}" for u in utterances]
    return list(GroupKFold(count, shuffle=True, random_state=0).split(groups, groups=groups))


def context_weights(utterances: Sequence[Utterance], decay: float) -> NDArray[np.float32]:
    """(N, N): ``decay`` to the power of how many utterances apart, in time, two are; 0 for different YouTube videos."""
    of_link = defaultdict(list)
    for index in sorted(range(len(utterances)), key=lambda i: utterances[i].start_s):
        of_link[utterances[index].link].append(index)
    weights = np.zeros((len(utterances), len(utterances)), np.float32)
    for indices in of_link.values():
        place = np.arange(len(indices))
        weights[np.ix_(indices, indices)] = decay ** np.abs(place[:, None] - place)
    return weights


@dataclass(frozen=True)
class Corpus:
    """Utterances with a vector for each word."""

    utterances: Sequence[Utterance]
    vectors: Sequence[Tensor]
    """float32 (W, D) for each utterance."""

    def part(self, indices: Sequence[int] | NDArray[np.int64]) -> Corpus:
        """Only these utterances."""
        return Corpus([self.utterances[i] for i in indices], [self.vectors[i] for i in indices])

    def scaled(self, mean: Tensor, std: Tensor) -> Corpus:
        """With vectors standardised, mean and std (D,)."""
        return Corpus(self.utterances, [(v - mean) / std for v in self.vectors])


def encode(utterances: Sequence[Utterance], encoder: WordEncoder) -> Corpus:
    """Look up the vectors; an utterance is a sentence."""
    return Corpus(utterances, [torch.from_numpy(encoder.encode(u.words)).float() for u in utterances])


# ---- network


class TextNet(nn.Module):
    """Word vectors -> temporal convolutions -> mean over words (and over neighbouring utterances) -> head."""

    def __init__(self, settings: TextSettings, corpus: Corpus) -> None:
        """Random weights; width of the input and mean of the labels from the corpus."""
        super().__init__()
        self.settings = settings
        width = settings.channels[-1] * (2 if settings.decay else 1)
        self.tcn = TemporalConvNet(
            corpus.vectors[0].shape[1], settings.channels, kernel_size=settings.kernel_size, dropout=settings.dropout
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.hidden = nn.Sequential()
        if settings.hidden:
            self.hidden = nn.Sequential(
                nn.Linear(width, settings.hidden),
                nn.BatchNorm1d(settings.hidden),
                nn.LeakyReLU(),
                nn.Dropout(settings.dropout),
            )
        self.last = nn.Linear(settings.hidden or width, len(TARGETS))
        with torch.no_grad():
            self.last.bias.copy_(torch.from_numpy(labels_of(corpus.utterances).mean(axis=0)))

    def forward(self, corpus: Corpus) -> Tensor:
        """(N, 2); an utterance without words is seen as a mean of zeros."""
        counts = torch.tensor([len(v) for v in corpus.vectors], dtype=torch.float32)[:, None]  # (N,1)
        sums = self._sums(corpus.vectors)  # (N,C)
        features = [sums / counts.clamp_min(1.0)]
        if self.settings.decay:
            weights = torch.from_numpy(context_weights(corpus.utterances, self.settings.decay))
            features.append((weights @ sums) / (weights @ counts).clamp_min(1.0))
        return torch.as_tensor(self.last(self.hidden(self.dropout(torch.cat(features, dim=1)))))

    def _sums(self, vectors: Sequence[Tensor], chunk: int = 128) -> Tensor:
        """(N,C): sums over words of what the convolutions make of them; neighbours in length share a batch."""
        order = sorted((i for i, v in enumerate(vectors) if len(v)), key=lambda i: len(vectors[i]))
        sums = torch.zeros(len(vectors), self.settings.channels[-1])
        for first in range(0, len(order), chunk):
            indices = order[first : first + chunk]
            lengths = torch.tensor([len(vectors[i]) for i in indices])
            x = nn.utils.rnn.pad_sequence([vectors[i] for i in indices], batch_first=True)  # (b,L,D)
            x = x * self.dropout(torch.ones(len(x), 1, x.shape[2]))
            if self.training and self.settings.word_dropout:
                x = x * (torch.rand(x.shape[:2]) >= self.settings.word_dropout)[..., None]
            real = torch.arange(x.shape[1]) < lengths[:, None]  # (b,L)
            # Convolutions see the past only: padding at the end changes nothing of the words.
            sums = sums.index_add(0, torch.tensor(indices), (self.tcn(x) * real[..., None]).sum(dim=1))
        return sums


def train_network(corpus: Corpus, settings: TextSettings, *, seed: int, watched: Corpus) -> Array:
    """Train; (E, N, 2): what is predicted for the watched utterances after each epoch."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    words = torch.cat(list(corpus.vectors))  # (W,D)
    scale = words.mean(dim=0), words.std(dim=0).clamp_min(1e-6)
    corpus, watched = corpus.scaled(*scale), watched.scaled(*scale)
    net = TextNet(settings, corpus)
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    predictions = []
    for _ in range(settings.epochs):
        net.train()
        for indices in _batches(corpus.utterances, settings.batch, rng):
            batch = corpus.part(indices)
            labels = torch.from_numpy(labels_of(batch.utterances)).float()
            loss = ccc_loss(net(batch)[None], labels[None])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        net.eval()
        with torch.inference_mode():
            predictions.append(net(watched).double().numpy())
    return np.stack(predictions)


def _batches(utterances: Sequence[Utterance], size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Whole videos in random order, put together until a batch has ``size`` utterances; the rest joins the last."""
    of_link = defaultdict(list)
    for index, utterance in enumerate(utterances):
        of_link[utterance.link].append(index)
    videos = list(of_link.values())
    left = len(utterances)
    batch: list[int] = []
    for video in rng.permutation(len(videos)):
        batch += videos[video]
        left -= len(videos[video])
        if len(batch) >= size and left >= size // 2:
            yield batch
            batch = []
    yield batch


# ---- choices, made on segments held out of the training split


def spread_as(prediction: Array, labels: Array) -> tuple[float, float]:
    """Shift and factor that give predictions the mean and standard deviation of labels, both (N,).

    CCC is greatest, for a given correlation, where they agree; averaging networks makes predictions too narrow.
    """
    factor = float(labels.std() / prediction.std()) if np.ptp(prediction) > 0.0 else 0.0
    return float(labels.mean() - factor * prediction.mean()), factor


def spread_ccc(prediction: Array, labels: Array) -> float:
    """CCC of predictions with the mean and standard deviation of the labels; -1 where it says nothing."""
    shift, factor = spread_as(prediction, labels)
    return float(np.nan_to_num(ccc(shift + factor * prediction, labels), nan=-1.0))


def held_out(corpus: Corpus, settings: TextSettings, unit: Unit = "segment", *, seed: int) -> Array:
    """(E, N, 2): predictions after each epoch for each utterance, by a network that never saw its segment or video."""
    predictions = np.empty((settings.epochs, len(corpus.utterances), len(TARGETS)))
    for fit, rest in folds(corpus.utterances, unit):
        predictions[:, rest] = train_network(corpus.part(fit), settings, seed=seed, watched=corpus.part(rest))
    return predictions


@dataclass(frozen=True)
class Best:
    """When one target was predicted best on held-out segments."""

    epochs: int
    score: float
    """CCC over all held-out utterances, with the spread of the labels."""


def best_epochs(curve: Array, labels: Array) -> list[Best]:
    """For each target; curve (E, N, 2), labels (N, 2)."""
    found = []
    for k in range(len(TARGETS)):
        scores = [spread_ccc(prediction[:, k], labels[:, k]) for prediction in curve]
        found.append(Best(int(np.argmax(scores)) + 1, max(scores)))
    return found


# ---- rows


def row(name: str, prediction: Array, validation: Sequence[Utterance], fresh: NDArray[np.bool_]) -> Measurement:
    """CCC of predictions (N, 2), over all utterances and over the leak-free ones; None where it says nothing."""
    labels = labels_of(validation)
    measured: Measurement = {"name": name}
    for part, kept in (("", np.ones(len(labels), dtype=bool)), ("_leak_free", fresh)):
        for k, target in enumerate(TARGETS):
            value = ccc(prediction[kept, k], labels[kept, k])
            measured[f"{target}_ccc{part}"] = None if np.isnan(value) else round(value, 4)
    return measured


def interval(prediction: Array, validation: Sequence[Utterance], draws: int = DRAWS) -> Measurement:
    """Between which CCCs 95 % lie when YouTube videos are drawn with replacement; predictions (N, 2)."""
    rng = np.random.default_rng(0)
    labels = labels_of(validation)
    links = np.array([u.link for u in validation])
    videos = [np.flatnonzero(links == link) for link in sorted(set(links))]
    values = np.empty((draws, len(TARGETS)))
    for draw in range(draws):
        drawn = np.concatenate([videos[video] for video in rng.integers(0, len(videos), len(videos))])
        values[draw] = [ccc(prediction[drawn, k], labels[drawn, k]) for k in range(len(TARGETS))]
    low, high = np.quantile(values, (0.025, 0.975), axis=0).round(4).tolist()
    return {f"{target}_ccc_interval": [low[k], high[k]] for k, target in enumerate(TARGETS)}


def held_out_scores(prediction: Array, labels: Array, part: str = "") -> Measurement:
    """CCC of held-out predictions (N, 2) with the spread of the labels."""
    scores = [round(spread_ccc(prediction[:, k], labels[:, k]), 4) for k in range(len(TARGETS))]
    return {f"{target}_ccc_held_out{part}": score for target, score in zip(TARGETS, scores, strict=True)}


def tfidf_ridge(train: Sequence[Utterance], validation: Sequence[Utterance]) -> Array:
    """(N, 2): words weighted by rarity, penalised least squares; defaults of scikit-learn."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(), Ridge())
    model.fit([" ".join(u.words) for u in train], labels_of(train))
    return cast(Array, model.predict([" ".join(u.words) for u in validation]))


def pooled(corpus: Corpus, decay: float) -> Array:
    """(N, D): averaged vectors of an utterance's words; with a decay (N, 2D), beside them those of its context."""
    sums = np.stack([v.double().sum(dim=0).numpy() for v in corpus.vectors])  # (N,D)
    counts = np.array([[len(v)] for v in corpus.vectors])
    features = [sums / counts.clip(min=1)]
    if decay:
        weights = context_weights(corpus.utterances, decay)
        features.append(weights @ sums / (weights @ counts).clip(min=1.0))
    return np.concatenate(features, axis=1)


@dataclass(frozen=True)
class Regression:
    """One way to predict labels from averaged vectors."""

    penalty: float
    width: float | None = None
    """The Gaussian kernel's factor times the number of dimensions; None for no kernel."""
    decay: float = 0.0
    """As for the network."""

    def predict(self, train: Corpus, new: Corpus) -> Array:
        """(N, 2) for the new utterances; vectors are standardised, the mean of the labels is not penalised."""
        from sklearn.kernel_ridge import KernelRidge
        from sklearn.linear_model import Ridge
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        x = scaler.fit_transform(pooled(train, self.decay))
        y = labels_of(train.utterances)
        if self.width is None:
            model = Ridge(self.penalty)
        else:
            model = KernelRidge(alpha=self.penalty, kernel="rbf", gamma=self.width / x.shape[1])
        predicted = model.fit(x, y - y.mean(axis=0)).predict(scaler.transform(pooled(new, self.decay)))
        return cast(Array, predicted + y.mean(axis=0))

    def held_out(self, corpus: Corpus, unit: Unit) -> Array:
        """(N, 2): predictions for each utterance without its segment or video."""
        predictions = np.empty((len(corpus.utterances), len(TARGETS)))
        for fit, rest in folds(corpus.utterances, unit):
            predictions[rest] = self.predict(corpus.part(fit), corpus.part(rest))
        return predictions


def regression_row(
    name: str, candidates: Sequence[Regression], train: Corpus, validation: Corpus, fresh: NDArray[np.bool_]
) -> Measurement:
    """For each target choose on held-out segments, fit all of them, predict the validation split once."""
    y = labels_of(train.utterances)
    segments = np.stack([candidate.held_out(train, "segment") for candidate in candidates])  # (C,N,2)
    chosen = [int(np.argmax([spread_ccc(p[:, k], y[:, k]) for p in segments])) for k in range(len(TARGETS))]
    held, links, predicted = [], [], []
    for k, index in enumerate(chosen):
        held.append(segments[index, :, k])
        links.append(candidates[index].held_out(train, "link")[:, k])
        shift, factor = spread_as(held[k], y[:, k])
        predicted.append(shift + factor * candidates[index].predict(train, validation)[:, k])
    prediction = np.stack(predicted, axis=1)
    return {
        **row(name, prediction, validation.utterances, fresh),
        **interval(prediction, validation.utterances),
        **held_out_scores(np.stack(held, axis=1), y),
        **held_out_scores(np.stack(links, axis=1), y, "_links"),
        **{f"{target}_settings": asdict(candidates[index]) for target, index in zip(TARGETS, chosen, strict=True)},
        "candidates": [{**asdict(c), **held_out_scores(p, y)} for c, p in zip(candidates, segments, strict=True)],
    }


def network_row(
    name: str,
    candidates: Sequence[TextSettings],
    train: Corpus,
    validation: Corpus,
    fresh: NDArray[np.bool_],
    *,
    seeds: int,
    tell: Callable[[str], None],
) -> Measurement:
    """Choose on held-out segments, train on all of them with each seed, predict the validation split once."""
    labels = labels_of(train.utterances)
    curves, bests = [], []
    for settings in candidates:
        curves.append(held_out(train, settings, seed=0))
        bests.append(best_epochs(curves[-1], labels))
        tell(f"{name}: {settings}: held out {', '.join(f'{b.score:.3f} after {b.epochs}' for b in bests[-1])} epochs")
    chosen = max(range(len(candidates)), key=lambda index: sum(best.score for best in bests[index]))
    epochs = [best.epochs for best in bests[chosen]]
    settings = replace(candidates[chosen], epochs=max(epochs))

    # Of each seed: for the training split held out, for the validation split by a network that saw all of the former.
    held = np.empty((seeds, len(labels), len(TARGETS)))
    predicted = np.empty((seeds, len(validation.utterances), len(TARGETS)))
    for seed in range(seeds):
        known = curves[chosen] if seed == 0 else held_out(train, settings, seed=seed)
        new = train_network(train, settings, seed=seed, watched=validation)
        for k, count in enumerate(epochs):
            held[seed, :, k], predicted[seed, :, k] = known[count - 1, :, k], new[count - 1, :, k]
        tell(f"{name}: seed {seed + 1} of {seeds}")

    def spread(held: Array, predicted: Array) -> Array:
        scales = [spread_as(held[:, k], labels[:, k]) for k in range(len(TARGETS))]
        return np.stack([shift + factor * predicted[:, k] for k, (shift, factor) in enumerate(scales)], axis=1)

    prediction = spread(held.mean(axis=0), predicted.mean(axis=0))
    measured = row(name, prediction, validation.utterances, fresh)
    singles = [row(name, spread(h, p), validation.utterances, fresh) for h, p in zip(held, predicted, strict=True)]
    for key in [key for key in measured if key != "name"]:
        values = np.array([single[key] for single in singles], dtype=np.float64)
        measured[f"{key}_one_seed_mean"] = round(float(values.mean()), 4)
        measured[f"{key}_one_seed_std"] = round(float(values.std()), 4)
    measured |= interval(prediction, validation.utterances)
    measured |= held_out_scores(held.mean(axis=0), labels)
    of_links = held_out(train, settings, "link", seed=0)
    tell(f"{name}: whole videos held out")
    last = np.stack([of_links[count - 1, :, k] for k, count in enumerate(epochs)], axis=1)
    measured |= held_out_scores(held[0], labels, "_one_seed") | held_out_scores(last, labels, "_links_one_seed")
    measured |= {f"{target}_epochs": count for target, count in zip(TARGETS, epochs, strict=True)}
    measured["seeds"] = seeds
    measured["settings"] = asdict(candidates[chosen])
    measured["candidates"] = [
        {**asdict(candidate), **{f"{t}_ccc_held_out": round(b.score, 4) for t, b in zip(TARGETS, best, strict=True)}}
        for candidate, best in zip(candidates, bests, strict=True)
    ]
    return measured


def measure(
    train: Corpus,
    validation: Corpus,
    *,
    seeds: int,
    candidates: Sequence[TextSettings],
    candidates_in_context: Sequence[TextSettings],
    tell: Callable[[str], None] = lambda line: None,
) -> list[Measurement]:
    """All rows."""
    fresh = leak_free(validation.utterances, train.utterances)
    constant = np.tile(labels_of(train.utterances).mean(axis=0), (len(validation.utterances), 1))
    tfidf = tfidf_ridge(train.utterances, validation.utterances)
    linear = [Regression(penalty) for penalty in RIDGE]
    kernel = [Regression(penalty, width) for width, penalty in KERNEL_RIDGE]
    kernel_in_context = [replace(candidate, decay=decay) for decay in DECAYS for candidate in kernel]

    def regression(name: str, regressions: Sequence[Regression]) -> Measurement:
        measured = regression_row(name, regressions, train, validation, fresh)
        tell(f"{name}: held out {', '.join(str(measured[f'{target}_ccc_held_out']) for target in TARGETS)}")
        return measured

    def network(name: str, settings: Sequence[TextSettings]) -> Measurement:
        return network_row(name, settings, train, validation, fresh, seeds=seeds, tell=tell)

    return [
        row("constant", constant, validation.utterances, fresh),
        row("tf-idf + ridge", tfidf, validation.utterances, fresh) | interval(tfidf, validation.utterances),
        regression("vectors + ridge", linear),
        regression("kernel ridge", kernel),
        network("text", candidates),
        regression("kernel ridge, in context", kernel_in_context),
        network("text, in context", candidates_in_context),
    ]


def show(rows: Sequence[Measurement]) -> None:
    """Print the rows as two tables."""

    def cell(measured: Measurement, key: str) -> str:
        value = measured.get(key)
        return "-" if value is None else f"{value:.3f}"

    def with_interval(measured: Measurement, key: str) -> str:
        if f"{key}_interval" not in measured:
            return cell(measured, key)
        low, high = measured[f"{key}_interval"]
        return f"{measured[key]:.3f} ({low:.2f} to {high:.2f})"

    def one_seed(measured: Measurement, key: str) -> str:
        if f"{key}_one_seed_mean" not in measured:
            return "-"
        return f"{measured[f'{key}_one_seed_mean']:.3f} ± {measured[f'{key}_one_seed_std']:.3f}"

    keys = [f"{target}_ccc" for target in TARGETS]
    print_table(
        "CCC (95 %) on OMG-Emotion's validation split; most of it is of YouTube videos that are in the training split",
        ["", *TARGETS, *(f"{t}, one seed" for t in TARGETS), *(f"{t}, leak-free" for t in TARGETS)],
        [
            [
                m["name"],
                *(with_interval(m, key) for key in keys),
                *(one_seed(m, key) for key in keys),
                *(cell(m, f"{key}_leak_free") for key in keys),
            ]
            for m in rows
        ],
    )
    chosen = [m for m in rows if f"{keys[0]}_held_out" in m]
    print_table(
        "CCC within the training split, one seed; all choices are made with segments held out",
        ["", *(f"{t}, {unit} held out" for unit in ("segments", "videos") for t in TARGETS)],
        [
            [
                m["name"],
                *(
                    cell(m, f"{key}_held_out{part}{'_one_seed' if 'seeds' in m else ''}")
                    for part in ("", "_links")
                    for key in keys
                ),
            ]
            for m in chosen
        ],
    )


def data_folder(given: Path | None) -> Path:
    """The folder asked for, else ``$RCMA_OMG``, else the one beside the project.

    Raises:
        InputError: none of them.
    """
    if given is not None:
        return given
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    if DATA.is_dir():
        return DATA
    raise InputError(f"no OMG-Emotion here: set {VARIABLE} or give --data, the folder with omg_TrainVideos.csv")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, show, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help=f"folder of OMG-Emotion's csv files, default ${VARIABLE}, else ../shared/data/omg",
    )
    args = parser.parse_args(argv)
    console = error_console()
    try:
        folder = data_folder(args.data)
        splits = [read_split(folder, split) for split in ("Train", "Validation")]
        encoder = WordEncoder(WordSettings(model=PACKAGED), device="cpu")
        train, validation = (encode(split, encoder) for split in splits)
    except InputError as error:
        raise SystemExit(str(error)) from None
    fresh = leak_free(validation.utterances, train.utterances)
    parts: Measurement = {
        "name": "data",
        "train": len(train.utterances),
        "train_links": len({u.link for u in train.utterances}),
        "train_segments": len({(u.link, u.segment) for u in train.utterances}),
        "validation": len(fresh),
        "validation_leak_free": int(fresh.sum()),
        "without_words": [sum(not u.words for u in split) for split in splits],
    }
    rows = measure(
        train,
        validation,
        seeds=SEEDS,
        candidates=CANDIDATES,
        candidates_in_context=CANDIDATES_IN_CONTEXT,
        tell=lambda line: console.print(line, soft_wrap=True, markup=False),
    )
    show(rows)
    write_result("omg-text", [parts, *rows])


if __name__ == "__main__":
    main()
