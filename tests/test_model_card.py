"""The model card says what the run's own files say, and nothing of the machine."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from made_features import make_data, small_config

import rcma
from rcma.config import TrainConfig
from rcma.model.checkpoint import TrainedRCMA, load_model
from rcma.model.model_card import ValidationScores, model_card
from rcma.training.loop import train

SCORES = ValidationScores(
    split="validation",
    best_epoch=4,
    epochs=9,
    ccc={"valence": 0.25, "arousal": None, "mean": -0.5},
    n_videos=7,
    n_frames=1234,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("jane")
    train(make_data(root), root / "run", device="cpu")
    return root


def changed(root: Path, **sections: dict[str, object]) -> TrainConfig:
    """The small configuration with other settings in its sections."""
    tree = small_config(root).model_dump(mode="json")
    tree["model"]["text_width"] = 6
    for section, settings in sections.items():
        tree[section] = (tree[section] or {}) | settings
    return TrainConfig.model_validate(tree)


def text_of(config: TrainConfig, **options: object) -> str:
    given = {"scores": None, "versions": {}, "n_parameters": 10} | options
    return str(model_card(config, **given))


def test_card_of_a_run_has_the_figures_of_its_files(root: Path):
    run = root / "run"
    text = (run / "README.md").read_text(encoding="utf-8")
    scores = json.loads((run / "scores.json").read_text())
    model = load_model(run)

    # Read by the Hub's own classes.
    data = ModelCard.load(run / "README.md").data
    assert data.library_name == "rcma"
    assert data.license is None and data.datasets is None
    assert data.metrics == ["ccc"]
    assert {"pytorch_model_hub_mixin", "emotion-recognition"} <= set(data.tags)
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    expected = {f"CCC {name}": scores[f"{name}_ccc"] for name in ("valence", "arousal", "mean")}
    assert values == pytest.approx(expected, abs=5e-5)
    assert {result.dataset_split for result in data.eval_results} == {"validation"}

    for name in ("valence", "arousal", "mean"):
        assert f"{scores[f'{name}_ccc']:.3f}" in text
    assert f"{scores['n_frames']} annotated frames of {scores['n_videos']} validation videos" in text
    assert f"epoch {scores['best_epoch']} of {scores['epochs']}," in text
    assert f"{sum(p.numel() for p in model.parameters()):,}" in text
    assert f"rcma {rcma.__version__}, torch {torch.__version__};" in text
    assert "None was named for these weights" in text
    written = re.search(r"on (\d{4}-\d\d-\d\d)\.", text)
    assert written is not None
    assert abs((datetime.now(UTC).date() - datetime.fromisoformat(written[1]).date()).days) <= 1


def test_settings_in_the_card_are_those_of_the_run(root: Path):
    text = (root / "run" / "README.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    resolved = yaml.safe_load((root / "run" / "config.yaml").read_text())
    assert shown["train"] == resolved["train"]
    assert shown["preprocessing"] == resolved["preprocessing"]
    for m in ("face", "audio"):
        del resolved["model"][m]["hf_config"]
    assert shown["model"] == resolved["model"]
    assert shown["data"].items() <= resolved["data"].items()


def test_card_says_nothing_of_the_machine(root: Path):
    text = (root / "run" / "README.md").read_text(encoding="utf-8")
    assert "jane" not in text
    # Of what begins with a slash, there are the links' and what HTML and tables need.
    assert not re.search(r"(?<![\w/:.])/\w+/\w", text)


def test_lines_of_the_card_run(root: Path, monkeypatch: pytest.MonkeyPatch):
    """The three lines of Python, with a run and features in place of the names."""
    text = (root / "run" / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    features = root / "features" / "video3"
    lines = lines.replace("org/model", str(root / "run")).replace("my_video.mp4", str(features))
    names: dict[str, object] = {}
    exec(lines, names)
    values = names["values"]
    assert isinstance(values, np.ndarray)
    assert values.shape == (70, 2)
    assert values.dtype == np.float32


def test_a_model_without_scores_says_so(root: Path):
    text = text_of(changed(root))
    assert "Not evaluated" in text
    assert "model-index" not in text
    assert "unrecorded versions" in text


def test_undefined_scores_are_no_numbers(root: Path):
    text = text_of(changed(root), scores=SCORES)
    assert "| 0.250 | – | -0.500 |" in text
    data = ModelCard(text).data
    assert [(result.metric_name, result.metric_value) for result in data.eval_results] == [
        ("CCC valence", 0.25),
        ("CCC mean", -0.5),
    ]
    nothing = SCORES.model_copy(update={"ccc": dict.fromkeys(("valence", "arousal", "mean"))})
    assert "| – | – | – |" in text_of(changed(root), scores=nothing)


def test_what_is_given_is_said(root: Path):
    config = changed(root, data={"fold": 2})
    text = text_of(config, scores=SCORES, name="A: b", license="cc-by-nc-4.0", dataset="org/faces")
    data = ModelCard(text).data
    assert (data.license, data.datasets, data.model_name) == ("cc-by-nc-4.0", ["org/faces"], "A: b")
    assert {result.dataset_type for result in data.eval_results} == {"org/faces"}
    assert "\n# A: b\n" in text
    assert "fold 2, published folds of org/faces" in text
    assert "Trained on org/faces." in text
    assert "Of these weights: cc-by-nc-4.0." in text


def test_kinds_of_models_are_told_apart(root: Path):
    plain = text_of(changed(root, model={"fusion": {"kind": "rjcma"}}))
    assert "`rjcma`, 2 steps, time absolute" in plain  # the published number of steps
    assert "| head | rjcma |" in plain
    assert "`small`, started from random values, trained" in plain
    single = text_of(changed(root, model={"modalities": ["audio"], "targets": ["arousal"]}))
    assert "\n# Arousal from audio\n" in single
    assert "| fusion |" not in single
    assert "| words |" not in single
    assert "face encoder" not in single
    assert "need a model of valence beside this one" in single
    assert "needs a model of the other target" not in plain
    audio = {"kind": "vggish", "pretrained": "vggish-10086976.pth", "frozen": True}
    assert "`vggish`, started from `vggish-10086976.pth`, frozen" in text_of(changed(root, model={"audio": audio}))


@pytest.mark.parametrize("m", ["face", "audio"])
def test_a_pretrained_encoder_is_named_and_its_configuration_left_out(root: Path, m: str):
    encoder = {"kind": "hf", "hf": "org/encoder", "hf_config": {"model_type": "mine", "made_up_key": 17}}
    text = text_of(changed(root, model={m: encoder}))
    row = next(line for line in text.splitlines() if line.startswith(f"| {m} encoder"))
    assert "pretrained `org/encoder`" in row and "random" not in row
    assert "made_up_key" not in text and "hf_config" not in text


def test_faces_that_were_provided_are_told(root: Path):
    assert "cropped_aligned" not in text_of(changed(root))
    config = changed(root).model_copy(update={"face_source": "provided"})
    assert "cropped_aligned" in text_of(config)


def test_language_and_extra_follow_from_the_preprocessing(root: Path):
    speech = {"speech": {"language": "de", "model": "packaged"}}
    config = changed(root, preprocessing=speech)
    assert ModelCard(text_of(config)).data.language == "de"
    assert "extra `offline-models`" in text_of(config)
    without_words = changed(root, preprocessing=speech, model={"modalities": ["face", "audio"]})
    assert ModelCard(text_of(without_words)).data.get("language") is None
    assert "offline-models" not in text_of(changed(root))


def test_card_of_a_network_nobody_trained_is_made_as_well(root: Path):
    """As push_to_hub of a model from Python does."""
    config = changed(root)
    card = TrainedRCMA(config).generate_model_card(license="mit")
    assert card.data.license == "mit"
    assert "Not evaluated" in card.text
