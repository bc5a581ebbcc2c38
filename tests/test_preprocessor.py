"""preprocessing.Preprocessor from Python, against the command, and PyTorch's number of cores in threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocessing import Preprocessor
from preprocessing.cli import main
from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.inputs import Source
from preprocessing.threads import n_cores, one_core, use_cores

ARRAYS = ("time_s", "faces", "face_box", "face_score", "log_mel", "word_vectors", "frame_word")


@pytest.mark.slow
def test_a_call_gives_what_the_command_writes(short_clip: Path, tmp_path: Path) -> None:
    preprocessor = Preprocessor({"speech.backend": "none", "faces.size": 32}, device="cpu")
    (features,) = preprocessor(short_clip, tmp_path / "called")
    settings = ["--set", "speech.backend=none", "--set", "faces.size=32", "--device", "cpu"]
    assert main([str(short_clip), "--out", str(tmp_path / "command"), "--workers", "1", *settings]) == 0
    for name in ARRAYS:
        path = Path("short") / f"{name}.npy"
        assert (tmp_path / "called" / path).read_bytes() == (tmp_path / "command" / path).read_bytes()
    assert features.video_id == "short" and features.faces.shape == (12, 32, 32, 3)
    # What is there is not done again.
    written = (tmp_path / "called" / "short" / "meta.json").stat().st_mtime_ns
    (again,) = preprocessor(str(short_clip), str(tmp_path / "called"))
    assert (tmp_path / "called" / "short" / "meta.json").stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.faces, features.faces)
    preprocessor(short_clip, tmp_path / "called", overwrite=True)
    assert (tmp_path / "called" / "short" / "meta.json").stat().st_mtime_ns > written
    # Another process takes it over as well.
    (outcome,) = preprocessor.many([Source("short", short_clip)], tmp_path / "called")
    assert outcome.done and outcome.skipped


def test_wrong_settings_and_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"faces\.sise.*faces\.size"):
        Preprocessor({"faces.sise": 32})
    preprocessor = Preprocessor(PreprocessConfig.model_validate({"speech": {"backend": "none"}}), device="cpu")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for name in ("broken.mp4", "none.mp4"):
        with pytest.raises(InputError, match=name):
            preprocessor(tmp_path / name, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(InputError, match="is a file"):
        preprocessor(tmp_path / "broken.mp4", tmp_path / "broken.mp4")


def test_the_number_of_cores_is_that_of_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)

    def work() -> int:
        torch.ones(200, 200) @ torch.ones(200, 200)
        return torch.get_num_threads()

    try:
        with ThreadPoolExecutor(2, initializer=use_cores, initargs=(1,)) as threads:
            assert {threads.submit(work).result() for _ in range(4)} == {1}
        with one_core(), ThreadPoolExecutor(2) as threads:
            assert work() == 1
            assert {threads.submit(work).result() for _ in range(4)} == {3}
        assert work() == n_cores() == 3
    finally:
        torch.set_num_threads(before)
