from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from preprocessing.errors import InputError
from rcma import cli
from rcma.abaw import write_per_video
from rcma.evaluate import (
    MIN_VIDEOS_FOR_INTERVALS,
    Measures,
    as_json,
    compare_disagreement,
    evaluate,
    resampled_ccc,
)
from rcma.metrics import ccc
from rcma.output.table import open_table
from rcma.prediction.postprocess import Prediction

Arrays = dict[str, np.ndarray]


def reference(x: np.ndarray, y: np.ndarray) -> float:
    covariance = np.cov(x, y, ddof=0)
    return 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (x.mean() - y.mean()) ** 2)


@pytest.fixture
def labels() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    made = {name: random.uniform(-1, 1, (n, 2)) + shift for name, n, shift in (("a", 40, -0.3), ("b", 90, 0.4))}
    made["a"][3:9] = np.nan
    return made


def test_score_is_over_the_concatenation_not_the_mean_over_videos(labels):
    random = np.random.default_rng(2)
    predicted = {name: np.nan_to_num(values) + random.normal(0, 0.3, values.shape) for name, values in labels.items()}
    scores = evaluate(predicted, labels)
    kept = ~np.isnan(labels["a"][:, 0])
    expected = []
    for k in range(2):
        x = np.concatenate([predicted["a"][kept, k], predicted["b"][:, k]])
        y = np.concatenate([labels["a"][kept, k], labels["b"][:, k]])
        expected.append(reference(x, y))
    of_a = reference(predicted["a"][kept, 0], labels["a"][kept, 0])
    of_b = reference(predicted["b"][:, 0], labels["b"][:, 0])
    assert scores.ccc["valence"] == pytest.approx(expected[0], abs=1e-12)
    assert scores.ccc["arousal"] == pytest.approx(expected[1], abs=1e-12)
    assert scores.mean.ccc == pytest.approx(sum(expected) / 2, abs=1e-12)
    assert abs((of_a + of_b) / 2 - scores.ccc["valence"]) > 0.01
    assert (len(scores.videos), scores.n_frames, scores.warnings) == (2, 124, ())


def test_lengths_that_differ_and_videos_missing_on_a_side_are_reported(labels):
    predicted = {"a": np.nan_to_num(labels["a"][:30]), "c": np.zeros((5, 2))}
    scores = evaluate(predicted, labels)
    assert (scores.ccc["valence"], len(scores.videos), scores.n_frames) == (pytest.approx(1.0), 1, 24)
    reported = " | ".join(scores.warnings)
    assert "a: 30 predictions, 40 annotated rows" in reported
    assert "b: no predictions" in reported and "c: no annotation" in reported


def test_annotated_frame_without_prediction_has_no_score(labels):
    predicted = {name: np.nan_to_num(values) for name, values in labels.items()}
    predicted["b"][5, 1] = np.nan
    scores = evaluate(predicted, labels)
    assert scores.ccc["valence"] == pytest.approx(1.0)
    assert math.isnan(scores.ccc["arousal"]) and math.isnan(scores.mean.ccc)
    assert scores.warnings == ("b: 1 annotated frames have no prediction: CCC is undefined",)
    valence, of_labels = ({name: x[:, :1] for name, x in side.items()} for side in (predicted, labels))
    scores = evaluate(valence, of_labels, targets=("liking",))
    assert scores.ccc == {"liking": pytest.approx(1.0)} and scores.mean.ccc == scores.ccc["liking"]
    assert scores.warnings == ()


def test_nothing_in_common_is_refused(labels):
    with pytest.raises(InputError, match=r"x.*a, b"):
        evaluate({"x": np.zeros((3, 2))}, labels)
    with pytest.raises(InputError, match="none"):
        evaluate({}, labels)


