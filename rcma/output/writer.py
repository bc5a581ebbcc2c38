"""What ``rcma-predict`` writes: the challenge's files, a table, the report and overlays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.features import load_features
from preprocessing.files import refuse_to_overwrite
from preprocessing.run import Status, separate_process
from rcma.abaw import EDITIONS, Format, per_video_file, read_template, require_writable_ids, write_single_file
from rcma.config import TARGETS, Target
from rcma.data import Labels
from rcma.output.overlay import write_overlay
from rcma.output.report import ReportedVideo, write_report
from rcma.output.table import TABLE, TableKind, open_table
from rcma.prediction import Prediction
from rcma.predictor import PreparedVideo

log = logging.getLogger("rcma")


@dataclass
class OutputSettings:
    """What is requested, and where it goes.

    Raises:
        InputError: options contradict each other, or the template cannot be read.
    """

    folder: Path
    """Receives everything but overlays."""
    format: Format | Literal["none"] | None = None
    """Of the challenge's files; None: that of the edition, or ``per-video``."""
    edition: int | None = None
    """Of the challenge: gives the format, and the name of the single file."""
    template_file: Path | None = None
    """Sample file with the rows of the single file; None: every frame of every video."""
    table_kind: TableKind | None = "csv"
    has_report: bool = False
    overlay: Path | None = None
    """A ``.mp4`` file for the only video, or a folder for ``<video_id>.mp4`` of each."""

    def __post_init__(self) -> None:
        """Check the options, and read the template."""
        if self.edition is not None:
            if self.edition not in EDITIONS:
                known = ", ".join(map(str, EDITIONS))
                raise InputError(f"--edition {self.edition}: had no valence-arousal track; these had one: {known}")
            if self.format not in (None, EDITIONS[self.edition]):
                raise InputError(f"--format {self.format}: edition {self.edition} takes {EDITIONS[self.edition]}")
            self.format = EDITIONS[self.edition]
        self.format = self.format or "per-video"
        if self.template_file is not None and self.format != "single-file":
            raise InputError("--template: needs --format single-file")
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"--out {self.folder}: is a file; give a folder")
        if self.overlay is not None and self.overlay.suffix not in ("", ".mp4"):
            raise InputError(f"--overlay {self.overlay}: must end in .mp4, or be a folder")
        self.template = None if self.template_file is None else read_template(self.template_file)

    @property
    def single_file(self) -> Path:
        """The file with all videos."""
        return self.folder / ("predictions.txt" if self.edition is None else f"ABAW{self.edition}_VA.txt")

    @property
    def table(self) -> Path:
        """The table's file."""
        return self.folder / f"{TABLE}.{self.table_kind}"

    @property
    def report(self) -> Path:
        """The report's file."""
        return self.folder / "report.html"

    def overlay_of(self, video_id: str) -> Path:
        """The file for the overlay of a video."""
        assert self.overlay is not None
        return self.overlay if self.overlay.suffix else self.overlay / f"{video_id}.mp4"

    def check_targets(self, targets: Sequence[Target]) -> None:
        """Raise InputError for outputs that need valence and arousal, if one of them is not predicted."""
        missing = [target for target in TARGETS if target not in targets]
        if not missing:
            return
        what = f"the model predicts {', '.join(targets)}, not {missing[0]}"
        if self.format != "none":
            raise InputError(
                f"--format {self.format}: {what}, but files of the ABAW challenge need both valence and arousal; add "
                "--format none, or a --checkpoint that predicts the other"
            )
        if self.has_report or self.overlay:
            option = "--report" if self.has_report else "--overlay"
            raise InputError(f"{option}: {what}, and shows valence and arousal only; the table has all targets")

    def check_videos(self, video_ids: Sequence[str]) -> None:
        """Raise InputError if the files of these videos cannot have their names, or would replace other files."""
        format = None if self.format == "none" else self.format
        require_writable_ids(video_ids, format, has_template=self.template is not None)
        if self.overlay is not None and self.overlay.suffix and len(video_ids) > 1:
            raise InputError(f"--overlay {self.overlay}: there are {len(video_ids)} videos; give a folder")
        paths = [self.single_file] if self.format == "single-file" else []
        paths += [self.table] if self.table_kind else []
        paths += [self.report] if self.has_report else []
        for video_id in video_ids:
            paths += [per_video_file(self.folder, video_id)] if self.format == "per-video" else []
            paths += [self.overlay_of(video_id)] if self.overlay else []
        refuse_to_overwrite(paths)


