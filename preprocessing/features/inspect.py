"""What a feature folder holds, for people: lines of facts, and a picture that shows whether the features are right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.features.folder import Features
from preprocessing.files import replace_own
from preprocessing.media import MEL_RATE, SAMPLE_RATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

_REGULAR_MS = 2.0
"""How far the spacing of regular frames may lie from its median: containers round times to the millisecond."""
_UNSURE = 0.5
"""Words of a lower probability are counted."""
_SILENCE, _LOUD = math.log(0.01), 4.0
"""Log-mel of digital silence, and of loud speech: ends of the colour scale, the same for every video."""
_FIRST_WORDS = 15
_LABELLED_RATE_S = 0.04
"""Seconds that a lone frame is drawn for where no frame rate is known."""

# Lengths in pixels.
_DPI = 100
_WIDTH, _LEFT, _RIGHT = 1600, 105, 20
_TIME_AXIS = _WIDTH - _LEFT - _RIGHT
_TILE, _MOST_TILES = 96, 15
_HEADER, _LINE, _MARGIN = 62, 18, 10
_LANES, _LANE, _BARS = 3, 15, 12
_ROWS = {"faces": _TILE + 8, "scores": 26, "sound": 90, "words": _BARS + 4 + _LANES * _LANE}
_ROW_GAP, _TICKS = 5, 34
_STRIP = sum(_ROWS.values()) + _ROW_GAP * (len(_ROWS) - 1) + _TICKS

_STRIP_S, _MOST_STRIPS = 20.0, 6
"""Seconds of a strip, at which the words of quick speech can still be read, until there would be too many strips."""
_MOST_COLUMNS = 2000
_MOST_WARNINGS = 5
_MOST_CHARACTERS = 30

_MISSING, _MISSING_FACE, _FACE, _INK, _FAINT = "#d0d0d0", "#f0b6ac", "#cfe5dd", "#222222", "#777777"
_UNSURE_TO_SURE = ("#c22e1f", "#eda73a", "#2b7f9e")


def describe(features: Features) -> list[tuple[str, str]]:
    """Label and value of each line: what people want to know of a feature folder."""
    return [
        *_describe_source(features),
        *_describe_frames(features),
        *_describe_faces(features),
        *_describe_sound(features),
        *_describe_words(features),
        *_describe_making(features),
    ]


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    strips = _strips(_end_s(features))
    warnings = _warnings(features)[:_MOST_WARNINGS]
    height = _HEADER + len(strips) * _STRIP + _MARGIN + _LINE * (2 + len(warnings))
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    pen = _Pen.for_texts(canvas, [features.video_id, *(word.text for word in features.words), *warnings])
    _draw_header(pen, features)
    for number, strip in enumerate(strips):
        top = _HEADER + number * _STRIP
        for name, draw in (("faces", _draw_faces), ("scores", _draw_scores), ("sound", _draw_sound)):
            draw(pen, pen.axes(top, _ROWS[name]), features, strip)
            top += _ROWS[name] + _ROW_GAP
        axes = pen.axes(top, _ROWS["words"])
        _draw_words(pen, axes, features, strip)
        _draw_times(pen, axes, strip, minutes=strips[-1].end_s >= 120)
    _draw_footer(pen, features, warnings, top=_HEADER + len(strips) * _STRIP)
    with replace_own(path) as new:
        canvas.print_png(new)


@dataclass(frozen=True)
class _Strip:
    """A stretch of the time axis, in seconds, as wide as the sheet."""

    start_s: float
    end_s: float

    def column(self, time_s: float) -> float:
        """Where a time lies, in pixels from the left edge of the sheet."""
        return _LEFT + (time_s - self.start_s) / (self.end_s - self.start_s) * _TIME_AXIS


def _strips(end_s: float) -> list[_Strip]:
    n = min(_MOST_STRIPS, max(1, math.ceil(end_s / _STRIP_S)))
    return [_Strip(k * end_s / n, (k + 1) * end_s / n) for k in range(n)]


# What the features say, in numbers.


def _frame_s(features: Features) -> float | None:
    """Seconds from a frame to the next one, as a rule."""
    if features.n_frames > 1:
        return float(np.median(np.diff(features.time_s)))
    rate = features.meta.get("frame_rate")
    return 1 / rate if rate else None


def _frame_ends(features: Features) -> NDArray[np.float64]:
    """(T,) seconds at which the next frame takes over."""
    times = np.asarray(features.time_s)
    return np.append(times[1:], times[-1:] + (_frame_s(features) or _LABELLED_RATE_S))


def _sound_span(features: Features) -> tuple[float, float] | None:
    """Where there is sound, seconds; without the padding at the end where ``meta`` says how long the sound is."""
    with_sound = np.flatnonzero(~np.isnan(features.log_mel[:, :1]).all(axis=1))
    if len(with_sound) == 0:
        return None
    audio = features.meta.get("audio") or {}
    start_s, duration_s = audio.get("start_s"), audio.get("duration_s")
    if start_s is None or duration_s is None:
        return with_sound[0] / MEL_RATE, (with_sound[-1] + 1) / MEL_RATE
    return float(start_s), float(start_s + duration_s)


def _end_s(features: Features) -> float:
    """Where the time axis ends: with the last frame or the sound, whichever is later; seconds, above zero."""
    ends = [*_frame_ends(features)[-1:], *(_sound_span(features) or ())]
    return max([*ends, _LABELLED_RATE_S])


def _has_face(features: Features) -> NDArray[np.bool_]:
    return np.isfinite(features.face_score)


def _runs(flags: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(n,2) first index of each run of true values, and the one after its last."""
    return np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]))).reshape(-1, 2)


