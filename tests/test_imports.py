"""Tables of features as feature folders, and the whole chain from tables to scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_features import make_features, make_labels
from made_tables import LAYOUTS, LENGTH_S, VIDEOS, value, write_features, write_rows

from preprocessing.cli import main as preprocess
from preprocessing.errors import InputError
from preprocessing.features import describe, load_features
from preprocessing.files import sha256
from rcma import cli
from rcma.data import imports
from rcma.data.imports import FeatureSource, place_on_frames
from rcma.data.times import Times, read_timed_table
from rcma.metrics import ccc
from rcma.output.table import read_frames


def table(
    times: Sequence[float], values: Sequence[float], ends: Sequence[float] | None = None
) -> tuple[Times, np.ndarray]:
    rows = np.column_stack([values, np.negative(values)]).astype(np.float32)
    end_s, columns = (times, (0,)) if ends is None else (ends, (0, 1))
    return Times(np.array(times, float), np.array(end_s, float), columns, "s"), rows


def run(*words: object) -> int:
    return cli.import_features.main([str(word) for word in words])


def test_dense_rows_are_averaged_in_each_frames_interval() -> None:
    random = np.random.default_rng(0)
    times = np.sort(random.uniform(0, 10, 500))
    values = random.normal(size=500)
    values[100:140] = np.nan
    frames_s = np.arange(50) / 5 + 0.05
    found, how = place_on_frames(*table(times, values), frames_s)
    assert "mean" in how and found.dtype == np.float32 and found.shape == (50, 2)
    for frame, time_s in enumerate(frames_s):
        inside = values[(times >= time_s - 0.1) & (times < time_s + 0.1)]
        expected = np.nanmean(inside) if np.isfinite(inside).any() else np.nan
        np.testing.assert_allclose(found[frame], [expected, -expected], atol=1e-6)


def test_other_rows_go_to_the_frames_that_they_are_nearest_to() -> None:
    frames_s = np.arange(0, 8, 0.5)
    found, how = place_on_frames(*table([1, 2, 3, 6, 7], [1, 2, np.nan, 6, 7]), frames_s)
    assert "0.5 s" in how
    nan = np.nan
    # Half a step away, as 1.5 and 2.5 are, either row would do.
    expected = {
        0.0: nan,
        0.5: 1,
        1.0: 1,
        2.0: 2,
        3.0: nan,
        3.5: nan,
        4.0: nan,
        5.0: nan,
        5.5: 6,
        6.0: 6,
        7.0: 7,
        7.5: 7,
    }
    np.testing.assert_array_equal(
        [found[list(frames_s).index(time_s), 0] for time_s in expected], list(expected.values())
    )


def test_rows_from_start_to_end_hold_while_they_last() -> None:
    found, _ = place_on_frames(
        *table([1, 3, 3.5], [1, 3, 4], ends=[2, 4, 5]), np.array([0.5, 1, 1.9, 2, 3, 3.5, 4.9, 5])
    )
    np.testing.assert_array_equal(found[:, 0], [np.nan, 1, 1, np.nan, 3, 4, 4, np.nan])


def write_all_kinds(root: Path) -> dict[str, str]:
    """The same six rows as CSV, as an array, and as Parquet where it can be written."""
    rows = [[k / 10, k, -k] for k in range(6)]
    write_rows(root / "csv" / "v.csv", ["name", "time", "x", "y"], [["'v'", *row] for row in rows], separator=";")
    (root / "npy").mkdir()
    np.save(root / "npy" / "v.npy", np.array(rows)[:, 1:])
    kinds = {"csv": str(root / "csv"), "npy": f"{root / 'npy'}@10"}
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (root / "parquet").mkdir()
    columns = dict(zip(("time", "x", "y"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), root / "parquet" / "v.parquet")
    return kinds | {"parquet": str(root / "parquet")}


def test_all_kinds_of_tables_give_the_same_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = write_all_kinds(tmp_path)
    words = ["--face", kinds["csv"], kinds["npy"], "--audio", kinds["parquet"], "--rate", 10]
    assert run(*words, "--out", tmp_path / "features") == 0, capsys.readouterr().err
    features = load_features(tmp_path / "features" / "v")
    np.testing.assert_allclose(features.time_s, np.arange(6) / 10)
    x = np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(features.vectors["face"], np.stack([x, -x, x, -x], axis=1))
    np.testing.assert_array_equal(features.vectors["audio"], np.stack([x, -x], axis=1))
    one, other = features.meta["source"]["tables"]["face"]
    assert (one["sha256"], one["columns"], one["unit"]) == (sha256(tmp_path / "csv" / "v.csv"), ["x", "y"], "s")
    assert (other["sha256"], other["unit"]) == (sha256(tmp_path / "npy" / "v.npy"), "10 Hz")
    # An earlier import is replaced; features made of a recording never are.
    assert run("--text", kinds["csv"], "--rate", 5, "--out", tmp_path / "features") == 0
    assert set(load_features(tmp_path / "features" / "v").vectors) == {"text"}
    make_features(tmp_path / "others" / "v", make_labels(9, 0), seed=0)
    assert run("--text", kinds["csv"], "--rate", 5, "--out", tmp_path / "others") == 1
    assert "rcma-preprocess made" in capsys.readouterr().err
    assert len(load_features(tmp_path / "others" / "v").faces) == 9


def test_frames_are_those_of_feature_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_features(tmp_path / "recorded" / "v", make_labels(12, 0), seed=0)
    write_rows(tmp_path / "t" / "v.csv", ["time_ms", "x"], [[0, 1.0], [200, 2.0], [400, 3.0]])
    write_rows(tmp_path / "t" / "w.csv", ["time_ms", "x"], [[0, 1.0], [200, 2.0]])
    words = ["--audio", tmp_path / "t", "--clock", tmp_path / "recorded", "--out", tmp_path / "features"]
    assert run(*words) == 1  # w is not there
    assert "w: --clock has no recording" in capsys.readouterr().err
    features = load_features(tmp_path / "features" / "v")
    np.testing.assert_array_equal(features.time_s, made.time_s)
    np.testing.assert_array_equal(features.vectors["audio"][:, 0], [1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3])
    assert features.meta["source"].items() >= made.meta["source"].items()


def test_openface_rows_without_success_are_not_there(tmp_path: Path) -> None:
    header = ["frame", " timestamp", " confidence", " success", " AU01_r"]
    write_rows(tmp_path / "t" / "v.csv", header, [[1, 0.0, 0.9, 1, 2.0], [2, 0.1, 0.1, 0, 9.0], [3, 0.2, 0.9, 1, ""]])
    assert run("--face", tmp_path / "t", "--rate", 10, "--out", tmp_path / "f") == 0
    features = load_features(tmp_path / "f" / "v")
    np.testing.assert_array_equal(features.vectors["face"], [[2.0], [np.nan], [np.nan]])
    assert dict(describe(features))["face vectors"] == "1 columns in 33.3 % of frames"


WRONG = {
    "text in a number": ("time,x\n0,1\n1,a\n", "line 3: 'a' in column 'x'"),
    "no time": ("frame,x\n0,1\n1,2\n", "line 1"),
    "falling": ("time,x\n0,1\n2,2\n1,2\n", "line 4"),
    "twice": ("time,x\n0,1\n1,2\n1,3\n", "line 4"),
    "nothing beside times": ("time,name\n0,a\n1,b\n", "line 1: no columns of features"),
    "other columns": ("time,y\n0,1\n1,2\n", "line 1: columns differ"),
    "infinite": ("time,x\n0,1\n1,inf\n", "line 3"),
    "ragged": ("time,x\n0,1\n1\n", "line 3"),
    "empty": ("", "is empty"),
    "binary": ("\x00\x01", "not a text file"),
}


def test_a_bad_table_is_named_with_its_line_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "t" / "a good one.csv", ["time", "x"], [[0, 1.0], [1, 2.0]])
    for name, (text, _) in WRONG.items():
        (tmp_path / "t" / f"{name}.csv").write_text(text)
    assert run("--face", tmp_path / "t", "--rate", 2, "--out", tmp_path / "f") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert len(errors) == len(WRONG)
    for name, (_, says) in WRONG.items():
        assert any(f"{name}.csv" in line and says in line for line in errors), (name, errors)
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["a good one"]


def test_a_table_may_be_named_itself_and_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "v.csv", ["time", "x"], [[0, 1.0], [1, 2.0]])
    table = (tmp_path / "v.csv").rename(tmp_path / "v.txt")
    parsed = []
    monkeypatch.setattr(
        imports, "read_timed_table", lambda path, columns: parsed.append(path) or read_timed_table(path, columns)
    )
    assert run("--face", table, "--rate", 1, "--out", tmp_path / "f") == 0
    assert parsed == [table]
    np.testing.assert_array_equal(load_features(tmp_path / "f" / "v").vectors["face"], [[1.0], [2.0]])


@pytest.mark.parametrize(("rate", "n_frames"), [(".5", 11), ("1e1", 1), ("1.", 6)])
def test_rates_of_arrays_are_numbers_in_any_form(tmp_path: Path, rate: str, n_frames: int) -> None:
    (tmp_path / "t").mkdir()
    np.save(tmp_path / "t" / "v.npy", np.arange(6.0)[:, None])
    assert run("--face", f"{tmp_path / 't'}@{rate}", "--rate", 1, "--out", tmp_path / "f") == 0
    assert load_features(tmp_path / "f" / "v").n_frames == n_frames


def test_a_bad_array_is_named_with_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t").mkdir()
    np.save(tmp_path / "t" / "v.npy", np.array([[0.0], [np.inf]]))
    assert run("--face", f"{tmp_path / 't'}@5", "--rate", 1, "--out", tmp_path / "f") == 1
    assert "v.npy, row 1: " in capsys.readouterr().err


def test_part_of_a_modality_is_refused_and_a_whole_one_may_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, videos in (("one", "vw"), ("two", "v"), ("voice", "w")):
        for video in videos:
            write_rows(tmp_path / folder / f"{video}.csv", ["time", "x"], [[0, 1.0], [1, 2.0]])
    face = ["--face", tmp_path / "one", tmp_path / "two"]
    assert run(*face, "--rate", 2, "--out", tmp_path / "f") == 1
    assert "two: no table of w" in capsys.readouterr().err
    assert run("--face", tmp_path / "one", "--audio", tmp_path / "voice", "--rate", 2, "--out", tmp_path / "g") == 0
    assert np.isnan(load_features(tmp_path / "g" / "v").vectors["audio"]).all()
    assert np.isfinite(load_features(tmp_path / "g" / "w").vectors["audio"]).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rate", "10"], "--face"),
        (["--face", "nowhere", "--rate", "10"], "no such folder"),
        (["--face", "nowhere@x", "--rate", "10"], "no such folder"),
        (["--face", "arrays@0", "--rate", "10"], "no such folder"),
        (["--face", "arrays@inf", "--rate", "10"], "no such folder"),
        (["--face", ".", "--rate", "10"], "no tables in it"),
        (["--face", "arrays", "--rate", "10"], "arrays@25"),
        (["--face", "arrays@25", "--rate", "0"], "--rate"),
        (["--face", "arrays@25", "--rate", "5", "--columns", "time"], "--columns"),
        (["--face", "arrays@25", "--clock", "nowhere"], "nowhere"),
    ],
)
def test_requests_that_cannot_be_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "v.npy", np.zeros((3, 2)))
    monkeypatch.chdir(tmp_path)
    assert run(*words, "--out", "features") in (1, 2)
    assert says in capsys.readouterr().err
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((0, 2)), np.array([["a"]]), np.array([[np.inf]])])
def test_arrays_that_are_no_features_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(InputError, match=r"v\.npy"):
        FeatureSource(f"{tmp_path}@10", columns={}, unit="auto").read("v")


def test_imported_features_are_not_replaced_by_those_of_the_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "t" / "v.csv", ["time", "x"], [[0, 1.0], [1, 2.0]])
    assert run("--face", tmp_path / "t", "--rate", 2, "--out", tmp_path / "f") == 0
    (tmp_path / "v.mp4").touch()
    assert preprocess([str(tmp_path / "v.mp4"), "--out", str(tmp_path / "f"), "--set", "speech.backend=none"]) == 1
    assert "rcma-import made" in capsys.readouterr().err
    assert "face" in load_features(tmp_path / "f" / "v").vectors


# From tables to scores.


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    write_features(root)
    out = root / "features"
    assert run("--face", root / "picture", "--audio", root / "voice", "--rate", 10, "--out", out) == 0
    return out


def write_config(path: Path, features: Path, data: Mapping[str, object], targets: Sequence[str]) -> Path:
    small = {
        "data": {"features": str(features), "hop": 20, "fold": 1, **data},
        "model": {
            "targets": list(targets),
            "modalities": ["face", "audio"],
            "length": 40,
            "face": {"kind": "features"},
            "audio": {"kind": "features"},
            "tcn": {"face": [8], "audio": [8], "kernel_size": 3},
            "fusion": {"steps": 1, "dropout": 0.1},
        },
        "train": {"epochs": 4, "batch_size": 4, "learning_rate": 0.01, "warmup_epochs": 1, "seed": 7},
    }
    path.write_text(yaml.safe_dump(small), encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_set_in_each_layout_trains_and_evaluates(
    layout: str, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, below, options, _ = LAYOUTS[layout]
    make(tmp_path / "labels")
    annotations, (targets, run_folder, out) = (
        tmp_path / "labels" / below,
        (("valence", "arousal"), tmp_path / "run", tmp_path / "p"),
    )
    labels = {"raters": "ewe"} if "ewe" in options else {"scale": [-100, 100]} if "--scale" in options else {}
    data = {"annotations": str(annotations), "labels": labels}
    config = write_config(tmp_path / "config.yaml", features, data, targets)
    assert cli.train.main(["--config", str(config), "--out", str(run_folder), "--device", "cpu"]) == 0
    trained = json.loads((run_folder / "scores.json").read_text())
    assert trained["mean_ccc"] > 0.2
    assert cli.predict.main(["--checkpoint", str(run_folder), str(features), "--out", str(out), "--device", "cpu"]) == 0
    words = ["--predictions", str(out), "--annotations", str(annotations), *options]
    assert cli.evaluate.main(words) == 0, capsys.readouterr().err
    scores = json.loads((out / "scores.json").read_text())
    assert scores["n_videos"] == len(VIDEOS) and scores["mean"] > 0.2
    n_frames = len(VIDEOS) * LENGTH_S * 10
    assert 0.75 * n_frames < scores["n_frames"] <= n_frames


def test_a_third_target_goes_from_tables_to_scores_and_a_report(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LAYOUTS["muse"][0](tmp_path / "labels")
    data = {"annotations": str(tmp_path / "labels")}
    config = write_config(tmp_path / "c.yaml", features, data, ["liking", "arousal", "valence"])
    runs = [tmp_path / "run 1", tmp_path / "run 2"]
    for seed, run_folder in enumerate(runs):
        words = ["--config", str(config), "--out", str(run_folder), "--device", "cpu", "--set", f"train.seed={seed}"]
        assert cli.train.main(words) == 0
    words = [word for run_folder in runs for word in ("--checkpoint", str(run_folder))]
    words += [str(features), "--out", str(tmp_path / "p"), "--format", "none", "--device", "cpu"]
    report = ["--report", "--annotations", str(tmp_path / "labels")]
    assert cli.predict.main([*words, *report]) == 0, capsys.readouterr().err
    frames = read_frames(tmp_path / "p")
    assert set(frames.targets) == {"valence", "arousal", "liking"} and set(frames.values) == set(VIDEOS)
    page = (tmp_path / "p" / "report.html").read_text(encoding="utf-8")
    block = page.partition('id="video-0">')[2].partition("</script>")[0]
    shown = json.loads(block)
    known = [label is not None for label in shown["labels"]["valence"]]
    # Between MuSe's segments there is no label.
    assert known == [time_s <= 5.0 or 7.0 <= time_s <= 11.75 for time_s in shown["time"]]
    words = ["--predictions", str(tmp_path / "p"), "--annotations", str(tmp_path / "labels")]
    assert cli.evaluate.main(words) == 0, capsys.readouterr().err
    scores = json.loads((tmp_path / "p" / "scores.json").read_text())
    assert scores["liking"] > 0.2 and set(scores["disagreement"]) == set(frames.targets)
    expected = np.concatenate([value(video, "liking", frames.time_s[video]) for video in sorted(frames.values)])
    predicted = np.concatenate([frames.values[v][:, frames.targets.index("liking")] for v in sorted(frames.values)])
    # Labels are interpolated from four samples a second, and cover four fifths of the frames.
    assert scores["liking"] == pytest.approx(ccc(predicted, expected), abs=0.1)
    assert "liking" in capsys.readouterr().out


def test_evaluation_by_time_refuses_what_it_cannot_compare(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LAYOUTS["avec"][0](tmp_path / "labels")
    (tmp_path / "p").mkdir()
    words = ["--predictions", str(tmp_path / "p"), "--annotations", str(tmp_path / "labels")]
    assert cli.evaluate.main(words) == 2
    assert "frames.csv" in capsys.readouterr().err
    rows = [["talk_a", k + 1, k / 10, 0.1, 0.2, 1, 1, ""] for k in range(50)]
    header = ["video", "frame", "time_s", "valence", "dominance", "face", "audio", "text"]
    write_rows(tmp_path / "p" / "frames.csv", header, rows)
    assert cli.evaluate.main(words) == 1, "five annotated videos have no predictions"
    printed, error = capsys.readouterr()
    assert "no label of dominance" in error and "talk_b: no predictions" in error
    assert "valence" in printed and "dominance" not in printed
    assert cli.evaluate.main([*words, "--scale", "1", "9"]) == 2
    assert "talk_a.csv, line 2" in capsys.readouterr().err


def test_splits_of_labels_of_ones_own(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LAYOUTS["avec"][0](tmp_path / "labels")
    data = {"annotations": str(tmp_path / "labels"), "fold": 0}
    words = ["--config", str(write_config(tmp_path / "c.yaml", features, data, ["liking"])), "--device", "cpu"]
    words += ["--set", "train.epochs=1", "--out"]
    assert cli.train.main([*words, str(tmp_path / "a")]) == 2
    assert "data.split" in capsys.readouterr().err
    table = tmp_path / "split.csv"
    table.write_text("video,split\n" + "".join(f"{v},{'Train' if v < 'talk_e' else 'dev'}\n" for v in VIDEOS))
    assert cli.train.main([*words, str(tmp_path / "a"), "--set", f"data.split={table}"]) == 0
    used = json.loads((tmp_path / "a" / "last" / "data.json").read_text())
    assert [list(used[split]) for split in ("training", "validation")] == [list(VIDEOS[:4]), list(VIDEOS[4:])]
    table.write_text("video,split\ntalk_a,train\ntalk_b,held out\n")
    assert cli.train.main([*words, str(tmp_path / "b"), "--set", f"data.split={table}"]) == 2
    error = capsys.readouterr().err
    assert "data.split: " in error and "split.csv, line 3" in error
    assert cli.train.main([*words, str(tmp_path / "b"), "--set", "model.targets=[dominance]", "--fold", "1"]) == 2
    assert ".csv, line 1: no column of dominance" in capsys.readouterr().err


@pytest.mark.slow
def test_all_folds_of_labels_without_an_official_split(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LAYOUTS["omg"][0](tmp_path)
    data = {"annotations": str(tmp_path / "labels.csv")}
    config = write_config(tmp_path / "c.yaml", features, data, ["liking", "valence"])
    words = ["--config", str(config), "--device", "cpu", "--set", "train.epochs=1", "--fold", "all"]
    assert cli.train.main([*words, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "5 folds" in printed and "CCC liking" in printed and "CCC arousal" not in printed
    assert sorted(path.name for path in (tmp_path / "run").glob("fold_*")) == [f"fold_{k}" for k in range(1, 6)]
