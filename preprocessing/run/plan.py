"""Decides which stages of a video have to be done, given the features that exist; nothing is written."""

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
    """One video to be processed: everything that a worker process needs to know."""

    source: Source
    out: Path
    stages: tuple[Stage, ...] = STAGES
    """What is to be done."""
    kept: tuple[str, ...] = ()
    """Feature folders of the video that exist; the other stages are taken over from them."""
    reason: str = ""
    """Why existing features cannot be used as they are."""
    overwrite: bool = False
    """Do it even if its features exist; see also :func:`refuse_foreign`."""

    def __str__(self) -> str:
        """Name the video in messages."""
        return str(self.source.path)

    @property
    def size(self) -> int:
        """Bytes of the video; 0 if it does not exist."""
        try:
            return self.source.path.stat().st_size
        except OSError:
            return 0


def plan_job(source: Source, out: Path, config: PreprocessConfig, transcripts: Path | None, overwrite: bool) -> Job:
    """Make the job of one video; without stages, its features can be used as they are.

    Raises:
        InputError: its features would have to replace something that they must not.
        OSError: the video cannot be read.
    """
    job = Job(source, out, overwrite=True) if overwrite else _plan_stages(source, out, config, transcripts)
    # A missing file is reported when its turn comes.
    if job.stages and source.path.exists():
        _refuse_foreign_before_work(out, source, config, overwrite=overwrite)
    return job


def _plan_stages(source: Source, out: Path, config: PreprocessConfig, transcripts: Path | None) -> Job:
    try:
        kept = _existing_folders(out, source, config)
        changed: dict[Stage, str] = {}
        for name in kept:
            changed |= _changed_stages(out / name, source, config, transcripts)
    except (InputError, OSError, KeyError) as error:
        return Job(source, out, reason=f"all stages done again: {error}")
    if not kept:
        return Job(source, out)
    stages = tuple(stage for stage in STAGES if stage in changed)
    reason = f"done again: {', '.join(stages)} ({'; '.join(dict.fromkeys(changed.values()))})" if stages else ""
    return Job(source, out, stages, tuple(kept), reason)


def _existing_folders(out: Path, source: Source, config: PreprocessConfig) -> list[str]:
    """Names of the feature folders of a video; empty if one of them is missing."""
    names: list[str] = []
    if source.provided_faces is not None:
        names = list(source.provided_faces)
    else:
        all_subjects = config.faces.subjects == "all"
        candidates = [f"{source.video_id}_left", f"{source.video_id}_1"] if all_subjects else []
        for candidate in (*candidates, source.video_id):
            if (out / candidate).is_dir():
                subjects = load_meta(out / candidate)["subjects"]
                if all_subjects or source.video_id in subjects:
                    names = subjects
                    break
    return names if all((out / name).is_dir() for name in names) else []


def _changed_stages(
    folder: Path, source: Source, config: PreprocessConfig, transcripts: Path | None
) -> dict[Stage, str]:
    """Which stages of a feature folder have to be done again, and why; raises InputError if it is damaged."""
    meta = load_features(folder).meta
    if not _is_same_file(source.path, meta["source"]):
        return dict.fromkeys(STAGES, f"{source.path} is not the file that the features were made from")
    # Settings that did not exist yet had the value that is now the default.
    then, now = PreprocessConfig().model_dump(mode="json") | meta["settings"], config.model_dump(mode="json")
    if then["streams"] != now["streams"]:
        return dict.fromkeys(STAGES, f"streams was {then['streams']!r}, is {now['streams']!r}")
    changed: dict[Stage, str] = {}
    for stage in STAGES:
        old, new = then[stage], now[stage]
        reasons = [f"{stage}.{key} was {old.get(key)!r}, is {new[key]!r}" for key in new if old.get(key) != new[key]]
        if reasons:
            changed[stage] = "; ".join(reasons)
    if describe_faces(source, folder.name) != meta["provided_faces"]:
        changed.setdefault("faces", "the provided faces have changed")
    transcript = None
    if transcripts is not None:
        transcript = find_transcript(transcripts, source.video_id, language=config.speech.language)
    then_read = meta["transcript"]
    if (transcript is None) != (then_read is None) or (transcript and not _is_same_file(transcript, then_read)):
        changed.setdefault("speech", "its transcript has changed")
    if "speech" in changed:
        changed.setdefault("words", changed["speech"])
    return changed


def describe_faces(source: Source, name: str) -> dict[str, Any] | None:
    """Describe the provided faces of one person for ``meta.json``; None if faces are to be detected."""
    if source.provided_faces is None or name not in source.provided_faces:
        return None
    return describe_provided(source.provided_faces[name], first_image=source.first_image)


def refuse_foreign(folder: Path, source: Source, *, overwrite: bool, is_needed: bool = True) -> None:
    """Raise InputError if features of ``source`` must not take the place of what is at ``folder``.

    Only feature folders are ever replaced, and only those of the same video: made from a file at the same path, which
    may have changed since, or from a file with the same content that was elsewhere. With ``overwrite``, also those of
    another file with the same identifier.

    Args:
        folder: may not exist.
        source: the video.
        overwrite: see above.
        is_needed: False if the video may get along without this folder: then it may belong to another identifier.
    """
    try:
        made_from = own_source(folder)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from None
    if made_from is None:
        return
    has_same_id = Path(made_from["path"]).stem == source.video_id
    if not (has_same_id or is_needed):
        return
    if "tables" in made_from:
        raise InputError(
            f"{source.path}: {folder} holds features that rcma-import made from tables; give another --out"
        )
    if _is_same_path(source.path, made_from) or _is_same_file(source.path, made_from) or (has_same_id and overwrite):
        return
    instead = "or replace them with --overwrite" if has_same_id else "or rename one of them"
    raise InputError(
        f"{source.path}: {folder} holds features of another file, {made_from['path']}; give another --out, {instead}"
    )


def _refuse_foreign_before_work(out: Path, source: Source, config: PreprocessConfig, *, overwrite: bool) -> None:
    for name in source.provided_faces or [source.video_id]:
        refuse_foreign(out / name, source, overwrite=overwrite)
    if source.provided_faces is None and config.faces.subjects == "all" and out.is_dir():
        # How many people there are is not known yet: talk_1 may be needed for talk.mp4, or belong to talk_1.mp4.
        pattern = re.compile(re.escape(source.video_id) + r"_(left|right|\d+)")
        for folder in sorted(out.iterdir()):
            if pattern.fullmatch(folder.name):
                refuse_foreign(folder, source, overwrite=overwrite, is_needed=False)


def _is_same_file(path: Path, description: dict[str, Any]) -> bool:
    """Whether a file is the one that ``meta.json`` describes; if it does not exist, only the path is compared."""
    if not path.exists():
        # Features are whole even if the file that they were made from is gone.
        return _is_same_path(path, description)
    status = path.stat()
    if status.st_size != description.get("size"):
        return False
    # Reading terabytes again only to see that nothing changed would cost hours: the time of change comes first. Of a
    # file elsewhere it says nothing: recordings without compression, copied together, agree in size and time.
    unchanged = status.st_mtime_ns == description.get("modified_ns") and _is_same_path(path, description)
    return unchanged or sha256(path) == description["sha256"]


def _is_same_path(path: Path, description: dict[str, Any]) -> bool:
    return os.path.realpath(path) == os.path.realpath(description["path"])
