"""A report shows the recording that its features were made from, and no other file of the machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_features import RATE, WIDTH, make_features, make_labels, small_config

from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.features.recordings import RecordingFinder
from rcma import cli
from rcma.model.checkpoint import TrainedRCMA, save_config, save_weights

N_FRAMES = 70


def describe(path: Path) -> dict[str, Any]:
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_file_counts_only_with_its_checksum(tmp_path: Path) -> None:
    private, copy = tmp_path / "private.mp4", tmp_path / "copy.mp4"
    private.write_bytes(b"somebody else's")
    known = describe(private)
    finder = RecordingFinder()
    assert finder.find({"source": known}) == private
    copy.write_bytes(private.read_bytes())
    private.unlink()
    # What was given may have been moved since.
    assert finder.find({"source": known}, given=copy) == copy
    with pytest.raises(InputError, match=r"private\.mp4.* no longer exists"):
        RecordingFinder().find({"source": known})
    private.write_bytes(b"another")
    for source in (known, {**known, "sha256": None}, {**known, "sha256": ""}):
        with pytest.raises(InputError, match="not the file"):
            RecordingFinder().find({"source": source})
    # Another one that was given is no recording of these features either.
    copy.write_bytes(b"a third")
    with pytest.raises(InputError, match="not the file"):
        RecordingFinder().find({"source": known}, given=copy)


@pytest.mark.parametrize("meta", [{}, {"source": None}, {"source": "video.mp4"}, {"source": {"path": "video.mp4"}}])
def test_features_that_do_not_say_are_not_guessed_about(meta: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="do not say"):
        RecordingFinder().find(meta)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", tmp_path, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(InputError):
            RecordingFinder().find({"source": {"path": str(path), "sha256": "0"}})


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two people of one recording, and thousands of videos: hashing takes about two seconds a gigabyte."""
    path = tmp_path / "video.mp4"
    path.write_bytes(b"frames")
    meta, opened = {"source": describe(path)}, []
    usual = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *args, **options: opened.append(self) or usual(self, *args, **options)
    )
    finder = RecordingFinder()
    assert [finder.find(meta) for _ in range(3)] == [path] * 3
    assert opened == [path]


@pytest.mark.slow
@pytest.mark.parametrize("honest", [True, False])
def test_a_report_shows_no_other_file_of_the_machine(
    tmp_path: Path, make_video: Callable[..., Path], capsys: pytest.CaptureFixture[str], honest: bool
) -> None:
    """A feature folder that came from elsewhere names a file of this machine, of which it knows the path alone."""
    pytest.importorskip("plotly")
    private = make_video(
        tmp_path / "private.mp4", [np.full((64, 64, 3), k, np.uint8) for k in range(N_FRAMES)], rate=RATE
    )
    folder = tmp_path / "features" / "video"
    make_features(folder, make_labels(N_FRAMES, 0), seed=0)
    meta = json.loads((folder / "meta.json").read_text())
    source = {**meta["source"], **describe(private), **({} if honest else {"sha256": "0" * 64})}
    (folder / "meta.json").write_text(json.dumps({**meta, "source": source}))
    config = small_config(tmp_path)
    known = {"model": config.model.model_copy(update={"text_width": WIDTH}), "preprocessing": PreprocessConfig()}
    torch.manual_seed(0)
    model = TrainedRCMA(config.model_copy(update=known))
    (tmp_path / "run").mkdir()
    save_config(tmp_path / "run", model.config)
    save_weights(tmp_path / "run", model.state_dict())

    arguments = [str(folder), "--checkpoint", str(tmp_path / "run"), "--device", "cpu", "--out", str(tmp_path / "out")]
    drawn = tmp_path / "drawn.mp4"
    assert cli.predict.main([*arguments, "--report", "--overlay", str(drawn)]) == (0 if honest else 1)
    page, said = (tmp_path / "out" / "report.html").read_text(encoding="utf-8"), capsys.readouterr().err
    assert ('id="preview-0"' in page) == honest
    assert drawn.exists() == honest
    assert (f"{private} is not the file" in said) == (not honest)
    # Without pictures, nobody needs to know where the recording is.
    assert cli.predict.main(arguments) == 0
    assert "private" not in capsys.readouterr().err
