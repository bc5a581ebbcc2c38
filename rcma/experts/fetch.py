"""Downloads registered models into the folder of models: whole and with the right checksum, or not at all."""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from preprocessing.errors import InputError
from preprocessing.files import replace_when_whole, whole_or_nothing
from rcma.experts.registry import (
    CHECKSUMS_FILE,
    FaceEntry,
    VoiceEntry,
    destination,
    hash_file,
    is_accepted,
    is_here,
    locate,
    put_by_hand,
)

_TIMEOUT_S = 20.0
"""Longest silence of a server before it is given up."""
_BLOCK = 1 << 18

OnProgress = Callable[[str, int, int | None], None]
"""Called with the name of a file, the bytes that have come, and its size where that is known."""


def fetch_model(entry: FaceEntry | VoiceEntry, *, on_progress: OnProgress) -> Path:
    """Download a model unless it is there already.

    Returns:
        Where it lies, as :func:`rcma.experts.registry.find_file`.

    Raises:
        InputError: its licence is not accepted, it is not available, its checksum is wrong, or something else is in its
            place.
        OSError: the folder of models cannot be written.
    """
    if not is_accepted(entry):
        raise InputError(
            f"{entry.name}: the licence of its weights is {entry.weights_licence}; read {entry.source} and, "
            f"if you agree, add --accept-licence {entry.name}"
        )
    path = destination(entry)
    if not is_here(entry):
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry, FaceEntry):
            _fetch_file(entry, path, on_progress)
        else:
            _fetch_repository(entry, path, on_progress)
    located = locate(entry)
    assert located is not None  # it was found, or has just been written
    return located


def _fetch_file(entry: FaceEntry, path: Path, on_progress: OnProgress) -> None:
    with replace_when_whole(path) as partial:
        _download(entry, entry.url, partial, name=entry.file, size=entry.bytes, on_progress=on_progress)
        _refuse_other(entry, entry.url, partial, entry.sha256)


def _fetch_repository(entry: VoiceEntry, folder: Path, on_progress: OnProgress) -> None:
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(entry.hub, files_metadata=True, timeout=_TIMEOUT_S)
    except Exception as error:  # The hub's client raises errors of three libraries; all mean the same here.
        raise _not_fetched(entry, entry.source, error) from error
    there = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    with whole_or_nothing(folder) as partial:
        checksums = {}
        for name in entry.files:
            if name not in there:
                raise InputError(f"{entry.name}: {entry.source} has no {name} any more; {put_by_hand(entry)}")
            url = huggingface_hub.hf_hub_url(entry.hub, name, revision=info.sha)
            _download(entry, url, partial / name, name=name, size=there[name].size, on_progress=on_progress)
            large = there[name].lfs
            if large is not None:  # the Hub knows the sha256 of large files only
                _refuse_other(entry, url, partial / name, large.sha256)
            checksums[name] = hash_file(partial / name)
        (partial / CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=1) + "\n", encoding="utf-8")


def _download(
    entry: FaceEntry | VoiceEntry, url: str, path: Path, *, name: str, size: int | None, on_progress: OnProgress
) -> None:
    done = 0
    on_progress(name, done, size)
    with path.open("wb") as file:
        for block in _blocks(entry, url):
            done += len(block)
            if size is not None and done > size:
                raise InputError(f"{entry.name}: {url} sent more than the {size} bytes of {name}; {put_by_hand(entry)}")
            file.write(block)
            on_progress(name, done, size)


def _blocks(entry: FaceEntry | VoiceEntry, url: str) -> Iterator[bytes]:
    """Content of a URL; only errors of the network become those of this model."""
    request = urllib.request.Request(url, headers={"User-Agent": "rcma"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            while block := response.read(_BLOCK):
                yield block
    except (OSError, http.client.HTTPException) as error:
        raise _not_fetched(entry, url, error) from error


def _refuse_other(entry: FaceEntry | VoiceEntry, url: str, path: Path, sha256: str) -> None:
    found = hash_file(path)
    if found != sha256:
        raise InputError(
            f"{entry.name}: {url} sent a file with sha256 {found}, but {sha256} is right; it was deleted; "
            f"{put_by_hand(entry)}"
        )


def _not_fetched(entry: FaceEntry | VoiceEntry, url: str, error: Exception) -> InputError:
    lines = str(getattr(error, "reason", None) or error).strip().splitlines()
    reason = lines[0].rstrip(".;: ") if lines else type(error).__name__
    return InputError(f"{entry.name}: {url} cannot be fetched ({reason}); without a network, {put_by_hand(entry)}")
