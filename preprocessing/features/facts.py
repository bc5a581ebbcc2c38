"""Facts about a feature folder: measurements for the contact sheet, and lines of text for ``--inspect``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from preprocessing.features.folder import Features
from preprocessing.media import MEL_RATE, SAMPLE_RATE

SILENCE = math.log(0.01)
"""Log-mel of digital silence."""
_REGULAR_MS = 2.0
"""Maximum deviation of regular frames' spacing from its median: containers round times to the millisecond."""
_UNSURE = 0.5
"""Words of a lower probability are counted."""
_FIRST_WORDS = 15
_LONE_FRAME_S = 0.04
"""Seconds that a single frame is drawn for if no frame rate is known."""


def describe(features: Features) -> list[tuple[str, str]]:
    """Return label and value of each line of facts about a feature folder."""
    return [
        *_describe_video(features),
        *_describe_faces(features),
        *_describe_sound(features),
        *_describe_words(features),
        *_describe_vectors(features),
        *_describe_processing(features),
    ]


def _frame_s(features: Features) -> float | None:
    """Usual time between consecutive frames, seconds."""
    if features.n_frames > 1:
        return float(np.median(np.diff(features.time_s)))
    rate = features.meta.get("frame_rate")
    return 1 / rate if rate else None


def frame_ends(features: Features) -> NDArray[np.float64]:
    """Return the (T,) seconds at which each frame ends."""
    times = np.asarray(features.time_s)
    return np.append(times[1:], times[-1:] + (_frame_s(features) or _LONE_FRAME_S))


def sound_span(features: Features) -> tuple[float, float] | None:
    """Return start and end of the sound in seconds, without the padding at the end if ``meta`` has its duration."""
    with_sound = np.flatnonzero(~np.isnan(features.log_mel[:, :1]).all(axis=1))
    if len(with_sound) == 0:
        return None
    audio = features.meta.get("audio") or {}
    start_s, duration_s = audio.get("start_s"), audio.get("duration_s")
    if start_s is None or duration_s is None:
        return with_sound[0] / MEL_RATE, (with_sound[-1] + 1) / MEL_RATE
    return float(start_s), float(start_s + duration_s)


def time_axis_end_s(features: Features) -> float:
    """Return the end of the last frame or of the sound, whichever is later; seconds, above zero."""
    return max([*frame_ends(features)[-1:], *(sound_span(features) or ()), _LONE_FRAME_S])


def faces_found(features: Features) -> NDArray[np.bool_]:
    """Return whether a face was found in each frame, (T,)."""
    return np.isfinite(features.face_score)