def _warnings(features: Features) -> list[str]:
    by_stage = features.meta.get("warnings") or {}
    return [f"{stage}: {warning}" for stage, warnings in by_stage.items() for warning in warnings]


# Lines of facts.


def _describe_source(features: Features) -> Iterable[tuple[str, str]]:
    source = features.meta.get("source") or {}
    yield "video", features.video_id
    yield "source", str(source.get("path", "not known"))
    if "sha256" in source:
        yield "sha256", f"{source['sha256'][:12]}…"
    others = [name for name in features.meta.get("subjects") or () if name != features.video_id]
    if others:
        yield "of the same source", ", ".join(others)


def _describe_frames(features: Features) -> Iterable[tuple[str, str]]:
    times = np.asarray(features.time_s)
    yield "picture", f"{_picture_size(features)} pixels"
    yield "frames", str(features.n_frames)
    yield "duration", _duration(features)
    if features.n_frames < 2:
        yield "frame times", "one frame"
        return
    low, middle, high = (1000 * float(value) for value in np.quantile(np.diff(times), (0, 0.5, 1)))
    yield "frame rate", _rate(features)
    if _is_regular(features):
        yield "frame times", f"regular, {middle:.1f} ms apart"
    else:
        yield "frame times", f"irregular, {low:.1f} / {middle:.1f} / {high:.1f} ms apart (least / median / most)"


def _describe_faces(features: Features) -> Iterable[tuple[str, str]]:
    has_face = _has_face(features)
    yield "faces", f"{_percent(has_face.mean())} of frames"
    if has_face.any():
        score = np.asarray(features.face_score)[has_face]
        box = np.asarray(features.face_box, np.float64)[has_face]
        side = np.median((box[:, 2:] - box[:, :2]).mean(axis=1))
        yield "face score", f"{score.mean():.3f} mean, {score.min():.3f} least"
        yield "face side", "not known" if np.isnan(side) else f"{side:.0f} pixels (median)"
    yield "crops", " x ".join(str(side) for side in features.faces.shape[1:3])
    missing = _runs(~has_face)
    if len(missing) == 0:
        yield "longest without face", "none"
        return
    start_s, end_s = np.asarray(features.time_s)[missing[:, 0]], _frame_ends(features)[missing[:, 1] - 1]
    longest = int(np.argmax(end_s - start_s))
    span = f"{start_s[longest]:.2f} to {end_s[longest]:.2f} s"
    yield "longest without face", span if has_face.any() else f"{span}, the whole video"


