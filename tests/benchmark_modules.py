"""Programs of benchmarks/, which are no package, as modules."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType


def import_benchmark(name: str) -> ModuleType:
    """A program, with the modules beside it that it imports."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return import_module(name)
    finally:
        sys.path.remove(folder)
