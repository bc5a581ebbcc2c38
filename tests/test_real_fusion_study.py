"""The study on real labels: files to sessions, folds without leaks, paired comparisons, and one tiny run."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from benchmark_modules import import_benchmark

from preprocessing.errors import InputError
from rcma.metrics import ccc

VOICE, PICTURE = ("egemaps", "mfcc"), ("visual-func", "visual-vgg")
NAMES = ("Devel_DE_01", "Devel_DE_12", "a", "b", "c", "d")
"""Two ends of one conversation, and four conversations of one session each."""
N_ROWS = 420


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return import_benchmark("real_fusion_study")


def write_table(path: Path, values: np.ndarray) -> None:
    """(T,3) at 10 rows a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        f"'x';{k / 10:.6f};" + ";".join(f"{value:.6f}" for value in row) for k, row in enumerate(np.asarray(values))
    )
    path.write_text("name;timestamp;arousal;valence;liking\n" + "\n".join(rows) + "\n", encoding="utf-8")


def make_files(root: Path, names: tuple[str, ...] = NAMES) -> dict[str, np.ndarray]:
    """Systems that follow the labels (T,3), the picture less noisily; the labels end 20 rows before them."""
    random = np.random.default_rng(0)
    labels = {}
    for name in names:
        phase = random.uniform(0, 6, 3)
        labels[name] = 0.6 * np.sin(np.arange(N_ROWS)[:, None] * np.array([0.02, 0.03, 0.05]) + phase)
        write_table(root / "labels" / f"{name}.csv", labels[name][:-20])
        for system in (*VOICE, *PICTURE):
            noise = random.normal(0, 0.2 if system in PICTURE else 0.6, labels[name].shape)
            write_table(root / system / f"{name}.csv", labels[name] + noise)
    return labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    root = tmp_path_factory.mktemp("ces")
    return root, make_files(root)


@pytest.fixture(scope="module")
def sessions(study: ModuleType, data: tuple, tmp_path_factory: pytest.TempPathFactory) -> list:
    return study.read_sessions(data[0], tmp_path_factory.mktemp("features"))


