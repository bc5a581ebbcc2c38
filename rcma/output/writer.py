"""What ``rcma-predict`` writes: the challenge's files, a tidy table, a page to look at, videos with numbers in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.features import load_features
from preprocessing.files import refuse_to_overwrite
from preprocessing.run import Status, separate_process
from rcma.abaw import (
    Format,
    Location,
    per_video_file,
    reconcile,
    require_writable_ids,
    write_single_file,
)
from rcma.config import TARGETS, Target
from rcma.data import Labels
from rcma.output.report import ReportedVideo, write_report
from rcma.output.table import TABLE, TableKind, open_table
from rcma.prediction import Prediction
from rcma.predictor import PreparedVideo

SINGLE_FILE = "predictions.txt"
REPORT = "report.html"

log = logging.getLogger("rcma")


@dataclass(frozen=True)
class OutputSettings:
    """What is requested."""

    folder: Path
    """Receives everything but overlays."""
    format: Format | None = "per-video"
    """None: no files of the challenge."""
    single_file: str = SINGLE_FILE
    """Name of the file with all videos."""
    template: Sequence[Location] | None = None
    """Rows of the single file; None: every frame of every video."""
    table: TableKind | None = "csv"
    report: bool = False
    overlay: Path | None = None
    """A ``.mp4`` file for the only video, or a folder for ``<video_id>.mp4`` of each."""

    @property
    def shows_recordings(self) -> bool:
        """Whether anything shows pictures of the videos."""
        return self.report or self.overlay is not None

    @property
    def single_file_path(self) -> Path:
        """Where the file with all videos goes."""
        return self.folder / self.single_file

    @property
    def table_path(self) -> Path:
        """Where the table goes."""
        return self.folder / f"{TABLE}.{self.table}"

    def overlay_path(self, video_id: str) -> Path:
        """Where the overlay of a video goes."""
        assert self.overlay is not None
        return self.overlay if self.overlay.suffix else self.overlay / f"{video_id}.mp4"

    def check_targets(self, targets: Sequence[Target]) -> None:
        """Raise InputError for outputs that need valence and arousal, if one of them is not predicted."""
        missing = [target for target in TARGETS if target not in targets]
        if not missing:
            return
        what = f"the model predicts {', '.join(targets)}, not {missing[0]}"
        if self.format is not None:
            raise InputError(
                f"--format {self.format}: {what}, but files of the ABAW challenge need both valence and arousal; add "
                "--format none, or a --checkpoint that predicts the other"
            )
        if self.shows_recordings:
            option = "--report" if self.report else "--overlay"
            raise InputError(f"{option}: {what}, and shows valence and arousal only; the table has all targets")

    def check_videos(self, video_ids: Sequence[str]) -> None:
        """Raise InputError if files of these videos cannot have their names, or would replace what they must not."""
        require_writable_ids(video_ids, self.format, has_template=self.template is not None)
        refuse_to_overwrite(self.paths(video_ids))

    def reconcile(self, n_frames: Mapping[str, int]) -> list[str]:
        """Compare what will be predicted with what is requested.

        Args:
            n_frames: of each video_id.

        Returns:
            A line for each video whose frames are not exactly the template's.

        Raises:
            InputError: the template is not covered, or there is one overlay for several videos.
        """
        if self.overlay is not None and self.overlay.suffix and len(n_frames) > 1:
            raise InputError(f"--overlay {self.overlay}: there are {len(n_frames)} videos; give a folder")
        return [] if self.template is None else reconcile(self.template, n_frames)

    def paths(self, video_ids: Sequence[str]) -> list[Path]:
        """Every file that :func:`write_outputs` will write for these videos."""
        paths = [per_video_file(self.folder, name) for name in video_ids] if self.format == "per-video" else []
        paths += [self.single_file_path] if self.format == "single-file" else []
        paths += [self.table_path] if self.table else []
        paths += [self.folder / REPORT] if self.report else []
        return paths + ([self.overlay_path(name) for name in video_ids] if self.overlay else [])


def write_outputs(
    predicted: Iterable[tuple[PreparedVideo, Prediction]],
    settings: OutputSettings,
    *,
    labels: Labels | None = None,
    predicted_by: str = "",
    about: Sequence[str] = (),
    status: Callable[[str], None],
    on_failure: Callable[[str], object],
) -> tuple[int, int]:
    """Write all that is requested; each video's own files as soon as it comes, the common ones at the end.

    Only files that this function wrote before are replaced. What the page leaves out is a warning.

    Args:
        predicted: as :meth:`rcma.predictor.Predictor.predict_many` gives them.
        settings: what to write.
        labels: of videos, for the page.
        predicted_by: shown on the page and in overlays, if it was not RCMA that predicted.
        about: what the page says of the models that predicted, a line each.
        status: called with a few words on what is being done.
        on_failure: called with one line for each overlay that cannot be written and for labels that cannot be read.

    Returns:
        How many videos there were, and how many frames.

    Raises:
        InputError: the template is not covered, a package is missing, or one of :meth:`OutputSettings.paths` is there
            already and must not be replaced.
    """
    n_videos = n_frames = 0
    done: list[ReportedVideo] = []
    of_challenge: dict[str, NDArray[np.float32]] = {}
    table = open_table(settings.table_path, settings.table) if settings.table else None
    with table or nullcontext(_write_nothing) as append_to_table, separate_process(status=status) as call:
        for video, prediction in predicted:
            n_videos, n_frames = n_videos + 1, n_frames + len(prediction.time_s)
            if settings.format == "per-video":
                prediction.save_abaw(per_video_file(settings.folder, video.video_id))
            elif settings.format == "single-file":
                of_challenge[video.video_id] = prediction.select(TARGETS).values
            append_to_table(prediction)
            if not settings.shows_recordings:
                continue
            notes: list[str] = []
            shown = ReportedVideo(
                prediction.select(TARGETS),
                video.folder,
                _find_recording(video),
                _read_labels(labels, prediction, on_warning=notes.append, on_failure=on_failure),
                notes,
            )
            if settings.overlay is not None:
                try:
                    # Decoding may crash its process.
                    call(shown.video, _overlay, shown, settings.overlay_path(video.video_id), predicted_by)
                except InputError as error:
                    on_failure(str(error))
            done.append(shown)
    if settings.format == "single-file":
        write_single_file(settings.single_file_path, of_challenge, template=settings.template)
    if settings.report:
        by = f" ({predicted_by})" if predicted_by else ""
        remarks = write_report(
            settings.folder / REPORT,
            done,
            title=f"Valence and arousal: {settings.folder.resolve().name}{by}",
            about=about,
            on_video=lambda name: status(f"{REPORT}: {name}"),
        )
        for remark in remarks:
            log.warning(remark)
    return n_videos, n_frames


def _find_recording(video: PreparedVideo) -> Path | None:
    try:
        return video.find_recording()
    except InputError as error:
        log.warning(f"{video.video_id}: no pictures of the video: {error}")
        return None


def _read_labels(
    labels: Labels | None,
    prediction: Prediction,
    *,
    on_warning: Callable[[str], None],
    on_failure: Callable[[str], object],
) -> NDArray[np.float32] | None:
    if labels is None or prediction.video_id not in labels.videos:
        return None
    try:
        return labels.at(prediction.video_id, prediction.time_s, TARGETS, on_warning=on_warning)
    except InputError as error:
        on_failure(str(error))
        return None


def _write_nothing(prediction: Prediction) -> None:
    pass


def _overlay(video: ReportedVideo, path: Path, predicted_by: str, *, status: Status) -> None:
    # Imported here: most predictions are written without.
    from rcma.output.overlay import write_overlay

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
