"""A recording with its prediction drawn in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.features import Features
from preprocessing.files import replace_own
from preprocessing.media import Video, reason_of
from rcma.config import TARGETS
from rcma.output.drawing import Drawing
from rcma.output.movie import MovieQuality, write_movie
from rcma.prediction import Prediction

_QUALITY = MovieQuality({"crf": "20", "preset": "fast"}, audio_bits_per_s=160_000)
_SAME_TIME_S = 1e-3
"""Frames further from the features' times are frames of another recording."""


def write_overlay(
    path: Path,
    video: Path,
    features: Features,
    prediction: Prediction,
    *,
    predicted_by: str = "",
    on_frame: Callable[[int, int], None],
) -> None:
    """Write a video again with its prediction drawn in, whole or not at all.

    It shows the face box, the words around the one being spoken, the valence-arousal plane with the last two seconds,
    and which modalities a frame has. Pictures are upright with square pixels, in H.264. Each frame keeps its time; zero
    is the first frame. Sound that browsers play from an .mp4 is copied, other sound encoded as AAC. Memory does not
    grow with the video.

    Args:
        path: the .mp4 to write; missing folders above it are made.
        video: the recording from which the features were made.
        features: of its T frames.
        prediction: of the same frames.
        predicted_by: shown in each picture; for models other than RCMA.
        on_frame: called after each frame with the number of finished frames, and T.

    Raises:
        InputError: ``path`` is not an .mp4, is the recording itself, cannot be written, or exists and this program did
            not write it; the recording cannot be read, or its frames are not those of the features.
        ValueError: the prediction is not of T frames.
    """
    if prediction.values.shape != (features.n_frames, len(TARGETS)):
        raise ValueError(f"{features.video_id}: prediction {prediction.values.shape} of {features.n_frames} frames")
    if path.suffix.lower() != ".mp4":
        raise InputError(f"{path}: an overlay is an .mp4 file; give a name that ends in .mp4")
    if path.exists() and video.exists() and path.samefile(video):
        # It may be an overlay of an earlier run, which could be replaced otherwise.
        raise InputError(f"{path}: is the recording itself; give another name for the overlay")
    streams = (features.meta.get("settings") or {}).get("streams") or ()
    with Video(video, streams=streams) as opened:
        width, height = opened.width, opened.height
        expected = features.meta.get("width", width), features.meta.get("height", height)
        if (width, height) != expected:
            raise _other_recording(video, features, f"{width} x {height} pixels", f"{expected[0]} x {expected[1]}")
        drawing = Drawing(width, height, features, prediction, predicted_by=predicted_by)
        pictures = _drawn(video, opened, features, drawing, on_frame)
        size = drawing.width, drawing.height
        try:
            with replace_own(path) as new:
                write_movie(new, pictures, size, opened, video, streams=streams, quality=_QUALITY)
        except (OSError, av.FFmpegError) as error:
            reason = f"cannot be written ({reason_of(error)})"
            raise InputError(f"{path}: {reason}; give a place where a file can be written") from None


def _drawn(
    video: Path, opened: Video, features: Features, drawing: Drawing, on_frame: Callable[[int, int], None]
) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """The frames with everything drawn in, each with its time."""
    n_decoded, n_frames = 0, features.n_frames
    for index, frame in enumerate(opened.frames()):
        n_decoded += 1
        if index >= n_frames:
            continue
        expected_s = features.time_s[index]
        if abs(frame.time_s - expected_s) > _SAME_TIME_S:
            raise _other_recording(video, features, f"frame {index} at {frame.time_s:.3f} s", f"{expected_s:.3f} s")
        yield drawing.draw(frame.image, index), frame.time_s
        on_frame(n_decoded, n_frames)
    if n_decoded != n_frames:
        raise _other_recording(video, features, f"{n_decoded} frames", f"{n_frames}")


def _other_recording(video: Path, features: Features, found: str, expected: str) -> InputError:
    return InputError(
        f"{video}: has {found}, but the features of {features.video_id} say {expected}; "
        "give the recording they were made from"
    )
