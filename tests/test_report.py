"""The page of ``rcma-predict --report``, as a browser shows it."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_features import RATE, make_features, make_labels

from preprocessing.errors import InputError
from preprocessing.features.folder import load_features, save_features
from preprocessing.media import Video, read_audio
from rcma.output import report
from rcma.output.report import ReportedVideo, write_report
from rcma.prediction.postprocess import Prediction, present_modalities

CHROMIUM = Path("/usr/bin/chromium")
N_FRAMES = 70


def ignore(name: str) -> None:
    pass


def reported(folder: Path, video: Path | None, *, n_frames: int = N_FRAMES, **features: Any) -> ReportedVideo:
    labels = make_labels(n_frames, seed=1)
    given = make_features(folder, labels, seed=1, **features)
    changes = {m: np.full((n_frames, 2), [0.3, 0.1], np.float32) for m in ("face", "audio", "text")}
    prediction = Prediction(
        given.video_id, given.time_s, labels * 0.8, present_modalities(given, audio_alignment="end"), changes=changes
    )
    return ReportedVideo(prediction, folder, video, labels)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """70 frames whose brightness rises, with a click of sound at 1 s."""
    images = [np.full((120, 160, 3), 20 + 3 * k, np.uint8) for k in range(N_FRAMES)]
    samples = np.zeros(16000 * N_FRAMES // RATE, np.float32)
    samples[16000:16400] = 0.9
    return make_video(tmp_path_factory.mktemp("recording") / "clip.mp4", images, samples=samples)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("Debian's package chromium is not installed")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end, nothing may have been said on the console or asked of a network."""
    said: list[str] = []
    pages = []

    def open_page(path: Path, *, width: int = 1600, hash: str = "") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(300_000)  # only against a test that never ends
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if is_remote(request.url) else None)
        page.goto(f"file://{path}{hash}")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []


def is_remote(url: str) -> bool:
    return url.partition(":")[0] not in ("file", "data", "blob")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, recording: Path) -> Path:
    root = tmp_path_factory.mktemp("one")
    path = root / "report.html"
    assert write_report(path, [reported(root / "clip", recording)], title="One", on_video=ignore) == ()
    return path


def wait_for_time(page: Any, low: float, high: float) -> None:
    """Until the video is there, and the page has followed it, which it does a moment later."""
    page.wait_for_function(
        "([low, high]) => [document.getElementById('video').currentTime,"
        " Number(document.getElementById('time').getAttribute('aria-valuenow'))].every(t => t >= low && t <= high)",
        arg=[low, high],
    )


@pytest.mark.slow
def test_the_video_plays_and_the_page_follows(one: Path, opened: Callable[..., Any]) -> None:
    page = opened(one)
    page.wait_for_function("() => document.getElementById('video').readyState >= 2")
    # Slowly: on a busy machine it would have ended before the second key, which would start it again.
    page.evaluate("document.getElementById('video').playbackRate = 0.1")
    page.focus("#time")
    page.keyboard.press(" ")
    wait_for_time(page, 0.3, 10)
    page.keyboard.press(" ")
    page.wait_for_function("() => document.getElementById('video').paused")
    page.wait_for_function(
        "rate => Math.abs(parseInt(document.getElementById('frame').textContent.split(' ')[1]) - 1"
        " - document.getElementById('video').currentTime * rate) <= 1.5",
        arg=RATE,
    )
    frame = int(page.inner_text("#frame").split()[1])
    assert frame > 5
    expected = make_labels(N_FRAMES, seed=1)[frame - 1] * 0.8
    shown = [page.inner_text(f"#now-{target}").replace("−", "-") for target in ("valence", "arousal")]
    assert [float(text) for text in shown] == pytest.approx(expected, abs=0.006)


