"""The benchmark on OMG-Emotion's transcripts, on made files and made utterances: no real data, no model."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocessing.errors import InputError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
omg = importlib.import_module("omg_text")
results = importlib.import_module("results")

LABELS = "link,start,end,video,utterance,arousal,valence,EmotionMaxVote\n"
TRANSCRIPTS = "link,video,utterance,transcript\n"
VOCABULARY = ("glad", "sad", "calm", "wild", "the", "of", "and", "a", "so", "to")
TINY = omg.TextSettings(
    channels=(8,), kernel_size=2, hidden=0, dropout=0.0, word_dropout=0.0, learning_rate=2e-2, epochs=8, batch=60
)


def vectors(words: Sequence[str]) -> np.ndarray:
    """float16 (W, 10): one-hot."""
    return np.eye(len(VOCABULARY), dtype=np.float16)[[VOCABULARY.index(word) for word in words]]


class FakeEncoder:
    def __init__(self, settings: object = None, *, device: str = "cpu") -> None:
        pass

    def encode(self, words: Sequence[str]) -> np.ndarray:
        return vectors(words)


def made_utterances(links: Sequence[str], *, each: int, seed: int) -> list:
    """ "glad" and "sad" tell valence, "wild" and "calm" arousal; the other words and half of the labels are chance.

    A segment is three utterances long.
    """
    rng = np.random.default_rng(seed)
    utterances = []
    for link in links:
        for place in range(each):
            valence, arousal = rng.integers(0, 2, 2)
            words = [("sad", "glad")[valence], ("calm", "wild")[arousal], *rng.choice(VOCABULARY[4:], 4)]
            rng.shuffle(words)
            labels = (0.3 + 0.4 * arousal + rng.normal(0, 0.1), -0.4 + 0.8 * valence + rng.normal(0, 0.2))
            if place == each - 1:
                words = []
            utterances.append(omg.Utterance(link, f"s{place // 3}", float(place), tuple(map(str, words)), labels))
    return utterances


def write_split(folder: Path, split: str, utterances: Sequence) -> None:
    labels, transcripts = LABELS, TRANSCRIPTS
    for n, u in enumerate(utterances):
        labels += f"{u.link},{u.start_s},{u.start_s + 1},{u.segment},utterance_{n}.mp4,{u.labels[0]},{u.labels[1]},4\n"
        transcripts += f'"{u.link}",{u.segment},utterance_{n}.mp4,"{" ".join(u.words)}"\n'
    (folder / f"omg_{split}Videos.csv").write_text(labels)
    (folder / f"omg_{split}Transcripts.csv").write_text(transcripts)


# ---- files


def test_a_split_is_read_in_the_order_of_its_labels(tmp_path: Path) -> None:
    (tmp_path / "omg_TrainVideos.csv").write_text(
        LABELS + "https://y/1,0.5,1,v,utterance_2.mp4,0.25,-0.5,4\n"
        "https://y/1,1.5,2,v,utterance_1.mp4,0.5,0,4\n"
        "https://y/2,0,1,w,utterance_1.mp4,1,1,4\n"
        "https://y/2,1,2,w,utterance_2.mp4,0,-1,4\n"
    )
    (tmp_path / "omg_TrainTranscripts.csv").write_text(
        TRANSCRIPTS + '"https://y/1",v,utterance_1.mp4,"he said ""no, never"" I\'m told "\n'
        '"https://y/1",v,utterance_2.mp4,"one,two three"\n'
        '"https://y/1",v,utterance_9.mp4,"has no label"\n'
        '"https://y/2",w,utterance_1.mp4,""\n'
    )
    assert omg.read_split(tmp_path, "Train") == [
        omg.Utterance("https://y/1", "v", 0.5, ("one,two", "three"), (0.25, -0.5)),
        omg.Utterance("https://y/1", "v", 1.5, ("he", "said", '"no,', 'never"', "I'm", "told"), (0.5, 0.0)),
        omg.Utterance("https://y/2", "w", 0.0, (), (1.0, 1.0)),
        omg.Utterance("https://y/2", "w", 1.0, (), (0.0, -1.0)),
    ]


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"omg_TrainTranscripts\.csv: cannot be read"):
        omg.read_split(tmp_path, "Train")
    (tmp_path / "omg_TrainTranscripts.csv").write_text(TRANSCRIPTS)
    (tmp_path / "omg_TrainVideos.csv").write_text("link,video,utterance,start,arousal\n")
    with pytest.raises(InputError, match=r"omg_TrainVideos\.csv: no column 'valence'"):
        omg.read_split(tmp_path, "Train")
    (tmp_path / "omg_TrainVideos.csv").write_text(LABELS + "l,0,1,v,u,high,0,4\n")
    with pytest.raises(InputError, match=r"omg_TrainVideos\.csv: utterance 1: .* must be numbers"):
        omg.read_split(tmp_path, "Train")


def test_without_data_one_line_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RCMA_OMG", raising=False)
    monkeypatch.setattr(omg, "DATA", tmp_path / "absent")
    with pytest.raises(SystemExit, match=r"^[^\n]*RCMA_OMG[^\n]*--data[^\n]*$"):
        omg.main([])
    monkeypatch.setenv("RCMA_OMG", str(tmp_path))
    assert omg.data_folder(None) == tmp_path
    assert omg.data_folder(Path("given")) == Path("given")


# ---- videos


@pytest.mark.parametrize("unit", ["segment", "link"])
def test_folds_never_divide_a_unit_and_hold_out_everything_once(unit: str) -> None:
    # Every video has a segment "s0": segments of one name in two videos are two segments.
    utterances = [u for n in range(12) for u in made_utterances([f"l{n}"], each=1 + n, seed=n)]
    held, divided = [], 0
    for fit, rest in omg.folds(utterances, unit):
        both = {(utterances[i].link, utterances[i].segment) for i in fit} & {
            (utterances[i].link, utterances[i].segment) for i in rest
        }
        assert not both
        divided += len({utterances[i].link for i in fit} & {utterances[i].link for i in rest})
        assert sorted([*fit, *rest]) == list(range(len(utterances)))
        held += list(rest)
    assert sorted(held) == list(range(len(utterances)))
    assert (divided == 0) == (unit == "link")


def test_leak_free_are_the_utterances_of_unseen_videos() -> None:
    train = made_utterances(["a", "b"], each=2, seed=0)
    validation = made_utterances(["b", "c", "a"], each=2, seed=1)
    assert omg.leak_free(validation, train).tolist() == [False, False, True, True, False, False]


def test_context_is_of_the_same_video_and_fades_with_the_distance_in_time() -> None:
    utterances = [
        omg.Utterance(link, "s", start, (), (0.0, 0.0)) for link, start in [("a", 9), ("b", 1), ("a", 0), ("a", 4)]
    ]
    expected = [[1, 0, 0.25, 0.5], [0, 1, 0, 0], [0.25, 0, 1, 0.5], [0.5, 0, 0.5, 1]]
    assert omg.context_weights(utterances, 0.5).tolist() == expected
    assert omg.context_weights(utterances, 0.0).tolist() == np.eye(4).tolist()


def test_batches_are_whole_videos_and_all_of_them() -> None:
    utterances = [u for n in range(20) for u in made_utterances([f"l{n}"], each=1 + n % 7, seed=n)]
    batches = list(omg._batches(utterances, 15, np.random.default_rng(0)))
    assert len(batches) > 1 and all(len(batch) >= 15 // 2 for batch in batches)
    assert sorted(i for batch in batches for i in batch) == list(range(len(utterances)))
    links = [{utterances[i].link for i in batch} for batch in batches]
    assert sum(map(len, links)) == len(set.union(*links))


# ---- choices and scores


def test_spread_reaches_the_correlation_and_stands_a_constant() -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(0.2, 0.3, 200)
    prediction = 5 + 0.1 * (labels + rng.normal(0, 0.3, 200))
    assert omg.spread_ccc(prediction, labels) == pytest.approx(np.corrcoef(prediction, labels)[0, 1])
    assert omg.spread_as(np.full(200, 3.0), labels) == (pytest.approx(labels.mean()), 0.0)
    assert omg.spread_ccc(np.full(200, 3.0), labels) == -1.0


def test_each_target_has_its_own_best_epoch() -> None:
    labels = np.array([[0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 0.0, 2.0]]).T
    worse, best = labels[[1, 0, 2, 3]], 2 * labels
    curve = np.stack([np.stack([worse[:, 0], best[:, 1]], 1), np.stack([best[:, 0], worse[:, 1]], 1), worse])
    arousal, valence = omg.best_epochs(curve, labels)
    assert (arousal.epochs, arousal.score) == (2, pytest.approx(1.0))
    assert (valence.epochs, valence.score) == (1, pytest.approx(1.0))


def test_a_row_counts_every_utterance_and_the_leak_free_ones_apart() -> None:
    validation = [omg.Utterance(str(n), "s", 0.0, (), (n / 10, n / 5 - 1)) for n in range(10)]
    fresh = np.arange(10) >= 5
    prediction = omg.labels_of(validation)
    prediction[:5] *= -1
    measured = omg.row("r", prediction, validation, fresh)
    assert measured["arousal_ccc_leak_free"] == measured["valence_ccc_leak_free"] == 1.0
    assert measured["arousal_ccc"] < 1.0 and measured["valence_ccc"] < 1.0
    assert omg.row("r", np.zeros((10, 2)), validation, fresh)["arousal_ccc"] is None


def test_an_interval_comes_from_videos_not_utterances() -> None:
    rng = np.random.default_rng(0)
    utterances = made_utterances([f"l{n}" for n in range(6)], each=30, seed=0)
    labels = omg.labels_of(utterances)
    noisy = labels + rng.normal(0, labels.std(axis=0), labels.shape)
    assert omg.interval(labels, utterances, 20) == {"arousal_ccc_interval": [1, 1], "valence_ccc_interval": [1, 1]}
    low, high = omg.interval(noisy, utterances, 200)["valence_ccc_interval"]
    assert low < omg.ccc(noisy[:, 1], labels[:, 1]) < high
    one_video = [replace(u, link="l") for u in utterances]  # drawing the only video changes nothing
    low, high = omg.interval(noisy, one_video, 20)["valence_ccc_interval"]
    assert low == high == pytest.approx(omg.ccc(noisy[:, 1], labels[:, 1]), abs=1e-4)


# ---- regression on averaged vectors


def test_pooled_vectors_are_means_over_words_not_over_utterances() -> None:
    utterances = [omg.Utterance(link, "s", start, words, (0.5, 0.0)) for link, start, words in [
        ("a", 0.0, ("glad", "sad", "sad")), ("a", 1.0, ("glad",)), ("a", 2.0, ()), ("b", 0.0, ())]]  # fmt: skip
    found = omg.pooled(omg.encode(utterances, FakeEncoder()), 0.5)
    expected = np.zeros((4, 2, len(VOCABULARY)))
    expected[:, 0, :2] = [[1 / 3, 2 / 3], [1, 0], [0, 0], [0, 0]]
    expected[:, 1, :2] = [[1.5 / 3.5, 2 / 3.5], [1.5 / 2.5, 1 / 2.5], [0.75 / 1.25, 0.5 / 1.25], [0, 0]]
    assert found == pytest.approx(expected.reshape(4, -1))
    assert omg.pooled(omg.encode(utterances, FakeEncoder()), 0.0) == pytest.approx(expected[:, 0])


@pytest.mark.parametrize("width", [None, 2.0])
def test_regression_is_its_closed_form(width: float | None) -> None:
    train = omg.encode(made_utterances(["a", "b", "c"], each=12, seed=0), FakeEncoder())
    new = omg.encode(made_utterances(["d"], each=12, seed=1), FakeEncoder())
    x, z, y = omg.pooled(train, 0.7), omg.pooled(new, 0.7), omg.labels_of(train.utterances)
    x, z = (x - x.mean(axis=0)) / x.std(axis=0), (z - x.mean(axis=0)) / x.std(axis=0)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if width is None:
            return a @ b.T
        return np.exp(-width * np.square(a[:, None] - b).mean(axis=2))

    expected = y.mean(axis=0) + kernel(z, x) @ np.linalg.solve(kernel(x, x) + 3 * np.eye(36), y - y.mean(axis=0))
    assert omg.Regression(3.0, width, 0.7).predict(train, new) == pytest.approx(expected)


@pytest.mark.parametrize("unit", ["segment", "link"])
def test_held_out_predictions_never_saw_the_labels_of_their_unit(unit: str) -> None:
    utterances = made_utterances([f"l{n}" for n in range(10)], each=9, seed=0)
    changed = [replace(u, labels=(1.0, 1.0)) if (u.link, u.segment) == ("l4", "s1") else u for u in utterances]
    before, after = (
        omg.Regression(1.0, 1.0).held_out(omg.encode(made, FakeEncoder()), unit) for made in (utterances, changed)
    )
    unseen = [u.link == "l4" and (unit == "link" or u.segment == "s1") for u in utterances]
    assert np.array_equal(before[unseen], after[unseen]) and not np.allclose(before, after)


# ---- network


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_planted_word_is_learnt(hidden: int) -> None:
    train = omg.encode(made_utterances([f"t{n}" for n in range(30)], each=8, seed=0), FakeEncoder())
    new = omg.encode(made_utterances([f"v{n}" for n in range(10)], each=8, seed=1), FakeEncoder())
    predictions = omg.train_network(train, replace(TINY, hidden=hidden), seed=0, watched=new)
    assert predictions.shape == (TINY.epochs, 80, 2) and np.isfinite(predictions).all()
    labels = omg.labels_of(new.utterances)
    assert all(omg.ccc(predictions[-1, :, k], labels[:, k]) > 0.6 for k in range(2))


def test_an_utterance_is_predicted_the_same_in_any_company() -> None:
    corpus = omg.encode(made_utterances(["a", "b", "c"], each=30, seed=0), FakeEncoder())
    torch.manual_seed(0)
    net = omg.TextNet(replace(TINY, hidden=8), corpus).eval()
    with torch.inference_mode():
        together = net(corpus)
        alone = torch.cat([net(corpus.part([i])) for i in range(90)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_context_reaches_utterances_without_words_of_the_same_video_only() -> None:
    utterances = [omg.Utterance(link, "s", start, words, (0.5, 0.0)) for link, start, words in [
        ("a", 0.0, ("glad", "so")), ("a", 1.0, ()), ("b", 0.0, ("sad",)), ("b", 1.0, ()), ("c", 0.0, ())]]  # fmt: skip
    corpus = omg.encode(utterances, FakeEncoder())
    torch.manual_seed(0)
    alone, in_context = omg.TextNet(TINY, corpus).eval(), omg.TextNet(replace(TINY, decay=0.8), corpus).eval()
    with torch.inference_mode():
        apart, mixed = alone(corpus), in_context(corpus)
        assert torch.equal(apart[1], apart[3]) and torch.equal(apart[1], apart[4])
        assert not torch.equal(mixed[1], mixed[3]) and torch.equal(mixed[4], in_context.last.bias)
        assert torch.allclose(in_context(corpus.part([0, 1]))[1], mixed[1], atol=1e-6)


def test_the_whole_run_on_made_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((BENCHMARKS / "results").iterdir())
    write_split(tmp_path, "Train", made_utterances([f"l{n}" for n in range(15)], each=6, seed=0))
    write_split(tmp_path, "Validation", made_utterances([f"l{n}" for n in range(10, 20)], each=6, seed=1))
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(omg, "WordEncoder", FakeEncoder)
    monkeypatch.setattr(omg, "SEEDS", 2)
    monkeypatch.setattr(omg, "CANDIDATES", (replace(TINY, epochs=2), replace(TINY, hidden=8, epochs=4)))
    monkeypatch.setattr(omg, "CANDIDATES_IN_CONTEXT", (replace(TINY, epochs=3, decay=0.5),))
    omg.main(["--data", str(tmp_path)])

    (file,) = (tmp_path / "results").iterdir()
    data, *rows = json.loads(file.read_text())["measurements"]
    assert data == {
        "name": "data", "train": 90, "train_links": 15, "train_segments": 30, "validation": 60,
        "validation_leak_free": 30, "without_words": [15, 10],
    }  # fmt: skip
    by_name = {measured["name"]: measured for measured in rows}
    assert by_name["constant"]["arousal_ccc"] is None
    chosen = ("vectors + ridge", "kernel ridge", "text", "kernel ridge, in context", "text, in context")
    for name in ("tf-idf + ridge", *chosen):
        assert {f"{t}_ccc{part}" for t in omg.TARGETS for part in ("", "_leak_free")} <= by_name[name].keys()
        low, high = by_name[name]["valence_ccc_interval"]
        assert low <= by_name[name]["valence_ccc"] <= high
    for name in chosen:
        assert {"arousal_ccc_held_out", "valence_ccc_held_out"} <= by_name[name].keys()
    assert by_name["kernel ridge"]["valence_ccc_held_out_links"] <= 1 and by_name["kernel ridge"]["candidates"]
    assert by_name["text"]["valence_ccc_held_out_links_one_seed"] <= 1 and by_name["text"]["seeds"] == 2
    assert by_name["text"]["valence_ccc_one_seed_std"] >= 0
    assert by_name["text"]["valence_epochs"] <= 4 and len(by_name["text"]["candidates"]) == 2
    output = capsys.readouterr().out
    assert "leak-free" in output and "segments held out" in output and "text, in context" in output
    assert sorted((BENCHMARKS / "results").iterdir()) == before