def runs(flags: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the first index of each run of true values and the one after its last, (n,2)."""
    return np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]))).reshape(-1, 2)


def warnings_of(features: Features) -> list[str]:
    """Return the warnings of all stages of preprocessing, one line each."""
    by_stage = features.meta.get("warnings") or {}
    return [f"{stage}: {warning}" for stage, warnings in by_stage.items() for warning in warnings]


def is_regular(features: Features) -> bool:
    """Whether frames are equally spaced, up to the rounding of containers."""
    spacing = 1000 * np.diff(features.time_s)
    return len(spacing) == 0 or bool(np.abs(spacing - np.median(spacing)).max() <= _REGULAR_MS)


def duration(features: Features) -> str:
    """Describe the time from the start of the first frame to the end of the last one."""
    return "not known" if _frame_s(features) is None else f"{frame_ends(features)[-1]:.2f} s"


def picture_size(features: Features) -> str:
    """Describe width and height of the video in pixels."""
    return f"{features.meta.get('width', '?')} x {features.meta.get('height', '?')}"


def percent(share: float) -> str:
    """Format a share in percent, rounded towards the middle: 100.0 % means all of them, and 0.0 % none."""
    percent = 100 * float(share)
    rounded = percent if percent in (0, 100) else min(max(percent, 0.1), 99.9)
    return f"{rounded:.1f} %"


def _describe_video(features: Features) -> Iterator[tuple[str, str]]:
    source = features.meta.get("source") or {}
    yield "video", features.video_id
    yield "source", str(source.get("path", "not known"))
    if "sha256" in source:
        yield "sha256", f"{source['sha256'][:12]}…"
    others = [name for name in features.meta.get("subjects") or () if name != features.video_id]
    if others:
        yield "of the same source", ", ".join(others)
    yield "picture", f"{picture_size(features)} pixels"
    yield "frames", str(features.n_frames)
    yield "duration", duration(features)
    if features.n_frames < 2:
        yield "frame times", "one frame"
        return
    rate = (features.n_frames - 1) / float(features.time_s[-1] - features.time_s[0])
    yield "frame rate", f"{rate:.2f} per second (mean)"
    low, middle, high = (1000 * float(value) for value in np.quantile(np.diff(features.time_s), (0, 0.5, 1)))
    if is_regular(features):
        yield "frame times", f"regular, {middle:.1f} ms apart"
    else:
        yield "frame times", f"irregular, {low:.1f} / {middle:.1f} / {high:.1f} ms apart (least / median / most)"


def _describe_faces(features: Features) -> Iterator[tuple[str, str]]:
    has_face = faces_found(features)
    yield "faces", f"{percent(has_face.mean())} of frames"
    if has_face.any():
        score = features.face_score[has_face]
        box = np.asarray(features.face_box, np.float64)[has_face]
        side = np.median((box[:, 2:] - box[:, :2]).mean(axis=1))
        yield "face score", f"{score.mean():.3f} mean, {score.min():.3f} least"
        yield "face side", "not known" if np.isnan(side) else f"{side:.0f} pixels (median)"
    yield "crops", " x ".join(str(side) for side in features.faces.shape[1:3])
    missing = runs(~has_face)
    if len(missing) == 0:
        yield "longest without face", "none"
        return
    start_s, end_s = features.time_s[missing[:, 0]], frame_ends(features)[missing[:, 1] - 1]
    longest = int(np.argmax(end_s - start_s))
    span = f"{start_s[longest]:.2f} to {end_s[longest]:.2f} s"
    yield "longest without face", span if has_face.any() else f"{span}, the whole video"


def _describe_sound(features: Features) -> Iterator[tuple[str, str]]:
    span = sound_span(features)
    yield "sound", f"{span[0]:.2f} to {span[1]:.2f} s ({span[1] - span[0]:.2f} s)" if span else "none"
    n_rows = len(features.log_mel)
    if n_rows == 0:
        yield "log-mel", "0 rows"
        return
    missing = np.isnan(features.log_mel).any(axis=1)
    # The offset of float16 in this range.
    silent = (features.log_mel <= SILENCE + 0.004).all(axis=1)
    yield "log-mel", f"{n_rows} rows, {percent(missing.mean())} NaN, {percent(silent.mean())} digital silence"
    if features.waveform is not None:
        missing = np.isnan(features.waveform)
        yield "waveform", f"{len(missing)} samples at {SAMPLE_RATE} Hz, {percent(missing.mean())} NaN"


def _describe_words(features: Features) -> Iterator[tuple[str, str]]:
    words = features.words
    yield "words", str(len(words))
    yield "language", features.meta.get("language") or "not known"
    if words:
        if _frame_s(features) is not None:
            yield "words per minute", f"{60 * len(words) / frame_ends(features)[-1]:.0f}"
        yield "frames with a word", percent((features.frame_word >= 0).mean())
        known = np.array([word.probability for word in words if math.isfinite(word.probability)])
        unsure = int((known < _UNSURE).sum())
        probability = (
            f"{known.mean():.2f} mean, {unsure} of {len(words)} below {_UNSURE}" if len(known) else "not known"
        )
        yield "word probability", probability
        end_s = time_axis_end_s(features)
        outside = sum(word.start_s >= end_s or word.end_s <= 0 for word in words)
        if outside:
            yield "words outside the video", str(outside)
        more = " …" if len(words) > _FIRST_WORDS else ""
        yield "first words", " ".join(word.text for word in words[:_FIRST_WORDS]) + more
    settings = features.meta.get("settings") or {}
    encoder = (settings.get("words") or {}).get("model", "not known")
    yield "word vectors", f"{' x '.join(str(n) for n in features.word_vectors.shape)}, model {encoder}"


def _describe_vectors(features: Features) -> Iterator[tuple[str, str]]:
    for modality, vectors in features.vectors.items():
        there = np.isfinite(vectors[:, 0])
        yield f"{modality} vectors", f"{vectors.shape[1]} columns in {percent(there.mean())} of frames"


def _describe_processing(features: Features) -> Iterator[tuple[str, str]]:
    speech = (features.meta.get("settings") or {}).get("speech") or {}
    transcript = features.meta.get("transcript")
    if transcript:
        yield "transcript", str(transcript.get("path"))
    elif speech:
        yield "speech recogniser", f"{speech.get('backend')}, model {speech.get('model')}"
    warnings = warnings_of(features)
    yield from (("warning", warning) for warning in warnings)
    if not warnings:
        yield "warnings", "none"
    seconds: dict[str, float] = features.meta.get("seconds") or {}
    if seconds:
        stages = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
        yield "seconds per stage", f"{stages} (faces beside the rest)"
