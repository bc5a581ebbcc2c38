from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from made_features import small_config
from safetensors.torch import load_file, save_file

import rcma
from preprocessing.errors import InputError
from rcma.checkpoint import TrainedRCMA, load_model, load_run_config, load_state, save_config, save_weights
from rcma.config import TrainConfig


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    made = small_config(tmp_path)
    return made.model_copy(update={"model": made.model.model_copy(update={"text_width": 6})})


@pytest.fixture
def run(tmp_path: Path, config: TrainConfig) -> Path:
    folder = tmp_path / "runs" / "first"
    save_config(folder, config)
    torch.manual_seed(0)
    save_weights(folder, TrainedRCMA(config).state_dict())
    return folder


def test_what_is_saved_is_loaded(run: Path, config: TrainConfig):
    torch.manual_seed(0)
    saved = TrainedRCMA(config).state_dict()
    model = rcma.load_model(run)
    assert model.config == config == load_run_config(run)
    assert not model.training
    loaded = model.state_dict()
    assert loaded.keys() == saved.keys() and all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert sorted(path.name for path in run.iterdir()) == ["best.safetensors", "config.yaml"]


def test_backbone_files_of_the_training_are_not_needed_to_load(run: Path, config: TrainConfig):
    tree = config.model_dump(mode="json")
    tree["model"]["face"]["weights"] = "/none/res50_ir.pth"
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    assert str(load_model(str(run)).config.model.face.weights) == "/none/res50_ir.pth"


def test_what_is_missing_is_listed(run: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no such run folder"):
        load_model(tmp_path / "none")
    with pytest.raises(InputError, match=r"config.yaml, best.safetensors missing"):
        load_model(tmp_path)
    (run / "best.safetensors").unlink()
    with pytest.raises(InputError, match=r": best.safetensors missing"):
        load_model(run)
    assert load_state(run) is None


def test_weights_that_do_not_fit_name_the_entry_and_both_shapes(run: Path):
    weights = load_file(run / "best.safetensors")
    weights["head.weight"] = torch.zeros(2, 7)
    save_file(weights, run / "best.safetensors")
    with pytest.raises(InputError, match=r"head.weight.*\(2, 7\).*\(2, 24\)"):
        load_model(run)
    del weights["head.weight"]
    save_file(weights, run / "best.safetensors")
    with pytest.raises(InputError, match=r"no entry 'head.weight'"):
        load_model(run)


def test_damaged_files_are_named(run: Path):
    whole = (run / "best.safetensors").read_bytes()
    (run / "best.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"best.safetensors: damaged"):
        load_model(run)
    (run / "last").mkdir()
    (run / "last" / "state.pt").write_bytes(whole)
    with pytest.raises(InputError, match=r"state.pt: damaged"):
        load_state(run)
    for text, reason in (("model: [", "YAML"), ("3", "not a configuration"), ("data: {features: a}", "annotations")):
        (run / "config.yaml").write_text(text)
        with pytest.raises(InputError, match=reason) as error:
            load_model(run)
        assert "config.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_pickle_is_not_executed(run: Path, tmp_path: Path):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (run / "last").mkdir()
    torch.save({"model": Attack()}, run / "last" / "state.pt")
    with pytest.raises(InputError, match="damaged"):
        load_state(run)
    assert not (tmp_path / "executed").exists()
