"""How fast preprocessing is, as ratios measured in one run with the models loaded.

usage: python benchmarks/bench_preprocessing.py [VIDEO ...] [--repeat N]

Baseline: MTCNN on every full-size frame and openai-whisper with its defaults on the whole sound, one after the other,
both free to use all cores. Each figure is the median of N passes after one that does not count. Writes
benchmarks/results/; the last line printed is the result, as JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from measuring import BACKENDS, BUNDLED_CLIP, OPENAI_WHISPER, median_seconds, settings
from results import write_result

from preprocessing.config import PreprocessConfig
from preprocessing.faces import FaceDetector, follow_faces
from preprocessing.media import Video, read_audio
from preprocessing.names import video_id_of
from preprocessing.run import Preprocessor
from preprocessing.speech import load_openai_whisper


def detect_on_every_full_frame(path: Path, mtcnn: object) -> None:
    """The baseline of the face stage."""
    with Video(path) as video:
        for frame in video.frames():
            mtcnn.detect(frame.image[None])  # type: ignore[attr-defined]


def follow(path: Path, detector: FaceDetector, config: PreprocessConfig) -> None:
    """Our face stage, on one thread as in the pipeline."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with Video(path) as video, tempfile.TemporaryFile() as crops:
        follow_faces(video.frames(), detector, config.faces, crops)
    torch.set_num_threads(before)


def measure(path: Path, *, repeat: int) -> dict[str, float | str]:
    """Ratios for one clip."""
    from facenet_pytorch import MTCNN

    with Video(path) as video:
        times = [frame.time_s for frame in video.frames()]
        audio = read_audio(path, origin_s=video.start_s)
    duration_s = times[-1] + float(np.median(np.diff(times)))

    mtcnn = MTCNN(keep_all=True, device="cpu")
    baseline_faces_s = median_seconds(lambda: detect_on_every_full_frame(path, mtcnn), repeat)
    detector = FaceDetector(settings("none").faces, device="cpu")
    faces_s = median_seconds(lambda: follow(path, detector, settings("none")), repeat)
    result: dict[str, float | str] = {
        "clip": path.name,
        "seconds_of_video": round(duration_s, 2),
        "frames": len(times),
        "faces_ratio_to_baseline": round(baseline_faces_s / faces_s, 2),
        "faces_frames_per_s": round(len(times) / faces_s, 1),
    }
    baseline_s = baseline_faces_s
    if audio is not None:
        whisper = load_openai_whisper(OPENAI_WHISPER, device="cpu")
        samples = np.asarray(audio.samples[:])
        baseline_s += median_seconds(lambda: whisper.transcribe(samples, language="en", fp16=False), repeat)
    for backend in BACKENDS:
        preprocessor = Preprocessor(settings(backend), device="cpu")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            all_s = median_seconds(lambda p=preprocessor, o=out: p(path, o, overwrite=True), repeat)  # type: ignore[misc]
            n_bytes = sum(file.stat().st_size for file in (out / video_id_of(path)).iterdir())
        result[f"{backend}: all stages, times real time"] = round(duration_s / all_s, 2)
        result[f"{backend}: all stages, ratio to baseline"] = round(baseline_s / all_s, 2)
        result["bytes_per_frame"] = round(n_bytes / len(times))
    return result


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, default=[BUNDLED_CLIP], metavar="VIDEO")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    args = parser.parse_args()
    write_result("preprocessing", [measure(path, repeat=args.repeat) for path in args.videos])


if __name__ == "__main__":
    main()