def made_set(n_videos: int, *, seed: int, offset: float = 0.0) -> tuple[Arrays, Arrays]:
    """Predictions that follow labels about as well in every video; a tenth of the frames is not annotated."""
    random = np.random.default_rng(seed)
    predicted, labels = {}, {}
    for k in range(n_videos):
        n = int(random.integers(20, 60))
        wave = np.cumsum(random.normal(0, 0.1, (n, 2)), axis=0) + random.normal(0, 0.3, 2)
        labels[f"v{k:02d}"] = np.where(random.random((n, 1)) < 0.1, np.nan, wave) + offset
        predicted[f"v{k:02d}"] = 0.7 * wave + random.normal(0, 0.15, (n, 2)) + offset
    return predicted, labels


def slowly_resampled(predicted: list[np.ndarray], labels: list[np.ndarray], draws: np.ndarray) -> np.ndarray:
    """CCC of the concatenated videos of each draw."""
    values = []
    for draw in draws:
        x, y = np.concatenate([predicted[v] for v in draw]), np.concatenate([labels[v] for v in draw])
        values.append([ccc(x[:, k], y[:, k]) for k in range(2)])
    return np.array(values)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_resampled_ccc_is_the_ccc_of_the_concatenated_videos(offset: float):
    predicted, labels = (list(side.values()) for side in made_set(8, seed=0, offset=offset))
    draws = np.random.default_rng(1).integers(8, size=(50, 8))
    fast = resampled_ccc(predicted, labels, draws=draws)
    np.testing.assert_allclose(fast, slowly_resampled(predicted, labels, draws), atol=1e-12 if offset == 0 else 1e-7)
    assert len(np.unique(fast[:, 0])) > 40, "the draws differ"


@pytest.mark.filterwarnings("error")
def test_resampled_ccc_is_undefined_where_the_ccc_of_the_concatenated_videos_is():
    predicted, labels = (list(side.values()) for side in made_set(5, seed=0))
    labels[0][:, 0] = 0.1  # constant: alone it has no CCC, together with another it has
    labels[1][:] = np.nan  # nothing annotated
    predicted[2][np.flatnonzero(~np.isnan(labels[2][:, 1]))[0], 1] = np.nan  # an annotated frame without prediction
    predicted[3][:] = 0.3
    draws = np.array([[0, 0, 0], [0, 4, 4], [1, 1, 1], [2, 4, 0], [3, 3, 3], [3, 4, 1], [0, 1, 0], [4, 4, 4]])
    fast, slow = resampled_ccc(predicted, labels, draws=draws), slowly_resampled(predicted, labels, draws)
    np.testing.assert_allclose(fast, slow, atol=1e-12)
    assert np.isnan(slow).sum(axis=1).tolist() == [1, 0, 2, 1, 2, 0, 1, 0]


def test_intervals_lie_around_the_score_and_shrink_with_more_videos():
    widths = []
    for n_videos in (24, 384):
        predicted, labels = made_set(n_videos, seed=3)
        scores = evaluate(predicted, labels, n_resamples=200)
        for name, measures in {**scores.by_target, "mean": scores.mean}.items():
            low, high = scores.intervals.ends[name]
            assert -1 <= low < measures.ccc < high <= 1
        low, high = scores.intervals.ends["mean"]
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0], "a quarter is expected of sixteen times as many"


def test_same_seed_gives_the_same_intervals_whatever_the_order_of_the_videos():
    predicted, labels = made_set(24, seed=6)
    first = evaluate(predicted, labels, n_resamples=200)
    again = evaluate(dict(reversed(predicted.items())), dict(reversed(labels.items())), n_resamples=200)
    assert first == again
    assert evaluate(predicted, labels, n_resamples=200, seed=1).intervals != first.intervals


def test_interval_has_the_percentiles_of_slow_resampling():
    predicted, labels = made_set(24, seed=7)
    intervals = evaluate(predicted, labels, n_resamples=60, seed=8).intervals
    draws = np.random.default_rng(8).integers(24, size=(60, 24))
    values = slowly_resampled(list(predicted.values()), list(labels.values()), draws)
    for k, name in enumerate(("valence", "arousal")):
        assert intervals.ends[name] == pytest.approx(np.percentile(values[:, k], [2.5, 97.5]))
    assert intervals.ends["mean"] == pytest.approx(np.percentile(values.mean(axis=1), [2.5, 97.5]))
    assert (intervals.n_resamples, intervals.seed) == (60, 8)


