"""Weight files of other projects: read without unpickling objects, and compared entry by entry."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Size, Tensor, nn

from preprocessing.errors import InputError


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type if there is no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".;: ") if lines else type(error).__name__


def load_backbone_weights(backbone: nn.Module, path: Path) -> None:
    """Load a weight file of a backbone's authors.

    Names may have the prefix ``backbone.``; a classifier beside the backbone (``logits.``) is left out.

    Raises:
        InputError: see :func:`read_state_dict` and :func:`check_entries`.
    """
    given = read_state_dict(path)
    if any(name.startswith("backbone.") for name in given):
        given = {name.removeprefix("backbone."): value for name, value in given.items()}
    given = {name: value for name, value in given.items() if not name.startswith("logits.")}
    wanted = backbone.state_dict()
    for name in wanted:
        # Files older than PyTorch 0.4.1 lack BatchNorm's counters, which are never used here.
        if name.endswith(".num_batches_tracked"):
            given.setdefault(name, wanted[name])
    check_entries(given, {name: value.shape for name, value in wanted.items()}, source=str(path))
    backbone.load_state_dict(given)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file of ``torch.save(module.state_dict(), path)`` to the CPU; only tensors are unpickled.

    Raises:
        InputError: no such file, or it holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a weight file written by torch.save") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path}: not a file of weights alone ({first_line(error)}); save module.state_dict()"
        ) from error
    return named_tensors(content, source=str(path))


def named_tensors(content: object, *, source: str) -> dict[str, Tensor]:
    """Check that ``content`` is a dictionary of tensors, and copy it.

    Raises:
        InputError: it is something else, such as a dictionary with the weights one level down.
    """
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise InputError(f"{source}: not a dictionary of named tensors; save module.state_dict()")
    return dict(content)


def check_entries(given: Mapping[str, Tensor], wanted: Mapping[str, Size], *, source: str) -> None:
    """Compare names and shapes.

    Raises:
        InputError: names ``source`` and the first entry that is surplus (with the nearest right name), missing, or of
            the wrong shape.
    """
    for name in given:
        if name not in wanted:
            near = difflib.get_close_matches(name, wanted, n=1, cutoff=0.0)[0]
            raise InputError(f"{source}: unknown entry {name!r}; the nearest right name is {near!r}")
    for name, shape in wanted.items():
        if name not in given:
            raise InputError(f"{source}: no entry {name!r}, of shape {tuple(shape)}")
        if given[name].shape != shape:
            raise InputError(f"{source}: {name!r} has shape {tuple(given[name].shape)}; it should be {tuple(shape)}")
