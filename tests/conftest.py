"""Fixtures: folders of real recordings and models, and small videos encoded on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

DEMO = Path(__file__).parents[1] / "benchmarks" / "demo"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run a module on one thread: the number of threads decides the order of sums, and with it the last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with small features and annotations, to train on; one for each test module."""
    from made_features import make_data

    folder = tmp_path_factory.mktemp("training")
    make_data(folder, n_frames=60)
    return folder


def _folder_from_environment(variable: str, content: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set (a folder with {content})")
    return Path(value)


@pytest.fixture(scope="session")
def media() -> Path:
    """Folder of real recordings."""
    return _folder_from_environment("RCMA_TEST_MEDIA", "real video clips")


@pytest.fixture(scope="session")
def cases(media: Path) -> Path:
    """Folder of small inputs with many kinds of faults, beside the real recordings."""
    folder = media.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def whisper_dir() -> Path:
    """Folder with the real Whisper base: ``base.pt`` for openai-whisper, ``ct2/`` for faster-whisper."""
    return _folder_from_environment("RCMA_TEST_WHISPER", "Whisper base as base.pt and ct2/")


@pytest.fixture(scope="session")
def demo_clips() -> Path:
    """Clips that come with the project."""
    return DEMO / "clips"


@pytest.fixture(scope="session")
def demo_annotations() -> Path:
    """Labels of the clips that come with the project."""
    return DEMO / "annotations"


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """Function that writes a small video: ``make_video(path, images, rate=25, samples=None, ...)``."""

    def make(
        path: Path,
        images: Sequence[np.ndarray],
        *,
        rate: int = 25,
        samples: np.ndarray | None = None,
        sample_rate: int = 16000,
        audio_start_s: float = 0.0,
    ) -> Path:
        """Encode ``images`` (each uint8 (H,W,3), even sides) and, if given, mono ``samples`` (float32 in [-1,1])."""
        height, width = images[0].shape[:2]
        with av.open(f"file:{path}", "w") as container:
            video = container.add_stream("mpeg4", rate=rate)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            sound = None if samples is None else container.add_stream("aac", rate=sample_rate, layout="mono")
            for index, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, rate)
                container.mux(video.encode(frame))
            container.mux(video.encode())
            if sound is not None and samples is not None:
                frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
                frame.pts = round(audio_start_s * sample_rate)
                container.mux(sound.encode(frame))
                container.mux(sound.encode())
        return path

    return make


@pytest.fixture(scope="session")
def short_clip(demo_clips: Path, make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 12 frames of a bundled clip, with half a second of its sound."""
    from preprocessing.media import Video, read_audio

    source = min(demo_clips.glob("*.mp4"))
    with Video(source) as video:
        images = [frame.image for frame, _ in zip(video.frames(), range(12), strict=False)]
    audio = read_audio(source, origin_s=0.0)
    assert audio is not None
    return make_video(tmp_path_factory.mktemp("short") / "short.mp4", images, samples=audio.samples[:8000])


@pytest.fixture(scope="session")
def two_people(demo_clips: Path, make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with one face on the left and another on the right."""
    from preprocessing.media import Video

    with Video(demo_clips / "demo_01.mp4") as one, Video(demo_clips / "demo_04.mp4") as other:
        images = [
            np.concatenate([a.image, b.image], axis=1)
            for a, b, _ in zip(one.frames(), other.frames(), range(30), strict=False)
        ]
    return make_video(tmp_path_factory.mktemp("two") / "talk.mp4", images)
