"""A picture of a feature folder over time: faces, detector score, log-mel and words, to see whether they are right."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.cells import cell_len

from preprocessing.features.facts import (
    SILENCE,
    describe,
    frame_ends,
    runs,
    sound_span,
    time_axis_end_s,
    warnings_of,
)
from preprocessing.features.folder import Features
from preprocessing.files import replace_own
from preprocessing.fonts import Fonts
from preprocessing.media import MEL_RATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

_DPI = 100
_WIDTH, _LEFT, _RIGHT, _HEADER, _TICKS = 1600, 105, 20, 62, 52
"""Pixels."""
_TIME_AXIS = _WIDTH - _LEFT - _RIGHT
_ROWS = {"faces": 104, "face score\n0 to 1": 26, "log-mel\n0.1 to 7.5 kHz": 90, "words": 62}
"""Height of each row of a strip, pixels."""
_TILE, _MOST_TILES = 96, 15
_LINE, _LINE_CHARACTERS = 18, 190
_STRIP_S, _MOST_STRIPS = 20.0, 6
"""Seconds of a strip, at which the words of quick speech can still be read, until there would be too many strips."""
_LANES, _MOST_CHARACTERS, _SMALL = 3, 30, 11
"""Of the words below their bars: lines, length, and height of the font in pixels."""
_LOUD = 4.0
"""Log-mel of loud speech: end of the colour scale, the same for every video."""

_FACTS = ("frames", "duration", "frame times", "picture", "faces", "sound", "words", "language")

_MISSING, _MISSING_FACE, _FACE, _SCORE, _GROUND = "#d0d0d0", "#f0b6ac", "#cfe5dd", "#1d6b52", "#f6f6f6"
_FAINT, _UNKNOWN = "#777777", "#8a8a8a"
_UNSURE_TO_SURE = ("#c22e1f", "#eda73a", "#2b7f9e")
_STYLE: Any = {
    "figure.dpi": _DPI,
    "font.size": 9,
    "text.parse_math": False,
    "axes.edgecolor": _GROUND,
    "axes.facecolor": _GROUND,
    "lines.linewidth": 0.8,
}


def draw_contact_sheet(features: Features, path: Path) -> None:
    """Write a PNG of everything over time, whole or not at all.

    Faces, where they were found, sound and words stand above each other on one time axis in seconds of the video's
    clock; long videos are cut into up to six strips. Only the crops that are drawn are read.

    Args:
        features: of one video of any length, with or without faces, sound and words.
        path: the file to write; missing folders above it are made.

    Raises:
        InputError: something is there already that this function did not write.
        OSError: it cannot be written.
    """
    from matplotlib import rc_context

    fonts = Fonts([features.video_id, *(word.text for word in features.words), *warnings_of(features)])
    with replace_own(path) as new, rc_context({**_STYLE, "font.family": fonts.families}):
        _draw(features, fonts).savefig(new, format="png")


def _draw(features: Features, fonts: Fonts) -> Figure:
    from matplotlib.figure import Figure

    total_s = time_axis_end_s(features)
    n_strips = min(_MOST_STRIPS, max(1, math.ceil(total_s / _STRIP_S)))
    lines = _footer(features)
    heights = [_HEADER, *[sum(_ROWS.values()) + _TICKS] * n_strips, _LINE * (len(lines) + 0.5)]
    figure = Figure(figsize=(_WIDTH / _DPI, sum(heights) / _DPI))
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights, hspace=0)
    header, *strips, footer = parts[:, 0]
    left, right = _LEFT / _WIDTH, 1 - _RIGHT / _WIDTH
    _write_header(header, features, fonts, left=left)
    footer.text(left, 1, "\n".join(map(fonts.with_boxes, lines)), size=10, va="top", linespacing=1.5)
    for number, strip in enumerate(strips):
        layout = {"left": left, "right": right, "top": 1, "bottom": 0.1, "hspace": 0.1}
        rows = strip.subplots(len(_ROWS), height_ratios=list(_ROWS.values()), gridspec_kw=layout)
        for axes, name in zip(rows, _ROWS, strict=True):
            axes.set(ylim=(0, 1), xticks=[], yticks=[], autoscale_on=False)
            axes.set_xlim(total_s * number / n_strips, total_s * (number + 1) / n_strips)
            axes.set_ylabel(name, rotation="horizontal", ha="right", va="center")
        _draw_faces(rows[0], features)
        _draw_scores(rows[1], features)
        _draw_sound(rows[2], features)
        _draw_words(rows[3], features, fonts)
        _label_times(rows[3], minutes=total_s >= 120)
    return figure


def _write_header(header: SubFigure, features: Features, fonts: Fonts, *, left: float) -> None:
    """Name of the video, facts, and what the colours of words mean."""
    from matplotlib.cm import ScalarMappable

    facts = dict(describe(features))
    header.text(left, 0.6, fonts.with_boxes(_cut(features.video_id, 100)), size=15, weight="bold")
    header.text(left, 0.2, "  ·  ".join(f"{name} {facts[name]}" for name in _FACTS))
    legend = header.add_axes((0.9, 0.6, 0.05, 0.2))
    header.colorbar(ScalarMappable(cmap=_word_colours()), cax=legend, orientation="horizontal", ticks=[])
    legend.text(-0.1, 0.5, "word: unsure", color=_FAINT, ha="right", va="center")
    legend.text(1.1, 0.5, "sure", color=_FAINT, va="center")


def _footer(features: Features) -> list[str]:
    """Lines of the first words, and warnings."""
    words = " ".join(word.text for word in features.words[:200]) or "no words"
    # Chinese and Japanese characters are twice as wide.
    n_characters = _LINE_CHARACTERS * len(words) // max(1, cell_len(words))
    lines = textwrap.wrap(words, n_characters, max_lines=2)
    return lines + [_cut(f"warning: {warning}", _LINE_CHARACTERS) for warning in warnings_of(features)]


def _draw_faces(axes: Axes, features: Features) -> None:
    """Crops side by side, each with a mark at the time of its frame."""
    start_s, end_s = axes.get_xlim()
    first, stop = np.searchsorted(features.time_s, (start_s, end_s))
    n_tiles = min(_MOST_TILES, stop - first)
    # In the middle of equal stretches.
    frames = np.linspace(first, stop, 2 * n_tiles + 1)[1::2].astype(int)
    middles_s = np.linspace(start_s, end_s, 2 * n_tiles + 1)[1::2]
    half_s = _TILE / _TIME_AXIS * (end_s - start_s) / 2
    for frame, middle_s in zip(frames, middles_s, strict=True):
        extent = (middle_s - half_s, middle_s + half_s, 1 - _TILE / _ROWS["faces"], 1)
        if np.isfinite(features.face_score[frame]):
            axes.imshow(features.faces[frame], extent=extent, aspect="auto", interpolation="lanczos")
        else:
            axes.imshow([[0]], "gray", extent=extent, aspect="auto", vmin=-4, vmax=1)
            axes.text(middle_s, 0.54, "no face", ha="center", va="center")
        axes.plot(features.time_s[frame], 0.03, marker="^", color=_FAINT, markersize=4)


def _draw_scores(axes: Axes, features: Features) -> None:
    """The detector's score, and where there was no face."""
    start_s, end_s = axes.get_xlim()
    inside = (frame_ends(features) > start_s) & (features.time_s < end_s)
    times, ends = features.time_s[inside], frame_ends(features)[inside]
    score = np.asarray(features.face_score)[inside]
    found = np.isfinite(score)
    for flags, colour in ((found, _FACE), (~found, _MISSING_FACE)):
        spans = [(times[first], ends[stop - 1] - times[first]) for first, stop in runs(flags)]
        axes.broken_barh(spans, (0, 1), facecolor=colour, edgecolor=colour)
    axes.plot(times, score / 1.08, color=_SCORE, marker=".", markersize=2)


