"""What is the user's stays, whatever is asked for: in the way of results, beside other runs, on full disks."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_features import make_data, make_features, make_labels
from PIL import Image

from preprocessing.cli import main as preprocess
from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.features.folder import load_features, own_source, save_features
from preprocessing.files import WRITTEN, lock, remove_left_overs, replace_own, whole_or_nothing
from preprocessing.inputs import Source
from preprocessing.run import Preprocessor
from rcma import cli

SILENT = {"speech": {"backend": "none"}}
NO_SPEECH = ["--set", "speech.backend=none", "--device", "cpu", "--workers", "1"]
N_FRAMES = 40
N_KILLS = int(os.environ.get("KILLS", "6"))


def tree(folder: Path) -> dict[str, object]:
    """Everything below a folder: contents of files, targets of links, names of folders."""

    def content(path: Path) -> object:
        return str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None

    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*"))}


def hidden(folder: Path) -> list[str]:
    """Hidden names below a folder, but for the lists of what was written."""
    return sorted(path.name for path in folder.rglob(".*") if path.name != WRITTEN)


# What is the user's, in the way of a feature folder.


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def make_link(path: Path) -> None:
    make_folder(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def make_meta_of_somebody_else(path: Path) -> None:
    path.mkdir()
    (path / "meta.json").write_text('{"title": "my album"}')


IN_THE_WAY: dict[str, Callable[[Path], object]] = {
    "folder": make_folder,
    "empty folder": Path.mkdir,
    "folder with a meta.json": make_meta_of_somebody_else,
    "file": lambda path: path.write_text("mine"),
    "link": make_link,
    "link that leads nowhere": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("subjects", "name"), [("main", "short"), ("all", "short"), ("all", "short_left"), ("all", "short_12")]
)
@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_in_the_way_is_refused_before_any_work(
    short_clip: Path, tmp_path: Path, kind: str, subjects: str, name: str, overwrite: bool
) -> None:
    IN_THE_WAY[kind](tmp_path / name)
    before = tree(tmp_path)
    config = PreprocessConfig.model_validate(SILENT | {"faces": {"subjects": subjects}})
    finished, jobs = Preprocessor(config, device="cpu").plan(
        [Source("short", short_clip)], tmp_path, overwrite=overwrite
    )
    assert not jobs
    (refused,) = finished
    assert not refused.done
    assert str(tmp_path / name) in refused.problem
    assert "\n" not in refused.problem
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_folder_of_the_same_name_beside_the_video_stays_and_others_are_done(
    short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("talk", "walk"):
        shutil.copy(short_clip, tmp_path / f"{name}.mp4")
    make_folder(tmp_path / "talk")
    before = tree(tmp_path)
    inputs = [str(tmp_path / "talk.mp4"), str(tmp_path / "walk.mp4"), "--out", str(tmp_path)]
    for more in (["--dry-run"], [], ["--overwrite"]):
        assert preprocess([*inputs, *NO_SPEECH, *more]) == 1
        failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
        assert len(failed) == 1
        assert str(tmp_path / "talk") in failed[0]
        if more == ["--dry-run"]:
            assert tree(tmp_path) == before
        assert tree(tmp_path / "talk") == {"notes.txt": b"mine"}
    assert load_features(tmp_path / "walk").n_frames == 12
    assert hidden(tmp_path) == []


def test_provided_faces_stay_where_out_is_their_folder(
    short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short_left").mkdir()
    Image.new("RGB", (112, 112)).save(tmp_path / "short_left" / "00001.jpg")
    before = tree(tmp_path)
    arguments = [str(short_clip), "--out", str(tmp_path), "--cropped-aligned", str(tmp_path), *NO_SPEECH]
    assert preprocess([*arguments, "--dry-run"]) == preprocess(arguments) == 1
    assert str(tmp_path / "short_left") in capsys.readouterr().err
    assert tree(tmp_path) == before


@pytest.fixture
def made(short_clip: Path, tmp_path: Path) -> Path:
    """Features of a copy of the short clip, both in ``tmp_path``."""
    shutil.copy(short_clip, tmp_path / "talk.mp4")
    out = tmp_path / "features"
    assert preprocess([str(tmp_path / "talk.mp4"), "--out", str(out), *NO_SPEECH]) == 0
    return out / "talk"


@pytest.mark.slow
def test_notes_in_a_feature_folder_stay(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = [str(made.parents[1] / "talk.mp4"), "--out", str(made.parent), *NO_SPEECH, "--set", "faces.size=32"]
    (made / "notes.txt").write_text("mine")
    before = tree(made)
    capsys.readouterr()
    assert preprocess(again) == 1
    assert "notes.txt" in capsys.readouterr().err
    assert tree(made) == before
    (made / "notes.txt").unlink()
    # The picture that --inspect draws is not the user's, unless he drew into it.
    assert preprocess(["--inspect", str(made)]) == 0
    with Image.open(made / "contact_sheet.png") as picture:
        drawn = picture.copy()
    drawn.putpixel((0, 0), (1, 2, 3))
    drawn.save(made / "contact_sheet.png")
    before = tree(made)
    assert preprocess(again) == preprocess(["--inspect", str(made)]) == 1
    assert tree(made) == before
    (made / "contact_sheet.png").unlink()
    assert preprocess(["--inspect", str(made)]) == preprocess(["--inspect", str(made)]) == preprocess(again) == 0
    assert load_features(made).faces.shape[1] == 32
    assert not (made / "contact_sheet.png").exists()


@pytest.mark.slow
def test_damaged_and_old_features_are_made_again(made: Path) -> None:
    whole = {name: content for name, content in tree(made).items() if name != "meta.json"}
    arguments = [str(made.parents[1] / "talk.mp4"), "--out", str(made.parent), *NO_SPEECH]
    meta = json.loads((made / "meta.json").read_text())
    for damage in (
        lambda: (made / "faces.npy").unlink(),
        lambda: (made / "words.json").write_text("["),
        lambda: (made / "meta.json").write_text(json.dumps(meta | {"format_version": 1})),
        lambda: (made / "meta.json").write_text(json.dumps({k: v for k, v in meta.items() if k != "settings"})),
    ):
        damage()
        assert preprocess(arguments) == 0
        assert {name: content for name, content in tree(made).items() if name != "meta.json"} == whole
        load_features(made)


@pytest.mark.slow
def test_another_file_of_the_same_name_is_refused(
    made: Path, demo_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = tmp_path / "talk.mp4", ["--out", str(made.parent), *NO_SPEECH]
    other = tmp_path / "other" / "talk.mp4"
    other.parent.mkdir()
    shutil.copy(min(demo_clips.glob("*.mp4"), key=lambda path: path.stat().st_size), other)
    before = tree(made)
    for more in (["--dry-run"], []):
        capsys.readouterr()
        assert preprocess([str(other), *out, *more]) == 1
        assert str(clip) in capsys.readouterr().err
    assert tree(made) == before
    # Moved, it is the same video still; and a video that was edited in its place is done again.
    moved = tmp_path / "moved" / "talk.mp4"
    moved.parent.mkdir()
    clip.rename(moved)
    assert preprocess([str(moved), *out]) == 0
    assert tree(made) == before
    moved.rename(clip)
    shutil.copy(other, clip)
    assert preprocess([str(clip), *out]) == 0
    edited = tree(made)
    assert edited != before
    clip.write_bytes(other.read_bytes() + b"\0" * 8)
    assert preprocess([str(other), *out, "--overwrite"]) == 0
    assert json.loads((made / "meta.json").read_text())["source"]["path"] == str(other)


def test_a_relative_path_from_another_folder_is_another_file(
    made: Path, demo_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = ["--out", str(made.parent), *NO_SPEECH]
    assert preprocess(["talk.mp4", *out, "--set", "faces.size=32"]) == 0
    before = tree(made)
    (tmp_path / "other").mkdir()
    shutil.copy(demo_clips / "demo_02.mp4", tmp_path / "other" / "talk.mp4")
    monkeypatch.chdir(tmp_path / "other")
    assert preprocess(["talk.mp4", *out, "--set", "faces.size=32"]) == 1
    assert tree(made) == before


# Files of the user's, in the way of predictions, scores, pages.


class Project:
    """A small data set and a run that was trained on it."""

    def __init__(self, root: Path) -> None:
        self.root, self.run, self.config = root, root / "run", root / "small.yaml"
        self.labels = root / "annotations" / "Validation_Set"
        self.features = root / "features"
        self.config.write_text(
            yaml.safe_dump(make_data(root, n_train=2, n_validation=2, n_frames=N_FRAMES).model_dump(mode="json"))
        )

    def train(self, out: Path, *more: str) -> int:
        epochs = ["--set", "train.epochs=1", "--device", "cpu"]
        return cli.train.main(["--config", str(self.config), "--out", str(out), *epochs, *more])

    def predict(self, out: Path, *more: str) -> int:
        return cli.predict.main(
            [str(self.features), "--checkpoint", str(self.run), "--out", str(out), "--device", "cpu", *more]
        )

    def evaluate(self, predictions: Path) -> int:
        # Two of the four videos that are predicted have labels here.
        return cli.evaluate.main(["--predictions", str(predictions), "--annotations", str(self.labels)])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("project"))
    assert project.train(project.run) == 0
    return project


def test_labels_are_never_overwritten_by_predictions(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project.labels, tmp_path / "labels")
    before = tree(tmp_path)
    assert project.predict(tmp_path / "labels") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "video2.txt" in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("video1.txt", []),
        ("frames.csv", []),
        ("frames.parquet", ["--table", "parquet"]),
        ("predictions.txt", ["--format", "single-file"]),
        ("report.html", ["--report"]),
        ("mine.mp4", ["--overlay", "mine.mp4"]),
        ("drawn/video1.mp4", ["--overlay", "drawn"]),
    ],
)
def test_files_of_the_user_are_refused_before_any_work(
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    options: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    assert project.predict(tmp_path, *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert name in line
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_own_predictions_are_replaced_until_somebody_changes_them(project: Project, tmp_path: Path) -> None:
    everything = ["--report", "--overlay", str(tmp_path / "drawn")]
    for _ in range(2):
        # No recording: an overlay fails.
        assert project.predict(tmp_path / "out", *everything) == 1
        assert project.predict(tmp_path / "out") == 0
        assert project.evaluate(tmp_path / "out") == 0
    moved = tmp_path / "moved"
    (tmp_path / "out").rename(moved)
    assert project.predict(moved) == project.evaluate(moved) == 0
    for name in ("video0.txt", "frames.csv", "scores.json"):
        before = (moved / name).read_bytes()
        (moved / name).write_bytes(before + b"\n")
        work = project.evaluate if name == "scores.json" else project.predict
        assert work(moved) == 2
        assert (moved / name).read_bytes() == before + b"\n"
        (moved / name).write_bytes(before)
        assert work(moved) == 0


def test_scores_of_a_run_and_folds_of_the_user_stay(project: Project, tmp_path: Path) -> None:
    assert project.predict(tmp_path) == 0
    shutil.copy(project.run / "scores.json", tmp_path)
    before = tree(tmp_path)
    assert project.evaluate(tmp_path) == 2
    assert tree(tmp_path) == before
    (tmp_path / "folds.json").write_text("mine")
    assert project.train(tmp_path, "--fold", "all") == 2
    assert (tmp_path / "folds.json").read_text() == "mine"
    assert not (tmp_path / "fold_0").exists()


def test_embeddings_do_not_replace_features(project: Project, tmp_path: Path) -> None:
    before = tree(project.features)
    options = ["--set", "model.face.frozen=true", "--set", "model.audio.frozen=true"]
    project.train(tmp_path / "run", *options, "--set", f"data.embeddings={project.features}")
    assert before.items() <= tree(project.features).items()


def test_export_takes_a_new_or_an_empty_folder(project: Project, tmp_path: Path) -> None:
    for kind, make in IN_THE_WAY.items():
        folder = tmp_path / kind / "model"
        folder.parent.mkdir()
        make(folder)
        before = tree(tmp_path / kind)
        code = cli.export.main([str(project.run), "--out", str(folder)])
        assert code == (0 if kind == "empty folder" else 2), kind
        if code:
            assert tree(tmp_path / kind) == before


# Several processes.


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


HOLD = """
import sys, time
from pathlib import Path
from preprocessing.files import lock
with lock(Path(sys.argv[1]), "v"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_dead_process_keeps_no_lock(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with lock(tmp_path, "another"):
        pass
    waited = []

    def kill() -> None:
        waited.append(True)
        process.kill()
        process.wait()

    with lock(tmp_path, "v", on_wait=kill):
        assert waited == [True]
    process.communicate()
    assert list(tmp_path.iterdir()) == []


COUNT = """
import sys
from pathlib import Path
from preprocessing.files import lock
counter = Path(sys.argv[1]) / "counter"
for _ in range(int(sys.argv[2])):
    with lock(counter.parent, "v"):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    """Each waiter may find the file of the lock removed by the one before."""
    (tmp_path / "counter").write_text("0")
    processes = [start(COUNT, tmp_path, 25) for _ in range(4)]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    assert (tmp_path / "counter").read_text() == "100"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


REPLACE = """
import sys
from pathlib import Path
from preprocessing.features.folder import load_features, save_features
features = load_features(Path(sys.argv[1]))
print("begins", flush=True)
while True:
    save_features(Path(sys.argv[1]), features)
"""


def test_a_process_that_is_killed_leaves_the_old_or_the_new_folder(tmp_path: Path) -> None:
    """``KILLS=20 pytest tests/test_nothing_is_lost.py`` kills more often."""
    folder = tmp_path / "v"
    made = make_features(folder, make_labels(N_FRAMES, seed=0), seed=0)
    before = tree(folder)
    random = np.random.default_rng(0)
    for _ in range(N_KILLS):
        process = start(REPLACE, folder)
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        process.communicate()
        # As the next run does: the process may have died between two renames.
        remove_left_overs(tmp_path)
        assert tree(folder) == before
    save_features(folder, made)
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_what_a_living_process_writes_is_not_cleared(tmp_path: Path) -> None:
    with whole_or_nothing(tmp_path / "a") as one:
        (one / "file").write_text("a")
        with whole_or_nothing(tmp_path / "b") as other, replace_own(tmp_path / "c") as third:
            remove_left_overs(tmp_path)
            (other / "file").write_text("b")
            third.write_text("c")
    assert tree(tmp_path) == {**tree(tmp_path), "a/file": b"a", "b/file": b"b", "c": b"c"}
    assert hidden(tmp_path) == []


def test_folder_that_appears_during_the_work_stays(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mine"), whole_or_nothing(tmp_path / "mine", check=own_source) as new:
        (new / "meta.json").write_text("{}")
        make_folder(tmp_path / "mine")
    assert tree(tmp_path) == {"mine": None, "mine/notes.txt": b"mine"}


@pytest.mark.slow
@pytest.mark.parametrize("n_runs", [2, 4])
def test_runs_at_the_same_time_give_the_bytes_of_one(short_clip: Path, tmp_path: Path, n_runs: int) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a", "b"):
        shutil.copy(short_clip, videos / f"{name}.mp4")
    assert preprocess([str(videos), "--out", str(tmp_path / "one"), *NO_SPEECH]) == 0
    command = [sys.executable, "-m", "preprocessing.cli", str(videos), "--out", str(tmp_path / "many"), *NO_SPEECH]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(n_runs)]
    for run in runs:
        _, said = run.communicate()
        assert run.returncode == 0, said
    one, many = tree(tmp_path / "one"), tree(tmp_path / "many")
    for name in ("a", "b"):
        old, new = (json.loads(content.pop(f"{name}/meta.json")) for content in (one, many))  # type: ignore[arg-type]
        del old["seconds"], new["seconds"]
        assert old == new
    assert one == many


# Disks that are full, places that cannot be written.


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond a size, as on a full disk, whoever runs the tests."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def commands(project: Project, clip: Path, out: Path) -> dict[str, Callable[[], int]]:
    """Every command that writes, by what it writes."""
    predictions = out / "predictions"
    return {
        "preprocess": lambda: preprocess([str(clip), "--out", str(out / "features"), *NO_SPEECH]),
        "inspect": lambda: preprocess(["--inspect", str(out / "features" / clip.stem)]),
        "train": lambda: project.train(out / "run", "--resume"),
        "predict": lambda: project.predict(predictions),
        "single file": lambda: project.predict(predictions, "--format", "single-file", "--table", "parquet"),
        "report": lambda: project.predict(predictions, "--report", "--format", "none", "--table", "none"),
        "evaluate": lambda: project.evaluate(predictions),
        "export": lambda: cli.export.main([str(project.run), "--out", str(out / "exported")]),
    }


WRITES = ["preprocess", "inspect", "train", "predict", "single file", "report", "evaluate", "export"]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    project: Project, short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    work = commands(project, short_clip, tmp_path)
    # What it needs is there.
    for before in {"inspect": ["preprocess"], "evaluate": ["predict"]}.get(name, []):
        assert work[before]() == 0
    codes = []
    for n_bytes in (0, 60, 600, 6_000, 60_000, 600_000, 6_000_000):
        there = tree(tmp_path)
        capsys.readouterr()
        with largest_file(n_bytes):
            codes.append(work[name]())
        said = capsys.readouterr().err.splitlines()
        assert codes[-1] in (0, 1)
        assert hidden(tmp_path) == []
        if codes[-1] == 1:
            errors = [line for line in said if line.startswith("failed: ") or ": error: " in line]
            assert len(errors) == 1, said
            assert "File too large" in errors[0]
            assert not any(line.startswith(" ") for line in said), said
            if name not in ("predict", "train"):  # which leave what they finished
                now = tree(tmp_path)
                assert {key: now[key] for key in there if Path(key).name != WRITTEN} == {
                    key: value for key, value in there.items() if Path(key).name != WRITTEN
                }
    assert codes[0] == 1
    assert codes[-1] == 0


@pytest.mark.parametrize("name", ["preprocess", "train", "predict", "single file", "report", "export"])
def test_a_place_that_cannot_be_written_is_one_line(
    project: Project, short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "file").write_text("mine")
    capsys.readouterr()
    assert commands(project, short_clip, tmp_path / "file" / "below")[name]() == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(errors) == 1
    assert str(tmp_path / "file" / "below") in errors[0]
    assert tree(tmp_path) == {"file": b"mine"}


CHECK = "import sys; from rcma.cli.check_submission import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_takes_is_one_line(tmp_path: Path, unbuffered: str) -> None:
    (tmp_path / "predictions.txt").write_text("image_location,valence,arousal\nv/00001.jpg,0.1,0.2\n")
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for target in (writer, full):
        done = subprocess.run(
            [sys.executable, "-c", CHECK, "predictions.txt"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": unbuffered},
            stdout=target,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(target)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "standard output" in done.stderr


# Damaged features.


def damage(folder: Path, name: str, index: object, value: float) -> None:
    array = np.load(folder / f"{name}.npy")
    array[index] = value
    np.save(folder / f"{name}.npy", array)


def forget(folder: Path, key: str) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    del meta[key]
    (folder / "meta.json").write_text(json.dumps(meta))


def spoil_word(folder: Path) -> None:
    words = json.loads((folder / "words.json").read_text())
    words[0]["end_s"] = float("inf")
    (folder / "words.json").write_text(json.dumps(words))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "word that does not exist": ("frame_word.npy", lambda folder: damage(folder, "frame_word", 3, 1000)),
    "word below -1": ("frame_word.npy", lambda folder: damage(folder, "frame_word", 3, -2)),
    "time that is not a number": ("time_s.npy", lambda folder: damage(folder, "time_s", 3, np.nan)),
    "infinite time": ("time_s.npy", lambda folder: damage(folder, "time_s", -1, np.inf)),
    "time that stands still": ("time_s.npy", lambda folder: damage(folder, "time_s", 3, 2 / 25)),
    "infinite sound": ("log_mel.npy", lambda folder: damage(folder, "log_mel", (7, 5), -np.inf)),
    "infinite box": ("face_box.npy", lambda folder: damage(folder, "face_box", (7, 2), np.inf)),
    "infinite score": ("face_score.npy", lambda folder: damage(folder, "face_score", 7, np.inf)),
    "vector that is not a number": ("word_vectors.npy", lambda folder: damage(folder, "word_vectors", (0, 1), np.nan)),
    "infinite vector": ("word_vectors.npy", lambda folder: damage(folder, "word_vectors", (0, 1), np.inf)),
    "word without end": ("words.json", spoil_word),
    **{
        f"no {key}": ("meta.json", lambda folder, key=key: forget(folder, key))  # type: ignore[misc]
        for key in ("settings", "source", "subjects", "audio", "n_frames", "warnings", "format_version")
    },
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_features_are_named(tmp_path: Path, kind: str) -> None:
    file, spoil = DAMAGES[kind]
    folder = tmp_path / "v"
    make_features(folder, make_labels(N_FRAMES, seed=0), seed=0)
    load_features(folder)
    spoil(folder)
    with pytest.raises(InputError) as raised:
        load_features(folder)
    said = str(raised.value)
    assert str(folder) in said
    assert file in said
    assert "preprocess the video again" in said
    assert "\n" not in said


def test_damaged_features_are_left_out_and_the_others_are_used(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Project(tmp_path)
    damage(other.features / "video0", "frame_word", 3, 1000)
    forget(other.features / "video2", "settings")
    other.run = project.run
    assert other.predict(tmp_path / "out") == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert ["video0" in failed[0], "video2" in failed[1], len(failed)] == [True, True, 2]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.txt")) == ["video1.txt", "video3.txt"]
    assert other.train(tmp_path / "run") == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert ["video0" in warned[0], "video2" in warned[1]] == [True, True]
