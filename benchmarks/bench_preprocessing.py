"""How fast preprocessing is, as ratios measured in one run with the models loaded.

usage: python benchmarks/bench_preprocessing.py [VIDEO ...] [--repeat N]

Baseline: MTCNN on every full-size frame, and openai-whisper with its defaults on the whole sound. Each figure is the
median of N passes after one that does not count. Writes benchmarks/results/; the last line printed is the result, as
JSON.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from results import write_result

from preprocessing.config import PreprocessConfig, SpeechSettings, WordSettings
from preprocessing.faces import FaceDetector, find_faces
from preprocessing.models import load_openai_whisper
from preprocessing.pipeline import Preprocessor
from preprocessing.speech import SpeechRecogniser
from preprocessing.video import Video, read_audio

BUNDLED = Path(__file__).parent / "demo" / "clips"
CONFIG = PreprocessConfig(speech=SpeechSettings(model="packaged", language="en"), words=WordSettings(model="packaged"))


def median_seconds(work: Callable[[], object], repeat: int) -> float:
    """Median time of ``repeat`` calls after one for warm-up, seconds."""
    times = []
    for _ in range(repeat + 1):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def detect_every_full_frame(path: Path, mtcnn: object) -> None:
    """The baseline of the face stage."""
    with Video(path) as video:
        for frame in video.frames():
            mtcnn.detect(frame.image[None])  # type: ignore[attr-defined]


def measure(path: Path, preprocessor: Preprocessor, *, repeat: int) -> dict[str, float | str]:
    """Ratios for one clip."""
    from facenet_pytorch import MTCNN

    detector = FaceDetector(CONFIG.faces, device="cpu")
    mtcnn = MTCNN(keep_all=True, device="cpu")
    recogniser = SpeechRecogniser(CONFIG.speech, device="cpu")
    whisper = load_openai_whisper("packaged", device="cpu")
    with Video(path) as video:
        times = [frame.time_s for frame in video.frames()]
        audio = read_audio(path, origin_s=video.start_s)

    def our_faces() -> None:
        with Video(path) as video:
            find_faces(video.frames(), detector, CONFIG.faces)

    faces_s = median_seconds(our_faces, repeat)
    baseline_faces_s = median_seconds(lambda: detect_every_full_frame(path, mtcnn), repeat)
    result: dict[str, float | str] = {
        "clip": path.name,
        "seconds_of_video": round(times[-1] + float(np.median(np.diff(times))), 2),
        "faces_ratio_to_baseline": round(baseline_faces_s / faces_s, 2),
        "faces_frames_per_s": round(len(times) / faces_s, 1),
    }
    if audio is not None:
        speech_s = median_seconds(lambda: recogniser.transcribe(audio), repeat)
        baseline_s = median_seconds(lambda: whisper.transcribe(audio.samples, language="en", fp16=False), repeat)
        result["speech_ratio_to_baseline"] = round(baseline_s / speech_s, 2)
    with tempfile.TemporaryDirectory() as folder:
        all_s = median_seconds(lambda: preprocessor.process(path, Path(folder) / path.stem), repeat)
    result["all_stages_times_real_time"] = round(float(result["seconds_of_video"]) / all_s, 2)
    return result


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, default=[min(BUNDLED.glob("*.mp4"))], metavar="VIDEO")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    args = parser.parse_args()
    preprocessor = Preprocessor(CONFIG, device="cpu")
    write_result("preprocessing", [measure(path, preprocessor, repeat=args.repeat) for path in args.videos])


if __name__ == "__main__":
    main()
