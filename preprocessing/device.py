"""Chooses the device on which networks run."""

from __future__ import annotations

import os
from ctypes import CDLL
from pathlib import Path

from preprocessing.errors import InputError


def resolve_device(name: str) -> str:
    """Turn ``auto``, ``cpu`` or ``cuda`` into ``cpu`` or ``cuda``.

    Raises:
        InputError: ``cuda`` is requested and there is none.
    """
    if name == "cpu" or (name == "auto" and not _may_have_gpu()):
        return "cpu"
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or auto")
    return name


def _may_have_gpu() -> bool:
    """False if there is no GPU for certain: then PyTorch, whose import takes seconds, need not be asked."""
    if os.name == "nt" or Path("/dev/kfd").exists():  # unknown; AMD
        return True
    try:
        CDLL("libcuda.so.1")  # NVIDIA's driver, under the name by which CUDA itself loads it
    except OSError:
        return False
    return True
