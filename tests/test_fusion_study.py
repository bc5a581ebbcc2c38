"""The study of fusions: the structure of the synthetic sequences, equal budgets, and one tiny run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from benchmark_modules import import_benchmark

SIZES = {"train": 192, "validation": 32, "test": 128}


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return import_benchmark("fusion_study")


def test_same_seed_same_sequences(study: ModuleType) -> None:
    sizes = {"train": 4, "test": 2}
    first, again, other = study.generate(3, sizes), study.generate(3, sizes), study.generate(4, sizes)
    for split, n in sizes.items():
        assert len(first[split].labels) == n
        np.testing.assert_array_equal(first[split].labels, again[split].labels)
        for m, embeddings in first[split].embeddings.items():
            np.testing.assert_array_equal(embeddings, again[split].embeddings[m])
    assert not np.array_equal(first["train"].labels, other["train"].labels)
    assert not np.array_equal(first["train"].labels[:2], first["test"].labels)


def test_labels_are_smooth_and_in_range(study: ModuleType) -> None:
    labels = study.generate(0, SIZES)["train"].labels
    assert labels.shape == (192, study.LENGTH, 2) and np.abs(labels).max() <= 1.0
    assert labels.std() > 0.4
    assert np.abs(np.diff(labels, axis=1)).mean() < 0.15 * labels.std()
    assert abs(np.corrcoef(labels[..., 0].ravel(), labels[..., 1].ravel())[0, 1]) < 0.15


def test_masks_are_as_promised(study: ModuleType) -> None:
    train = study.generate(0, SIZES)["train"]
    for m, mask in train.masks.items():
        assert train.embeddings[m].shape == (*mask.shape, study.WIDTHS[m])
        # What is not there is NaN, never something that looks like data.
        np.testing.assert_array_equal(np.isnan(train.embeddings[m]), np.repeat(~mask[..., None], study.WIDTHS[m], -1))
    assert train.masks["audio"].all()
    occluded = (~train.masks["face"]).sum(axis=1)
    assert occluded.min() >= 8 and occluded.max() <= 24
    words = train.masks["text"].sum(axis=1)
    assert words.min() >= 2 and words.max() <= 18
    assert 0.2 < train.flipped.mean() < 0.47


def test_sign_needs_face_and_voice_multiplied(study: ModuleType) -> None:
    splits = study.generate(0, SIZES)

    def few_signals(m: str) -> tuple[np.ndarray, np.ndarray]:
        """The directions of most variance, (N,L,8), of the training and the test embeddings."""
        train, test = (np.nan_to_num(splits[split].embeddings[m]) for split in ("train", "test"))
        _, _, directions = np.linalg.svd(train.reshape(-1, train.shape[-1]), full_matrices=False)
        return train @ directions[:8].T, test @ directions[:8].T

    def probe(*features: tuple[np.ndarray, np.ndarray]) -> float:
        """Correlation of valence in test sequences with least squares on features of the frame."""
        ones = [np.ones((*splits[split].labels.shape[:2], 1)) for split in ("train", "test")]
        train, test = (np.concatenate([f[k] for f in features] + [ones[k]], axis=-1) for k in (0, 1))
        weights, *_ = np.linalg.lstsq(
            train.reshape(-1, train.shape[-1]), splits["train"].labels[..., 0].ravel(), rcond=None
        )
        return float(np.corrcoef((test @ weights).ravel(), splits["test"].labels[..., 0].ravel())[0, 1])

    def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x[..., :, None] * y[..., None, :]).reshape(*x.shape[:2], -1)

    face, voice = few_signals("face"), few_signals("audio")
    whole_voice = tuple(np.broadcast_to(v.mean(axis=1, keepdims=True), v.shape) for v in voice)
    alone = probe(face)
    assert alone < 0.45
    assert probe(face, tuple(squares(f, f) for f in face)) < alone + 0.05
    assert probe(face, voice, whole_voice) < alone + 0.05
    assert probe(face, whole_voice, tuple(map(squares, face, whole_voice))) > alone + 0.25


def test_variants_differ_in_what_their_name_says(study: ModuleType) -> None:
    variants = study.variants()
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names) and study.REFERENCE in names
    settings = {(variant.settings.model_dump_json(), variant.modality_dropout) for variant in variants}
    assert len(settings) == len(variants)
    assert {variant.settings.length for variant in variants} == {study.LENGTH}
    assert len({variant.settings.tcn for variant in variants}) == 1


def test_budget_is_equal(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant is trained as often, as long and on the same; validation alone decides on the rate."""
    calls: dict[str, list[tuple[float, int, int, float]]] = {}

    def fake(variant, splits, *, rate, epochs, seed):
        calls.setdefault(variant.name, []).append((rate, epochs, seed, float(splits["train"].labels.sum())))
        validation, test = (0.6, 0.1) if rate == study.LEARNING_RATES[1] else (0.5, 0.9)
        return study.Outcome({"ccc": test, "ccc_validation": validation}, 1.0)

    monkeypatch.setattr(study, "run", fake)
    *_, rows = study.study(study.variants(), seeds=4, epochs=7, sizes={"train": 2})
    assert len({str(done) for done in calls.values()}) == 1
    done = calls[study.REFERENCE]
    assert [(rate, seed) for rate, _, seed, _ in done] == [
        *((rate, seed) for seed in range(study.SEARCH_SEEDS) for rate in study.LEARNING_RATES),
        *((study.LEARNING_RATES[1], seed) for seed in range(study.SEARCH_SEEDS, 4)),
    ]
    assert {row["ccc"] for row in rows} == {0.1} and {row["learning_rate"] for row in rows} == {study.LEARNING_RATES[1]}
    assert not any(row["significant"] for row in rows if row["name"] == study.REFERENCE)