def test_few_videos_have_no_interval():
    n = MIN_VIDEOS_FOR_INTERVALS
    predicted, labels = made_set(n, seed=9)
    assert evaluate(predicted, labels, n_resamples=200).intervals is not None
    labels["v00"][:] = np.nan  # a video without annotated frames is none
    assert evaluate(predicted, labels, n_resamples=200).intervals is None


def test_measures_agree_with_independent_ones(labels: Arrays):
    random = np.random.default_rng(2)
    predicted = {name: np.nan_to_num(values) + random.normal(0, 0.3, values.shape) for name, values in labels.items()}
    scores = evaluate(predicted, labels)
    x = np.concatenate([predicted["a"], predicted["b"]])
    y = np.concatenate([labels["a"], labels["b"]])
    kept = ~np.isnan(y[:, 0])
    for k, target in enumerate(("valence", "arousal")):
        measures = scores.by_target[target]
        assert measures.pcc == pytest.approx(scipy.stats.pearsonr(x[kept, k], y[kept, k]).statistic)
        assert measures.rmse == pytest.approx(np.sqrt(((x - y)[kept, k] ** 2).mean()))
    valence, arousal = scores.by_target.values()
    assert scores.mean.pcc == pytest.approx((valence.pcc + arousal.pcc) / 2)
    assert scores.mean.rmse == pytest.approx((valence.rmse + arousal.rmse) / 2)


def test_each_video_is_scored_by_itself(labels: Arrays):
    predicted = {"a": np.nan_to_num(labels["a"][:30]) + 0.1, "b": np.vstack([labels["b"], np.zeros((2, 2))])}
    labels["b"][:, 1] = 0.25  # constant: correlation says nothing there, an error can still be told
    a, b = evaluate(predicted, labels).videos
    kept = [k for k in range(30) if not 3 <= k < 9]
    expected = reference(predicted["a"][kept, 0], labels["a"][kept, 0])
    assert (a.video_id, a.n_predicted, a.n_annotation_rows, a.n_not_annotated, a.n_compared) == ("a", 30, 40, 6, 24)
    assert (b.video_id, b.n_predicted, b.n_annotation_rows, b.n_not_annotated, b.n_compared) == ("b", 92, 90, 0, 90)
    of_a, of_b = a.by_target, b.by_target
    assert (of_a["valence"].ccc, of_a["valence"].pcc, of_a["valence"].rmse) == pytest.approx((expected, 1.0, 0.1))
    assert of_b["valence"] == Measures(ccc=pytest.approx(1.0), pcc=pytest.approx(1.0), rmse=0.0)
    assert math.isnan(of_b["arousal"].ccc) and math.isnan(of_b["arousal"].pcc) and of_b["arousal"].rmse > 0
    assert b.mean_ccc == pytest.approx(1.0)
    assert a.mean_ccc == pytest.approx((of_a["valence"].ccc + of_a["arousal"].ccc) / 2)


def test_json_holds_everything_and_no_nan(labels: Arrays):
    predicted = {name: np.nan_to_num(values) for name, values in labels.items()}
    predicted["b"][5, 1] = np.nan
    content = json.loads(json.dumps(as_json(evaluate(predicted, labels)), allow_nan=False))
    assert (content["valence"], content["arousal"], content["mean"]) == (pytest.approx(1.0), None, None)
    assert content["rmse"] == {"valence": 0.0, "arousal": None, "mean": None}
    assert (content["n_videos"], content["n_frames"], content["n_not_annotated"]) == (2, 124, 6)
    assert content["ccc_interval"] is None
    assert content["warnings"] == ["b: 1 annotated frames have no prediction: CCC is undefined"]
    assert content["videos"][1]["arousal"] == {"ccc": None, "pcc": None, "rmse": None}
    assert content["videos"][0] == {
        "video": "a",
        "n_predicted": 40,
        "n_annotation_rows": 40,
        "n_not_annotated": 6,
        "n_compared": 34,
        "valence": {"ccc": pytest.approx(1.0), "pcc": pytest.approx(1.0), "rmse": 0.0},
        "arousal": {"ccc": pytest.approx(1.0), "pcc": pytest.approx(1.0), "rmse": 0.0},
    }


