"""What ``rcma-predict`` writes: the challenge's files, a tidy table, a page to look at, videos with numbers in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from preprocessing.errors import InputError
from preprocessing.features import load_features
from preprocessing.run import Status, separate_process
from rcma.abaw import Format, Location, per_video_file, write_per_video, write_single_file
from rcma.output.report import ReportedVideo, write_report
from rcma.output.table import TABLE, Experts, TableKind, open_table
from rcma.prediction import FillKind, Prediction, SmoothKind, finish

SINGLE_FILE = "predictions.txt"
REPORT = "report.html"


@dataclass(frozen=True)
class OutputSettings:
    """What is asked for."""

    folder: Path
    """Receives everything but overlays."""
    format: Format | None = "per-video"
    """None: no files of the challenge."""
    single_file: str = SINGLE_FILE
    """Name of the file with all videos."""
    template: Sequence[Location] | None = None
    """Rows of the single file; None: every frame of every video."""
    table: TableKind | None = "csv"
    smoothing: tuple[SmoothKind, float] | None = None
    """See :func:`rcma.prediction.postprocess.finish`."""
    fill: FillKind = "nearest"
    report: bool = False
    overlay: Path | None = None
    """A ``.mp4`` file for the only video, or a folder for ``<video_id>.mp4`` of each."""
    experts: Experts = field(default_factory=dict)
    """Targets of each public model that predicts, by its name; empty for RCMA."""
    predicted_by: str = ""
    """Shown on the page and in overlays, if it was not RCMA that predicted."""
    about: Sequence[str] = ()
    """What the page says of the models that predicted, a line each."""

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

    def paths(self, video_ids: Sequence[str]) -> list[Path]:
        """Every file that :func:`write_outputs` will write for these videos."""
        paths = [per_video_file(self.folder, name) for name in video_ids] if self.format == "per-video" else []
        paths += [self.single_file_path] if self.format == "single-file" else []
        paths += [self.table_path] if self.table else []
        paths += [self.folder / REPORT] if self.report else []
        return paths + ([self.overlay_path(name) for name in video_ids] if self.overlay else [])


@dataclass(frozen=True)
class Written:
    """What came of it."""

    n_videos: int
    n_frames: int
    failures: tuple[str, ...]
    """Overlays that could not be written, a line each."""
    remarks: tuple[str, ...]
    """What the page leaves out, a line each."""


def write_outputs(
    videos: Iterable[ReportedVideo], settings: OutputSettings, *, status: Callable[[str], None]
) -> Written:
    """Write all that is asked for; each video's own files as soon as it comes, the common ones at the end.

    Only files that this function wrote before are replaced.

    Args:
        videos: predictions as the models gave them.
        settings: what to write.
        status: is told in a few words what is being done.

    Raises:
        InputError: the template is not covered, a package is missing, or one of :meth:`OutputSettings.paths` is there
            already and must not be replaced.
    """
    done: list[ReportedVideo] = []
    failures: list[str] = []
    table = open_table(settings.table_path, settings.table, experts=settings.experts) if settings.table else None
    with table or nullcontext(_write_nothing) as append_to_table, separate_process(status=status) as call:
        for video in videos:
            video = replace(
                video, prediction=finish(video.prediction, fill=settings.fill, smoothing=settings.smoothing)
            )
            if settings.format == "per-video":
                write_per_video(settings.folder, video.prediction.video_id, video.prediction.values)
            append_to_table(video.prediction)
            if settings.overlay is not None:
                try:
                    path = settings.overlay_path(video.prediction.video_id)
                    # Decoding may crash its process.
                    call(video.video, _overlay, video, path, settings.predicted_by)
                except InputError as error:
                    failures.append(str(error))
            done.append(video)
    if settings.format == "single-file":
        values = {video.prediction.video_id: video.prediction.values for video in done}
        write_single_file(settings.single_file_path, values, template=settings.template)
    remarks: tuple[str, ...] = ()
    if settings.report:
        by = f" ({settings.predicted_by})" if settings.predicted_by else ""
        remarks = write_report(
            settings.folder / REPORT,
            done,
            title=f"Valence and arousal: {settings.folder.resolve().name}{by}",
            about=settings.about,
            on_video=lambda name: status(f"{REPORT}: {name}"),
        )
    n_frames = sum(len(video.prediction.time_s) for video in done)
    return Written(len(done), n_frames, tuple(failures), remarks)


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
