"""Prediction with the published layer sizes on a CPU: against real time, and how its memory grows with the video.

usage: python benchmarks/bench_prediction.py [VIDEO] [--repeat N] [--minutes M ...]

Speed: VIDEO (by default a bundled clip), and a minute of it in a loop, from the file to the last prediction with
models loaded before. Medians of N passes after one for warm-up; N = 0 skips this part.

Memory: peaks of processes that predict random features of M minutes each; without M this part is skipped.

Weights are random. OMP_NUM_THREADS sets the threads. Writes benchmarks/results/; the last line printed by each part is
its result, as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from long_inputs import FRAME_RATE, loop_clip, save_random_features
from measuring import (
    BACKENDS,
    BUNDLED_CLIP,
    Measurement,
    argument_parser,
    median_seconds,
    settings,
    show,
    write_result,
)

from preprocessing.features import load_features
from preprocessing.run import Preprocessor
from rcma.config import DataSettings, ModelSettings, TrainConfig
from rcma.model import TrainedRCMA
from rcma.prediction import Checkpoints

LONG_S = 60.0
TEXT_WIDTH = 384
"""Of the packaged model; with BERT's 768 the text branch has a tenth more to do."""


def published_model() -> Checkpoints:
    """Make a model of the published sizes with random weights."""
    torch.manual_seed(0)
    nowhere = DataSettings(features=Path(), annotations=Path())
    model = ModelSettings(text_width=TEXT_WIDTH)
    return Checkpoints(
        [TrainedRCMA(TrainConfig(data=nowhere, model=model, preprocessing=settings(BACKENDS[0]))).eval()]
    )


def measure_speed(video: Path, *, backend: str, repeat: int) -> Measurement:
    """Preprocess and predict a video."""
    model, preprocessor = published_model(), Preprocessor(settings(backend), device="cpu")
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        source = out / f"clip{video.suffix}"
        source.symlink_to(video.absolute())
        preprocessing_s, prediction_s = median_seconds(
            repeat,
            lambda: preprocessor(source, out, overwrite=True),
            lambda: model.predict(load_features(out / "clip")),
        )
        clip = load_features(out / "clip")
        duration_s = clip.n_frames / clip.meta["frame_rate"]
        all_s = preprocessing_s + prediction_s
        return {
            "what": "from a video's file to its last prediction, published layer sizes, models loaded",
            "speech.backend": backend,
            "clip_seconds": round(duration_s, 2),
            "clip_frames": clip.n_frames,
            "preprocessing alone: times real time": round(duration_s / preprocessing_s, 2),
            "everything: times real time": round(duration_s / all_s, 2),
            "everything: frames per s": round(clip.n_frames / all_s, 1),
        }


def measure_memory(minutes: float) -> Measurement:
    """Predict random features in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "long"
        n_frames = round(60 * minutes * FRAME_RATE)
        save_random_features(folder, n_frames, text_width=TEXT_WIDTH, config=settings(BACKENDS[0]))
        command = [sys.executable, __file__, "--peak-memory", str(folder)]
        peaks = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "what": "peak memory of a process that predicts a feature folder, published layer sizes",
        "minutes": minutes,
        "own_mb": round(peaks["RssAnon"]),
        "mapped_files_mb": round(peaks["RssFile"]),
        "times_real_time": round(60 * minutes / peaks["seconds"], 2),
    }


def peak_memory(folder: Path) -> dict[str, float]:
    """Predict a feature folder in this process; seconds and peak sizes in MB.

    Pages of the mapped feature files, which stay resident only while nobody else needs the memory, are counted apart.
    """
    peaks = {"RssAnon": 0.0, "RssFile": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]) / 1024)

    model = published_model()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begin = time.perf_counter()
    model.predict(load_features(folder))
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    return {"seconds": seconds, **peaks}


def main() -> None:
    """Measure and write the results."""
    parser = argument_parser(__doc__, repeat=3)
    parser.add_argument("video", nargs="?", type=Path, default=BUNDLED_CLIP, metavar="VIDEO")
    parser.add_argument("--minutes", nargs="*", type=float, default=[2, 20], metavar="M")
    parser.add_argument("--peak-memory", type=Path, metavar="FOLDER", help="what each process of the last part runs")
    args = parser.parse_args()
    if args.peak_memory:
        print(json.dumps(peak_memory(args.peak_memory)))
        return
    threads = {"threads": torch.get_num_threads()}
    if args.repeat:
        with tempfile.TemporaryDirectory() as temporary:
            long = Path(temporary) / "long.mkv"
            loop_clip(args.video, long, duration_s=LONG_S)
            rows = [
                show({"clip": args.video.name, **measure_speed(path, backend=backend, repeat=args.repeat), **threads})
                for backend in BACKENDS
                for path in (args.video, long)
            ]
        write_result("prediction", rows)
    if args.minutes:
        write_result("prediction-memory", [show({**measure_memory(minutes), **threads}) for minutes in args.minutes])


if __name__ == "__main__":
    main()
