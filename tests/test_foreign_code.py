"""Models of other people: Python code that lies beside an encoder, or that a configuration names, is never run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from preprocessing.config import WordSettings
from preprocessing.errors import InputError
from preprocessing.speech.words import WordEncoder
from rcma.model.hf_encoders import HFSpeech, HFVision, speech_config, vision_config

CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel

Path({trace!r}).touch()


class Config(PretrainedConfig):
    model_type = "mine"


class Model(PreTrainedModel):
    config_class = Config
"""
AUTO_MAP = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}

READERS: dict[str, Callable[[str], object]] = {
    "words.model": lambda folder: WordEncoder(WordSettings(model=folder), device="cpu"),
    "model.face.hf": vision_config,
    "model.audio.hf": speech_config,
}


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Exists as soon as the code was imported; whoever is asked on the terminal says yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    return tmp_path / "trace"


@pytest.fixture
def encoder(tmp_path: Path, trace: Path) -> Path:
    """A folder with an encoder that transformers does not know, and the code for it."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": AUTO_MAP, "image_size": 8}))
    (folder / "code.py").write_text(CODE.format(trace=str(trace)))
    return folder


@pytest.mark.parametrize("key", READERS)
def test_code_beside_an_encoder_is_neither_run_nor_asked_about(
    key: str, encoder: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=rf"^{key}: ") as error:
        READERS[key](str(encoder))
    assert "\n" not in str(error.value)
    assert not trace.exists()
    assert "[y/N]" not in capsys.readouterr().out


@pytest.mark.parametrize("network", [HFVision, HFSpeech])
def test_code_that_a_checkpoint_names_is_neither_run_nor_asked_about(
    network: type[HFVision | HFSpeech], encoder: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The configuration of an encoder comes with the model that was trained with it."""
    kind = min(CONFIG_MAPPING_NAMES.keys() - MODEL_MAPPING_NAMES.keys())
    with pytest.raises(ValueError, match="onfig"):
        network({"model_type": kind, "auto_map": {"AutoModel": f"{encoder}--code.Model"}})
    assert not trace.exists()
    assert "[y/N]" not in capsys.readouterr().out
