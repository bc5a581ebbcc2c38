"""How the page of ``rcma-predict --report`` grows with the number of videos: run ``make demo`` first.

usage: python benchmarks/bench_report.py [--videos 1 100] [--repeat N]

The demo's clips in a loop, each copy a recording of its own with its own preview. Debian's chromium (extra ``dev``)
opens each page until its first video is drawn, and then chooses the last one until it can be played. Figures are
medians of N times after one for warm-up. Writes benchmarks/results/; the last line printed is the result, as JSON.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from measuring import Measurement, argument_parser, show, write_result
from playwright.sync_api import Browser, sync_playwright

from rcma.output import ReportedVideo, write_report
from rcma.predictor import Predictor

DEMO = Path("demo")
CLIPS = Path("benchmarks/demo/clips")


def predict_demo() -> list[ReportedVideo]:
    """Predict the demo's clips."""
    predictor = Predictor(DEMO / "run", changes=True)
    folders = sorted(path.parent for path in (DEMO / "features").glob("*/meta.json"))
    return [ReportedVideo(predictor(folder), folder, CLIPS / f"{folder.name}.mp4") for folder in folders]


def write_page(videos: list[ReportedVideo], folder: Path, n_videos: int) -> float:
    """Write a page of that many videos; seconds."""
    copies = []
    for number, video in enumerate(islice(cycle(videos), n_videos)):
        assert video.video is not None
        recording = folder / f"{number:03d}.mp4"
        shutil.copy(video.video, recording)
        named = replace(video.prediction, video_id=recording.stem)
        copies.append(replace(video, prediction=named, video=recording))
    begin = time.perf_counter()
    write_report(folder / "report.html", copies, title="Many videos", on_video=lambda _: None)
    return time.perf_counter() - begin


def look(browser: Browser, folder: Path, n_videos: int) -> tuple[float, float]:
    """Seconds to open a page, and to choose its last video."""
    page = browser.new_page()
    begin = time.perf_counter()
    page.goto((folder / "report.html").as_uri())
    page.wait_for_selector("#time .main-svg")
    opened = time.perf_counter()
    name = f"{n_videos - 1:03d}"
    if n_videos > 1:
        page.locator("#rows a", has_text=name).click()
    ready = "name => document.getElementById('name').textContent === name"
    page.wait_for_function(f"{ready} && document.getElementById('video').readyState >= 2", arg=name)
    chosen = time.perf_counter()
    page.close()
    return opened - begin, chosen - opened


def main() -> None:
    """Measure and write the result."""
    parser = argument_parser(__doc__, repeat=3)
    parser.add_argument("--videos", nargs="+", type=int, default=[1, 100], metavar="N")
    args = parser.parse_args()
    videos = predict_demo()
    rows: list[Measurement] = []
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for n_videos in args.videos:
            write_s = write_page(videos, folder, n_videos)
            seconds = [look(browser, folder, n_videos) for _ in range(args.repeat + 1)][1:]
            open_s, choose_s = (statistics.median(column) for column in zip(*seconds, strict=True))
            row = {
                "videos": n_videos,
                "megabytes": round((folder / "report.html").stat().st_size / 1e6, 1),
                "seconds_to_write": round(write_s, 2),
                "seconds_to_open": round(open_s, 2),
                "seconds_to_choose_another": round(choose_s, 2),
                "opening_ratio_to_first_row": round(open_s / (rows[0]["seconds_to_open"] if rows else open_s), 2),
            }
            rows.append(show(row))
        browser.close()
    write_result("report", rows)


if __name__ == "__main__":
    main()
