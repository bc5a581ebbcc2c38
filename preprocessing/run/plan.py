"""What is to be done for a video, given the features that are there already; nothing is written."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.faces import describe_provided
from preprocessing.features import load_features, load_meta, own_source
from preprocessing.files import sha256
from preprocessing.inputs import Source
from preprocessing.speech import find_transcript

Stage = Literal["faces", "audio", "speech", "words"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Job:
    """One video to be processed, and what of it; everything a worker process needs to know."""

    source: Source
    out: Path
    stages: tuple[Stage, ...] = STAGES
    """What is to be done."""
    kept: tuple[str, ...] = ()
    """Feature folders that are there; what is not to be done is taken from them."""
    reason: str = ""
    """Why features that are already there do not serve."""
    overwrite: bool = False
    """Do it even if its features are there; see also :func:`preprocessing.run.refuse_foreign`."""

    @property
    def size(self) -> int:
        """Bytes of the video; 0 when it is not there."""
        try:
            return self.source.path.stat().st_size
        except OSError:
            return 0


def plan_one(source: Source, out: Path, config: PreprocessConfig, transcripts: Path | None, overwrite: bool) -> Job:
    """What is to be done for a video; without stages, nothing.

    Raises:
        InputError: its features would have to replace something that they must not.
        OSError: the video cannot be read.
    """
    job = Job(source, out, overwrite=True) if overwrite else _plan_stages(source, out, config, transcripts)
    # A file that is not there is named when its turn comes.
    if job.stages and source.path.exists():
        refuse_foreign_before_work(out, source, config, overwrite=overwrite)
    return job


def _plan_stages(source: Source, out: Path, config: PreprocessConfig, transcripts: Path | None) -> Job:
    try:
        kept = kept_folders(out, source, config)
        changed: dict[Stage, str] = {}
        for name in kept:
            changed |= changed_stages(out / name, source, config, transcripts)
    except (InputError, OSError, KeyError) as error:
        return Job(source, out, reason=f"all stages done again: {error}")
    if not kept:
        return Job(source, out)
    stages = tuple(stage for stage in STAGES if stage in changed)
    reason = f"done again: {', '.join(stages)} ({'; '.join(dict.fromkeys(changed.values()))})" if stages else ""
    return Job(source, out, stages, tuple(kept), reason)


def kept_folders(out: Path, source: Source, config: PreprocessConfig) -> list[str]:
    """Names of the feature folders of a video that are there already; empty when one of them is missing.

    Raises:
        InputError: a folder is no feature folder of this version.
    """
    if source.provided_faces is not None:
        names = list(source.provided_faces)
        return names if names and all((out / name).is_dir() for name in names) else []
    several = (f"{source.video_id}_left", f"{source.video_id}_1") if config.faces.subjects == "all" else ()
    for candidate in (*several, source.video_id):
        if (out / candidate).is_dir():
            names = load_meta(out / candidate)["subjects"]
            if source.video_id in names or config.faces.subjects == "all":
                return list(names) if all((out / name).is_dir() for name in names) else []
    return []


def changed_stages(
    folder: Path, source: Source, config: PreprocessConfig, transcripts: Path | None
) -> dict[Stage, str]:
    """Which stages have to be done again, and why; empty when features serve as they are.

    Args:
        folder: one of the video's feature folders.
        source: the video.
        config: the settings that are requested.
        transcripts: see :class:`Preprocessor`.

    Raises:
        InputError: the folder is damaged.
    """
    meta = load_features(folder).meta
    provided = (source.provided_faces or {}).get(folder.name)
    # Where what they were made from is gone, the features are still whole.
    known = is_same_file if source.path.exists() else _is_same_path
    if not known(source.path, meta["source"]):
        return dict.fromkeys(STAGES, f"{source.path} is not the file that the features were made from")
    # What no setting was there for yet was done as the default says now.
    then, now = PreprocessConfig().model_dump(mode="json") | meta["settings"], config.model_dump(mode="json")
    if then["streams"] != now["streams"]:
        return dict.fromkeys(STAGES, f"streams was {then['streams']!r}, is {now['streams']!r}")
    changed: dict[Stage, str] = {}
    for stage in STAGES:
        old, new = then[stage], now[stage]
        reasons = [f"{stage}.{key} was {old.get(key)!r}, is {new[key]!r}" for key in new if old.get(key) != new[key]]
        if reasons:
            changed[stage] = "; ".join(reasons)
    described = describe_provided(provided, first_image=source.first_image) if provided is not None else None
    if described != meta["provided_faces"]:
        changed.setdefault("faces", "the provided faces have changed")
    transcript = None
    if transcripts is not None:
        transcript = find_transcript(transcripts, source.video_id, language=config.speech.language)
    then_read = meta["transcript"]
    if (transcript is None) != (then_read is None) or (transcript and not is_same_file(transcript, then_read)):
        changed.setdefault("speech", "its transcript has changed")
    if "speech" in changed:
        changed.setdefault("words", changed["speech"])
    return changed


def refuse_foreign(folder: Path, source: Source, *, overwrite: bool) -> None:
    """Raise InputError if features of ``source`` must not take the place of what is at ``folder``.

    Only feature folders are ever replaced, and only those of the same video: made from a file at the same path, which
    may have changed since, or from a file with the same content that was elsewhere. With ``overwrite``, also those of
    another file with the same identifier.
    """
    try:
        made_from = own_source(folder)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from None
    if made_from is not None and "tables" in made_from:
        raise InputError(
            f"{source.path}: {folder} holds features that rcma-import made from tables; give another --out"
        )
    if made_from is None or _is_same_video(source.path, made_from):
        return
    same_id = Path(made_from["path"]).stem == source.video_id
    if not (same_id and overwrite):
        instead = "or replace them with --overwrite" if same_id else "or rename one of them"
        raise InputError(
            f"{source.path}: {folder} holds features of another file, {made_from['path']}; "
            f"give another --out, {instead}"
        )


def refuse_foreign_before_work(out: Path, source: Source, config: PreprocessConfig, *, overwrite: bool) -> None:
    """Raise InputError if there is something that features of ``source`` may have to replace, and must not.

    With ``faces.subjects=all`` it shows only later which folders a video gets. Then features of other videos, such as
    of ``talk_1.mp4`` beside ``talk.mp4``, are no reason to refuse it yet.
    """
    for name in source.provided_faces or [source.video_id]:
        refuse_foreign(out / name, source, overwrite=overwrite)
    if source.provided_faces is None and config.faces.subjects == "all" and out.is_dir():
        pattern = re.compile(re.escape(source.video_id) + r"_(left|right|\d+)")
        for folder in sorted(path for path in out.iterdir() if pattern.fullmatch(path.name)):
            if not _is_of_another_video(folder, source):
                refuse_foreign(folder, source, overwrite=overwrite)


def _is_of_another_video(folder: Path, source: Source) -> bool:
    try:
        made_from = own_source(folder)
    except InputError:
        return False
    return made_from is not None and Path(made_from["path"]).stem != source.video_id


def is_same_file(path: Path, description: dict[str, Any]) -> bool:
    """Whether a file is the one that ``meta.json`` describes."""
    status = path.stat()
    if status.st_size != description["size"]:
        return False
    # Reading terabytes again only to see that nothing changed would cost hours: the time of change comes first. Of a
    # file elsewhere it says nothing: recordings without compression, copied together, agree in size and time.
    unchanged = status.st_mtime_ns == description["modified_ns"] and _is_same_path(path, description)
    return unchanged or sha256(path) == description["sha256"]


def _is_same_path(path: Path, description: dict[str, Any]) -> bool:
    return os.path.realpath(path) == os.path.realpath(description["path"])


def _is_same_video(path: Path, made_from: dict[str, Any]) -> bool:
    """Whether a video is the one that features were made from, be it that it has changed or moved since."""
    # A relative path, as an earlier version stored it, means another file in another folder.
    if Path(made_from["path"]).is_absolute() and _is_same_path(path, made_from):
        return True
    return path.stat().st_size == made_from.get("size") and sha256(path) == made_from["sha256"]