def _describe_sound(features: Features) -> Iterable[tuple[str, str]]:
    span = _sound_span(features)
    yield "sound", f"{span[0]:.2f} to {span[1]:.2f} s ({span[1] - span[0]:.2f} s)" if span else "none"
    n_rows = len(features.log_mel)
    if n_rows == 0:
        yield "log-mel", "0 rows"
        return
    missing = np.isnan(features.log_mel).any(axis=1)
    # The offset of float16 in this range.
    silent = (features.log_mel <= _SILENCE + 0.004).all(axis=1)
    yield "log-mel", f"{n_rows} rows, {_percent(missing.mean())} NaN, {_percent(silent.mean())} digital silence"
    if features.waveform is not None:
        missing = np.isnan(features.waveform)
        yield "waveform", f"{len(missing)} samples at {SAMPLE_RATE} Hz, {_percent(missing.mean())} NaN"


def _describe_words(features: Features) -> Iterable[tuple[str, str]]:
    words = features.words
    yield "words", str(len(words))
    yield "language", features.meta.get("language") or "not known"
    if words:
        probability = np.array([word.probability for word in words])
        known = probability[np.isfinite(probability)]
        frame_s = _frame_s(features)
        if frame_s is not None:
            yield "words per minute", f"{60 * len(words) / _frame_ends(features)[-1]:.0f}"
        yield "frames with a word", _percent((np.asarray(features.frame_word) >= 0).mean())
        if len(known):
            unsure = int((known < _UNSURE).sum())
            yield "word probability", f"{known.mean():.2f} mean, {unsure} of {len(words)} below {_UNSURE}"
        else:
            yield "word probability", "not known"
        end_s = _end_s(features)
        outside = sum(word.start_s >= end_s or word.end_s <= 0 for word in words)
        if outside:
            yield "words outside the video", str(outside)
        more = " …" if len(words) > _FIRST_WORDS else ""
        yield "first words", " ".join(word.text for word in words[:_FIRST_WORDS]) + more
    settings = features.meta.get("settings") or {}
    encoder = (settings.get("words") or {}).get("model", "not known")
    yield "word vectors", f"{' x '.join(str(n) for n in features.word_vectors.shape)}, model {encoder}"


def _describe_making(features: Features) -> Iterable[tuple[str, str]]:
    speech = (features.meta.get("settings") or {}).get("speech") or {}
    transcript = features.meta.get("transcript")
    if transcript:
        yield "transcript", str(transcript.get("path"))
    elif speech:
        yield "speech recogniser", f"{speech.get('backend')}, model {speech.get('model')}"
    warnings = _warnings(features)
    yield from (("warning", warning) for warning in warnings)
    if not warnings:
        yield "warnings", "none"
    seconds: dict[str, float] = features.meta.get("seconds") or {}
    if seconds:
        stages = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
        yield "seconds per stage", f"{stages} (faces beside the rest)"


def _is_regular(features: Features) -> bool:
    spacing = 1000 * np.diff(features.time_s)
    return bool(np.abs(spacing - np.median(spacing)).max() <= _REGULAR_MS)


def _rate(features: Features) -> str:
    span = float(features.time_s[-1] - features.time_s[0])
    return f"{(features.n_frames - 1) / span:.2f} per second (mean)" if span > 0 else "not known"


def _duration(features: Features) -> str:
    return "not known" if _frame_s(features) is None else f"{_frame_ends(features)[-1]:.2f} s"


