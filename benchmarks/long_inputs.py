"""Inputs of any length for benchmarks: a clip played again and again, and random features."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Stream

from preprocessing.config import PreprocessConfig
from preprocessing.features import Features, Word, save_features

FRAME_RATE = 25
WORDS_PER_MINUTE = 150
_GAP_S = 0.2


def loop_clip(clip: Path, path: Path, *, duration_s: float) -> None:
    """Write a video that repeats a clip, its packets copied, until it is at least that long."""
    with av.open(str(path), "w") as target:
        shift_s = 0.0
        streams: dict[int, Stream] = {}
        while shift_s < duration_s:
            end_s = 0.0
            with av.open(str(clip)) as source:
                for stream in (*source.streams.video[:1], *source.streams.audio[:1]):
                    if stream.index not in streams:
                        streams[stream.index] = target.add_stream_from_template(stream)
                wanted = [stream for stream in source.streams if stream.index in streams]
                for packet in source.demux(wanted):
                    if packet.dts is None or packet.pts is None:
                        continue
                    assert packet.time_base is not None
                    end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                    ticks = round(Fraction(shift_s).limit_denominator(90000) / packet.time_base)
                    packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                    packet.stream = streams[packet.stream.index]
                    target.mux(packet)
            # Decoding times may begin before zero: a gap keeps them rising.
            shift_s += end_s + _GAP_S


def save_random_features(folder: Path, n_frames: int, *, text_width: int, config: PreprocessConfig) -> None:
    """Write features of a video with a face in every frame, sound, and words without pauses between them."""
    random = np.random.default_rng(0)
    time_s = np.arange(n_frames) / FRAME_RATE
    starts = np.arange(0.0, n_frames / FRAME_RATE, 60 / WORDS_PER_MINUTE)
    features = Features(
        video_id=folder.name,
        meta={
            "source": {"path": "nowhere.mp4", "size": 0, "modified_ns": 0, "sha256": ""},
            "subjects": [folder.name],
            "n_frames": n_frames,
            "frame_rate": float(FRAME_RATE),
            "audio": {"present": True},
            "settings": config.model_dump(mode="json"),
            "warnings": {},
        },
        time_s=time_s,
        faces=random.integers(0, 256, (n_frames, 48, 48, 3), dtype=np.uint8),
        face_box=np.tile(np.array([10, 10, 60, 60], np.float32), (n_frames, 1)),
        face_score=np.ones(n_frames, np.float32),
        log_mel=random.normal(-2, 1, (n_frames * 4 + 98, 64)).astype(np.float16),
        words=tuple(Word(f"word{k % 500}", float(s), float(s) + 0.3, 0.9) for k, s in enumerate(starts)),
        word_vectors=random.normal(size=(len(starts), text_width)).astype(np.float16),
        frame_word=(np.searchsorted(starts, time_s, side="right") - 1).astype(np.int32),
    )
    save_features(folder, features)
