"""One self-contained HTML file per run that shows the videos with their predictions and works offline.

It is ``page/page.html``, filled in. The numbers of a video are JSON and its preview base64, both in script blocks that
the browser does not run. The page reads them when the video is chosen, so that many videos stay quick.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.errors import InputError
from preprocessing.features import Features, load_features
from preprocessing.files import replace_own
from preprocessing.media import Video, open_recording
from preprocessing.run import Status, separate_process
from rcma.config import TARGETS, Target
from rcma.metrics import ccc
from rcma.output.drawing import fit
from rcma.output.movie import MovieQuality, write_movie
from rcma.prediction import Prediction

PREVIEW_BYTES = 64 * 2**20
"""Most bytes of all previews of a page, as base64: about half an hour of video. A browser opens such a page in a second
or two."""

_PREVIEW_WIDTH, _PREVIEW_HEIGHT = 640, 320
"""Pixels that a preview has at most."""
_PREVIEW = MovieQuality(
    {"preset": "veryfast", "profile": "baseline", "crf": "28", "g": "50"}, audio_bits_per_s=48_000, audio_rate=16_000
)
"""H.264 that every browser plays, small, with a key frame about every two seconds so that seeking is quick."""

_MOST_POINTS = 6000
"""Frames of a video that are drawn; of more, those with the extremes."""
_THUMBNAILS = 40
_FACES_IN_PLACE_OF_VIDEO = 240
_FACE_COLUMNS, _MOST_FACE_PIXELS = 20, 64
_USUAL_FRAME_S = 0.04
"""Duration of a frame if there is only one."""


@dataclass(frozen=True)
class ReportedVideo:
    """A video of T frames as the page shows it."""

    prediction: Prediction
    features: Path
    """Its feature folder; opened only while this video is written."""
    video: Path | None
    """The recording, see :class:`preprocessing.features.RecordingFinder`; None: the page shows faces instead."""
    labels: NDArray[np.float32] | None = None
    """(T,2) valence and arousal, NaN where not annotated."""
    notes: Sequence[str] = ()
    """Remarks about the video, a line each."""


def write_report(
    path: Path,
    videos: Iterable[ReportedVideo],
    *,
    title: str,
    on_video: Callable[[str], None],
    about: Sequence[str] = (),
) -> tuple[str, ...]:
    """Write the page, whole or not at all; memory does not grow with the number or the length of videos.

    The page holds small previews of the videos, up to :data:`PREVIEW_BYTES` in all. It plays further videos from their
    own files, by paths relative to the page.

    Args:
        path: the file to write.
        videos: in the order of the page; read one by one.
        title: heading of the page.
        on_video: called with the name of each video when it is written.
        about: lines about the models that predicted.

    Returns:
        Warnings, one line each, about recordings that are gone or cannot be read, and previews that were left out.

    Raises:
        InputError: plotly is not installed, a feature folder cannot be used, or a file of another program is at
            ``path``.
    """
    plotly = _plotly()
    page = {path.name: path.read_text(encoding="utf-8") for path in (files("rcma.output") / "page").iterdir()}
    before, after = page["page.html"].split("<!-- videos -->")
    rows: list[dict[str, Any]] = []
    with (
        # Decoding may crash its process.
        separate_process() as call,
        replace_own(path) as new,
        new.open("w", encoding="utf-8") as file,
    ):
        previews = _Previews(path, call)
        items = "".join(f"<li>{html.escape(line)}</li>\n" for line in about)
        style = f"<style>\n{page['page.css']}</style>"
        file.write(_fill(before, title=html.escape(_well_formed(title)), about=items, style=style))
        for number, video in enumerate(videos):
            features = load_features(video.features)
            source = previews.add(file, video, features)
            _write_block(file, f"video-{number}", _content(video, features, source))
            rows.append(_row(video.prediction, video.labels))
            on_video(video.prediction.video_id)
        _write_block(file, "summary", rows)
        file.write(_fill(after, scripts=f"<script>{plotly}</script>\n<script>\n{page['page.js']}</script>"))
    return tuple(previews.warnings)


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise InputError(
            '--report: plotly, which draws the curves, is not installed; run pip install "rcma[report]"'
        ) from None
    return str(get_plotlyjs())


def _fill(template: str, **gaps: str) -> str:
    """Replace each ``<!-- name -->``."""
    return re.sub(r"<!-- (\w+) -->", lambda gap: gaps[gap[1]], template)


def _well_formed(text: str) -> str:
    """Replace bytes of file names that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _write_block(file: TextIO, name: str, content: object) -> None:
    # Without "<", nothing in it can end the block.
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    file.write(f'<script type="application/json" id="{name}">{text}</script>\n')


