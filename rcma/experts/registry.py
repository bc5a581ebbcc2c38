"""The public models: what ``registry.yaml`` says of them, and where the files of those that are fetched lie.

Nothing is downloaded here; see :mod:`rcma.experts.fetch`. Files lie in one folder, :func:`models_folder`, and may be
put there by hand. A file whose sha256 is not the registered one is never used.
"""

from __future__ import annotations

import json
import logging
import os
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from preprocessing.errors import InputError
from preprocessing.files import refuse_to_overwrite, replace_own, sha256

REGISTRY = Path(__file__).with_name("registry.yaml")
FOLDER_VARIABLE = "RCMA_MODELS"
"""Environment variable that names the folder of the models."""
CHECKSUMS_FILE = "sha256.json"
"""In the folder of a model of several files: the sha256 that each had when it was fetched."""
LICENCES_FILE = "accepted-licences.json"
"""In the folder of the models: the licence texts that the user has accepted, by the name of the model."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

log = logging.getLogger("rcma")


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights_licence: str
    trained_on: str
    scores: str
    """Says whose figures they are."""
    source: str
    """Where the model, or what it was trained on, is described."""


class PackagedEntry(_Described):
    """A model that comes with the package."""

    modality: Literal["text", "audio"]
    what: str
    """What its values are, in a few words."""


class _Entry(_Described):
    code_licence: str
    must_accept: bool = False
    """Whether the user has to accept the licence of the weights before they are used."""
    input: str
    output: str


class FaceEntry(_Entry):
    """A face model: one ONNX file, from a cut-out face to eight logits, valence and arousal."""

    modality: Literal["face"]
    file: str
    url: str
    bytes: int | None = None
    """Size of the file, where it is known."""
    sha256: Sha256
    side: int = Field(gt=0)
    """Of the square input, pixels."""
    mean: tuple[float, float, float]
    """Subtracted from RGB in [0,1]."""
    std: tuple[float, float, float]
    """What the difference is divided by."""


class VoiceEntry(_Entry):
    """A voice model: a repository on the Hugging Face Hub."""

    modality: Literal["audio"]
    hub: str
    files: tuple[str, ...] = Field(min_length=1)
    """What is needed of the repository."""


Entry = Annotated[FaceEntry | VoiceEntry, Field(discriminator="modality")]


@cache
def entries() -> dict[str, FaceEntry | VoiceEntry]:
    """The models that can be fetched, by name, whether they are on this machine or not."""
    return TypeAdapter(dict[str, Entry]).validate_python(_read("fetched"))


@cache
def packaged() -> dict[str, PackagedEntry]:
    """The models that come with the package, by name."""
    from safetensors import safe_open

    given = _read("packaged")
    for values in given.values():
        if "weights" in values:
            with safe_open(REGISTRY.with_name(values.pop("weights")), framework="np") as file:
                values |= file.metadata()
    return TypeAdapter(dict[str, PackagedEntry]).validate_python(given)


def _read(section: str) -> dict[str, dict[str, Any]]:
    given = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))[section]
    return {name: {"name": name, **values} for name, values in given.items()}


def available() -> dict[str, FaceEntry | VoiceEntry]:
    """The models that were fetched and can be used now; one with a wrong checksum is left out with a warning."""
    usable = {}
    for name, entry in entries().items():
        try:
            if locate(entry) is not None:
                usable[name] = entry
        except InputError as error:
            log.warning("%s", error)
    return usable


def find_entry(name: str) -> FaceEntry | VoiceEntry:
    """The model of that name among those that can be fetched.

    Raises:
        InputError: there is none.
    """
    if name not in entries():
        raise InputError(f"{name!r}: no such model; give one of {', '.join(entries())}")
    return entries()[name]


def find_file(name: str) -> Path | None:
    """Where a model lies: a file for a face model, a folder for a voice model; None if it cannot be used yet.

    Raises:
        InputError: there is no model of that name, or its checksum is wrong.
    """
    return locate(find_entry(name))


def how_to_get(name: str) -> str:
    """One line that says how a model gets onto this machine, with its licence.

    Raises:
        InputError: there is no model of that name.
    """
    entry = find_entry(name)
    accept = f" --accept-licence {name}" if entry.must_accept else ""
    return (
        f"rcma-models fetch {name}{accept}; licence: {entry.weights_licence}; without a network, {put_by_hand(entry)}"
    )


def put_by_hand(entry: FaceEntry | VoiceEntry) -> str:
    """Say where files go that the user has from elsewhere."""
    if isinstance(entry, FaceEntry):
        return f"put a copy of the file at {destination(entry)}"
    return f"put copies of {' and '.join(entry.files)} into {destination(entry)}"


def models_folder() -> Path:
    """``RCMA_MODELS`` if it is set, else ``rcma`` in the user's folder of caches (``XDG_CACHE_HOME``, ``~/.cache``)."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches and Path(caches).is_absolute() else Path.home() / ".cache") / "rcma"


