"""The public models of ``registry.yaml``; downloads and checks the files of those that are not part of the package.

Files are downloaded completely and with the right sha256, or not at all. Users may copy them by hand. A file with the
wrong sha256 is never used.
"""

from __future__ import annotations

import json
import os
import sys
from abc import abstractmethod
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from safetensors import safe_open

from preprocessing.errors import InputError
from preprocessing.files import replace_own, replace_when_whole, sha256, whole_or_nothing
from preprocessing.speech import socket_timeout
from rcma.config import Modality
from rcma.experts.words import WEIGHTS

REGISTRY = Path(__file__).with_name("registry.yaml")
FOLDER_VARIABLE = "RCMA_MODELS"
"""Environment variable with the folder of the models."""
CHECKSUMS_FILE = "sha256.json"
"""In the folder of a model of several files: the sha256 of each when it was downloaded."""
LICENCES_FILE = "accepted-licences.json"
"""In the folder of the models: the text of each licence that the user has accepted, by the name of the model."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Entry(BaseModel):
    """Description of a public model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    modality: Modality
    gives: str
    """Meaning of its values, in a few words."""
    trained_on: str
    scores: str
    """Figures, and who measured them."""
    source: str
    """Where the model, or its training data, is described."""
    weights_licence: str
    code_licence: str | None = None
    """None for models that come with the package."""

    @property
    def licence(self) -> str:
        """Licences of code and weights."""
        code = f"code {self.code_licence}; weights " if self.code_licence else ""
        return code + self.weights_licence

    def __str__(self) -> str:
        """Return the description in one line."""
        return (
            f"{self.name}: {self.gives}. Trained on: {self.trained_on}. Scores: {self.scores}. Licence: {self.licence}."
        )


class DownloadedEntry(Entry):
    """Description of a model whose files are downloaded."""

    files: Annotated[dict[str, Sha256 | None], Field(min_length=1)]
    """Path below the folder of models, and sha256, of each file; None where it is known only after the download."""
    must_accept: bool = False
    """Whether the user has to accept the licence of the weights before they are used."""

    @property
    def path(self) -> Path:
        """Where the file of a model of one file, or the folder of the others, belongs."""
        return models_folder() / Path(next(iter(self.files))).parts[0]

    def is_here(self) -> bool:
        """Whether all files are there, right or wrong."""
        return all((models_folder() / name).is_file() for name in self.files)

    def is_accepted(self) -> bool:
        """Whether the licence needs no acceptance, or the user has accepted its present text."""
        return not self.must_accept or _accepted_licences().get(self.name) == self.weights_licence

    def accept_licence(self) -> None:
        """Record that the user accepts the licence of the weights.

        Raises:
            InputError: another file is in the place of the record.
            OSError: the record cannot be written.
        """
        accepted = {**_accepted_licences(), self.name: self.weights_licence}
        with replace_own(models_folder() / LICENCES_FILE) as new:
            new.write_text(json.dumps(accepted, indent=1) + "\n", encoding="utf-8")

    def locate(self) -> Path:
        """Check the files and return :attr:`path`.

        Raises:
            InputError: a file is missing or has the wrong sha256, or the licence is not accepted.
            OSError: a file cannot be read.
        """
        if not self.is_here() or not self.is_accepted():
            raise InputError(self.how_to_get())
        record = self.path / CHECKSUMS_FILE
        recorded = _read_record(record) if record.is_file() else {}
        for name, registered in self.files.items():
            path = models_folder() / name
            # The checksums of files copied by hand are unknown unless they are registered.
            right = registered or recorded.get(path.name)
            if right is not None and sha256(path) != right:
                raise InputError(
                    f"{path}: wrong checksum, so it is not used (sha256 {right} is right); remove it, then "
                    f"rcma-models fetch {self.name}"
                )
        return self.path

    def fetch(self) -> Path:
        """Download the files unless they are here, with a progress bar on a terminal, and return :attr:`path`.

        Raises:
            InputError: the licence is not accepted, a file cannot be downloaded or has the wrong sha256, or another
                folder is in their place.
            OSError: the folder of models cannot be written.
        """
        if not self.is_accepted():
            raise InputError(
                f"{self.name}: the licence of its weights is {self.weights_licence}; read {self.source} and, "
                f"if you agree, add --accept-licence {self.name}"
            )
        if not self.is_here():
            self._download()
        return self.locate()

    @abstractmethod
    def _download(self) -> None:
        """Download the files to where they belong."""

    def _download_file(self, url: str, path: Path, sha256: str | None) -> None:
        from torch.hub import download_url_to_file

        print(f"downloading {url}", file=sys.stderr)
        try:
            with socket_timeout():
                download_url_to_file(url, str(path), sha256, progress=sys.stderr.isatty())
        except Exception as error:  # Of the network, or a RuntimeError if the checksum is wrong.
            raise self._not_downloaded(url, error) from error

    def _not_downloaded(self, url: str, error: Exception) -> InputError:
        reason = str(error).strip().partition("\n")[0].rstrip(".;: ") or type(error).__name__
        return InputError(f"{self.name}: {url} cannot be downloaded ({reason}); {self.by_hand()}")

    def how_to_get(self) -> str:
        """Return one line on how to get the model, with the licence of the weights."""
        accept = f" --accept-licence {self.name}" if self.must_accept else ""
        return f"rcma-models fetch {self.name}{accept}; licence: {self.weights_licence}; {self.by_hand()}"

    def by_hand(self) -> str:
        """Return an instruction for machines without a network."""
        return f"without a network, put a copy at {' and '.join(str(models_folder() / name) for name in self.files)}"