def _picture_size(features: Features) -> str:
    return f"{features.meta.get('width', '?')} x {features.meta.get('height', '?')}"


def _percent(share: float) -> str:
    # Rounded towards the middle: 100.0 % is all of them, and 0.0 % none.
    percent = 100 * float(share)
    rounded = percent if percent in (0, 100) else min(max(percent, 0.1), 99.9)
    return f"{rounded:.1f} %"


# The picture.


@dataclass(frozen=True)
class _Pen:
    """Draws in pixels from the upper left corner of the sheet, and texts as they are, whatever their script."""

    figure: Figure
    renderer: RendererAgg
    fonts: list[str]
    """Names of the fonts, the first for whatever it has."""
    drawable: frozenset[str]

    @classmethod
    def for_texts(cls, canvas: FigureCanvasAgg, texts: Iterable[str]) -> _Pen:
        """Choose fonts for these texts."""
        characters = frozenset(character for text in texts for character in text)
        fonts, drawable = _choose_fonts(characters)
        return cls(canvas.figure, canvas.get_renderer(), fonts, drawable)

    def axes(self, top: float, height: float) -> Axes:
        """Axes of the width of the time axis, without ticks; y is in pixels from their top."""
        total = self.figure.get_figheight() * _DPI
        place = (_LEFT / _WIDTH, 1 - (top + height) / total, _TIME_AXIS / _WIDTH, height / total)
        axes = self.figure.add_axes(place, xticks=[], yticks=[], xlim=(0, _TIME_AXIS), ylim=(height, 0))
        axes.spines[:].set_visible(False)
        return axes

    def literal(self, text: str) -> str:
        """The text with a box for each character that no font has."""
        return "".join(character if character in self.drawable else "□" for character in text)

    def font(self, points: float, weight: str = "normal") -> FontProperties:
        from matplotlib.font_manager import FontProperties

        return FontProperties(family=self.fonts, size=points, weight=weight)

    def width(self, text: str, font: FontProperties) -> float:
        """Pixels that a text takes."""
        return float(self.renderer.get_text_width_height_descent(self.literal(text), font, ismath=False)[0])

    def shorten(self, text: str, font: FontProperties, width: float) -> str:
        """The beginning of a text that fits into a width, in pixels."""
        if self.width(text, font) <= width:
            return text
        fits, too_long = 0, len(text)
        while fits + 1 < too_long:
            middle = (fits + too_long) // 2
            fits, too_long = (middle, too_long) if self.width(text[:middle] + "…", font) <= width else (fits, middle)
        return text[:fits] + "…"

    def write(self, left: float, middle: float, text: str, font: FontProperties, **style: Any) -> None:
        """Write on the sheet, centred vertically at ``middle``, pixels from the upper left corner."""
        total = self.figure.get_figheight() * _DPI
        style = {"color": _INK, "verticalalignment": "center", **style}
        place = (left / _WIDTH, 1 - middle / total)
        self.figure.text(*place, self.literal(text), fontproperties=font, parse_math=False, **style)

    def write_in(self, axes: Axes, x: float, y: float, text: str, font: FontProperties, **style: Any) -> None:
        """Write in axes, at their coordinates."""
        style = {"color": _INK, "verticalalignment": "center", **style}
        axes.text(x, y, self.literal(text), fontproperties=font, parse_math=False, **style)

    def name(self, axes: Axes, text: str) -> None:
        """Write what a row shows to the left of it."""
        style: dict[str, Any] = {"horizontalalignment": "right", "linespacing": 1.3, "transform": axes.transAxes}
        axes.text(-0.006, 0.5, text, fontsize=8.5, color=_INK, verticalalignment="center", **style)


