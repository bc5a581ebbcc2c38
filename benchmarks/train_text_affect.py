"""Train the text expert, valence and arousal of sentences, on EmoBank; score it there and on OMG-Emotion.

usage: python benchmarks/train_text_affect.py EMOBANK.csv [--omg OMG_FOLDER] [--save]

Trains on the split ``train`` and scores r and CCC on every split, and on OMG-Emotion's validation transcripts, which
are not used in training. Only the sizes and rates below were chosen by looking at the split ``dev``. ``--save``
replaces the weights in the package. Writes benchmarks/results/; the last line printed is the result, as JSON.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import Measurement, argument_parser, write_result
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import nn

from rcma.experts import WEIGHTS, SentenceEncoder, regress
from rcma.metrics import ccc

HIDDEN = 32
EPOCHS = 30
BATCH = 128
RATE = 3e-3
"""Largest learning rate of the one-cycle schedule."""
WEIGHT_DECAY = 1e-2
INPUT_DROPOUT, HIDDEN_DROPOUT = 0.3, 0.5
SEED = 0


def read_emobank(path: Path) -> dict[str, tuple[list[str], NDArray[np.float32]]]:
    """Read the texts, and (N,2) valence and arousal in [-1,1], of each split."""
    rows = read_rows(path)
    splits = {}
    for split in sorted({row["split"] for row in rows}):
        chosen = [row for row in rows if row["split"] == split]
        # Ratings from 1 to 5.
        labels = [[(float(row["V"]) - 3) / 2, (float(row["A"]) - 3) / 2] for row in chosen]
        splits[split] = ([row["text"] for row in chosen], np.array(labels, np.float32))
    return splits


def read_omg(folder: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Read the validation transcripts of OMG-Emotion, and (N,2) valence and arousal; without utterances of no words."""
    transcripts = read_rows(folder / "omg_ValidationTranscripts.csv")
    texts = {(row["video"], row["utterance"]): row["transcript"].strip() for row in transcripts}
    videos = read_rows(folder / "omg_ValidationVideos.csv")
    rows = [row for row in videos if texts.get((row["video"], row["utterance"]))]
    labels = [[float(row["valence"]), float(row["arousal"])] for row in rows]
    return [texts[row["video"], row["utterance"]] for row in rows], np.array(labels, np.float32)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def train(vectors: NDArray[np.float32], labels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Train weights for :func:`rcma.experts.regress` with the squared error of standardised labels."""
    torch.manual_seed(SEED)
    mean, std = vectors.mean(axis=0), vectors.std(axis=0)
    std[std < 1e-6] = 1.0  # constant entries
    label_mean, label_std = labels.mean(axis=0), labels.std(axis=0)
    x, y = torch.from_numpy((vectors - mean) / std), torch.from_numpy((labels - label_mean) / label_std)
    hidden, output = nn.Linear(x.shape[1], HIDDEN), nn.Linear(HIDDEN, 2)
    network = nn.Sequential(nn.Dropout(INPUT_DROPOUT), hidden, nn.GELU(), nn.Dropout(HIDDEN_DROPOUT), output)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    n_steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=n_steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.mse_loss(network(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    # The weights include the standardisation and its inverse.
    layers = nn.ModuleDict({"hidden": hidden, "output": output})
    weights = {name: value.detach().numpy() for name, value in layers.named_parameters()}
    weights["hidden.bias"] = weights["hidden.bias"] - weights["hidden.weight"] @ (mean / std)
    weights["hidden.weight"] = weights["hidden.weight"] / std
    weights["output.weight"] = weights["output.weight"] * label_std[:, None]
    weights["output.bias"] = weights["output.bias"] * label_std + label_mean
    return weights


def score(predicted: NDArray[np.float32], labels: NDArray[np.float32]) -> dict[str, float]:
    """r and CCC of each target."""
    scores = {}
    for k, target in enumerate(("valence", "arousal")):
        scores[f"{target} r"] = round(float(np.corrcoef(predicted[:, k], labels[:, k])[0, 1]), 3)
        scores[f"{target} CCC"] = round(float(ccc(predicted[:, k], labels[:, k])), 3)
    return scores


def main() -> None:
    """Train, score, and write the result; with --save, the weights as well."""
    parser = argument_parser(__doc__)
    parser.add_argument("emobank", type=Path, help="CSV file with id, split, V, A, D, text")
    parser.add_argument("--omg", type=Path, help="folder of OMG-Emotion's CSV files")
    parser.add_argument("--save", action="store_true", help="write the weights into the package")
    args = parser.parse_args()
    encoder = SentenceEncoder()
    splits = read_emobank(args.emobank)
    vectors = {split: encoder.encode(texts) for split, (texts, _) in splits.items()}
    weights = train(vectors["train"], splits["train"][1])
    stored = {name: value.astype(np.float16 if value.ndim == 2 else np.float32) for name, value in weights.items()}
    read_back = {name: value.astype(np.float32) for name, value in stored.items()}
    measurements: list[Measurement] = [
        {"data": f"EmoBank, {split}", "sentences": len(texts), **score(regress(read_back, vectors[split]), labels)}
        for split, (texts, labels) in splits.items()
    ]
    if args.omg:
        texts, labels = read_omg(args.omg)
        scores = score(regress(read_back, encoder.encode(texts)), labels)
        measurements.append(
            {"data": "OMG-Emotion, validation transcripts, not trained on", "sentences": len(texts), **scores}
        )
    write_result("text-affect", measurements)
    if args.save:
        save_file(stored, WEIGHTS, metadata=describe(measurements))


def describe(measurements: Sequence[Measurement]) -> dict[str, str]:
    """Metadata of the weights, see :class:`rcma.experts.registry.Entry`."""
    scores = "; ".join(
        f"{m['data']}: r {m['valence r']:.3f} valence, {m['arousal r']:.3f} arousal"
        for m in measurements
        if m["data"] != "EmoBank, train"
    )
    return {
        "trained_on": "EmoBank, written English rated by readers, split train",
        "weights_licence": "CC BY-SA 4.0 (trained on EmoBank)",
        "scores": f"{scores} (ours)",
    }


if __name__ == "__main__":
    main()