def destination(entry: FaceEntry | VoiceEntry) -> Path:
    """Where the file of a face model, or the folder of a voice model, belongs."""
    return models_folder() / (entry.file if isinstance(entry, FaceEntry) else entry.name)


def locate(entry: FaceEntry | VoiceEntry) -> Path | None:
    """As :func:`find_file`, for an entry."""
    path = destination(entry)
    if not is_here(entry) or not is_accepted(entry):
        return None
    for file, expected in _checksums(entry, path).items():
        found = hash_file(file)
        if found != expected:
            raise InputError(
                f"{file}: sha256 {found}, but {expected} is right; it is not used: remove it, "
                f"then rcma-models fetch {entry.name}"
            )
    return path


def is_here(entry: FaceEntry | VoiceEntry) -> bool:
    """Whether the files of a model are there, right or wrong."""
    path = destination(entry)
    return path.is_file() if isinstance(entry, FaceEntry) else all((path / name).is_file() for name in entry.files)


def _checksums(entry: FaceEntry | VoiceEntry, path: Path) -> dict[Path, str]:
    """The sha256 that each file should have; none are known of a repository's files that were put there by hand."""
    if isinstance(entry, FaceEntry):
        return {path: entry.sha256}
    record = path / CHECKSUMS_FILE
    if not record.is_file():
        return {}
    try:
        known = TypeAdapter(dict[str, Sha256]).validate_json(record.read_bytes())
    except ValueError:
        raise InputError(f"{record}: damaged; remove {path}, then rcma-models fetch {entry.name}") from None
    return {path / name: known[name] for name in entry.files if name in known}


def hash_file(path: Path) -> str:
    """The sha256 of a file; one that has not changed is read once in a process.

    Raises:
        InputError: it cannot be read.
    """
    try:
        status = path.stat()
        return _hash(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


@lru_cache(maxsize=64)
def _hash(path: Path, size: int, modified_ns: int, inode: int) -> str:
    return sha256(path)


def is_accepted(entry: FaceEntry | VoiceEntry) -> bool:
    """Whether the licence needs no acceptance, or was accepted as it reads now."""
    return not entry.must_accept or _accepted().get(entry.name) == entry.weights_licence


def accept_licence(entry: FaceEntry | VoiceEntry) -> None:
    """Remember that the user accepts the licence of the weights.

    Raises:
        InputError: something else is in the place of the list.
        OSError: it cannot be written.
    """
    if is_accepted(entry):
        return
    path = models_folder() / LICENCES_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_to_overwrite([path])
    accepted = {**_accepted(), entry.name: entry.weights_licence}
    with replace_own(path) as new:
        new.write_text(json.dumps(accepted, indent=1) + "\n", encoding="utf-8")


def _accepted() -> dict[str, str]:
    path = models_folder() / LICENCES_FILE
    if not path.is_file():
        return {}
    try:
        return TypeAdapter(dict[str, str]).validate_json(path.read_bytes())
    except ValueError:
        raise InputError(f"{path}: not a list of accepted licences; remove it and accept them again") from None