def write_outputs(
    predicted: Iterable[tuple[PreparedVideo, Prediction]],
    settings: OutputSettings,
    *,
    labels: Labels | None = None,
    predicted_by: str = "",
    about: Sequence[str] = (),
    status: Callable[[str], None],
    on_failure: Callable[[object], object],
) -> tuple[int, int]:
    """Write all that is requested: the files of each video at once, those of all videos at the end.

    Args:
        predicted: from :meth:`rcma.predictor.Predictor.predict_many`.
        settings: what to write.
        labels: of videos, for the report.
        predicted_by: shown in the report and in overlays; for models other than RCMA.
        about: the report's lines about the models.
        status: called with a few words on the current work.
        on_failure: called with one line for each overlay that cannot be written and for labels that cannot be read.

    Returns:
        Numbers of videos and of frames.

    Raises:
        InputError: the template is not covered, a package is missing, or a file is in the way that this program did
            not write.
    """
    n_videos = n_frames = 0
    reported: list[ReportedVideo] = []
    of_challenge: dict[str, NDArray[np.float32]] = {}
    with ExitStack() as stack:
        append = stack.enter_context(open_table(settings.table, settings.table_kind)) if settings.table_kind else None
        # Decoding may crash its process.
        call = stack.enter_context(separate_process(status=status))
        for video, prediction in predicted:
            n_videos, n_frames = n_videos + 1, n_frames + len(prediction.time_s)
            if settings.format == "per-video":
                prediction.save_abaw(per_video_file(settings.folder, video.video_id))
            elif settings.format == "single-file":
                of_challenge[video.video_id] = prediction.select(TARGETS).values
            if append is not None:
                append(prediction)
            if not (settings.has_report or settings.overlay):
                continue
            shown = _collect(video, prediction, labels, on_failure)
            reported.append(shown)
            if settings.overlay:
                try:
                    call(shown.video, _overlay, shown, settings.overlay_of(video.video_id), predicted_by)
                except InputError as error:
                    on_failure(error)
    if settings.format == "single-file":
        write_single_file(settings.single_file, of_challenge, template=settings.template)
    if settings.has_report:
        by = f" ({predicted_by})" if predicted_by else ""
        title = f"Valence and arousal: {settings.folder.resolve().name}{by}"
        for remark in write_report(settings.report, reported, title=title, about=about, on_video=status):
            log.warning(remark)
    return n_videos, n_frames


def _collect(
    video: PreparedVideo, prediction: Prediction, labels: Labels | None, on_failure: Callable[[object], object]
) -> ReportedVideo:
    """The recording and the labels of a video, where available."""
    recording, of_video = None, None
    notes: list[str] = []
    try:
        recording = video.find_recording()
    except InputError as error:
        log.warning(f"{video.video_id}: no pictures of the video: {error}")
    if labels is not None and video.video_id in labels.videos:
        try:
            of_video = labels.at(video.video_id, prediction.time_s, TARGETS, on_warning=notes.append)
        except InputError as error:
            on_failure(error)
    return ReportedVideo(prediction.select(TARGETS), video.folder, recording, of_video, notes)


def _overlay(video: ReportedVideo, path: Path, predicted_by: str, *, status: Status) -> None:
    name = video.prediction.video_id
    if video.video is None:
        raise InputError(f"{name}: --overlay needs its video file; give that instead of the feature folder")
    write_overlay(
        path,
        video.video,
        load_features(video.features),
        video.prediction,
        predicted_by=predicted_by,
        on_frame=lambda done, total: status(f"{path.name}: frame {done} of {total}"),
    )
