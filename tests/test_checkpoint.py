from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from made_features import small_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rcma
from preprocessing.errors import InputError
from rcma.config import TrainConfig
from rcma.model.checkpoint import (
    TrainedRCMA,
    is_run,
    load_model,
    load_run_config,
    save_config,
    save_weights,
)
from rcma.model.hub import shareable
from rcma.training.run_folder import load_state


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
    tree["model"]["face"]["pretrained"] = "/none/res50_ir.pth"
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    assert str(load_model(str(run)).config.model.face.pretrained) == "/none/res50_ir.pth"


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


def test_weights_alone_are_a_model(run: Path, config: TrainConfig, tmp_path: Path):
    alone = (run / "best.safetensors").rename(tmp_path / "alone.safetensors")
    model = load_model(alone)
    assert model.config == shareable(config)
    assert model.settings == config.model and not model.training
    assert model.versions == {"rcma": rcma.__version__, "torch": torch.__version__}
    torch.manual_seed(0)
    saved = TrainedRCMA(config).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_weights_of_the_same_training_are_the_same_bytes(run: Path, config: TrainConfig, tmp_path: Path):
    """With more than one key, the metadata's order changes from file to file."""
    weights = load_file(run / "best.safetensors")
    for number in range(8):
        save_config(tmp_path / str(number), config)
        save_weights(tmp_path / str(number), weights)
        assert (tmp_path / str(number) / "best.safetensors").read_bytes() == (run / "best.safetensors").read_bytes()


def test_older_weights_without_their_configuration_ask_for_the_run_folder(run: Path):
    weights = load_file(run / "best.safetensors")
    for metadata in (None, {"format": "pt"}):
        save_file(weights, run / "best.safetensors", metadata=metadata)
        with pytest.raises(InputError, match=r"best\.safetensors: .*give the run folder") as error:
            load_model(run / "best.safetensors")
        assert "\n" not in str(error.value)
    model = load_model(run)
    assert model.versions == {} and model.scores is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "damaged"),
        ('{"model_type": "bert"}', "not the configuration of a model of rcma"),
        ('{"library_name": "rcma", "versions": {}, "scores": null, "config": {}}', r"config\.data"),
        ('{"library_name": "rcma", "versions": {"rcma": "9.0"}, "steps": 3}', r"unknown key 'steps'.*9\.0"),
    ],
)
def test_metadata_that_cannot_be_used_are_named(run: Path, text: str, reason: str):
    save_file(load_file(run / "best.safetensors"), run / "new.safetensors", metadata={"rcma": text})
    with pytest.raises(InputError, match=reason) as error:
        load_model(run / "new.safetensors")
    assert "new.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_model_is_refused(tmp_path: Path):
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"weights\.pt: .*a \.safetensors file"):
        load_model(tmp_path / "weights.pt")
    (tmp_path / "half.safetensors").write_bytes(b"\x08\0\0")
    with pytest.raises(InputError, match=r"half\.safetensors: damaged"):
        load_model(tmp_path / "half.safetensors")
    with pytest.raises(InputError, match=r"no such run folder or \.safetensors file"):
        load_model("nothing")


def test_is_run_knows_what_can_be_loaded(run: Path, tmp_path: Path):
    load_model(run).save_pretrained(tmp_path / "hub")
    for path in (run, run / "best.safetensors", tmp_path / "hub"):
        assert is_run(path)
        load_model(path)
    for path in (tmp_path, run / "config.yaml", tmp_path / "nothing"):
        assert not is_run(path)


@pytest.mark.parametrize("encoders", ["pretrained", "hf"])
def test_nothing_of_the_machine_is_shared(tmp_path: Path, encoders: str):
    """Every setting that can hold a path holds one below a folder with a telling name."""
    home = tmp_path / "home" / "jane"
    tree = small_config(home).model_dump(mode="json")
    tree["data"] |= {"features": str(home), "embeddings": str(home / "cache"), "subjects": "~/jane/people.csv"}
    tree["model"] |= {"text_width": 6}
    tree["model"]["face"] |= {"pretrained": str(home / "faces.pth"), "frozen": True}
    tree["model"]["audio"] |= {"pretrained": "../jane/ears.pth", "frozen": True}
    if encoders == "hf":
        tree["model"]["face"] = {
            "kind": "hf",
            "hf": str(home / "dino") + "/",
            "hf_config": {"model_type": "vit", "hidden_size": 8, "_name_or_path": str(home / "dino")},
            "frozen": True,
        }
        tree["model"]["audio"] = {
            "kind": "hf",
            "hf": "../jane/wavlm",
            "hf_config": {"model_type": "wavlm", "_name_or_path": "../jane/wavlm"},
            "frozen": True,
        }
    tree["train"]["workers"] = 3
    tree["preprocessing"] = {"speech": {"model": "C:\\jane\\base.pt"}, "words": {"model": str(home / "bert")}}
    shared = shareable(TrainConfig.model_validate(tree))
    text = shared.model_dump_json()
    assert "jane" not in text and "\\\\" not in text
    assert (str(shared.data.features), str(shared.data.annotations)) == ("features", "annotations")
    assert shared.data.embeddings is None and str(shared.data.subjects) == "people.csv"
    face, audio = shared.model.face, shared.model.audio
    if encoders == "pretrained":
        assert (str(face.pretrained), str(audio.pretrained)) == ("faces.pth", "ears.pth")
    else:
        assert (face.hf, face.hf_config) == ("dino", {"model_type": "vit", "hidden_size": 8})
        assert (audio.hf, audio.hf_config) == ("wavlm", {"model_type": "wavlm"})
    assert shared.preprocessing is not None
    assert (shared.preprocessing.speech.model, shared.preprocessing.words.model) == ("base.pt", "bert")
    assert shareable(shared) == shared


def test_names_on_a_hub_are_shared_unless_they_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jane" / "bert").mkdir(parents=True)
    config = small_config(tmp_path).model_dump(mode="json")
    for given, shared in (("google/bert_uncased-L-2", "google/bert_uncased-L-2"), ("jane/bert", "bert")):
        config["preprocessing"] = {"words": {"model": given}}
        made = shareable(TrainConfig.model_validate(config))
        assert made.preprocessing is not None and made.preprocessing.words.model == shared


def test_metadata_of_the_weights_are_the_shareable_configuration(run: Path, tmp_path: Path):
    with safe_open(run / "best.safetensors", framework="pt") as file:
        text = str(file.metadata())
    assert "small" in text and str(tmp_path) not in text


def test_scores_that_rcma_train_did_not_write_are_named(run: Path):
    for text in ("{", "[]", '{"valence": 0.5}'):
        (run / "scores.json").write_text(text)
        with pytest.raises(InputError, match=r"scores\.json") as error:
            load_model(run)
        assert "\n" not in str(error.value)
