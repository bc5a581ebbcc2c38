"""Training in several processes gives the result of one."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from made_features import changed, data_settings, small_config

from rcma.config import ModelSettings
from rcma.data import SharedBatches, WindowDataset, open_training_data
from rcma.data.dataset import EMPTY_WINDOW
from rcma.model.network import RCMA

pytestmark = pytest.mark.usefixtures("one_thread")


def test_processes_share_each_batch(root: Path) -> None:
    data = open_training_data(data_settings(root))
    dataset = WindowDataset(
        data.train, model=ModelSettings(length=32, text_width=16), hop=10, audio_alignment="start", seed=0
    )
    alone = list(SharedBatches(dataset, 4))
    shares = [list(SharedBatches(dataset, 4, process=process, n_processes=3)) for process in range(3)]
    assert sorted(index for batch in alone for index in batch) == list(range(len(dataset)))
    for number, batch in enumerate(alone):
        together = [index for share in shares for index in share[number] if index != EMPTY_WINDOW]
        assert sorted(together) == sorted(batch)
        assert all(share[number] for share in shares)
    nothing = dataset[EMPTY_WINDOW]
    assert not nothing["frame_mask"].any()
    assert torch.isnan(nothing["labels"]).all()
    assert nothing.keys() == dataset[0].keys()


def launch(main: Path, *arguments: str, n_processes: int) -> None:
    """Run a program in one process, or in several that talk to each other."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    done = subprocess.run(
        [sys.executable, *(launcher if n_processes > 1 else []), str(main), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


MAIN = """
import os, sys
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from rcma.cli.train import main

steps = []

def keep(optimizer, args, kwargs):
    steps.append(torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]))

register_optimizer_step_pre_hook(keep)
code = main(sys.argv[2:])
if os.environ.get("RANK", "0") == "0":
    torch.save(torch.stack(steps), sys.argv[1])
sys.exit(code)
"""
"""Trains, and keeps the gradients of each step, after clipping."""


@pytest.mark.slow
def test_two_processes_give_the_losses_and_gradients_of_one(root: Path, tmp_path: Path) -> None:
    """At a rate so small that float32 weights stay as they are: Adam makes steps of full size out of rounding errors
    where a gradient is zero, so that trainings on two processors, or on two processes, go apart in their own ways.
    """
    # Dropout draws other numbers in each process. Five windows in the last batch: the shares differ.
    config = changed(
        small_config(root),
        data={"hop": 7},
        model={"tcn": {"dropout": 0.0}, "fusion": {"dropout": 0.0}},
        train={"batch_size": 6, "clip_norm": 0.1, "learning_rate": 1e-30, "min_learning_rate": 0.0},
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"preprocessing"})))
    main = tmp_path / "main.py"
    main.write_text(MAIN)
    logs, gradients = [], []
    for n_processes in (1, 2):
        run, kept = tmp_path / str(n_processes), tmp_path / f"{n_processes}.pt"
        command = [str(kept), "--config", str(file), "--device", "cpu", "--out", str(run)]
        launch(main, *command, n_processes=n_processes)
        logs.append(list(csv.DictReader((run / "log.csv").open())))
        gradients.append(torch.load(kept, weights_only=True).double())
    assert len(logs[0]) == len(logs[1]) == 3
    for one, two in zip(*logs, strict=True):
        # The normalisation's running statistics change from epoch to epoch, and with them what is validated.
        for name in ("train_loss", "mean_ccc"):
            assert float(two[name]) == pytest.approx(float(one[name]), abs=2e-5)
    one, two = gradients
    assert one.shape == two.shape and len(one) == 9
    norms = one.norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.1), atol=1e-4, rtol=0)
    assert ((two - one).norm(dim=1) < 1e-4 * norms).all()


FIRST_STEP = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from rcma.config import ModelSettings
from rcma.metrics import n_loss_terms, training_loss
from rcma.model.network import RCMA

content = torch.load(sys.argv[1], weights_only=True)
several = len(sys.argv) > 3
if several:
    dist.init_process_group("gloo")
rank = dist.get_rank() if several else None
found = {}
for number, batch in enumerate(content["batches"]):
    for over in ("window", "batch"):
        for mse_weight in (0.0, 0.3, 1.0):
            model = RCMA(ModelSettings.model_validate(content["settings"]))
            model.load_state_dict(content["weights"])
            model.double().train()
            # The first process has one window, the second the others.
            own = batch if not several else {m: x[:1] if rank == 0 else x[1:] for m, x in batch.items()}
            shared = DistributedDataParallel(model) if several else model
            loss = training_loss(shared(own), own["labels"], over=over, mse_weight=mse_weight)
            loss.backward()
            found[f"{number} {over} {mse_weight}"] = {
                "loss": loss.detach(), "n_terms": n_loss_terms(own["labels"], over=over),
                **{name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None},
            }
torch.save(found, sys.argv[2] + (str(rank) if several else ""))
if several:
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_first_step_of_one_in_double_precision(tmp_path: Path) -> None:
    length, n_windows = 12, 4
    settings = {
        "length": length, "text_width": 5, "face": {"kind": "small", "frozen": True},
        "audio": {"kind": "small", "frozen": True},
        "tcn": {"face": [6], "audio": [6], "text": [6], "kernel_size": 3, "dropout": 0.0}, "fusion": {"dropout": 0.0},
    }  # fmt: skip
    torch.manual_seed(0)
    model = RCMA(ModelSettings.model_validate(settings))
    widths = model.embedding_widths
    batches = []
    for kind in ("all labelled", "none in the first process", "constant in each process", "none at all"):
        labels = torch.rand(n_windows, length, 2, dtype=torch.float64) * 2 - 1
        labels[2, 5:] = torch.nan
        if kind == "none in the first process":
            labels[0] = torch.nan
        elif kind == "constant in each process":
            labels[0], labels[1:] = 0.25, -0.5
        elif kind == "none at all":
            labels[:] = torch.nan
        inputs = {m: torch.randn(n_windows, length, width, dtype=torch.float64) for m, width in widths.items()}
        batches.append({**inputs, "labels": labels})
    torch.save({"settings": settings, "weights": model.state_dict(), "batches": batches}, tmp_path / "given.pt")
    main = tmp_path / "main.py"
    main.write_text(FIRST_STEP)
    launch(main, str(tmp_path / "given.pt"), str(tmp_path / "one"), n_processes=1)
    launch(main, str(tmp_path / "given.pt"), str(tmp_path / "two"), "several", n_processes=2)
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two0", "two1"))
    assert len(one) == 4 * 2 * 3
    for case, expected in one.items():
        for found in two:
            assert found[case].keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[case][name], value, rtol=1e-9, atol=1e-12, msg=f"{case}: {name}")
