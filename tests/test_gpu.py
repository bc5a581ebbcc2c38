"""Training and prediction on a GPU; each training in a process of its own, since Accelerate keeps its device."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from made_features import make_data
from safetensors.torch import load_file

import rcma

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA GPU"),
]

DEVICE = "cuda"
PRECISIONS = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    config = make_data(folder, n_frames=60).model_dump(mode="json", exclude={"preprocessing"})
    # Dropout draws other numbers on another device.
    config["model"]["tcn"]["dropout"] = config["model"]["fusion"]["dropout"] = 0.0
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "main.py").write_text("import sys\nfrom rcma.cli.train import main\nsys.exit(main(sys.argv[1:]))\n")
    return folder


def run_training(root: Path, run: Path, *options: str, device: str = DEVICE) -> list[float]:
    """Losses of the epochs."""
    command = [sys.executable, str(root / "main.py"), "--config", str(root / "config.yaml"), "--out", str(run)]
    command += ["--device", device, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    with (run / "log.csv").open(newline="") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


def test_losses_are_those_of_the_cpu(root: Path, tmp_path: Path) -> None:
    expected = run_training(root, tmp_path / "cpu", device="cpu")
    assert run_training(root, tmp_path / "gpu") == pytest.approx(expected, abs=1e-3)
    half = run_training(root, tmp_path / "half", "--set", "train.precision=bfloat16")
    assert half == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_resumed_is_uninterrupted(root: Path, tmp_path: Path, precision: str) -> None:
    options = ["--set", f"train.precision={precision}"]
    whole = run_training(root, tmp_path / "whole", *options)
    run_training(root, tmp_path / "parts", *options, "--set", "train.epochs=1")
    assert run_training(root, tmp_path / "parts", *options, "--resume") == whole
    one, two = (load_file(tmp_path / name / "best.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_predictions_are_those_of_the_cpu(root: Path, tmp_path: Path, precision: str) -> None:
    frozen = [f"model.{m}.{key}" for m in ("face", "audio") for key in ("frozen=true", f"precision={precision}")]
    options = [word for setting in frozen for word in ("--set", setting)]
    embeddings = ["--set", f"data.embeddings={tmp_path / 'embeddings'}"]
    run_training(root, tmp_path / "run", "--set", "train.epochs=1", *options, *embeddings)
    expected = rcma.Predictor(rcma.load_model(tmp_path / "run"))(root / "features" / "video3").values
    predicted = rcma.Predictor(rcma.load_model(tmp_path / "run").to(DEVICE))(root / "features" / "video3").values
    np.testing.assert_allclose(predicted, expected, atol=1e-3 if precision == "float32" else 0.03)