@pytest.mark.filterwarnings("error")
def test_json_of_intervals(labels: Arrays):
    predicted, labels = made_set(MIN_VIDEOS_FOR_INTERVALS, seed=10)
    for values in predicted.values():
        values[:, 1] = 0.5
    interval = as_json(evaluate(predicted, labels, n_resamples=30, seed=2))["ccc_interval"]
    low, high = interval.pop("valence")
    assert low < high
    none = [None, None]
    assert interval == {"arousal": none, "mean": none, "confidence": 0.95, "n_resamples": 30, "seed": 2}


def write_files(folder: Path, made: Arrays) -> str:
    folder.mkdir()
    for name, values in made.items():
        rows = [f"{v:.6f},{a:.6f}\n" for v, a in np.nan_to_num(np.clip(values, -1, 1), nan=-5)]
        (folder / f"{name}.txt").write_text("valence,arousal\n" + "".join(rows))
    return str(folder)


@pytest.mark.parametrize(("n_videos", "n_shown", "n_intervals"), [(3, 3, 0), (24, 24, 3), (60, 10, 3)])
def test_command_prints_the_scores_and_of_many_videos_the_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], n_videos: int, n_shown: int, n_intervals: int
):
    predicted, labels = made_set(n_videos, seed=11)
    predicted["v01"] = -predicted["v01"]
    labels["v02"] = labels["v02"][:-3]
    paths = [write_files(tmp_path / "p", predicted), write_files(tmp_path / "a", labels)]
    assert cli.evaluate.main(["--predictions", paths[0], "--annotations", paths[1]]) == 0
    printed, error = capsys.readouterr()
    lines = [line.split() for line in printed.splitlines()]
    content = json.loads((tmp_path / "p" / "scores.json").read_text())
    assert f"{n_videos} videos; {content['n_not_annotated']} frames are not annotated; 1 videos differ" in printed
    assert error.startswith("warning: v02: ") and error.count("\n") == 1
    for name in ("valence", "arousal", "mean"):
        row = next(line for line in lines if line[1:2] == [name])
        assert f"{content[name]:.3f}" in row and f"{content['rmse'][name]:.3f}" in row
        assert ("to" in row) == bool(n_intervals)
    assert ("no intervals: they need at least 20 annotated videos" in printed) == (not n_intervals)
    shown = [line[1] for line in lines if len(line) > 1 and line[1].startswith("v") and line[1] != "valence"]
    by_ccc = sorted(content["videos"], key=lambda video: video["valence"]["ccc"] + video["arousal"]["ccc"])
    worst = [video["video"] for video in by_ccc][:n_shown]
    assert len(content["videos"]) == n_videos
    assert [name for name in shown if name != "video"] == (worst if n_videos > n_shown else sorted(worst))