def _draw_sound(axes: Axes, features: Features) -> None:
    """Log-mel, high bands on top; what it holds after the end of the sound is padding."""
    from matplotlib import colormaps

    axes.set_facecolor(_MISSING)
    begin_s, end_s = axes.get_xlim()
    sound_start_s, sound_end_s = sound_span(features) or (end_s, end_s)
    first, stop = math.floor(begin_s * MEL_RATE), math.ceil(min(end_s, sound_end_s) * MEL_RATE)
    rows = np.asarray(features.log_mel[first:stop], np.float32)
    if len(rows):
        # The loudest of each column of pixels.
        columns = np.fmax.reduceat(rows, np.arange(0, len(rows), math.ceil(len(rows) / _TIME_AXIS)))
        extent = (first / MEL_RATE, (first + len(rows)) / MEL_RATE, 0, 1)
        colours = colormaps["magma"].with_extremes(bad=_MISSING)
        axes.imshow(columns.T, colours, aspect="auto", vmin=SILENCE, vmax=_LOUD, origin="lower", extent=extent)
    for start_s, stop_s in ((begin_s, min(sound_start_s, end_s)), (max(sound_end_s, begin_s), end_s)):
        if stop_s - start_s > 0.04 * (end_s - begin_s):
            axes.text((start_s + stop_s) / 2, 0.5, "no sound", ha="center", va="center")


def _draw_words(axes: Axes, features: Features, fonts: Fonts) -> None:
    """A bar for each word, coloured by its probability; below, those for which there is room."""
    start_s, end_s = axes.get_xlim()
    words = [word for word in features.words if word.start_s < end_s and word.end_s > start_s]
    if not words:
        axes.text((start_s + end_s) / 2, 0.5, "no words", color=_FAINT, ha="center", va="center")
        return
    colours = _word_colours()([word.probability for word in words])
    bars = [(word.start_s, word.end_s - word.start_s) for word in words]
    # Words that touch are still two; thousands are too close for edges.
    axes.broken_barh(bars, (0.8, 0.2), facecolors=colours, edgecolor=_GROUND, linewidth=min(0.8, 100 / len(bars)))
    pixels_per_s = _TIME_AXIS / (end_s - start_s)
    free_from = [-math.inf] * _LANES
    for word, colour in zip(words, colours, strict=True):
        left_s, text = max(word.start_s, start_s), fonts.with_boxes(_cut(word.text, _MOST_CHARACTERS))
        lane = next((lane for lane in range(_LANES) if free_from[lane] <= left_s), None)
        if lane is not None:
            free_from[lane] = left_s + (fonts.width(text, _SMALL) + 6) / pixels_per_s
            y = 0.66 - lane * 0.25
            axes.plot([left_s, left_s], [0.8, y - 0.1], color=colour)
            axes.text(left_s, y, text, size=_SMALL * 72 / _DPI, va="center", clip_on=True)


def _label_times(axes: Axes, *, minutes: bool) -> None:
    """Ticks at a round number of seconds."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(20, steps=[1, 3, 6, 10] if minutes else [1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(
        lambda time_s, _: f"{round(time_s) // 60}:{round(time_s) % 60:02d}" if minutes else f"{time_s:g} s"
    )


def _word_colours() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("sure", _UNSURE_TO_SURE).with_extremes(bad=_UNKNOWN)


def _cut(text: str, n: int) -> str:
    return text if len(text) <= n else f"{text[:n]}…"
