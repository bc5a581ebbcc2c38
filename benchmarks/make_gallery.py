"""Make the README's pictures from the demo: run ``make demo`` first.

usage: python benchmarks/make_gallery.py

Writes benchmarks/gallery/: the contact sheet of a feature folder, the report, and a frame of an overlay. Debian's
chromium (extra ``dev``) takes the screenshot of the report.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import av
from PIL import Image
from playwright.sync_api import sync_playwright

from preprocessing.features import draw_contact_sheet, load_features
from rcma.output import write_overlay
from rcma.predictor import Predictor

DEMO = Path("demo")
CLIPS = Path("benchmarks/demo/clips")
GALLERY = Path("benchmarks/gallery")
NAME = "demo_14"
MOMENT_S = 2.0
WIDTH = 1000
"""Pixels: the width of a README on GitHub."""


def save_small(picture: Image.Image, name: str) -> None:
    """Write a PNG of 128 colours, at most ``WIDTH`` pixels wide."""
    picture.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
    picture.convert("RGB").quantize(128).save(GALLERY / f"{name}.png", optimize=True)


def capture_report(path: Path) -> None:
    """Take a screenshot of the demo's report at one moment."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.goto(f"{(DEMO / 'predictions' / 'report.html').absolute().as_uri()}#{NAME}")
        page.wait_for_function("() => document.getElementById('video').readyState >= 2")
        page.evaluate("moment => { document.getElementById('video').currentTime = moment }", MOMENT_S)
        page.wait_for_timeout(1000)
        page.screenshot(path=path, full_page=True)
        browser.close()


def draw_overlay(path: Path) -> Image.Image:
    """Draw the prediction into one frame of the clip."""
    features = load_features(DEMO / "features" / NAME)
    prediction = Predictor(DEMO / "run")(features)
    write_overlay(path, CLIPS / f"{NAME}.mp4", features, prediction, on_frame=lambda done, total: None)
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time >= MOMENT_S:
                return frame.to_image()
    raise AssertionError("the clip is shorter than the moment")


def main() -> None:
    """Run from the project's root."""
    GALLERY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        draw_contact_sheet(load_features(DEMO / "features" / NAME), Path(temporary) / "sheet.png")
        save_small(Image.open(Path(temporary) / "sheet.png"), "contact_sheet")
        capture_report(Path(temporary) / "report.png")
        save_small(Image.open(Path(temporary) / "report.png"), "report")
        save_small(draw_overlay(Path(temporary) / "overlay.mp4"), "overlay")


if __name__ == "__main__":
    main()
