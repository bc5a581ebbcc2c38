"""How fast preprocessing is, as ratios measured in one run with the models loaded.

usage: python benchmarks/bench_preprocessing.py [VIDEO ...] [--repeat N]

Baseline: MTCNN on every full-size frame, then openai-whisper with its defaults on the whole sound, both free to use
all cores. Figures are medians of N passes after one for warm-up. Writes benchmarks/results/; the last line printed is
the result, as JSON.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from measuring import (
    BACKENDS,
    BUNDLED_CLIP,
    OPENAI_WHISPER,
    Measurement,
    argument_parser,
    median_seconds,
    settings,
    write_result,
)

from preprocessing.faces import FaceDetector, follow_faces
from preprocessing.media import Video, read_audio
from preprocessing.names import video_id_of
from preprocessing.run import Preprocessor
from preprocessing.speech import load_openai_whisper


def measure(path: Path, *, repeat: int) -> Measurement:
    """Measure one clip."""
    from facenet_pytorch import MTCNN

    with Video(path) as video:
        times = [frame.time_s for frame in video.frames()]
        audio = read_audio(path, origin_s=video.start_s)
    duration_s = times[-1] + float(np.median(np.diff(times)))

    mtcnn = MTCNN(keep_all=True, device="cpu")
    face_settings = settings("none").faces
    detector = FaceDetector(face_settings, device="cpu")

    def detect_on_every_frame() -> None:
        with Video(path) as video:
            for frame in video.frames():
                mtcnn.detect(frame.image[None])

    def follow() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the pipeline
        with Video(path) as video, tempfile.TemporaryFile() as crops:
            follow_faces(video.frames(), detector, face_settings, crops)
        torch.set_num_threads(threads)

    baseline_s, faces_s = median_seconds(repeat, detect_on_every_frame, follow)
    result: Measurement = {
        "clip": path.name,
        "seconds_of_video": round(duration_s, 2),
        "frames": len(times),
        "faces_ratio_to_baseline": round(baseline_s / faces_s, 2),
        "faces_frames_per_s": round(len(times) / faces_s, 1),
    }
    if audio is not None:
        whisper = load_openai_whisper(OPENAI_WHISPER, device="cpu")
        samples = np.asarray(audio.samples[:])
        baseline_s += median_seconds(repeat, lambda: whisper.transcribe(samples, language="en", fp16=False))[0]
    for backend in BACKENDS:
        preprocessor = Preprocessor(settings(backend), device="cpu")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            (all_s,) = median_seconds(repeat, lambda p=preprocessor, o=out: p(path, o, overwrite=True))  # type: ignore[misc]
            n_bytes = sum(file.stat().st_size for file in (out / video_id_of(path)).iterdir())
        result[f"{backend}: all stages, times real time"] = round(duration_s / all_s, 2)
        result[f"{backend}: all stages, ratio to baseline"] = round(baseline_s / all_s, 2)
        result["bytes_per_frame"] = round(n_bytes / len(times))
    return result


def main() -> None:
    """Measure and write the result."""
    parser = argument_parser(__doc__, repeat=3)
    parser.add_argument("videos", nargs="*", type=Path, default=[BUNDLED_CLIP], metavar="VIDEO")
    args = parser.parse_args()
    write_result("preprocessing", [measure(path, repeat=args.repeat) for path in args.videos])


if __name__ == "__main__":
    main()