def test_sessions_hold_what_the_files_say(sessions: list, data: tuple) -> None:
    root, labels = data
    assert [s.name for s in sessions] == sorted(NAMES)
    for session in sessions:
        expected = labels[session.name].reshape(-1, 2, 3).mean(axis=1)
        np.testing.assert_allclose(session.labels[:-10], expected[:-10, :2], atol=1e-5)
        assert np.isnan(session.labels[-10:]).all()
        features = session.videos["plain"].features()
        np.testing.assert_allclose(features.time_s, 0.05 + np.arange(N_ROWS // 2) / 5)
        assert {m: v.shape for m, v in features.vectors.items()} == {"face": (210, 6), "audio": (210, 6)}
        table = np.genfromtxt(root / "visual-vgg" / f"{session.name}.csv", delimiter=";", skip_header=1)[:, 2:]
        np.testing.assert_allclose(features.vectors["face"][:, 3:], table.reshape(-1, 2, 3).mean(axis=1), atol=1e-5)
        twice = session.videos["picture twice"].features().vectors
        np.testing.assert_array_equal(twice["audio"], features.vectors["face"])


def test_means_of_sides_are_those_of_the_rows_there(study: ModuleType) -> None:
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    side = sys.modules["sessions"].SIDE_ROWS
    found = sys.modules["sessions"].with_means_of_sides(x)
    for t in range(len(x)):
        before, after = x[max(0, t - side) : t + 1].mean(axis=0), x[t : t + side + 1].mean(axis=0)
        np.testing.assert_allclose(found[t], [*x[t], *before, *after], rtol=1e-4, atol=1e-5)


def test_files_that_cannot_be_used_are_named(study: ModuleType, tmp_path: Path) -> None:
    make_files(tmp_path, ("a",))
    (tmp_path / "mfcc" / "a.csv").write_text("name;timestamp;arousal\nx;0;high\n")
    with pytest.raises(InputError, match=r"mfcc.a\.csv: columns timestamp, arousal, valence, liking"):
        study.read_sessions(tmp_path, tmp_path / "features")
    with pytest.raises(InputError, match="visual"):
        study.read_sessions(tmp_path / "labels", tmp_path / "features")


def test_no_conversation_is_on_two_sides_of_a_fold(study: ModuleType, sessions: list) -> None:
    folds = study.divide(sessions)
    assert sorted(s.name for fold in folds for s in fold.test) == sorted(NAMES)
    for fold in folds:
        sides = [{s.conversation for s in part} for part in (fold.train, fold.validation, fold.test)]
        assert all(sides) and sum(map(len, sides)) == len(set.union(*sides)) == 5
    with pytest.raises(InputError, match="folds"):
        study.divide(sessions[:4])
    others = study.held_out_fold(sessions[1:], sessions[:1])
    assert len(others.train) + len(others.validation) == 5 and others.test == sessions[:1]


@pytest.mark.parametrize("name", ["picture", "concat, look-ahead", "rcma, 2 steps"])
def test_a_training_looks_at_no_test_label_and_can_be_repeated(study: ModuleType, sessions: list, name: str) -> None:
    fold = study.divide(sessions)[0]
    blind = [
        study.Session(
            s.name,
            s.conversation,
            {view: type(v)(v.folder, np.full_like(v.labels, np.nan)) for view, v in s.videos.items()},
            s.untrained,
        )
        for s in fold.test
    ]
    system = study.systems()[name]
    reached, predictions = study.train_network(system, fold, fold.name, rate=1e-2, seed=3, epochs=2)
    hidden = study.Fold(fold.name, fold.train, fold.validation, blind)
    again, others = study.train_network(system, hidden, fold.name, rate=1e-2, seed=3, epochs=2)
    assert reached == again and predictions.keys() == {s.name for s in fold.test}
    for session in fold.test:
        assert predictions[session.name].shape == (210, 2)
        np.testing.assert_array_equal(predictions[session.name], others[session.name])
    ridge, blinded = study.fit_ridge(fold, ("face",)), study.fit_ridge(hidden, ("face",))
    assert all(np.array_equal(ridge[key], blinded[key]) for key in ridge)


def make_units(seed: int, noise: float, labels: list[np.ndarray]) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [(y + random.normal(0, noise, y.shape)).astype(np.float32) for y in labels]


def test_comparisons(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    comparisons = sys.modules["comparisons"]
    random = np.random.default_rng(0)
    labels = [random.normal(size=(30, 2)).astype(np.float32) for _ in range(6)]
    good, bad = ([make_units(seed, noise, labels) for seed in (1, 2)] for noise in (0.3, 1.0))
    scores = comparisons.pooled_ccc(good, labels)
    expected = ccc(np.concatenate(good[1])[:, 1], np.concatenate(labels)[:, 1])
    assert scores.shape == (2, 1, 2) and scores[1, 0, 1] == pytest.approx(expected, abs=1e-9)
    resampled = comparisons.bootstrap(good, labels), comparisons.bootstrap(bad, labels)
    found = comparisons.compare(good, bad, labels, resampled=resampled)
    assert 0 < found.low < found.mean < found.high and found.significant
    same = comparisons.compare(good, good, labels, resampled=(resampled[0], resampled[0]))
    assert same.mean == 0 and not same.significant

    # All ways to exchange predictions, written out.
    differences = []
    for way in itertools.product((False, True), repeat=6):
        sides = []
        for swap in (False, True):
            chosen = [
                [(b if flip != swap else a)[c] for c, flip in enumerate(way)] for a, b in zip(good, bad, strict=True)
            ]
            sides.append(
                np.mean([ccc(np.concatenate(u)[:, k], np.concatenate(labels)[:, k]) for u in chosen for k in (0, 1)])
            )
        differences.append(abs(sides[0] - sides[1]))
    expected = np.mean(np.array(differences) >= differences[0] - 1e-9)
    assert comparisons.sign_flip_test(good, bad, labels) == pytest.approx(expected)
    assert comparisons.sign_flip_test(good, good, labels) == 1.0
    monkeypatch.setattr(comparisons, "MAX_EXACT", 5)
    assert comparisons.sign_flip_test(good, bad, labels) == pytest.approx(expected, abs=0.1)


@pytest.mark.usefixtures("one_thread")
def test_tiny_run_resumes_and_predicts_others(
    study: ModuleType, data: tuple, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["measuring"], "RESULTS", tmp_path / "results")
    monkeypatch.setattr(study, "LEARNING_RATES", (1e-2,))
    names = ["picture", "concat", "rcma, 2 steps"]
    root, _ = data
    command = [str(root), "--epochs", "1", "--systems", *names, "--keep", str(tmp_path / "keep"), "--seeds"]
    study.main([*command, "1", "--contrast-seeds", "2"])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "keep").rglob("output.pkl")}
    assert len(kept) == 5 * (1 + 2 + 2)
    study.main([*command, "1", "--contrast-seeds", "2"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "keep").rglob("output.pkl")} == kept
    (path,) = (tmp_path / "results").iterdir()
    content = json.loads(path.read_text())
    *rows, contrast = content["measurements"]
    assert [row["system"] for row in rows][-3:] == names and [row["seeds"] for row in rows][-3:] == [1, 2, 2]
    assert contrast["contrast"] == ["rcma, 2 steps", "concat"] and 0 < contrast["sign_flip_p"] <= 1
    scores = {row["system"]: row["mean"] for row in rows}
    assert contrast["difference"] == pytest.approx(scores["rcma, 2 steps"] - scores["concat"], abs=2e-4)

    make_files(tmp_path / "others", ("x", "y"))
    (tmp_path / "others" / "labels" / "y.csv").unlink()
    held_out = ["--held-out", str(tmp_path / "others"), "--out", str(tmp_path / "predictions"), "--keep", str(tmp_path)]
    study.main([str(root), "--epochs", "1", "--systems", "picture", "--seeds", "1", "--contrast-seeds", "1", *held_out])
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == ["x.csv", "y.csv"]
    assert len((tmp_path / "predictions" / "y.csv").read_text().splitlines()) == 1 + N_ROWS // 2
    assert sum("held-out" in path.name for path in (tmp_path / "results").iterdir()) == 1
    assert "picture" in capsys.readouterr().out