def _row(prediction: Prediction, labels: NDArray[np.float32] | None) -> dict[str, Any]:
    """A video's row of the page's table."""
    values, not_given = prediction.values, _targets_not_given(prediction)
    return {
        "name": _well_formed(prediction.video_id),
        "duration": _number(_end_s(prediction.time_s)),
        "frames": len(values),
        "mean": {
            target: None if target in not_given else _number(_mean(values[:, k])) for k, target in enumerate(TARGETS)
        },
        "present": {name: _number(100 * float(there.mean())) for name, there in prediction.present.items()},
        "ccc": None
        if labels is None
        else {target: _number(ccc(values[:, k], labels[:, k])) for k, target in enumerate(TARGETS)},
    }


def _content(video: ReportedVideo, features: Features, source: Mapping[str, object] | None) -> dict[str, Any]:
    """All that the page shows of a video."""
    prediction, labels = video.prediction, video.labels
    time_s, end_s = prediction.time_s, _end_s(prediction.time_s)
    others = [part for part in (prediction.spread, labels) if part is not None]
    experts = [values[:, : len(TARGETS)] for values in prediction.experts.values()]
    columns = [prediction.values, *prediction.changes.values(), *experts, *others]
    shown = frames_to_draw(np.concatenate(columns, axis=1), most=_MOST_POINTS)
    notes = list(video.notes)
    if len(shown) < len(time_s):
        notes.append(
            f"{len(shown)} of {len(time_s)} frames are drawn: the highest and the lowest of each stretch. "
            "The table counts all of them."
        )
    embedded = source is not None and "block" in source
    notes += [
        f"No model gives {name} for this video: the zeros are filled in." for name in _targets_not_given(prediction)
    ]
    return {
        "end": _number(end_s),
        "frame": shown.tolist(),
        "time": _numbers(time_s[shown]),
        "values": _by_target(prediction.values[shown]),
        "spread": None if prediction.spread is None else _by_target(prediction.spread[shown]),
        "experts": {name: _by_target(values[shown]) for name, values in prediction.experts.items()},
        "labels": None if labels is None else _by_target(labels[shown]),
        "missing": {name: missing_spans(there, time_s, end_s) for name, there in prediction.present.items()},
        "words": [
            [_well_formed(word.text), _number(word.start_s), _number(word.end_s), _number(word.probability)]
            for word in features.words
        ],
        "changes": {
            name: [
                {"mean": _number(_mean(change[:, step])), "values": _numbers(change[shown, step])}
                for step in range(change.shape[1])
            ]
            for name, change in prediction.changes.items()
        },
        "faces": _faces(features, most=_THUMBNAILS if embedded else _FACES_IN_PLACE_OF_VIDEO),
        "source": source,
        "notes": notes,
    }


# Numbers.


def _targets_not_given(prediction: Prediction) -> list[Target]:
    """Targets for which no public model has a value, so that every frame was filled."""
    return [target for k, target in enumerate(TARGETS) if prediction.experts and not prediction.values[:, k].any()]


def _end_s(time_s: NDArray[np.float64]) -> float:
    """End of the last frame, seconds."""
    spacing_s = float(np.median(np.diff(time_s))) if len(time_s) > 1 else _USUAL_FRAME_S
    return float(time_s[-1]) + spacing_s


