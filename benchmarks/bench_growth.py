"""How time and memory of preprocessing grow with the number of videos and with their length.

usage: python benchmarks/bench_growth.py [CLIP] [--minutes 1 2 5 20] [--videos 1 4 16]

Long videos repeat CLIP (by default a bundled one). Each row is one run of rcma-preprocess in a process of its own,
models loaded anew; memory is the largest peak resident size of that process and its workers. Writes
benchmarks/results/; the last line printed is the result, as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from long_inputs import loop_clip
from measuring import BUNDLED_CLIP, Measurement, argument_parser, show, write_result

MODELS = ("--set", "speech.model=packaged", "--set", "words.model=packaged", "--language", "en")


def measure(videos: list[Path]) -> Measurement:
    """Preprocess videos with the command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "preprocessing.cli", *map(str, videos), "--out", folder, *MODELS]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)  # includes the workers that the process waited for
        seconds = time.perf_counter() - begin
        if status != 0:
            raise SystemExit(f"{' '.join(command)} failed")
        metas = [json.loads(path.read_text()) for path in Path(folder).glob("*/meta.json")]
    duration_s = sum(meta["n_frames"] / meta["frame_rate"] for meta in metas)
    return {
        "seconds_of_video": round(duration_s, 1),
        "seconds": round(seconds, 1),
        "seconds_per_minute_of_video": round(seconds / duration_s * 60, 2),
        "peak_resident_mb": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("clip", nargs="?", type=Path, default=BUNDLED_CLIP, metavar="CLIP")
    parser.add_argument("--minutes", nargs="*", type=float, default=[1, 2, 5, 20], metavar="M")
    parser.add_argument("--videos", nargs="*", type=int, default=[1, 4, 16], metavar="N")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in args.minutes:
            video = Path(folder) / "long.mkv"
            loop_clip(args.clip, video, duration_s=60 * minutes)
            rows.append(show({"clip": args.clip.name, "minutes": minutes, **measure([video])}))
        for n_videos in args.videos:
            videos = [Path(folder) / f"v{number:02d}{args.clip.suffix}" for number in range(n_videos)]
            for path in videos:
                shutil.copy(args.clip, path)
            rows.append(show({"clip": args.clip.name, "videos": n_videos, **measure(videos)}))
    write_result("preprocessing-growth", rows)


if __name__ == "__main__":
    main()
