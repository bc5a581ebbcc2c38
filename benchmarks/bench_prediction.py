"""Prediction with the published layer sizes on a CPU: against real time, and how its memory grows with the video.

usage: python benchmarks/bench_prediction.py [VIDEO] [--repeat N] [--minutes M ...]

Speed: VIDEO (by default a bundled clip), and a minute of it again and again, from the file to the last prediction:
everything included, models loaded before. Medians of N passes after one that does not count; with N = 0 this part is
left out.

Memory: peaks of processes that predict feature folders of M minutes each, the features of VIDEO again and again;
without M this part is left out.

Weights are random. OMP_NUM_THREADS sets the threads. Writes benchmarks/results/; the last line printed of each part is
its result, as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from bench_growth import loop
from measuring import BACKENDS, BUNDLED_CLIP, median_seconds, settings
from results import write_result

from preprocessing.features import Features, load_features, save_features
from preprocessing.media import MEL_RATE
from preprocessing.run import Preprocessor
from rcma.config import DataSettings, ModelSettings, TrainConfig
from rcma.model import TrainedRCMA
from rcma.prediction import Checkpoints

LONG_S = 60.0
TEXT_WIDTH = 384
"""Of those models; with BERT's 768 the text branch has a tenth more to do."""
FRAME_RATE = 25


def published_model() -> TrainedRCMA:
    """Published sizes, random weights."""
    torch.manual_seed(0)
    nowhere = DataSettings(features=Path(), annotations=Path())
    model = ModelSettings(text_width=TEXT_WIDTH)
    return TrainedRCMA(TrainConfig(data=nowhere, model=model, preprocessing=settings(BACKENDS[0]))).eval()


def again_and_again(features: Features, folder: Path, *, duration_s: float) -> None:
    """Write features of that length at 25 frames per second which repeat those of a clip."""
    n_frames = round(duration_s * FRAME_RATE)
    times = -(-n_frames // features.n_frames)
    word = np.concatenate(
        [np.where(features.frame_word < 0, -1, features.frame_word + k * len(features.words)) for k in range(times)]
    )
    rows = MEL_RATE // FRAME_RATE * features.n_frames
    mel = np.resize(features.log_mel, (rows, features.log_mel.shape[1]))

    def repeated(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array] * times)

    save_features(
        folder,
        Features(
            video_id=folder.name,
            meta={**features.meta, "n_frames": n_frames, "frame_rate": float(FRAME_RATE)},
            time_s=np.arange(n_frames) / FRAME_RATE,
            faces=repeated(features.faces)[:n_frames],
            face_box=repeated(features.face_box)[:n_frames],
            face_score=repeated(features.face_score)[:n_frames],
            log_mel=np.concatenate([repeated(mel), mel[:96]]),
            words=features.words * times,
            word_vectors=repeated(features.word_vectors),
            frame_word=word[:n_frames].astype(np.int32),
        ),
    )


def peak_memory(folder: Path) -> dict[str, float]:
    """Predict a feature folder in this process; seconds and peak sizes in MB.

    Pages of the mapped feature files are resident as long as nobody else needs the memory: they are told apart.
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
    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    Checkpoints([model]).predict(load_features(folder))
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    return {"seconds": seconds, "own_mb": peaks["RssAnon"], "mapped_files_mb": peaks["RssFile"]}


def measure_everything(video: Path, *, backend: str, repeat: int) -> dict[str, float | str]:
    """From a video's file to its last prediction, with models loaded before."""
    model, preprocessor = Checkpoints([published_model()]), Preprocessor(settings(backend), device="cpu")
    preprocessing_s: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        source = out / f"clip{video.suffix}"
        source.symlink_to(video.absolute())

        def everything() -> None:
            begin = time.perf_counter()
            (features,) = preprocessor(source, out, overwrite=True)
            preprocessing_s.append(time.perf_counter() - begin)
            model.predict(features)

        all_s = median_seconds(everything, repeat)
        clip = load_features(out / "clip")
        duration_s = clip.n_frames / clip.meta["frame_rate"]
        return {
            "what": "from a video's file to its last prediction, published layer sizes, models loaded",
            "speech.backend": backend,
            "clip_seconds": round(duration_s, 2),
            "clip_frames": clip.n_frames,
            "preprocessing alone: times real time": round(duration_s / statistics.median(preprocessing_s[1:]), 2),
            "everything: times real time": round(duration_s / all_s, 2),
            "everything: frames per s": round(clip.n_frames / all_s, 1),
        }


def measure_speed(video: Path, repeat: int) -> list[dict[str, float | str]]:
    """All rows of the first part."""
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        long = Path(temporary) / "long.mkv"
        loop(video, long, duration_s=LONG_S)
        for backend in BACKENDS:
            for path in (video, long):
                rows.append({"clip": video.name, **measure_everything(path, backend=backend, repeat=repeat)})
                print(rows[-1], file=sys.stderr)
    return rows


def measure_memory(video: Path, minutes: Sequence[float]) -> list[dict[str, float | str]]:
    """All rows of the second part."""
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        (features,) = Preprocessor(settings(BACKENDS[0]), device="cpu")(video, out)
        for length in minutes:
            again_and_again(features, out / "long", duration_s=60 * length)
            command = [sys.executable, __file__, "--peak-memory", str(out / "long")]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append(
                {
                    "what": "peak memory of a process that predicts a feature folder, published layer sizes",
                    "minutes": length,
                    "own_mb": round(told["own_mb"]),
                    "mapped_files_mb": round(told["mapped_files_mb"]),
                    "times_real_time": round(60 * length / told["seconds"], 2),
                }
            )
            print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path, default=BUNDLED_CLIP, metavar="VIDEO")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    parser.add_argument("--minutes", nargs="*", type=float, default=[2, 20], metavar="M")
    parser.add_argument("--peak-memory", type=Path, metavar="FOLDER", help="what each process of the last part runs")
    args = parser.parse_args()
    if args.peak_memory:
        print(json.dumps(peak_memory(args.peak_memory)))
        return
    threads = {"threads": torch.get_num_threads()}
    if args.repeat:
        write_result("prediction", [{**row, **threads} for row in measure_speed(args.video, args.repeat)])
    if args.minutes:
        write_result("prediction-memory", [{**row, **threads} for row in measure_memory(args.video, args.minutes)])


if __name__ == "__main__":
    main()