def _mean(values: NDArray[np.floating]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else math.nan


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _numbers(values: NDArray[np.floating]) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _by_target(values: NDArray[np.floating]) -> dict[str, list[float | None]]:
    return {target: _numbers(values[:, k]) for k, target in enumerate(TARGETS)}


def frames_to_draw(columns: NDArray[np.floating], *, most: int) -> NDArray[np.intp]:
    """Choose frames with which the curves look the same as with all frames.

    Args:
        columns: (T,C) curves over T frames, NaN where there is no value.
        most: frames to choose.

    Returns:
        (n,) rising indices, n <= ``most``: all T if there are no more; otherwise both ends, and of many stretches of
        equal length the frames where a curve is highest or lowest.
    """
    n_frames, n_columns = columns.shape
    if n_frames <= most:
        return np.arange(n_frames)
    edges = np.linspace(0, n_frames, (most - 2) // (2 * n_columns) + 1).astype(int)
    highest, lowest = np.nan_to_num(columns, nan=-np.inf), np.nan_to_num(columns, nan=np.inf)
    chosen = [np.array([0, n_frames - 1])]
    for start, stop in pairwise(edges):
        chosen += [start + highest[start:stop].argmax(axis=0), start + lowest[start:stop].argmin(axis=0)]
    return np.unique(np.concatenate(chosen))


def missing_spans(
    there: NDArray[np.bool_], time_s: NDArray[np.float64], end_s: float
) -> list[tuple[float | None, float | None]]:
    """Start and end in seconds of each run of frames that lack a modality; a frame lasts until the next one."""
    bounds = np.flatnonzero(np.diff(np.concatenate([[True], there, [True]])))
    until = np.append(time_s, end_s)
    return [(_number(until[a]), _number(until[b])) for a, b in zip(bounds[::2], bounds[1::2], strict=True)]


# Faces.


def _faces(features: Features, *, most: int) -> dict[str, Any]:
    """Crops at equal distances as one picture, row by row, with their times; black where there is no face."""
    index = np.unique(np.linspace(0, features.n_frames - 1, min(features.n_frames, most)).round().astype(int))
    there = np.isfinite(features.face_score[index])
    side = min(features.faces.shape[1], _MOST_FACE_PIXELS) or 1  # features from other tools have no crops
    n_rows = -(-len(index) // _FACE_COLUMNS)
    sheet = Image.new("RGB", (min(len(index), _FACE_COLUMNS) * side, n_rows * side))
    for place, frame in enumerate(index):
        if there[place]:
            crop = Image.fromarray(features.faces[frame]).resize((side, side))
            sheet.paste(crop, (place % _FACE_COLUMNS * side, place // _FACE_COLUMNS * side))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=85)
    return {
        "picture": f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}" if there.any() else None,
        "columns": min(len(index), _FACE_COLUMNS),
        "rows": n_rows,
        "time": _numbers(features.time_s[index]),
        "there": there.tolist(),
    }


# Previews.


class _Previews:
    """Writes previews into the page as long as there is room."""

    def __init__(self, page: Path, call: Callable[..., Any]) -> None:
        """Prepare for a page without previews.

        Args:
            page: where the page will be; links start from its folder.
            call: decodes recordings, see :func:`preprocessing.run.separate_process`.
        """
        self.warnings: list[str] = []
        self._call = call
        self._folder = page.absolute().parent
        self._room = PREVIEW_BYTES
        self._sources: dict[Path, dict[str, object]] = {}
        """By recording: two people of one recording share its preview."""

    def add(self, file: TextIO, video: ReportedVideo, features: Features) -> dict[str, object] | None:
        """Where the page finds the recording: ``block``, or ``link`` and ``offset``; None if it cannot be played."""
        name = video.prediction.video_id
        if video.video is None:
            return None
        if not video.video.is_file():
            self.warnings.append(f"{name}: {video.video} no longer exists; the page only shows its faces")
            return None
        recording = video.video.absolute()
        streams = features.meta["settings"].get("streams", ())
        try:
            if recording not in self._sources:
                self._sources[recording] = self._embed(file, recording, streams) or self._link(name, recording, streams)
            return self._sources[recording]
        except InputError as error:
            self.warnings.append(f"{name}: no video in the page: {error}")
            return None

    def _embed(self, file: TextIO, recording: Path, streams: Sequence[int]) -> dict[str, object] | None:
        with tempfile.TemporaryDirectory() as temporary:
            preview = Path(temporary) / "preview.mp4"
            if not self._call(recording, _encode, recording, preview, streams, self._room * 3 // 4):
                return None
            block, encoded = f"preview-{len(self._sources)}", base64.b64encode(preview.read_bytes()).decode()
        self._room -= len(encoded)
        file.write(f'<script type="text/plain" id="{block}">{encoded}</script>\n')
        return {"block": block}

    def _link(self, name: str, recording: Path, streams: Sequence[int]) -> dict[str, object]:
        self.warnings.append(
            f"{name}: no preview: all of them would take more than {PREVIEW_BYTES / 2**20:.0f} MB of the page; "
            f"it plays {recording.name} from its folder"
        )
        relative = os.path.relpath(recording, self._folder)
        offset_s = self._call(recording, _shown_start_s, recording, streams)
        return {"link": quote(os.fsencode(relative.replace(os.sep, "/"))), "offset": _number(offset_s)}


def _shown_start_s(recording: Path, streams: Sequence[int], *, status: Status) -> float:
    """Time of the first frame on a browser's clock, which starts with the first picture or sound; seconds."""
    with Video(recording, streams=streams) as video, open_recording(recording) as container:
        return video.start_s - (container.start_time or 0) / av.time_base


def _encode(recording: Path, preview: Path, streams: Sequence[int], most_bytes: int, *, status: Status) -> bool:
    """Write a small, upright MP4 with the times of the recording.

    Returns:
        False if it would be larger than ``most_bytes``.

    Raises:
        InputError: the recording cannot be read.
    """
    with Video(recording, streams=streams) as video:
        scale = min(1.0, _PREVIEW_WIDTH / video.width, _PREVIEW_HEIGHT / video.height)
        size = round(video.width * scale), round(video.height * scale)

        def pictures() -> Iterator[tuple[NDArray[np.uint8], float]]:
            for frame in video.frames():
                yield np.asarray(fit(frame.image, video.width, video.height)), frame.time_s
                status(f"preview: {video.share_read:.0%}")

        return write_movie(
            preview, pictures(), size, video, recording, streams=streams, quality=_PREVIEW, most_bytes=most_bytes
        )
