"""How time and memory of preprocessing grow with the number of videos and with their length.

usage: python benchmarks/bench_growth.py [CLIP] [--minutes 1 2 5 20] [--videos 1 4 16]

Long videos are CLIP (by default a bundled one) played again and again, its packets copied as they are. Each row is one
run of rcma-preprocess in a process of its own, models loaded anew; memory is the peak resident size of that process
and of its workers. Writes benchmarks/results/; the last line printed is the result, as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Stream
from measuring import BUNDLED_CLIP
from results import write_result

_GAP_S = 0.2
MODELS = ("--set", "speech.model=packaged", "--set", "words.model=packaged", "--language", "en")


def loop(clip: Path, path: Path, *, duration_s: float) -> None:
    """Write a video that repeats a clip until it is at least that long."""
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


def run(videos: list[Path], *arguments: str) -> tuple[float, float, float]:
    """Run the command; its seconds, its peak resident size in MB, and seconds of the videos done."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "preprocessing.cli", *map(str, videos), "--out", folder, *MODELS, *arguments]
        begin = time.perf_counter()
        # A process in between, because the peak of children is known for all that ever ran together.
        watched = (
            "import json, resource, subprocess, sys; "
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
            "print(json.dumps(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))"
        )
        told = subprocess.run([sys.executable, "-c", watched, *command], check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
        metas = [json.loads(path.read_text()) for path in Path(folder).glob("*/meta.json")]
    duration_s = sum(meta["n_frames"] / meta["frame_rate"] for meta in metas)
    return seconds, json.loads(told.stdout) / 1024, duration_s


def row(seconds: float, peak_mb: float, duration_s: float) -> dict[str, float]:
    """Figures of one run."""
    return {
        "seconds_of_video": round(duration_s, 1),
        "seconds": round(seconds, 1),
        "seconds_per_minute_of_video": round(seconds / duration_s * 60, 2),
        "peak_resident_mb": round(peak_mb),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", nargs="?", type=Path, default=BUNDLED_CLIP, metavar="CLIP")
    parser.add_argument("--minutes", nargs="*", type=float, default=[1, 2, 5, 20], metavar="M")
    parser.add_argument("--videos", nargs="*", type=int, default=[1, 4, 16], metavar="N")
    args = parser.parse_args()
    measurements: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in args.minutes:
            video = Path(folder) / "long.mkv"
            loop(args.clip, video, duration_s=60 * minutes)
            measurements.append({"clip": args.clip.name, "minutes": minutes, **row(*run([video]))})
            print(measurements[-1], file=sys.stderr)
        for n_videos in args.videos:
            videos = [Path(folder) / f"v{number:02d}{args.clip.suffix}" for number in range(n_videos)]
            for path in videos:
                shutil.copy(args.clip, path)
            measurements.append({"clip": args.clip.name, "videos": n_videos, **row(*run(videos))})
            print(measurements[-1], file=sys.stderr)
    write_result("preprocessing-growth", measurements)


if __name__ == "__main__":
    main()
