"""Arguments, default inputs, timing and result files of all benchmarks."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preprocessing.config import PACKAGED, PreprocessConfig
from preprocessing.console import print_table

RESULTS = Path(__file__).parent / "results"
BUNDLED_CLIP = min((Path(__file__).parent / "demo" / "clips").glob("*.mp4"))
BACKENDS = ("openai-whisper", "faster-whisper")

_checkpoints = os.environ.get("RCMA_TEST_WHISPER")
OPENAI_WHISPER = str(Path(_checkpoints) / "base.pt") if _checkpoints else "base"
"""Whisper base for openai-whisper: the checkpoint in ``$RCMA_TEST_WHISPER``, else the name, which downloads it."""

Measurement = dict[str, Any]
"""One row of a result file."""


def argument_parser(description: str | None, *, repeat: int | None = None) -> argparse.ArgumentParser:
    """Show the module's docstring as help; with ``repeat``, the option ``--repeat`` with that default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repeat is not None:
        parser.add_argument("--repeat", type=int, default=repeat, metavar="N", help=f"timed passes, default {repeat}")
    return parser


def settings(backend: str) -> PreprocessConfig:
    """Default settings, with models of the ``offline-models`` extra where they serve."""
    whisper = OPENAI_WHISPER if backend == "openai-whisper" else PACKAGED
    return PreprocessConfig.model_validate(
        {"speech": {"backend": backend, "model": whisper, "language": "en"}, "words": {"model": PACKAGED}}
    )


def median_seconds(repeat: int, *works: Callable[[], object]) -> list[float]:
    """Median seconds of each function over ``repeat`` passes after one for warm-up.

    The functions take turns, so that other load on the machine affects all of them alike.
    """
    passes = []
    for _ in range(repeat + 1):
        times = []
        for work in works:
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        passes.append(times)
    return [statistics.median(times) for times in zip(*passes[1:], strict=True)]


def show(row: Measurement) -> Measurement:
    """Print a row on standard error as soon as it is measured, and return it."""
    print(row, file=sys.stderr, flush=True)
    return row


def rounded(value: Any) -> Any:
    """Round nested figures to four decimals; NaN becomes None."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else round(float(value), 4)
    return value


def print_rows(title: str, rows: Sequence[Measurement], columns: Sequence[str]) -> None:
    """Print some columns of the result as a table."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    print_table(title, [column.replace("_", " ") for column in columns], cells)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def write_result(name: str, measurements: Sequence[Measurement]) -> None:
    """Write ``results/<date>-<name>.json`` with date, commit, command and machine, and print it as one line."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    content = {
        "benchmark": name,
        "date": today,
        "commit": _commit(),
        "command": shlex.join(["python", "benchmarks/" + Path(sys.argv[0]).name, *map(_without_folder, sys.argv[1:])]),
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "measurements": list(measurements),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content))


def _without_folder(argument: str) -> str:
    """Leave out where files are on this machine."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _commit() -> str:
    """Short hash of the commit, followed by ``+`` if tracked files have changed since."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], check=False).returncode != 0
    return head.strip() + ("+" if changed else "")