def disagreeing(seed: int, n_frames: int, *, honest: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, the mean of five models, their standard deviation; ``honest``: they err more where they disagree."""
    random = np.random.default_rng(seed)
    labels = np.cumsum(random.normal(0, 0.05, (n_frames, 2)), axis=0).clip(-1, 1)
    scale = random.uniform(0.01, 0.5, (n_frames, 2))
    models = labels + (scale if honest else 0.2) * random.normal(size=(5, n_frames, 2))
    spread = scale if not honest else models.std(axis=0, ddof=1)
    return labels, models.mean(axis=0), spread


def test_disagreement_is_compared_with_the_error_over_all_frames() -> None:
    made = {f"v{k}": disagreeing(k, 300 + 50 * k, honest=True) for k in range(3)}
    made["v1"][0][10:40] = np.nan
    made["v2"][2][:, 1] = np.nan
    labels, predictions, spreads = ({name: three[k] for name, three in made.items()} for k in range(3))
    tables = {name: (predictions[name], spreads[name]) for name in made}
    compared, warnings = compare_disagreement(predictions, labels, tables)
    assert warnings == ()
    for k, target in enumerate(("valence", "arousal")):
        columns = np.concatenate([np.stack([predictions[n], labels[n], spreads[n]])[..., k] for n in made], axis=1)
        x, y, sd = columns[:, np.isfinite(columns).all(axis=0)]
        error = np.abs(x - y)
        one = compared[target]
        assert one.n_frames == len(x) < sum(map(len, labels.values()))
        # Spearman's coefficient is Pearson's of the ranks.
        ranks = [np.argsort(np.argsort(values)) for values in (sd, error)]
        assert one.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)
        half = sd <= np.median(sd)
        assert one.least.rmse == pytest.approx(np.sqrt(np.mean((x - y)[half] ** 2)))
        assert one.all.rmse == pytest.approx(np.sqrt(np.mean((x - y) ** 2)))
        assert one.least.ccc == pytest.approx(ccc(x[half], y[half]))
        assert one.spearman > 0.2 and one.least.rmse < one.all.rmse
    content = json.loads(json.dumps(as_json(evaluate(predictions, labels), compared), allow_nan=False))
    assert content["disagreement"]["valence"]["least"]["rmse"] == compared["valence"].least.rmse


def test_random_or_constant_disagreement_has_no_rank_correlation() -> None:
    labels, predicted, spread = disagreeing(0, 4000, honest=False)
    compared, _ = compare_disagreement({"v": predicted}, {"v": labels}, {"v": (predicted, spread)})
    assert abs(compared["valence"].spearman) < 0.06
    constant, _ = compare_disagreement({"v": predicted}, {"v": labels}, {"v": (predicted, np.full_like(spread, 0.1))})
    assert math.isnan(constant["valence"].spearman)
    content = as_json(evaluate({"v": predicted}, {"v": labels}), constant)
    assert content["disagreement"]["valence"]["spearman"] is None


def test_disagreement_of_other_predictions_is_left_out() -> None:
    labels, predicted, spread = disagreeing(0, 100, honest=True)
    tables = {"v": (predicted + 0.01, spread), "w": (predicted[:90], spread[:90])}
    compared, warnings = compare_disagreement({"v": predicted, "w": predicted}, {"v": labels, "w": labels}, tables)
    assert len(warnings) == 1 and warnings[0].startswith("v: ")
    assert compared["valence"].n_frames == 90
    nothing, _ = compare_disagreement({"v": predicted}, {"v": labels}, {"v": tables["v"]})
    assert nothing == {}


def test_command_prints_how_well_disagreement_ranks_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {f"v{k}": disagreeing(k, 200, honest=True) for k in range(3)}
    time_s = np.arange(200) / 25
    with open_table(tmp_path / "predictions" / "frames.csv", "csv") as append:
        for name, (labels, mean, spread) in made.items():
            values, sd = mean.clip(-1, 1).astype(np.float32), spread.astype(np.float32)
            write_per_video(tmp_path / "predictions", name, values)
            write_per_video(tmp_path / "annotations", name, labels)
            append(Prediction(name, time_s, values, {}, spread=sd))
    command = ["--predictions", str(tmp_path / "predictions"), "--annotations", str(tmp_path / "annotations")]
    assert cli.evaluate.main(command) == 0
    output = capsys.readouterr().out
    assert "disagreement" in output and "Spearman" in output
    scores = json.loads((tmp_path / "predictions" / "scores.json").read_text())
    assert scores["disagreement"]["valence"]["n_frames"] == 600
    assert scores["disagreement"]["arousal"]["spearman"] > 0.2
    # Without such columns, nothing is printed.
    (tmp_path / "predictions" / "frames.csv").unlink()
    assert cli.evaluate.main(command) == 0
    assert "disagreement" not in capsys.readouterr().out
    assert "disagreement" not in json.loads((tmp_path / "predictions" / "scores.json").read_text())
