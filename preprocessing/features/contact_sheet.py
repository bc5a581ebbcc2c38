"""A picture that shows whether features are right: faces, where they were found, sound and words over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from preprocessing.features.facts import (
    SILENCE,
    duration,
    faces_found,
    frame_ends,
    is_regular,
    percent,
    picture_size,
    runs,
    sound_span,
    time_axis_end_s,
    warnings_of,
)
from preprocessing.features.folder import Features
from preprocessing.files import replace_own
from preprocessing.fonts import Fonts
from preprocessing.media import MEL_RATE

# Lengths in pixels.
_WIDTH, _LEFT, _RIGHT = 1600, 105, 20
_TIME_AXIS = _WIDTH - _LEFT - _RIGHT
_TILE, _MOST_TILES = 96, 15
_HEADER, _LINE, _MARGIN = 62, 18, 10
_LANES, _LANE, _BARS = 3, 15, 12
_FACES, _SCORES, _SOUND, _WORDS = _TILE + 8, 26, 90, _BARS + 4 + _LANES * _LANE
_GAP, _TICKS = 5, 34
_STRIP = _FACES + _SCORES + _SOUND + _WORDS + 3 * _GAP + _TICKS
_SMALL, _TEXT, _TITLE = 11, 13, 20
"""Heights of fonts."""

_STRIP_S, _MOST_STRIPS = 20.0, 6
"""Seconds of a strip, at which the words of quick speech can still be read, until there would be too many strips."""
_MOST_WARNINGS, _MOST_CHARACTERS = 5, 30
_LOUD = 4.0
"""Log-mel of loud speech: end of the colour scale, the same for every video."""

_MISSING, _MISSING_FACE, _FACE, _SCORE, _GROUND = "#d0d0d0", "#f0b6ac", "#cfe5dd", "#1d6b52", "#f6f6f6"
_INK, _FAINT, _UNKNOWN = "#222222", "#777777", "#8a8a8a"
_UNSURE_TO_SURE = ("#c22e1f", "#eda73a", "#2b7f9e")


@dataclass(frozen=True)
class _Strip:
    """A stretch of the time axis, in seconds, as wide as the sheet."""

    start_s: float
    end_s: float

    def x(self, time_s: float) -> float:
        """Where a time lies, in pixels from the left edge of the sheet."""
        return _LEFT + (time_s - self.start_s) / (self.end_s - self.start_s) * _TIME_AXIS

    def clipped(self, start_s: float, end_s: float) -> tuple[float, float]:
        """Where a span lies; at least a pixel wide, so that a single frame can be seen in many minutes."""
        first, last = (min(max(self.x(time_s), _LEFT), _LEFT + _TIME_AXIS) for time_s in (start_s, end_s))
        return first, max(first, last - 1)


def draw_contact_sheet(features: Features, path: Path) -> None:
    """Write one picture, a PNG, of everything over time; whole or not at all.

    Faces, where they were found, sound and words stand above each other on one time axis in seconds of the video's
    clock; long videos are cut into up to six strips. Only the crops that are drawn are read.

    Args:
        features: of one video of any length, with or without faces, sound and words.
        path: the file to write; missing folders above it are made.

    Raises:
        InputError: something is there already that this function did not write.
        OSError: it cannot be written.
    """
    total_s = time_axis_end_s(features)
    n = min(_MOST_STRIPS, max(1, math.ceil(total_s / _STRIP_S)))
    strips = [_Strip(k * total_s / n, (k + 1) * total_s / n) for k in range(n)]
    warnings = warnings_of(features)[:_MOST_WARNINGS]
    height = _HEADER + n * _STRIP + _MARGIN + _LINE * (2 + len(warnings))
    sheet = _Sheet(height, [features.video_id, *(word.text for word in features.words), *warnings])
    sheet.header(features)
    for number, strip in enumerate(strips):
        top = _HEADER + number * _STRIP
        sheet.faces(features, strip, top)
        sheet.scores(features, strip, top := top + _FACES + _GAP)
        sheet.sound(features, strip, top := top + _SCORES + _GAP)
        sheet.words(features, strip, top := top + _SOUND + _GAP)
        sheet.times(strip, top + _WORDS, minutes=total_s >= 120)
    sheet.footer(features, warnings, top=_HEADER + n * _STRIP)
    with replace_own(path) as new:
        sheet.picture.save(new, format="PNG")


class _Sheet:
    """The picture; methods draw its rows, ``top`` is in pixels."""

    def __init__(self, height: int, texts: Sequence[str]) -> None:
        self.picture = Image.new("RGB", (_WIDTH, height), "white")
        self._draw = ImageDraw.Draw(self.picture)
        self._fonts = Fonts(texts)

    def _write(self, x: float, y: float, text: str, size: int = _TEXT, fill: str = _INK, anchor: str = "lm") -> None:
        self._fonts.write(self._draw, (x, y), text, size, fill, anchor=anchor)

    def _name(self, middle: float, *lines: str) -> None:
        """Write what a row shows to the left of it."""
        for number, line in enumerate(lines):
            self._write(_LEFT - 9, middle + (number - (len(lines) - 1) / 2) * 15, line, 12, anchor="rm")

    def header(self, features: Features) -> None:
        """Name of the video, facts, and what the colours of words mean."""
        title = self._fonts.shorten(features.video_id, _TITLE, _TIME_AXIS - 230)
        self._fonts.write(self._draw, (_LEFT, 22), title, _TITLE, _INK, bold=True)
        n_warnings = len(warnings_of(features))
        facts = [
            f"{features.n_frames} frames" if features.n_frames != 1 else "1 frame",
            f"duration {duration(features)}",
            *([] if is_regular(features) else ["irregular frame times"]),
            picture_size(features),
            f"face in {percent(faces_found(features).mean())}",
            "sound" if sound_span(features) else "no sound",
            f"{len(features.words)} words",
            f"language {features.meta.get('language') or 'not known'}",
            f"{n_warnings} warning{'s' * (n_warnings != 1)}",
        ]
        self._write(_LEFT, 45, "   ·   ".join(facts), 14)
        right, steps, step = _LEFT + _TIME_AXIS - 46, 20, 4
        for k in range(steps):
            left = right - (steps - k) * step
            self._draw.rectangle((left, 16, left + step - 1, 25), fill=_word_colour((k + 0.5) / steps))
        self._write(right - steps * step - 6, 21, "word: unsure", _SMALL, _FAINT, "rm")
        self._write(right + 6, 21, "sure", _SMALL, _FAINT)

    def faces(self, features: Features, strip: _Strip, top: int) -> None:
        """Crops at equal distances, each with a mark at the time of its frame."""
        self._name(top + _FACES / 2, "faces")
        times, found = np.asarray(features.time_s), faces_found(features)
        first, stop = np.searchsorted(times, (strip.start_s, strip.end_s))
        edges = np.linspace(strip.start_s, strip.end_s, min(_MOST_TILES, max(1, int(stop - first))) + 1)
        slot = _TIME_AXIS / (len(edges) - 1)
        for k, (begin_s, stop_s) in enumerate(pairwise(edges)):
            left = _LEFT + round((k + 0.5) * slot - _TILE / 2)
            begin, end = np.searchsorted(times, (begin_s, stop_s))
            frame = begin + int(np.argmin(np.abs(times[begin:end] - (begin_s + stop_s) / 2))) if end > begin else None
            if frame is not None and found[frame]:
                crop = Image.fromarray(np.asarray(features.faces[frame]))
                self.picture.paste(crop.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (left, top))
            else:
                box = (left, top, left + _TILE - 1, top + _TILE - 1)
                self._draw.rectangle(box, fill="white" if frame is None else _MISSING, outline="#b0b0b0")
                self._write(
                    left + _TILE / 2, top + _TILE / 2, "no frame" if frame is None else "no face", 12, anchor="mm"
                )
            if frame is not None:
                x, y = strip.x(float(times[frame])), top + _TILE
                self._draw.polygon([(x - 4, y + 2), (x + 4, y + 2), (x, y + 8)], fill=_FAINT)

    def scores(self, features: Features, strip: _Strip, top: int) -> None:
        """The detector's score, and where there was no face."""
        self._name(top + _SCORES / 2, "face score", "0 to 1")
        times, ends, found = np.asarray(features.time_s), frame_ends(features), faces_found(features)
        inside = (ends > strip.start_s) & (times < strip.end_s)
        for flags, colour in ((found, _FACE), (~found, _MISSING_FACE)):
            for first, stop in runs(flags & inside):
                left, right = strip.clipped(times[first], ends[stop - 1])
                self._draw.rectangle((left, top, right, top + _SCORES - 1), fill=colour)
        for first, stop in runs(found & inside):
            y = top + _SCORES * (1 - np.asarray(features.face_score[first:stop]) / 1.08)
            points = list(zip(map(strip.x, times[first:stop]), y, strict=True))
            self._draw.line(points, fill=_SCORE)
            for x, y_point in points if inside.sum() < _TIME_AXIS / 4 else points[:1]:
                self._draw.rectangle((x - 1, y_point - 1, x + 1, y_point + 1), fill=_SCORE)

    def sound(self, features: Features, strip: _Strip, top: int) -> None:
        """Log-mel, high bands on top; what it holds after the end of the sound is padding."""
        from matplotlib import colormaps

        self._name(top + _SOUND / 2, "log-mel", "0.1 to 7.5 kHz")
        self._draw.rectangle((_LEFT, top, _LEFT + _TIME_AXIS - 1, top + _SOUND - 1), fill=_MISSING)
        start_s, stop_s = sound_span(features) or (math.inf, math.inf)
        edges = np.linspace(strip.start_s, min(strip.end_s, stop_s), _TIME_AXIS + 1) * MEL_RATE
        first, last = math.floor(edges[0]), math.ceil(edges[-1])
        rows = np.asarray(features.log_mel[first:last], np.float32)
        if len(rows):
            at = np.minimum(np.floor(edges[:-1]).astype(int) - first, len(rows) - 1)
            columns = np.fmax.reduceat(rows, at)  # the loudest of each column
            colours = colormaps["magma"].with_extremes(bad=_MISSING)
            image = colours((columns[:, ::-1].T - SILENCE) / (_LOUD - SILENCE), bytes=True)[..., :3]
            width = max(1, round(strip.x(min(strip.end_s, stop_s, (first + len(rows)) / MEL_RATE)) - _LEFT))
            self.picture.paste(Image.fromarray(image).resize((width, _SOUND), Image.Resampling.NEAREST), (_LEFT, top))
        for begin_s, end in ((strip.start_s, min(start_s, strip.end_s)), (max(stop_s, strip.start_s), strip.end_s)):
            if strip.x(end) - strip.x(begin_s) > 60:
                self._write(strip.x((begin_s + end) / 2), top + _SOUND / 2, "no sound", 12, anchor="mm")

    def words(self, features: Features, strip: _Strip, top: int) -> None:
        """A bar for each word, coloured by its probability; below, those for which there is room."""
        self._name(top + _WORDS / 2, "words")
        self._draw.rectangle((_LEFT, top, _LEFT + _TIME_AXIS - 1, top + _WORDS - 1), fill=_GROUND)
        words = [word for word in features.words if word.start_s < strip.end_s and word.end_s > strip.start_s]
        if not words:
            self._write(_LEFT + _TIME_AXIS / 2, top + _WORDS / 2, "no words", 12, _FAINT, "mm")
        free_from, labels = [float(_LEFT)] * _LANES, []
        for word in words:
            first, last = strip.clipped(word.start_s, word.end_s)
            colour = _word_colour(word.probability)
            # An edge in the colour of the page: words that touch are still two.
            self._draw.rectangle((first, top, last, top + _BARS - 1), fill=colour, outline=_GROUND)
            text = word.text if len(word.text) <= _MOST_CHARACTERS else word.text[:_MOST_CHARACTERS] + "…"
            width = self._fonts.width(text, _SMALL)
            left = max(float(_LEFT), min(first, _LEFT + _TIME_AXIS - width))
            lane = next((k for k in range(_LANES) if free_from[k] <= left), None)
            if lane is None:
                continue
            free_from[lane] = left + width + 6
            y = top + _BARS + 4 + lane * _LANE
            self._draw.line((first, top + _BARS, first, y + _LANE - 1), fill=colour)
            labels.append((left, y, width, text))
        for left, y, width, text in labels:
            self._draw.rectangle((left, y, left + width, y + _LANE - 2), fill=_GROUND)
            self._write(left, y + _LANE / 2, text, _SMALL)

    def times(self, strip: _Strip, top: int, *, minutes: bool) -> None:
        """Ticks of the time axis, at most twenty, at a round number of seconds."""
        span_s = strip.end_s - strip.start_s
        decades = [base * 10.0**power for power in range(-4, 1) for base in (1, 2, 5)]
        steps = [*decades, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0]
        step = next((step for step in steps if span_s / step <= 20), 3600.0 * math.ceil(span_s / 72000))
        for k in range(math.ceil(strip.start_s / step - 1e-9), math.floor(strip.end_s / step + 1e-9) + 1):
            tick_s, x = k * step, strip.x(k * step)
            text = f"{round(tick_s) // 60}:{round(tick_s) % 60:02d}" if minutes else f"{tick_s:g} s"
            self._draw.line((x, top, x, top + 3), fill=_FAINT)
            self._write(x, top + 6, text, _SMALL, anchor="mt")

    def footer(self, features: Features, warnings: Sequence[str], *, top: int) -> None:
        """The first words in two lines, and warnings."""
        words = " ".join(word.text for word in features.words[:200])
        first = self._fonts.shorten(words, _TEXT, _TIME_AXIS)
        lines = [first or "no words", ""]
        if len(first) < len(words):
            head = first[:-1].rsplit(" ", 1)[0]
            lines = [head, self._fonts.shorten(words[len(head) :].strip(), _TEXT, _TIME_AXIS)]
        lines += [self._fonts.shorten(f"warning: {warning}", _TEXT, _TIME_AXIS) for warning in warnings]
        for number, line in enumerate(lines):
            self._write(_LEFT, top + (number + 0.5) * _LINE, line, fill=_INK if number < 2 else _UNSURE_TO_SURE[0])


def _word_colour(probability: float) -> str:
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    if math.isnan(probability):
        return _UNKNOWN
    return to_hex(LinearSegmentedColormap.from_list("sure", _UNSURE_TO_SURE)(probability))