def _choose_fonts(characters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """DejaVu Sans, which comes with matplotlib, then what is installed and has the characters that are missing."""
    from matplotlib.font_manager import FontProperties, fontManager, get_font

    def characters_of(name: str) -> frozenset[str]:
        path = fontManager.findfont(FontProperties(family=[name]), fallback_to_default=False)
        charmap = get_font(path).get_charmap()
        return frozenset(character for character in characters | _OWN_CHARACTERS if ord(character) in charmap)

    chosen = ["DejaVu Sans"]
    drawable = characters_of(chosen[0])
    installed = sorted({entry.name for entry in fontManager.ttflist} - {*chosen, "Last Resort High-Efficiency"})
    for name in installed:
        missing = {character for character in characters - drawable if character.isprintable()}
        if not missing:
            break
        try:
            found = characters_of(name)
        except (OSError, RuntimeError, ValueError):
            continue
        if not missing.isdisjoint(found):
            chosen.append(name)
            drawable |= found
    return chosen, drawable


_OWN_CHARACTERS = frozenset(map(chr, range(0x20, 0x7F))) | frozenset("…□·")


def _draw_header(pen: _Pen, features: Features) -> None:
    title = pen.font(14, "bold")
    pen.write(_LEFT, 22, pen.shorten(features.video_id, title, _TIME_AXIS - 230), title)
    n_warnings = len(_warnings(features))
    facts = [
        f"{features.n_frames} frames" if features.n_frames != 1 else "1 frame",
        _duration(features) if _frame_s(features) else "duration not known",
        _picture_size(features),
        f"face in {_percent(_has_face(features).mean())}",
        "sound" if _sound_span(features) else "no sound",
        f"{len(features.words)} words",
        f"language {features.meta.get('language') or 'not known'}",
        f"{n_warnings} warning{'s' * (n_warnings != 1)}",
    ]
    if features.n_frames > 1 and not _is_regular(features):
        facts.insert(2, "irregular frame times")
    pen.write(_LEFT, 45, "   ·   ".join(facts), pen.font(10))
    _draw_key(pen)


def _draw_key(pen: _Pen) -> None:
    """How sure a word is, by colour."""
    from matplotlib.patches import Rectangle

    axes = pen.axes(14, 14)
    right, steps, step = _TIME_AXIS - 46, 20, 4
    for k in range(steps):
        colour = _word_colour((k + 0.5) / steps)
        axes.add_patch(Rectangle((right - (steps - k) * step, 2), step, 10, facecolor=colour, linewidth=0))
    style: dict[str, Any] = {"color": _FAINT, "horizontalalignment": "right"}
    pen.write_in(axes, right - steps * step - 6, 7, "word: unsure", pen.font(8), **style)
    pen.write_in(axes, right + 6, 7, "sure", pen.font(8), color=_FAINT)


def _tile_frames(features: Features, strip: _Strip) -> list[int | None]:
    """The frame in the middle of each of the equal parts of a strip, none where a part has no frame."""
    times = np.asarray(features.time_s)
    first, stop = np.searchsorted(times, (strip.start_s, strip.end_s))
    edges = np.linspace(strip.start_s, strip.end_s, min(_MOST_TILES, max(1, int(stop - first))) + 1)
    chosen: list[int | None] = []
    for left, right in pairwise(edges):
        begin, end = np.searchsorted(times, (left, right))
        nearest = begin + int(np.argmin(np.abs(times[begin:end] - (left + right) / 2))) if end > begin else None
        chosen.append(nearest)
    return chosen


def _draw_faces(pen: _Pen, axes: Axes, features: Features, strip: _Strip) -> None:
    from matplotlib.patches import Polygon, Rectangle

    pen.name(axes, "faces")
    frames = _tile_frames(features, strip)
    slot = _TIME_AXIS / len(frames)
    has_face = _has_face(features)
    for k, frame in enumerate(frames):
        left = round((k + 0.5) * slot - _TILE / 2)
        extent = (left, left + _TILE, _TILE, 0)
        if frame is not None and has_face[frame]:
            axes.imshow(features.faces[frame], extent=extent, aspect="auto", interpolation="lanczos")
        else:
            hatch, text = ("////", "no face") if frame is not None else (None, "no frame")
            face = _MISSING if frame is not None else "white"
            style: dict[str, Any] = {"facecolor": face, "edgecolor": "#b0b0b0", "hatch": hatch, "linewidth": 0.8}
            axes.add_patch(Rectangle((left, 0), _TILE, _TILE, **style))
            middle = (left + _TILE / 2, _TILE / 2)
            box = {"facecolor": face, "edgecolor": "none", "pad": 2}
            pen.write_in(axes, *middle, text, pen.font(9), horizontalalignment="center", bbox=box)
        if frame is not None:
            # Points at the frame's own time on the row below.
            x = strip.column(float(features.time_s[frame])) - _LEFT
            axes.add_patch(Polygon([(x - 4, _TILE + 2), (x + 4, _TILE + 2), (x, _TILE + 8)], color=_FAINT, linewidth=0))
    axes.set(xlim=(0, _TIME_AXIS), ylim=(_ROWS["faces"], 0))


def _draw_scores(pen: _Pen, axes: Axes, features: Features, strip: _Strip) -> None:
    pen.name(axes, "face score\n0 to 1")
    axes.set(xlim=(strip.start_s, strip.end_s), ylim=(0, 1.08), facecolor="white")
    times, ends, has_face = np.asarray(features.time_s), _frame_ends(features), _has_face(features)
    inside = (ends > strip.start_s) & (times < strip.end_s)
    for flags, colour in ((has_face, _FACE), (~has_face, _MISSING_FACE)):
        # An edge, so that a single frame can be seen in a strip of many minutes.
        spans = [(times[first], ends[stop - 1] - times[first]) for first, stop in _runs(flags & inside)]
        edge = 0.7 if colour == _MISSING_FACE else 0
        axes.broken_barh(spans, (0, 1.08), facecolors=colour, edgecolors=colour, linewidth=edge)
    marker: dict[str, Any] = {"marker": ".", "markersize": 3} if inside.sum() < _TIME_AXIS / 4 else {}
    axes.plot(times[inside], np.asarray(features.face_score)[inside], color="#1d6b52", linewidth=1, **marker)


def _draw_sound(pen: _Pen, axes: Axes, features: Features, strip: _Strip) -> None:
    pen.name(axes, "log-mel\n0.1 to 7.5 kHz")
    axes.set(facecolor=_MISSING)
    first, stop = math.floor(strip.start_s * MEL_RATE), math.ceil(strip.end_s * MEL_RATE)
    rows = np.asarray(features.log_mel[first:stop], np.float32)
    if len(rows):
        together = math.ceil(len(rows) / _MOST_COLUMNS)
        image = np.fmax.reduceat(rows, np.arange(0, len(rows), together)).T
        extent = (first / MEL_RATE, (first + image.shape[1] * together) / MEL_RATE, 0, len(image))
        axes.imshow(
            image,
            extent=extent,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=_SILENCE,
            vmax=_LOUD,
            interpolation="nearest",
        )
    axes.set(xlim=(strip.start_s, strip.end_s), ylim=(0, max(1, features.log_mel.shape[1])))
    start_s, end_s = _sound_span(features) or (math.inf, math.inf)
    # What the log-mel holds after the end of the sound is padding.
    axes.axvspan(end_s, strip.end_s, color=_MISSING, alpha=0.8, linewidth=0) if end_s < strip.end_s else None
    for left, right in ((strip.start_s, min(start_s, strip.end_s)), (max(end_s, strip.start_s), strip.end_s)):
        if strip.column(right) - strip.column(left) > 60:
            middle = ((left + right) / 2, axes.get_ylim()[1] / 2)
            pen.write_in(axes, *middle, "no sound", pen.font(9), horizontalalignment="center")


def _draw_words(pen: _Pen, axes: Axes, features: Features, strip: _Strip) -> None:
    pen.name(axes, "words")
    axes.set(xlim=(strip.start_s, strip.end_s), facecolor="#f6f6f6")
    words = [word for word in features.words if word.start_s < strip.end_s and word.end_s > strip.start_s]
    if not words:
        middle = ((strip.start_s + strip.end_s) / 2, _ROWS["words"] / 2)
        pen.write_in(axes, *middle, "no words", pen.font(9), horizontalalignment="center", color=_FAINT)
        return
    spans = [(word.start_s, word.end_s - word.start_s) for word in words]
    colours = [_word_colour(word.probability) for word in words]
    # An edge in the colour of the page: words that touch are still two.
    axes.broken_barh(spans, (0, _BARS), facecolors=colours, edgecolors="#f6f6f6", linewidth=0.4)
    font, free_from = pen.font(8), [0.0] * _LANES
    for word, colour in zip(words, colours, strict=True):
        at = max(0.0, strip.column(word.start_s) - _LEFT)
        if min(free_from) > at:
            continue
        text = word.text if len(word.text) <= _MOST_CHARACTERS else word.text[:_MOST_CHARACTERS] + "…"
        width = pen.width(text, font)
        left = max(0.0, min(at, _TIME_AXIS - width))
        lane = next((k for k in range(_LANES) if free_from[k] <= left), None)
        if lane is None:
            continue
        free_from[lane] = left + width + 6
        y = _BARS + 4 + (lane + 0.5) * _LANE
        time_s = strip.start_s + left / _TIME_AXIS * (strip.end_s - strip.start_s)
        axes.plot([word.start_s, word.start_s], [_BARS, y + _LANE / 2], color=colour, linewidth=0.8, alpha=0.6)
        box = {"facecolor": "#f6f6f6", "edgecolor": "none", "pad": 0.5}
        pen.write_in(axes, time_s, y, text, font, bbox=box, zorder=3)


def _word_colour(probability: float) -> str:
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    if math.isnan(probability):
        return "#8a8a8a"
    return to_hex(LinearSegmentedColormap.from_list("sure", _UNSURE_TO_SURE)(probability))


def _draw_times(pen: _Pen, axes: Axes, strip: _Strip, *, minutes: bool) -> None:
    step = _tick_step(strip.end_s - strip.start_s)
    ticks = [k * step for k in range(math.ceil(strip.start_s / step - 1e-9), math.floor(strip.end_s / step + 1e-9) + 1)]
    labels = [f"{round(tick) // 60}:{round(tick) % 60:02d}" if minutes else f"{tick:g} s" for tick in ticks]
    axes.set_xticks(ticks, labels, fontsize=8, color=_INK)
    axes.tick_params(axis="x", length=3, pad=2, color=_FAINT)


def _tick_step(span_s: float) -> float:
    """A round number of seconds of which at most twenty fit."""
    decades = [base * 10.0**power for power in range(-4, 1) for base in (1, 2, 5)]
    steps = [*decades, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0]
    return next((step for step in steps if span_s / step <= 20), 3600.0 * math.ceil(span_s / 72000))


def _draw_footer(pen: _Pen, features: Features, warnings: Sequence[str], *, top: float) -> None:
    font = pen.font(9)
    words = " ".join(word.text for word in features.words[:200])
    first = pen.shorten(words, font, _TIME_AXIS)
    lines = [first or "no words", ""]
    if len(first) < len(words):
        head = first[:-1].rsplit(" ", 1)[0]
        lines = [head, pen.shorten(words[len(head) :].strip(), font, _TIME_AXIS)]
    lines += [pen.shorten(f"warning: {warning}", font, _TIME_AXIS) for warning in warnings]
    for number, line in enumerate(lines):
        colour = _INK if number < 2 else _UNSURE_TO_SURE[0]
        pen.write(_LEFT, top + (number + 0.5) * _LINE, line, font, color=colour)
