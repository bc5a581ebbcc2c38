"""The recording that a feature folder was made from, if it is still there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preprocessing.errors import InputError
from preprocessing.files import sha256


class RecordingFinder:
    """Finds recordings from the metadata of feature folders.

    A feature folder from elsewhere can name any file of this machine, and whoever gets the report would see that file.
    So a file is accepted as the recording only if its sha256 is that of the features' source: whoever knows it has the
    file. Each file is read once, however many features name it.
    """

    def __init__(self) -> None:
        """Start without known checksums."""
        self._sha256: dict[Path, str] = {}

    def find(self, meta: Mapping[str, Any], *, given: Path | None = None) -> Path:
        """Return the path of the recording.

        Args:
            meta: content of ``meta.json``.
            given: the file that the user named for these features, if any; it may have moved since.

        Raises:
            InputError: the features name no recording, or it is gone, cannot be read, or is another file.
        """
        source = meta.get("source")
        if not isinstance(source, Mapping) or not {"path", "sha256"} <= source.keys():
            raise InputError("its features do not say which file they were made from")
        if "tables" in source and not source["sha256"]:
            raise InputError("its features were made from tables, not from a recording")
        paths = [path for path in (given, Path(str(source["path"]))) if path is not None]
        there = [path for path in paths if path.is_file()]
        if not there:
            raise InputError(f"{paths[0]}, the source of its features, no longer exists")
        for path in there:
            if self._hash(path) == source["sha256"]:
                return path
        raise InputError(f"{there[0]} is not the file that its features were made from")

    def _hash(self, path: Path) -> str:
        if path not in self._sha256:
            try:
                self._sha256[path] = sha256(path)
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}") from None
        return self._sha256[path]
