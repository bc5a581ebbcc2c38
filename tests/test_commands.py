"""rcma-train, rcma-predict and rcma-evaluate as a user runs them, on feature folders that the test makes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_features import make_data, make_features, make_labels

from preprocessing.cli import main as preprocess
from preprocessing.features.folder import load_features
from preprocessing.files import WRITTEN
from rcma import cli
from rcma.metrics import ccc

N_FRAMES = 40


@dataclass(frozen=True)
class Project:
    """A small data set and a run that was trained on it by the command."""

    root: Path
    config: Path

    @property
    def run(self) -> str:
        return str(self.root / "run")

    def features(self, *names: str) -> list[str]:
        return [str(self.root / "features" / name) for name in names]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("project")
    config = root / "small.yaml"
    tree = make_data(root, n_train=2, n_validation=2, n_frames=N_FRAMES).model_dump(mode="json")
    config.write_text(yaml.safe_dump(tree))
    made = Project(root, config)
    assert (
        cli.train.main(["--config", str(config), "--out", made.run, "--device", "cpu", "--set", "train.epochs=2"]) == 0
    )
    return made


def predict(run: str, out: Path, *arguments: str) -> int:
    return cli.predict.main([*arguments, "--checkpoint", run, "--out", str(out), "--device", "cpu"])


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr."""
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_train_then_predict_then_evaluate(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "predictions"
    assert predict(project.run, out, *project.features("video2", "video3")) == 0
    assert sorted(path.name for path in out.iterdir()) == [WRITTEN, "frames.csv", "video2.txt", "video3.txt"]
    files = ["video2.txt", "video3.txt"]
    values = []
    for file in files:
        lines = (out / file).read_text().splitlines()
        assert lines[0] == "valence,arousal"
        assert len(lines) == 1 + N_FRAMES
        values.append(np.loadtxt(lines[1:], delimiter=","))
    annotations = project.root / "annotations" / "Validation_Set"
    assert cli.evaluate.main(["--predictions", str(out), "--annotations", str(annotations)]) == 0
    printed = capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())
    labels = np.concatenate([np.loadtxt(annotations / file, delimiter=",", skiprows=1) for file in files])
    expected = [ccc(np.concatenate(values)[:, k], labels[:, k]) for k in range(2)]
    assert [scores["valence"], scores["arousal"]] == pytest.approx(expected, abs=1e-5)
    assert scores["mean"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert f"{scores['mean']:.3f}" in printed


def test_score_over_part_of_the_annotated_videos_is_not_a_success(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(project.run, tmp_path, *project.features("video2")) == 0
    capsys.readouterr()
    annotations = str(project.root / "annotations" / "Validation_Set")
    assert cli.evaluate.main(["--predictions", str(tmp_path), "--annotations", annotations]) == 1
    assert only_error(capsys).startswith("warning: video3: no predictions")


def test_single_file_holds_the_rows_of_the_sample_in_its_order(project: Project, tmp_path: Path) -> None:
    rows = [f"video3/{k:05d}.jpg" for k in (2, 1, 40)] + [f"video2/{k:05d}.jpg" for k in range(1, 31)]
    sample = tmp_path / "sample.txt"
    sample.write_text("image_location,valence,arousal\n" + "".join(f"{row},0,0\n" for row in rows))
    # video0 is predicted too, but the sample does not ask for it.
    inputs = project.features("video0", "video2", "video3")
    assert predict(project.run, tmp_path, *inputs, "--format", "single-file", "--template", str(sample)) == 0
    lines = (tmp_path / "predictions.txt").read_text().splitlines()
    assert lines[0] == "image_location,valence,arousal"
    assert [line.split(",")[0] for line in lines[1:]] == rows


def test_names_that_a_single_file_cannot_hold_are_refused_before_any_work(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, decomposed = "sad, then glad", "e\u0301te\u0301"
    for folder in (name, decomposed):
        shutil.copytree(project.root / "features" / "video0", tmp_path / "features" / folder)
    out = tmp_path / "out"
    features = str(tmp_path / "features")
    assert predict(project.run, out, features, "--format", "single-file") == 2
    assert repr(name) in only_error(capsys)
    assert not out.exists()
    assert predict(project.run, out, features) == 0
    assert sorted(path.name for path in out.iterdir()) == [WRITTEN, "frames.csv", f"{name}.txt", "été.txt"]
    with (out / "frames.csv").open(encoding="utf-8", newline="") as file:
        assert {row["video"] for row in csv.DictReader(file)} == {name, "été"}


@pytest.mark.parametrize(
    ("row", "says"),
    [("video9/00001.jpg", "video9: no predictions"), ("video2/00041.jpg", "video2: 40 frames predicted, 41 needed")],
)
def test_sample_that_cannot_be_covered_is_refused_before_anything_is_written(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, says: str
) -> None:
    sample = tmp_path / "sample.txt"
    sample.write_text(f"image_location,valence,arousal\nvideo2/00001.jpg,0,0\n{row},0,0\n")
    out = tmp_path / "out"
    request = [*project.features("video2"), "--format", "single-file", "--template", str(sample)]
    assert predict(project.run, out, *request) == 2
    assert says in only_error(capsys)
    assert not out.exists()


@pytest.mark.slow
def test_raw_video_is_preprocessed_with_the_settings_of_the_run(project: Project, short_clip: Path) -> None:
    root = short_clip.parent / "raw"
    settings = ["--set", "speech.backend=none", "--set", "faces.size=48", "--device", "cpu"]
    assert preprocess([str(short_clip), "--out", str(root / "features"), *settings]) == 0
    known = load_features(root / "features" / "short")
    labels = root / "annotations"
    for split in ("Train_Set", "Validation_Set"):
        shutil.copytree(root / "features" / "short", root / "features" / split)
        (labels / split).mkdir(parents=True)
        rows = [f"{k / known.n_frames:.3f},{-k / known.n_frames:.3f}" for k in range(known.n_frames)]
        (labels / split / f"{split}.txt").write_text("\n".join(["valence,arousal", *rows]) + "\n")
    run, out = str(root / "run"), root / "predictions"
    where = ["--set", f"data.features={root / 'features'}", "--set", f"data.annotations={labels}"]
    train = ["--config", str(project.config), *where, "--set", "train.epochs=1", "--out", run, "--device", "cpu"]
    assert cli.train.main(train) == 0
    assert predict(run, out, str(short_clip)) == 0
    from_video = (out / "short.txt").read_text()
    again = root / "again"
    assert predict(run, again, str(root / "features" / "short")) == 0
    assert from_video == (again / "short.txt").read_text()
    assert load_features(out / "features" / "short").meta["settings"] == known.meta["settings"]


def test_one_bad_folder_is_named_and_the_others_are_done(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_features(tmp_path / "old", make_labels(N_FRAMES, seed=1), seed=1)
    meta = json.loads((tmp_path / "old" / "meta.json").read_text())
    (tmp_path / "old" / "meta.json").write_text(json.dumps({**meta, "format_version": 0}))
    out = tmp_path / "out"
    assert predict(project.run, out, str(tmp_path / "old"), *project.features("video2")) == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert "feature format 0, but this version reads format 2" in failed[0]
    assert sorted(path.name for path in out.iterdir()) == [WRITTEN, "frames.csv", "video2.txt"]


def test_table_says_what_each_frame_was_predicted_from(project: Project, tmp_path: Path) -> None:
    assert predict(project.run, tmp_path, *project.features("video2", "video3")) == 0
    with (tmp_path / "frames.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["video"], int(row["frame"])) for row in rows] == [
        (video, frame) for video in ("video2", "video3") for frame in range(1, N_FRAMES + 1)
    ]
    per_video = np.loadtxt(tmp_path / "video2.txt", delimiter=",", skiprows=1)
    np.testing.assert_allclose([[float(r["valence"]), float(r["arousal"])] for r in rows[:N_FRAMES]], per_video)
    faces = np.isfinite(load_features(project.root / "features" / "video2").face_score)
    assert [row["face"] for row in rows[:N_FRAMES]] == [str(int(there)) for there in faces]


def test_smoothing_and_filling_reach_every_file(project: Project, tmp_path: Path) -> None:
    # Neither sound nor words: frames 5 to 7, without a face, have nothing.
    make_features(tmp_path / "mute", make_labels(N_FRAMES, seed=1), seed=1, audio=False, words=False)
    values = {}
    for name, options in {
        "plain": [],
        "smooth": ["--smooth", "gaussian:0.2"],
        "neutral": ["--fill", "neutral"],
        "nan": ["--fill", "nan", "--format", "none"],
    }.items():
        assert predict(project.run, tmp_path / name, str(tmp_path / "mute"), *options) == 0
        with (tmp_path / name / "frames.csv").open(encoding="utf-8", newline="") as file:
            values[name] = np.array([float(row["valence"] or "nan") for row in csv.DictReader(file)])
        if name != "nan":
            written = np.loadtxt(tmp_path / name / "mute.txt", delimiter=",", skiprows=1)
            np.testing.assert_array_equal(written[:, 0], values[name])
    assert not (tmp_path / "nan" / "mute.txt").exists()
    assert np.isnan(values["nan"][5:8]).all() and (values["neutral"][5:8] == 0).all()
    assert list(values["plain"][5:8]) == [values["plain"][4], values["plain"][4], values["plain"][8]]
    known = ~np.isnan(values["nan"])
    np.testing.assert_array_equal(values["plain"][known], values["nan"][known])
    assert np.abs(np.diff(values["smooth"][known])).sum() < np.abs(np.diff(values["plain"][known])).sum()


def test_edition_picks_format_and_name(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video2 = project.features("video2")
    assert predict(project.run, tmp_path / "six", *video2, "--edition", "6") == 0
    assert sorted(path.name for path in (tmp_path / "six").iterdir()) == [WRITTEN, "ABAW6_VA.txt", "frames.csv"]
    assert predict(project.run, tmp_path / "three", *video2, "--edition", "3", "--table", "none") == 0
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == [WRITTEN, "video2.txt"]
    sample = tmp_path / "sample.txt"
    rows = [f"video2/{frame:05d}.jpg" for frame in range(1, N_FRAMES)]
    sample.write_text("image_location,valence,arousal\n" + "".join(f"{row},0,0\n" for row in rows))
    capsys.readouterr()
    assert predict(project.run, tmp_path / "ten", *video2, "--edition", "10", "--template", str(sample)) == 0
    assert re.search(rf"video2: {N_FRAMES} frames.* {N_FRAMES - 1} .*: 1 left out", capsys.readouterr().err)
    submission = str(tmp_path / "ten" / "ABAW10_VA.txt")
    assert cli.check_submission.main([submission, "--template", str(sample)]) == 0
    lines = Path(submission).read_text().splitlines()
    Path(submission).write_text("\n".join(lines[:-1]) + "\n")
    assert cli.check_submission.main([submission, "--template", str(sample)]) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--edition", "7"], "--edition 7: .*2, 3, 5, 6, 8, 9, 10"),
        (["--edition", "3", "--format", "single-file"], "--format single-file: edition 3 .*per-video"),
        (["--template", "sample.txt"], "--template: .*--format single-file"),
        (["--smooth", "mean:1"], "--smooth mean:1: .*median:SECONDS or gaussian:SECONDS"),
        (["--smooth", "median"], "--smooth median: "),
        (["--smooth", "median:-1"], "--smooth median:-1: "),
        (["--fill", "nan"], "--fill nan: .*--format none"),
        (["--annotations", "labels"], "--annotations: .*--report"),
        (["--overlay", "out.avi"], r"--overlay out.avi: .*\.mp4"),
        (["--report", "--annotations", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_options_that_contradict_each_other_are_one_line(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    out = tmp_path / "out"
    assert predict(project.run, out, *project.features("video2"), *options) == 2
    assert re.search(says, only_error(capsys))
    assert not out.exists()


@pytest.mark.slow
def test_failures_are_counted_where_one_video_gives_two_people(
    project: Project, two_people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(project.run, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["preprocessing"]["speech"]["backend"] = "none"
    config["preprocessing"]["faces"]["subjects"] = "all"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert predict(str(run), out, str(two_people), str(tmp_path / "broken.mp4")) == 1
    said = capsys.readouterr()
    assert sorted(path.name for path in out.glob("*.txt")) == ["talk_left.txt", "talk_right.txt"]
    assert said.err.count("failed: ") == 1 and "broken.mp4" in said.err
    assert "of 2 videos are in" in said.out and "; 1 failed" in said.out


@pytest.mark.slow
def test_report_and_overlay_of_a_raw_clip(
    project: Project, short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = tmp_path / "run"
    shutil.copytree(project.run, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["preprocessing"]["speech"]["backend"] = "none"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = [str(short_clip), *project.features("video2"), "--report"]
    arguments += ["--annotations", str(project.root / "annotations" / "Validation_Set")]
    # There is no recording of the made features.
    assert predict(str(run), out, *arguments, "--overlay", str(tmp_path / "drawn")) == 1
    said = capsys.readouterr()
    assert re.search("failed: video2: --overlay .*video file", said.err)
    assert f"{12 + N_FRAMES} frames of 2 videos are in {out}; 1 failed" in said.out
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [WRITTEN, "short.mp4"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="preview-0"' in page and '"name":"video2"' in page
    assert re.search(r'"ccc":\{"valence":-?[\d.]+', page)
    assert predict(str(run), out, *arguments, "--overlay", str(tmp_path / "one.mp4")) == 2
    assert "there are 2 videos; give a folder" in capsys.readouterr().err


def test_two_inputs_with_one_id_are_refused(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_features(tmp_path / "video2", make_labels(N_FRAMES, seed=1), seed=1)
    assert predict(project.run, tmp_path / "out", str(tmp_path / "video2"), *project.features("video2")) == 2
    assert "would both be 'video2'" in capsys.readouterr().err


def test_finished_run_is_kept_and_resuming_it_changes_nothing(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(project.config), "--out", project.run, "--device", "cpu", "--set", "train.epochs=2"]
    log = (project.root / "run" / "log.csv").read_bytes()
    assert cli.train.main(arguments) == 2
    assert "add --resume" in capsys.readouterr().err
    assert cli.train.main([*arguments, "--resume"]) == 0
    assert (project.root / "run" / "log.csv").read_bytes() == log


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "model.fusion.stepps=3"], "the nearest known key is 'model.fusion.steps'"),
        (["--set", "train.epochs=many"], "train.epochs: Input should be a valid integer"),
        (["--set", "data.features=nowhere"], "nowhere: no such folder"),
        (["--set", "data.annotations=nowhere"], "nowhere: no such folder"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["--set", "model.face.pretrained=nowhere.pth"], "nowhere.pth"),
    ],
)
def test_bad_training_request_is_one_line(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    known = ["--config", str(project.config), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.train.main([*known, *arguments]) == 2
    assert says in only_error(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["valence,arousal\n0.1\n", "valence,arousal\n0.1,happy\n", "0.1,0.2\n"])
def test_bad_annotation_is_named_with_its_line(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    shutil.copytree(project.root / "annotations", tmp_path / "annotations")
    (tmp_path / "annotations" / "Train_Set" / "video0.txt").write_text(text)
    where = ["--set", f"data.annotations={tmp_path / 'annotations'}", "--out", str(tmp_path / "run")]
    assert cli.train.main(["--config", str(project.config), *where, "--device", "cpu"]) == 2
    assert "video0.txt, line " in only_error(capsys)


def test_checkpoint_of_another_shape_names_the_entry(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project.root / "run", tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["model"]["tcn"]["face"] = [16]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert predict(str(tmp_path / "run"), tmp_path / "out", *project.features("video2")) == 2
    assert "tcn.face" in only_error(capsys)


def test_cuda_without_one_is_refused(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    out = ["--out", str(tmp_path / "out"), "--device", "cuda"]
    assert cli.train.main(["--config", str(project.config), *out]) == 2
    assert cli.predict.main([*project.features("video2"), "--checkpoint", project.run, *out]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2
    assert all("--device cuda: PyTorch sees no CUDA device here" in error for error in errors)


@pytest.mark.parametrize(
    "command",
    [cli.train.main, cli.predict.main, cli.evaluate.main, cli.check_submission.main, cli.export.main, preprocess],
)
def test_help_shows_an_example_and_defaults(command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert "default: warning" in text


WITHOUT_POSIX = """
import os, signal, sys

for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for module, names in ((os, ("O_CLOEXEC", "sched_getaffinity")), (signal, ("SIGKILL", "pthread_sigmask"))):
    for name in names:
        delattr(module, name)

import preprocessing.cli
from rcma import cli

sys.exit(cli.predict.main(sys.argv[1:]) or cli.predict.main(sys.argv[1:]))
"""
"""Predicts twice without the modules and functions of Python's library that Windows lacks."""


@pytest.mark.slow
def test_predicts_from_features_without_what_only_posix_has(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "predictions"
    arguments = [*project.features("video2"), "--checkpoint", project.run, "--out", str(out), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, *arguments], cwd=Path(__file__).parents[1], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert sorted(path.name for path in out.iterdir()) == [WRITTEN, "frames.csv", "video2.txt"]
