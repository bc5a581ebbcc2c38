"""Import programs of benchmarks/, which is not a package."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType


def import_benchmark(name: str) -> ModuleType:
    """Import a program together with the modules beside it."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return import_module(name)
    finally:
        sys.path.remove(folder)