def test_clicks_and_keys_go_to_a_time(one: Path, opened: Callable[..., Any]) -> None:
    page = opened(one)
    page.wait_for_function("() => document.getElementById('video').readyState >= 2")
    box = page.locator("#time").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 60)
    wait_for_time(page, 1.2, 1.6)
    page.locator("#words button").nth(2).click()  # spoken from 2.1 to 2.6 s
    wait_for_time(page, 2.1, 2.2)
    lit = page.locator("#words [aria-current]")
    assert lit.count() == 1 and lit.inner_text() == "word2"
    assert page.inner_text("#said mark") == "word2"
    page.focus("#time")
    page.keyboard.press("Home")
    wait_for_time(page, 0, 0.01)
    assert page.locator("#words [aria-current]").count() == 0
    page.keyboard.press("ArrowRight")
    wait_for_time(page, 0.04, 0.05)
    assert page.get_attribute("#time", "aria-valuetext").startswith("0:00.04: valence ")


@pytest.mark.slow
def test_missing_modalities_are_said(one: Path, opened: Callable[..., Any]) -> None:
    page = opened(one)
    page.focus("#time")
    for frame in range(2, 8):  # indices 5 to 7 have no face
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "start => document.getElementById('frame').textContent.startsWith(start)", arg=f"frame {frame} "
        )
    assert page.locator("#modalities .missing").all_inner_texts()[0] == "no face"