def test_differences_are_paired(study: ModuleType) -> None:
    def outcomes(*values: float) -> list:
        return [study.Outcome({"ccc": value, "ccc_without_face": float("nan")}, 1.0) for value in values]

    variant = study.variants()[0]
    reference = outcomes(0.2, 0.5, 0.8)
    row = study.summarise(variant, outcomes(0.3, 0.61, 0.89), reference, rate=1e-3)
    # Differences .1, .11, .09: their deviation is .01, whatever that of the scores.
    assert row["difference"] == 0.1 and row["difference_std"] == 0.01 and row["significant"]
    assert row["difference_standard_error"] == round(0.01 / 3**0.5, 4)
    assert row["ccc_without_face"] is None
    assert not study.summarise(variant, outcomes(0.3, 0.4, 0.9), reference, rate=1e-3)["significant"]


def test_modality_dropout_hides_some_and_never_all(study: ModuleType) -> None:
    batch = study.generate(0, {"train": 192})["train"].batch()
    before = {key: value.clone() for key, value in batch.items()}
    modalities = ("face", "audio", "text")
    hidden = study.hide_modalities(batch, modalities, 0.5, np.random.default_rng(0))
    kept = torch.stack([hidden[f"{m}_mask"].any(dim=1) for m in modalities])
    assert kept.any(dim=0).all() and not kept.all(dim=1).any()
    assert not torch.equal(kept[:, 0], kept[:, 1])
    for m in modalities:
        whole = hidden[f"{m}_mask"].any(dim=1)
        assert torch.equal(hidden[f"{m}_mask"][whole], batch[f"{m}_mask"][whole])
    assert all(torch.equal(batch[key].nan_to_num(), value.nan_to_num()) for key, value in before.items())


@pytest.mark.usefixtures("one_thread")
def test_tiny_run(
    study: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.modules["measuring"], "RESULTS", tmp_path)
    monkeypatch.setattr(study, "N_SEQUENCES", {"train": 16, "validation": 4, "test": 4})
    names = ["face", "rcma, 2 steps", "rcma, modality dropout", "jca, its own head"]
    study.main(["--seeds", "2", "--epochs", "1", "--variants", *names])
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    out = capsys.readouterr().out
    assert json.loads(out.strip().splitlines()[-1]) == content and "differences of ccc to rcma, 2 steps" in out
    rows = {row["name"]: row for row in content["measurements"]}
    assert list(rows) == names
    assert rows["face"]["ccc_without_face"] is None and rows["face"]["ccc_without_text"] == rows["face"]["ccc"]
    # TCN 64 -> 16 (two weight-normalised convolutions of 7 taps, a residual), BatchNorm, head; no backbone.
    assert rows["face"]["parameters"] == (64 * 16 * 7 + 32) + (16 * 16 * 7 + 32) + (64 * 16 + 16) + 32 + 17 * 2
    assert rows["rcma, 2 steps"]["difference"] == 0.0