class FaceEntry(DownloadedEntry):
    """A face model: one ONNX file, from a cut-out face to eight logits, valence and arousal."""

    modality: Literal["face"]
    url: str
    side: int = Field(gt=0)
    """Of the square input, pixels."""
    mean: tuple[float, float, float]
    """Subtracted from RGB in [0,1]."""
    std: tuple[float, float, float]
    """Divides the difference."""

    def _download(self) -> None:
        with replace_when_whole(self.path) as new:
            self._download_file(self.url, new, *self.files.values())


class VoiceEntry(DownloadedEntry):
    """A voice model: files of a repository on the Hugging Face Hub."""

    modality: Literal["audio"]
    hub: str

    def _download(self) -> None:
        import huggingface_hub

        try:
            info = huggingface_hub.HfApi().model_info(self.hub, files_metadata=True, timeout=20.0)
        except Exception as error:  # The client of the Hub raises errors of three libraries.
            raise self._not_downloaded(self.source, error) from error
        # The Hub knows the sha256 of large files only.
        known = {sibling.rfilename: sibling.lfs.sha256 for sibling in info.siblings or () if sibling.lfs is not None}
        with whole_or_nothing(self.path) as folder:
            checksums = {}
            for name in (Path(file).name for file in self.files):
                url = huggingface_hub.hf_hub_url(self.hub, name, revision=info.sha)
                self._download_file(url, folder / name, known.get(name))
                checksums[name] = sha256(folder / name)
            (folder / CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=1) + "\n", encoding="utf-8")


@cache
def entries() -> dict[str, FaceEntry | VoiceEntry]:
    """Return the models that can be downloaded, by name, whether or not they are on this machine."""
    entry = Annotated[FaceEntry | VoiceEntry, Field(discriminator="modality")]
    return TypeAdapter(dict[str, entry]).validate_python(_read_registry("downloaded"))


@cache
def packaged() -> dict[str, Entry]:
    """Return the models that come with the package, by name."""
    given = _read_registry("packaged")
    with safe_open(WEIGHTS, framework="np") as file:
        given["words"] |= file.metadata()
    return TypeAdapter(dict[str, Entry]).validate_python(given)


def _read_registry(section: str) -> dict[str, dict[str, Any]]:
    given = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))[section]
    return {name: {"name": name, **values} for name, values in given.items()}


def find_entry(name: str) -> FaceEntry | VoiceEntry:
    """Return the model of that name among those that can be downloaded.

    Raises:
        InputError: there is none.
    """
    if name not in entries():
        raise InputError(f"{name!r}: no such model; give one of {', '.join(entries())}")
    return entries()[name]


def models_folder() -> Path:
    """``RCMA_MODELS`` if it is set, else ``rcma`` in the user's cache folder (``XDG_CACHE_HOME``, ``~/.cache``)."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcma"


def _accepted_licences() -> dict[str, str]:
    path = models_folder() / LICENCES_FILE
    return _read_record(path) if path.is_file() else {}


def _read_record(path: Path) -> dict[str, str]:
    try:
        return TypeAdapter(dict[str, str]).validate_json(path.read_bytes())
    except ValueError:
        raise InputError(f"{path}: not a file of rcma-models, or damaged; remove it, then fetch again") from None
