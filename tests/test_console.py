"""What the commands show of the libraries' warnings, and what they do not."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator

import pytest

from preprocessing.console import add_common_arguments, run_command


@pytest.fixture(autouse=True)
def filters() -> Iterator[None]:
    """The process's own filters come back."""
    with warnings.catch_warnings():
        yield


def shown(*, module: str, category: type[Warning], level: str = "warning") -> bool:
    """Whether a command shows a warning that comes from a module."""

    def work(_: argparse.Namespace) -> int:
        warnings.warn_explicit("look", category, filename="file.py", lineno=1, module=module)
        return 0

    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        assert run_command(work, parser, ["--log-level", level]) == 0
    return bool(seen)


def test_pytorch_says_when_results_cannot_be_repeated() -> None:
    """``torch.use_deterministic_algorithms(True, warn_only=True)`` warns from wherever the operation was called."""
    for module in ("torch.autograd.graph", "torch.nn.functional", "rcma.model.network", "__main__"):
        assert shown(module=module, category=UserWarning)


def test_remarks_of_libraries_on_themselves_are_hidden_unless_asked_for() -> None:
    for module, category in (
        ("transformers.modeling_utils", UserWarning),
        ("whisper.transcribe", UserWarning),
        ("torch.nn.utils.weight_norm", FutureWarning),
        ("anything", DeprecationWarning),
    ):
        assert not shown(module=module, category=category)
        assert shown(module=module, category=category, level="debug")
    assert shown(module="whisperers.own", category=UserWarning)
