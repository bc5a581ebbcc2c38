"""Labels of any source: layouts of real data sets, clocks of their own, raters, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.interpolate
import scipy.stats
from made_features import write_annotation
from made_tables import LAYOUTS, LENGTH_S, VIDEOS, value

from preprocessing.errors import InputError
from rcma.config import LabelSettings
from rcma.data.labels import open_labels
from rcma.data.ratings import rater_agreement

FRAMES_S = np.arange(int(LENGTH_S * 20)) / 20 + 0.013
TWO = ("valence", "arousal")


def settings(**given: object) -> LabelSettings:
    return LabelSettings.model_validate(given)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path, video: str = "v", targets: tuple[str, ...] = ("valence",), time_s=FRAMES_S, **given: object):
    """Labels of one video, and what was warned of."""
    warnings: list[str] = []
    labels = open_labels(path, settings(**given)).at(
        video, np.asarray(time_s, float), targets, on_warning=warnings.append
    )
    return labels, warnings


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_real_data_sets_give_the_labels_they_hold(layout: str, tmp_path: Path) -> None:
    make, below, options, tolerance = LAYOUTS[layout]
    make(tmp_path / "labels")
    scale = (-100.0, 100.0) if "--scale" in options else (-1.0, 1.0)
    raters = "ewe" if "ewe" in options else "mean"
    labels = open_labels(tmp_path / "labels" / below, settings(scale=scale, raters=raters), video_ids=VIDEOS)
    assert labels.videos == VIDEOS and labels.split == {}
    for video in VIDEOS:
        found = labels.at(video, FRAMES_S, ("arousal", "liking", "valence"))
        assert found.dtype == np.float32 and found.shape == (len(FRAMES_S), 3)
        expected = np.stack([value(video, t, FRAMES_S) for t in ("arousal", "liking", "valence")], axis=1)
        there = np.isfinite(found)
        np.testing.assert_allclose(found[there], expected[there], atol=tolerance)
        assert 0.75 < there.mean() <= 1.0
        if layout == "muse":
            np.testing.assert_array_equal(there[:, 0], (FRAMES_S <= 5.0) | ((FRAMES_S >= 7.0) & (FRAMES_S <= 11.75)))


def test_interpolation_is_that_of_scipy_inside_and_nothing_outside(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    times = np.cumsum(random.uniform(0.1, 0.3, 40))
    values = random.uniform(-1, 1, 40)
    rows = "".join(f"{t!r},{v!r}\n" for t, v in zip(times.tolist(), values.tolist(), strict=True))
    write(tmp_path / "v.csv", f"time,valence\n{rows}")
    wanted = np.sort(random.uniform(0, times[-1] + 1, 300))
    found, _ = read(tmp_path, time_s=wanted)
    expected = scipy.interpolate.interp1d(times, values, bounds_error=False)(wanted)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)


def test_gaps_and_empty_cells_stay_nan_and_samples_themselves_do_not(tmp_path: Path) -> None:
    write(tmp_path / "v.csv", "time,valence\n0,0\n1,.1\n2,\n3,.3\n4,.4\n9,.5\n10,.6\n15.5,.7\n16,.8\n")
    wanted = [0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 6.5, 9, 10, 12, 15.5, 16, 16.1]
    found, _ = read(tmp_path, time_s=wanted)
    nan = np.nan
    expected = [0, 0.05, 0.1, nan, nan, nan, 0.3, 0.4, 0.45, 0.5, 0.6, nan, 0.7, 0.8, nan]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)


def test_utterances_are_constant_and_averaged_where_they_overlap(tmp_path: Path) -> None:
    table = write(
        tmp_path / "all.csv",
        "video,start,end,arousal,valence\nv.mp4,1,3,.5,-.5\nv.mp4,2,4,.1,\nw,0,9,1,1\n",
    )
    assert open_labels(table).videos == ("v", "w")
    found, _ = read(table, targets=TWO, time_s=[0.5, 1, 1.9, 2, 2.9, 3, 3.9, 4])
    nan = np.nan
    np.testing.assert_allclose(found[:, 1], [nan, 0.5, 0.5, 0.3, 0.3, 0.1, 0.1, nan], atol=1e-6)
    np.testing.assert_allclose(found[:, 0], [nan, -0.5, -0.5, -0.5, -0.5, nan, nan, nan], atol=1e-6)


@pytest.mark.parametrize(
    ("header", "times", "unit", "in_s"),
    [
        ("time", [0, 40, 80], "auto", [0, 0.04, 0.08]),
        ("time", [0, 4, 8], "auto", [0, 4, 8]),
        ("time", [0, 40.5, 80], "auto", [0, 40.5, 80]),
        ("time", [0, 40, 80], "s", [0, 40, 80]),
        ("time", [0, 1, 2], "ms", [0, 0.001, 0.002]),
        ("time_ms", [0, 1, 2], "auto", [0, 0.001, 0.002]),
        ("Time [ms]", [0, 1, 2], "auto", [0, 0.001, 0.002]),
        ("Time (s)", [0, 40, 80], "auto", [0, 40, 80]),
        ("Second", [0, 40, 80], "auto", [0, 40, 80]),
        ("jstime", [0, 1, 2], "auto", [0, 0.001, 0.002]),
    ],
)
def test_unit_of_times(tmp_path: Path, header: str, times: list[float], unit: str, in_s: list[float]) -> None:
    rows = "".join(f"{t},{v}\n" for t, v in zip(times, (0.1, 0.2, 0.3), strict=True))
    write(tmp_path / "v.csv", f"{header},valence\n{rows}")
    found, _ = read(tmp_path, time_s=in_s, unit=unit)
    np.testing.assert_allclose(found[:, 0], [0.1, 0.2, 0.3], atol=1e-6)


def test_delay_takes_the_label_that_was_given_later(tmp_path: Path) -> None:
    write(tmp_path / "v.csv", "time_s,valence\n0,0\n10,1\n")
    found = open_labels(tmp_path).at("v", np.array([0.0, 2.0, 9.0]), ("valence",), delay_s=2.0)
    np.testing.assert_allclose(found[:, 0], [0.2, 0.4, np.nan], atol=1e-6)


@pytest.mark.parametrize("layout", ["columns", "long", "folders", "names"])
def test_raters_are_weighted_by_their_agreement_with_the_others(tmp_path: Path, layout: str) -> None:
    """Against SciPy and NumPy, whatever the files look like."""
    random = np.random.default_rng(1)
    times = np.arange(60) / 4
    wave = 0.6 * np.sin(times)
    ratings = np.clip([wave + random.normal(0, s, 60) for s in (0.05, 0.2, 0.6)] + [-wave[None][0]], -1, 1)
    names = ("R1", "R2", "R3", "R4")
    if layout == "columns":
        rows = "".join(",".join(map(repr, row)) + "\n" for row in np.vstack([times, ratings]).T.tolist())
        write(
            tmp_path / "v.csv",
            "time," + ",".join(f"valence_{n}" for n in names) + ",valence_sd\n" + rows.replace("\n", ",9\n"),
        )
    else:
        tables = [
            [f"{n},{t!r},{x!r}\n" for t, x in zip(times.tolist(), row.tolist(), strict=True)]
            for n, row in zip(names, ratings, strict=True)
        ]
        head = "rater,time,valence\n"
        if layout == "long":
            write(tmp_path / "v.csv", head + "".join("".join(rows) for rows in tables))
        for name, rows in zip(names, tables, strict=True):
            if layout == "folders":
                write(tmp_path / name / "v.csv", head + "".join(rows))
            if layout == "names":
                write(tmp_path / f"v_{name}.csv", head + "".join(rows))
    weights = [
        max(0.0, scipy.stats.pearsonr(ratings[k], np.delete(ratings, k, axis=0).mean(axis=0)).statistic)
        for k in range(4)
    ]
    assert weights[3] == 0 < weights[2] < min(weights[:2])
    np.testing.assert_allclose(rater_agreement(ratings), weights, atol=1e-12)
    for how, expected in (("mean", ratings.mean(axis=0)), ("ewe", np.average(ratings, axis=0, weights=weights))):
        labels = open_labels(tmp_path, settings(raters=how), video_ids=["v", "other"])
        np.testing.assert_allclose(labels.at("v", times, ("valence",))[:, 0], expected, atol=1e-6)


def test_raters_who_have_no_label_there_do_not_count(tmp_path: Path) -> None:
    write(tmp_path / "a" / "v.csv", "time,valence\n0,.2\n1,.2\n2,.2\n")
    write(tmp_path / "b" / "v.csv", "time,valence\n1,.6\n2,.6\n3,.6\n")
    found, _ = read(tmp_path, time_s=[0, 1, 2, 3])
    np.testing.assert_allclose(found[:, 0], [0.2, 0.4, 0.4, 0.6], atol=1e-6)
    found, warnings = read(tmp_path, time_s=[0, 1, 2, 3], raters="ewe")
    np.testing.assert_allclose(found[:, 0], [0.2, 0.4, 0.4, 0.6], atol=1e-6)
    assert len(warnings) == 1 and "agrees" in warnings[0]


def test_scale_and_columns_are_mapped(tmp_path: Path) -> None:
    write(tmp_path / "v.csv", "clock\tval\tval_2\n0\t1\t5\n1\t9\t5\n")
    found, _ = read(tmp_path, time_s=[0, 1], scale=[1, 9], columns={"time": "Clock", "valence": "val"})
    np.testing.assert_allclose(found[:, 0], [-1, 1])
    found, _ = read(tmp_path, time_s=[0, 1], scale=[1, 9], columns={"time": "clock", "valence": "val*"})
    np.testing.assert_allclose(found[:, 0], [-0.5, 0.5])


def test_official_split_and_files_of_other_things(tmp_path: Path) -> None:
    for name in ("Train_Set/a.csv", "Validation_Set/b.csv", "Validation_Set/.c.csv", "Validation_Set/read me.md"):
        write(tmp_path / name, "time,valence\n0,0\n1,0\n")
    labels = open_labels(tmp_path)
    assert labels.split == {"a": "train", "b": "validation"} and labels.videos == ("a", "b")


def test_abaw_files_are_read_as_ever_beside_tables(tmp_path: Path) -> None:
    values = np.array([[0.1, 0.2], [np.nan, np.nan], [0.3, 0.4]], np.float32)
    write_annotation(tmp_path / "Train_Set" / "a.txt", values)
    write_annotation(tmp_path / "Validation_Set" / "b.txt", values)
    write(tmp_path / "subjects.csv", "video,subject\na,1\n")
    labels = open_labels(tmp_path)
    assert labels.split == {"a": "train", "b": "validation"}
    warnings: list[str] = []
    found = labels.at("a", np.arange(4) / 25, ("arousal", "liking"), on_warning=warnings.append)
    np.testing.assert_allclose(found[:, 0], [0.2, np.nan, 0.4, np.nan])
    assert np.isnan(found[:, 1]).all() and len(warnings) == 1
    with pytest.raises(InputError, match=r"a\.txt, line 1"):
        labels.at("a", np.arange(3) / 25, ("liking",))


@pytest.mark.parametrize(
    ("text", "given", "where", "says"),
    [
        ("", {}, "v.csv", "empty"),
        ("time,valence\n", {}, "v.csv, line 1", "no rows"),
        ("frame,valence\n1,0\n", {}, "v.csv, line 1", "times"),
        ("time,arousal\n0,0\n1,0\n", {}, "v.csv, line 1", "valence"),
        ("time,val\n0,0\n1,0\n", {"columns": {"valence": "vall"}}, "v.csv, line 1", "vall"),
        ("time,valence\n0,0\n1,0\n", {"columns": {"valense": "valence"}}, "columns", "valense"),
        ("time,t,valence\n0,0,0\n1,1,0\n", {}, "v.csv, line 1", "both"),
        ("time,valence,valence\n0,0,0\n1,1,0\n", {}, "v.csv, line 1", "two columns"),
        ("time,valence\n0,0\n\n1,high\n", {}, "v.csv, line 4", "high"),
        ("time,valence\n0,0\nsoon,0\n", {}, "v.csv, line 3", "soon"),
        ("time,valence\n0,0\n,0\n", {}, "v.csv, line 3", "no time"),
        ("time,valence\n0,0\n1,inf\n", {}, "v.csv, line 3", "infinite"),
        ("time,valence\n0,0\n2,0\n1,0\n", {}, "v.csv, line 4", "after 2"),
        ("time,valence\n0,0\n1,.5\n1,.6\n", {}, "v.csv, line 4", "another label"),
        ("time,valence\n0,0\n1,1.5\n", {}, "v.csv, line 3", "1.5"),
        ("time,valence\n0,5\n1,0.5\n", {"scale": [1, 9]}, "v.csv, line 3", "0.5"),
        ("time,valence\n0,0\n1,0,0\n", {}, "v.csv, line 3", "3 cells"),
        ("time,valence\n0,0\n", {}, "v.csv, line 2", "one sample"),
        ("time,valence\n900,0\n901,0\n", {}, "v.csv", "nothing in common"),
        ("start,end,valence\n0,1,0\n2,2,0\n", {}, "v.csv, line 3", "end"),
        ("start,end,valence\n0,1,0\n0,1,.1\n", {}, "v.csv, line 3", "another label"),
        ('time;valence\n0;"1,500"\n1;"2,000"\n', {"scale": [0, 9000]}, "v.csv, line 2", "two ways"),
        ("time;valence\n0;0,5\n1;0.25\n", {}, "v.csv, line 2", "two ways"),
        ("time;valence\n0;0,5\n1;n.a.\n", {}, "v.csv, line 3", "n.a."),
        ('time,valence\n0,"0\n1,0\n', {}, "v.csv, line", "end of data"),
    ],
)
def test_wrong_tables_are_refused_with_their_line(
    tmp_path: Path, text: str, given: dict[str, object], where: str, says: str
) -> None:
    write(tmp_path / "v.csv", text)
    with pytest.raises(InputError) as error:
        read(tmp_path, **given)
    assert where in str(error.value) and says in str(error.value) and "\n" not in str(error.value)


def test_rows_that_repeat_the_one_before_do_no_harm(tmp_path: Path) -> None:
    write(tmp_path / "v.csv", "time,valence\n0,0\n1,.5\n1,.5\n2,1\n")
    np.testing.assert_allclose(read(tmp_path, time_s=[0.5, 1.5])[0][:, 0], [0.25, 0.75])


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["v.csv", "v.tsv"], "v.csv and .*v.tsv"),
        (["v.csv", "anna/v.csv"], "v.csv and .*v.csv are both"),
        (["Train_Set/v.csv", "Validation_Set/v.csv"], "v in Train_Set and in Validation_Set"),
    ],
)
def test_two_files_for_one_video_are_refused(tmp_path: Path, files: list[str], says: str) -> None:
    for name in files:
        write(tmp_path / name, "time,valence\n0,0\n1,0\n".replace(",", "\t" if name.endswith("tsv") else ","))
    with pytest.raises(InputError, match=says):
        open_labels(tmp_path)


def test_a_video_with_a_file_of_its_own_name_has_no_raters_beside_it(tmp_path: Path) -> None:
    for name in ("v.csv", "v_2.csv", "w_anna.csv", "w_bob.csv", "x_left_anna.csv"):
        write(tmp_path / name, "time,valence\n0,0\n1,0\n")
    assert open_labels(tmp_path, video_ids=["v", "w", "x", "x_left"]).videos == ("v", "v_2", "w", "x_left")


def test_raters_may_differ_in_case_alone(tmp_path: Path) -> None:
    write(tmp_path / "v_A.csv", "time,valence\n0,0\n1,0\n")
    write(tmp_path / "v_a.csv", "time,valence\n0,1\n1,1\n")
    labels = open_labels(tmp_path, video_ids=["v"]).at("v", np.array([0.0, 1.0]), ("valence",))
    np.testing.assert_array_equal(labels[:, 0], [0.5, 0.5])


def test_one_table_needs_a_video_in_each_row(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.csv, line 1: a column video"):
        open_labels(write(tmp_path / "a.csv", "time,valence\n0,0\n"))
    with pytest.raises(InputError, match=r"b\.csv, line 3: no video"):
        open_labels(write(tmp_path / "b.csv", "video,time,valence\nv,0,0\n,1,0\n"))
    with pytest.raises(InputError, match="no such folder"):
        open_labels(tmp_path / "nothing")


def test_labels_beyond_the_video_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "v.csv", "time_s,valence\n0,0\n10,0\n20,0\n")
    assert read(tmp_path, time_s=np.arange(0, 20, 0.5))[1] == []
    for too_short in (np.arange(0, 10, 0.5), np.arange(0, 60, 0.5)):
        (warning,) = read(tmp_path, time_s=too_short)[1]
        assert "v.csv" in warning and "20 s" in warning
