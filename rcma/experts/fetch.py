"""Downloads public models: complete and with the right checksums, or not at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from preprocessing.errors import InputError
from preprocessing.files import replace_when_whole, sha256, whole_or_nothing
from preprocessing.speech import socket_timeout
from rcma.experts.registry import CHECKSUMS_FILE, FaceEntry, VoiceEntry


def fetch_model(entry: FaceEntry | VoiceEntry) -> Path:
    """Download a model, with a progress bar on a terminal, unless it is there already.

    Returns:
        Its place, as :meth:`FaceEntry.locate`.

    Raises:
        InputError: its licence is not accepted, it cannot be downloaded, its checksum is wrong, or other files are in
            its place.
        OSError: the folder of models cannot be written.
    """
    if not entry.is_accepted():
        raise InputError(
            f"{entry.name}: the licence of its weights is {entry.weights_licence}; read {entry.source} and, "
            f"if you agree, add --accept-licence {entry.name}"
        )
    if not entry.is_here():
        if isinstance(entry, FaceEntry):
            with replace_when_whole(entry.path) as new:
                _download(entry, entry.url, new, *entry.files.values())
        else:
            with whole_or_nothing(entry.path) as folder:
                _download_repository(entry, folder)
    return entry.locate()


def _download_repository(entry: VoiceEntry, folder: Path) -> None:
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(entry.hub, files_metadata=True, timeout=20.0)
    except Exception as error:  # The client of the Hub raises errors of three libraries.
        raise _not_fetched(entry, entry.source, error) from error
    # The Hub knows the sha256 of large files only.
    known = {sibling.rfilename: sibling.lfs.sha256 for sibling in info.siblings or () if sibling.lfs is not None}
    paths = [folder / Path(file).name for file in entry.files]
    for path in paths:
        url = huggingface_hub.hf_hub_url(entry.hub, path.name, revision=info.sha)
        _download(entry, url, path, known.get(path.name))
    checksums = {path.name: sha256(path) for path in paths}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=1) + "\n", encoding="utf-8")


def _download(entry: FaceEntry | VoiceEntry, url: str, path: Path, sha256: str | None) -> None:
    from torch.hub import download_url_to_file

    print(f"downloading {url}", file=sys.stderr)
    try:
        with socket_timeout():
            download_url_to_file(url, str(path), sha256, progress=sys.stderr.isatty())
    except Exception as error:  # Of the network, or a RuntimeError where the checksum is wrong.
        raise _not_fetched(entry, url, error) from error


def _not_fetched(entry: FaceEntry | VoiceEntry, url: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".;: ")
    return InputError(f"{entry.name}: {url} cannot be downloaded ({reason}); {entry.by_hand()}")
