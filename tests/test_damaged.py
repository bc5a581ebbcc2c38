"""Damaged files: each is processed or named, none crashes, hangs or leaves half a folder.

``DAMAGED_FILES=200 pytest tests/test_damaged.py`` makes as many as that; a few are enough for every day.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from preprocessing.cli import main
from preprocessing.features.folder import load_features

N_FILES = int(os.environ.get("DAMAGED_FILES", "24"))


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Cut the end off, or flip bits in some bytes; in half of the cases near the start, where the headers are."""
    if random.random() < 0.3:
        return content[: random.integers(1, len(content))]
    damaged = bytearray(content)
    reach = len(damaged) if random.random() < 0.5 else min(len(damaged), 4096)
    for position in random.integers(0, reach, size=random.integers(1, 60)):
        damaged[position] ^= random.integers(1, 256)
    return bytes(damaged)


@pytest.mark.slow
def test_damaged_files_are_processed_or_named(demo_clips: Path, tmp_path: Path, capsys) -> None:
    random = np.random.default_rng(0)
    content = (demo_clips / "demo_02.mp4").read_bytes()
    (tmp_path / "in").mkdir()
    for number in range(N_FILES):
        (tmp_path / "in" / f"v{number:03d}.mp4").write_bytes(damage(content, random))
    # A detector pass a second is enough here: it is the decoding that is on trial.
    settings = ["--set", "speech.backend=none", "--set", "faces.detect_every_s=1.0", "--device", "cpu"]
    code = main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), *settings])
    printed = capsys.readouterr()
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    failed = [line for line in printed.err.splitlines() if line.startswith("failed: ")]
    assert all(load_features(tmp_path / "out" / name).n_frames > 0 for name in folders)
    assert len(folders) + len(failed) == N_FILES
    assert all(".mp4: " in line for line in failed)
    assert code == (1 if failed else 0)
    # What broke is told in our words, not as an exception of a library.
    assert not [line for line in failed if "Error:" in line]