@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_wider_than_the_screen(one: Path, opened: Callable[..., Any], width: int) -> None:
    page = opened(one, width=width)
    page.wait_for_selector("#steps .main-svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in page.locator("#time .main-svg").all():
        assert chart.bounding_box()["width"] <= width


def test_everything_that_can_be_used_has_a_name(one: Path, opened: Callable[..., Any]) -> None:
    page = opened(one)
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, a, [role], [tabindex]')]
        .filter(e => e.offsetParent !== null && !e.ariaLabel && !e.getAttribute('aria-labelledby')
                     && !e.labels?.length && !e.textContent.trim() && e.getAttribute('role') !== 'status')
        .filter(e => !e.closest('.js-plotly-plot')).map(e => e.outerHTML)""")
    assert nameless == []
    assert page.locator("html[lang=en]").count() == 1


def blocks(path: Path, prefix: str) -> dict[str, str]:
    text = path.read_text(encoding="utf-8")
    return dict(re.findall(rf'<script type="[^"]+" id="({prefix}[^"]*)">(.*?)</script>', text, flags=re.DOTALL))


def test_preview_has_the_times_and_the_sound_of_the_recording(one: Path, recording: Path, tmp_path: Path) -> None:
    preview = tmp_path / "preview.mp4"
    preview.write_bytes(base64.b64decode(blocks(one, "preview-")["preview-0"]))
    times, levels = [], []
    for path in (recording, preview):
        with Video(path) as video:
            frames = [(frame.time_s, frame.image.mean()) for frame in video.frames()]
            audio = read_audio(path, origin_s=video.start_s)
        times.append([time_s for time_s, _ in frames])
        levels.append([level for _, level in frames])
        assert audio is not None
        loud = np.flatnonzero(np.abs(audio.samples[:]) > 0.3)[0] / 16000 + audio.start_s
        assert loud == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(times[1], times[0], atol=1e-4)
    np.testing.assert_allclose(levels[1], levels[0], atol=4)


def test_preview_keeps_a_variable_frame_rate(media: Path, tmp_path: Path) -> None:
    recording, page = media / "streamio_awesome_vfr.mov", tmp_path / "report.html"
    write_report(page, [reported(tmp_path / "clip", recording)], title="", on_video=ignore)
    (tmp_path / "preview.mp4").write_bytes(base64.b64decode(blocks(page, "preview-")["preview-0"]))
    times = []
    for path in (recording, tmp_path / "preview.mp4"):
        with Video(path) as video:
            times.append([frame.time_s for frame in video.frames()])
    np.testing.assert_allclose(times[1], times[0], atol=1e-4)
    assert np.ptp(np.diff(times[0])) > 0.01, "the clip has a fixed frame rate after all"


def test_what_files_are_called_and_people_say_is_text(tmp_path: Path, opened: Callable[..., Any]) -> None:
    video = reported(tmp_path / "<img src=x onerror=alert(1)>&amp;", None, n_frames=100)
    features = load_features(video.features)
    said = ["</script><b>", "<!--", "שלום", "你好"]
    words = [dataclasses.replace(word, text=text) for word, text in zip(features.words, said, strict=True)]
    save_features(tmp_path / "said" / video.features.name, dataclasses.replace(features, words=tuple(words)))
    video = dataclasses.replace(video, features=tmp_path / "said" / video.features.name)
    path = tmp_path / "report.html"
    write_report(path, [video], title="<script>alert(2)</script>", on_video=ignore)
    page = opened(path)
    assert page.inner_text("h1") == page.title() == "<script>alert(2)</script>"
    assert page.inner_text("#name") == "<img src=x onerror=alert(1)>&amp;"
    assert page.locator("#words button").all_inner_texts() == said


def test_without_a_recording_faces_take_its_place(tmp_path: Path, opened: Callable[..., Any]) -> None:
    path = tmp_path / "report.html"
    gone = tmp_path / "gone.mp4"
    warnings = write_report(path, [reported(tmp_path / "clip", gone)], title="Faces", on_video=ignore)
    assert warnings == (f"clip: {gone} no longer exists; the page only shows its faces",)
    page = opened(path)
    assert not page.is_visible("#video")
    assert page.get_attribute("#face", "aria-label") == "Face at 0:00.00"
    page.locator("#slider").fill("1.5")
    assert page.inner_text("#clock") == "0:01.50"
    page.click("#play")
    page.wait_for_function("() => document.getElementById('clock').textContent > '0:01.60'")
    assert page.inner_text("#play") == "Pause"


def test_silent_video_without_faces_and_words(tmp_path: Path, opened: Callable[..., Any]) -> None:
    video = reported(tmp_path / "empty", None, audio=False, words=False)
    nothing = np.full(N_FRAMES, np.nan, np.float32)
    features = load_features(video.features)
    save_features(
        tmp_path / "none" / "empty",
        dataclasses.replace(features, face_score=nothing, face_box=np.repeat(nothing[:, None], 4, axis=1)),
    )
    present = {m: np.zeros(N_FRAMES, np.bool_) for m in ("face", "audio", "text")}
    values = np.full((N_FRAMES, 2), np.nan, np.float32)
    prediction = dataclasses.replace(video.prediction, values=values, present=present, changes={})
    path = tmp_path / "report.html"
    write_report(path, [ReportedVideo(prediction, tmp_path / "none" / "empty", None)], title="Nothing", on_video=ignore)
    page = opened(path)
    assert page.locator("#modalities").inner_text().split("\n") == ["no face", "no voice", "no words"]
    assert page.inner_text("#now-valence") == "–"
    assert "No words were recognised." in page.inner_text("#words")
    assert not page.is_visible("#changes")


@pytest.mark.slow
def test_beyond_the_room_for_previews_the_recording_is_played_from_its_place(
    tmp_path: Path, recording: Path, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PREVIEW_BYTES", 1000)
    path = tmp_path / "out" / "report.html"
    (warning,) = write_report(path, [reported(tmp_path / "clip", recording)], title="Link", on_video=ignore)
    assert warning.startswith("clip: no preview: ") and "it plays clip.mp4 from its folder" in warning
    assert not blocks(path, "preview-")
    source = json.loads(blocks(path, "video-")["video-0"])["source"]
    assert (path.parent / source["link"]).resolve() == recording.resolve()


@pytest.mark.slow
def test_a_hundred_videos_are_listed_and_one_is_drawn(tmp_path: Path, opened: Callable[..., Any]) -> None:
    first = reported(tmp_path / "video", None)
    videos = (
        dataclasses.replace(first, prediction=dataclasses.replace(first.prediction, video_id=f"video {k}"))
        for k in range(100)
    )
    path = tmp_path / "report.html"
    done: list[str] = []
    write_report(path, videos, title="Many", on_video=done.append)
    assert done == [f"video {k}" for k in range(100)]
    page = opened(path, hash="#video%2042")
    assert page.inner_text("#name") == "video 42"
    assert page.locator("#rows tr").count() == 100
    # Only what is chosen is on the page.
    assert page.locator("#words button").count() == len(load_features(first.features).words)
    page.fill("#find", "video 7")
    assert page.inner_text("#found") == "11 of 100 videos"
    page.locator("#rows a", has_text="video 77").click()
    page.wait_for_function("() => document.getElementById('name').textContent === 'video 77'")
    page.locator("#columns button", has_text="video").click()
    assert page.locator("#columns [aria-sort=ascending]").count() == 1


def test_notes_on_a_video_are_on_its_page(tmp_path: Path) -> None:
    video = reported(tmp_path / "clip", None)
    path = tmp_path / "report.html"
    notes = [f"{N_FRAMES + 3} rows for {N_FRAMES} decoded frames"]
    write_report(path, [dataclasses.replace(video, notes=notes)], title="", on_video=ignore)
    content = json.loads(blocks(path, "video-")["video-0"])
    assert content["notes"] == notes and len(content["labels"]["valence"]) == N_FRAMES


@pytest.mark.parametrize("n_frames", [2, 10, 5000])
def test_fewer_points_keep_the_extremes(n_frames: int) -> None:
    curves = np.random.default_rng(n_frames).normal(size=(n_frames, 3))
    curves[1::7, 1] = np.nan
    shown = report.frames_to_draw(curves, most=200)
    assert len(shown) <= max(200, min(n_frames, 200)) and (np.diff(shown) > 0).all()
    assert shown[0] == 0 and shown[-1] == n_frames - 1
    np.testing.assert_array_equal(np.nanmax(curves[shown], axis=0), np.nanmax(curves, axis=0))
    np.testing.assert_array_equal(np.nanmin(curves[shown], axis=0), np.nanmin(curves, axis=0))


def test_spans_cover_exactly_the_frames_that_lack_something() -> None:
    random = np.random.default_rng(0)
    there = random.random(50) < 0.6
    time_s = np.cumsum(random.uniform(0.01, 0.1, 50))
    spans = report.missing_spans(there, time_s, time_s[-1] + 0.04)
    covered = [any(low - 1e-4 <= time < high - 1e-4 for low, high in spans) for time in time_s]
    assert covered == list(~there)


def test_without_plotly_one_line_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r'^--report: .* pip install "rcma\[report\]"$'):
        write_report(tmp_path / "report.html", [], title="", on_video=ignore)
    assert not list(tmp_path.iterdir())


def uncertain(folder: Path) -> ReportedVideo:
    """Two models disagree on valence, but not known at frames 20 to 29; arousal is of one model."""
    video = reported(folder, None)
    spread = np.full((N_FRAMES, 2), np.nan, np.float32)
    spread[:, 0] = np.linspace(0.1, 0.3, N_FRAMES)
    spread[20:30, 0] = np.nan
    return dataclasses.replace(video, prediction=dataclasses.replace(video.prediction, spread=spread))


def test_disagreement_of_models_is_a_band(tmp_path: Path, opened: Callable[..., Any]) -> None:
    path = tmp_path / "report.html"
    write_report(path, [uncertain(tmp_path / "clip"), reported(tmp_path / "alone", None)], title="", on_video=ignore)
    contents = [json.loads(text) for text in blocks(path, "video-").values()]
    assert contents[1]["spread"] is None
    assert contents[0]["spread"]["valence"][0] == 0.1 and contents[0]["spread"]["valence"][25] is None
    page = opened(path)
    page.wait_for_selector("#time .main-svg")
    bands = page.evaluate(
        "document.querySelector('#time .chart').data.filter(t => t.fill === 'toself').map(t => [t.x, t.y])"
    )
    (x, y), empty = bands
    assert empty == [[], []]
    values, spread = contents[0]["values"]["valence"], contents[0]["spread"]["valence"]
    outlines = [
        list(part) for known, part in itertools.groupby(zip(x, y, strict=True), lambda p: p[0] is not None) if known
    ]
    assert len(outlines) == 2
    for outline, frames in zip(outlines, (range(20), range(30, N_FRAMES)), strict=True):
        upper = [min(1, values[k] + spread[k]) for k in frames]
        lower = [max(-1, values[k] - spread[k]) for k in frames]
        assert [p[1] for p in outline] == pytest.approx([*upper, *lower[::-1], upper[0]])
    assert page.inner_text("#spread-valence") == "± 0.10" and page.inner_text("#spread-arousal") == ""
    assert page.locator("p.spread").is_visible()
    page.locator("#rows a", has_text="alone").click()
    page.wait_for_function("() => document.getElementById('name').textContent === 'alone'")
    assert not page.locator("p.spread").is_visible() and not page.locator("#spread-valence").is_visible()
