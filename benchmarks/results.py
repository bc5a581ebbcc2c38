"""Results of benchmarks as dated files: what was measured, on what, at which commit, by which command."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def write_result(name: str, measurements: Sequence[dict[str, Any]]) -> Path:
    """Write ``results/<date>-<name>.json`` and print its content as one line."""
    import torch

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
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{today}-{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content))
    return path


def _without_folder(argument: str) -> str:
    """Where files lie on this machine is nobody else's concern."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _commit() -> str:
    """Short hash of the commit; ends in ``+`` where files that git knows have changed since."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], check=False).returncode != 0
    return head.strip() + ("+" if changed else "")
