"""Speech encoders of Hugging Face as audio backbones: small random ones, written by the tests, against transformers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_features import WIDTH, data_settings, make_data, make_features, make_labels
from transformers import (
    AutoModel,
    BertConfig,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
)

import rcma
from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.features.folder import Features, load_features
from rcma import cli
from rcma.config import ModelSettings, TrainConfig
from rcma.data import Embeddings, WindowDataset, check_features, cut_window, embed_videos, open_training_data
from rcma.model.hf_encoders import HFSpeech, speech_config
from rcma.model.network import RCMA
from rcma.prediction import Checkpoints, predict_video
from rcma.prediction.postprocess import present_modalities
from rcma.training.loop import train

WITH_WAVEFORM = PreprocessConfig.model_validate({"audio": {"waveform": True}})
LENGTH = 32
SIZES: dict[str, Any] = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "wav2vec2": lambda: Wav2Vec2Model(Wav2Vec2Config(**SIZES)),
    "large": lambda: Wav2Vec2Model(Wav2Vec2Config(**SIZES, do_stable_layer_norm=True, feat_extract_norm="layer")),
    "adapter": lambda: Wav2Vec2Model(Wav2Vec2Config(**SIZES, add_adapter=True, output_hidden_size=10)),
    "hubert": lambda: HubertModel(HubertConfig(**SIZES)),
    "wavlm": lambda: WavLMModel(WavLMConfig(**SIZES)),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def write_encoder(folder: Path, kind: str = "wav2vec2", *, do_normalize: bool | None = True) -> PreTrainedModel:
    torch.manual_seed(3)
    encoder = ENCODERS[kind]().eval()
    encoder.save_pretrained(folder)
    if do_normalize is not None:
        Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    return encoder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features with waveforms, annotations, and a wav2vec2."""
    folder = tmp_path_factory.mktemp("speech")
    make_data(folder, n_train=2, n_validation=1, n_frames=60, config=WITH_WAVEFORM)
    write_encoder(folder / "wav2vec2")
    return folder


def config_for(root: Path, encoder: Path, **sections: dict) -> TrainConfig:
    tree = {
        "data": {"features": root / "features", "annotations": root / "annotations", "hop": 20},
        "model": {
            "length": LENGTH,
            "face": {"kind": "small", "frozen": True},
            "audio": {"kind": "hf", "hf": str(encoder), "frozen": True},
            "tcn": {"face": [8], "audio": [8], "text": [8], "kernel_size": 3},
            "fusion": {"steps": 1, "dropout": 0.1},
        },
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 3e-3, "warmup_epochs": 1, "seed": 7},
    }
    for section, values in sections.items():
        for key, value in values.items():
            tree[section][key] = {**tree[section][key], **value} if isinstance(value, dict) else value
    return TrainConfig.model_validate(tree)


SPEECH = ModelSettings.model_validate({"text_width": WIDTH, "audio": {"kind": "hf", "hf": "a speech encoder"}})
"""Takes the waveform; of the encoder nothing is read here."""


def cut(features: Features, *, alignment: str = "start", length: int = LENGTH) -> dict[str, torch.Tensor]:
    return cut_window(
        features,
        0,
        model=SPEECH,
        length=length,
        audio_alignment=alignment,  # type: ignore[arg-type]
    )


# What is cut.


@pytest.mark.parametrize("alignment", ["start", "centre", "end"])
def test_a_window_holds_the_samples_of_each_frame_where_the_patch_is(root: Path, alignment: str) -> None:
    features = load_features(root / "features" / "video1")
    assert features.waveform is not None
    window, patches = (
        cut_window(features, 0, model=model, length=70, audio_alignment=alignment)  # type: ignore[arg-type]
        for model in (SPEECH, ModelSettings(text_width=WIDTH))
    )
    assert window["audio"].shape == (70, 96, 160)
    assert window["audio"].dtype == torch.float32
    assert torch.equal(window["audio_mask"], patches["audio_mask"])
    present = present_modalities(features, audio_alignment=alignment)["audio"]  # type: ignore[arg-type]
    np.testing.assert_array_equal(window["audio_mask"][:60], present)
    before_s = {"start": 0.0, "centre": 0.48, "end": 0.96}[alignment]
    for frame, there in enumerate(window["audio_mask"].tolist()):
        first = round((frame / 25 - before_s) * 16000)
        expected = features.waveform[first : first + 15360] if there else np.zeros(15360)
        np.testing.assert_array_equal(window["audio"][frame].flatten(), expected)
    assert not window["audio_mask"].all()
    assert window["audio_mask"].any()


# The encoder.


@pytest.mark.parametrize("kind", list(ENCODERS))
@pytest.mark.parametrize("do_normalize", [True, False])
def test_an_embedding_is_the_mean_of_transformers_hidden_states(tmp_path: Path, kind: str, do_normalize: bool) -> None:
    write_encoder(tmp_path, kind, do_normalize=do_normalize)
    network = HFSpeech(speech_config(str(tmp_path)))
    network.load_pretrained(str(tmp_path))
    network.eval()
    rng = np.random.default_rng(0)
    # One of them faint and off centre, one silent.
    sounds = rng.normal(size=(3, 15360)).astype(np.float32) * np.float32([[0.3], [0.01], [0]]) + np.float32(
        [[0.1], [0.002], [0]]
    )
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    reference = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        given = network(torch.tensor(sounds).reshape(3, 96, 160))
        for sound, embedding in zip(sounds, given, strict=True):
            heard = extractor(sound, sampling_rate=16000, return_tensors="pt")
            hidden = reference(heard.input_values).last_hidden_state[0]
            torch.testing.assert_close(embedding, hidden.mean(dim=0), atol=2e-4, rtol=1e-3)
    assert given.shape == (3, network.width) == (3, 10 if kind == "adapter" else 12)
    assert (given[0] - given[1]).norm() > 1e-3


def test_training_hides_nothing_and_reaches_every_parameter(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    network = HFSpeech(speech_config(str(tmp_path)))
    network.load_pretrained(str(tmp_path))
    sound = torch.randn((4, 96, 160), generator=torch.Generator().manual_seed(0))
    outputs = []
    for numpy_seed in (0, 1):
        np.random.seed(numpy_seed)  # what transformers draws its masks from
        torch.manual_seed(5)
        outputs.append(network.train()(sound))
    assert torch.equal(*outputs)
    outputs[0].square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_a_half_precision_encoder_is_read_as_float32(tmp_path: Path) -> None:
    write_encoder(tmp_path / "whole").half().save_pretrained(tmp_path / "half")
    network = HFSpeech(speech_config(str(tmp_path / "half")))
    network.load_pretrained(str(tmp_path / "half"))
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def broken_encoder(folder: Path, how: str) -> None:
    if how == "text":
        BertConfig(hidden_size=8, num_attention_heads=2).save_pretrained(folder)
    elif how == "spectrogram":
        WhisperConfig(d_model=8).save_pretrained(folder)
    elif how == "rate":
        write_encoder(folder, do_normalize=None)
        Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder)
    elif how == "weights":
        write_encoder(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("nowhere", "give a folder or a hub name"),
        ("text", "no encoder of sound samples"),
        ("spectrogram", "no encoder of sound samples"),
        ("rate", "it takes 8000 Hz, not 16000 Hz"),
        ("weights", r"it holds no weights for encoder\.layers\.2"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_one_line(root: Path, tmp_path: Path, how: str, says: str) -> None:
    broken_encoder(tmp_path / "encoder", how)
    with pytest.raises(InputError, match=r"^model\.audio\.hf: .*encoder") as error:
        train(config_for(root, tmp_path / "encoder"), tmp_path / "run", device="cpu")
    assert says.replace("\\", "") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_encoder_that_does_not_say_is_given_standardised_sound(tmp_path: Path) -> None:
    write_encoder(tmp_path, do_normalize=None)
    sound = torch.randn((2, 96, 160)) * 0.1
    network = HFSpeech(speech_config(str(tmp_path))).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(sound), network(sound * 5), atol=1e-4, rtol=1e-3)


# The whole model.


@pytest.fixture(scope="module")
def model(root: Path) -> RCMA:
    settings = config_for(root, root / "wav2vec2").model
    audio = settings.audio.model_copy(update={"hf_config": speech_config(str(root / "wav2vec2"))})
    torch.manual_seed(0)
    model = RCMA(settings.model_copy(update={"audio": audio, "text_width": WIDTH}))
    model.load_backbones()
    return model.eval()


def test_the_model_hears_samples_under_the_mask_alone(model: RCMA, root: Path) -> None:
    window = cut(load_features(root / "features" / "video0"))
    batch = {name: value[None] for name, value in window.items()}
    with torch.no_grad():
        before = model(batch)
        changed = {**batch, "audio": batch["audio"].masked_fill(~batch["audio_mask"][..., None, None], 9.0)}
        assert torch.equal(model(changed), before)
        mask = batch["audio_mask"]
        assert 0 < mask.sum() < mask.numel()
        embedded = model.embed("audio", batch["audio"], mask)
        expected = model.backbone["audio"](batch["audio"][mask])
        torch.testing.assert_close(embedded[mask], expected, atol=1e-5, rtol=1e-4)
        assert not embedded[~mask].any()
        torch.testing.assert_close(model({**batch, "audio": embedded}), before, atol=1e-5, rtol=1e-4)
        louder = {**batch, "audio": batch["audio"] + torch.sin(torch.arange(160.0))}
        assert not torch.allclose(model(louder), before, atol=1e-4)
    with pytest.raises(ValueError, match=r"audio: the shape must be \(B,L,96,160\) or \(B,L,12\)"):
        model({**batch, "audio": torch.zeros((1, LENGTH, 96, 64))})


def test_a_frozen_encoder_stays_and_a_thawed_one_learns(root: Path, tmp_path: Path) -> None:
    weights = AutoModel.from_pretrained(root / "wav2vec2").state_dict()
    for frozen in (True, False):
        config = config_for(root, root / "wav2vec2", model={"audio": {"frozen": frozen}})
        train(config, tmp_path / str(frozen), device="cpu")
        model = rcma.load_model(tmp_path / str(frozen)).train()
        encoder = model.backbone["audio"].model
        assert encoder.training is not frozen
        same = [torch.equal(value, weights[name]) for name, value in encoder.state_dict().items()]
        assert all(same) if frozen else not any(same)


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_a_run_needs_the_encoder_no_more(root: Path, tmp_path: Path, kind: str) -> None:
    encoder = write_encoder(tmp_path / kind, kind, do_normalize=False)
    train(config_for(root, tmp_path / kind), tmp_path / "run", device="cpu")
    shutil.rmtree(tmp_path / kind)
    model = rcma.load_model(tmp_path / "run")
    loaded, before = model.backbone["audio"].model.state_dict(), encoder.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in loaded.items())
    assert before.keys() - loaded.keys() == {"masked_spec_embed"}  # only their training needs it
    assert model.config.model.audio.hf_config is not None
    assert model.config.model.audio.hf_config["do_normalize"] is False
    assert Checkpoints([model]).preprocessing().audio.waveform
    assert np.isfinite(rcma.Predictor(model)(root / "features" / "video2").values).all()


def test_embeddings_on_disk_are_what_the_encoder_says(root: Path, tmp_path: Path) -> None:
    config = config_for(root, root / "wav2vec2", data={"embeddings": tmp_path / "embeddings", "augmentations": 2})
    train(config, tmp_path / "run", device="cpu")
    model = rcma.load_model(tmp_path / "run")
    videos = open_training_data(config.data).validation

    def stored() -> Embeddings:
        folder = tmp_path / "embeddings"
        return embed_videos(folder, model, videos, n_views=2, audio_alignment="start", on_video=lambda *_: None)

    features = load_features(root / "features" / "video2")
    before = stored()
    embedded = before.read("video2", 0)
    window = cut(features, length=60)
    np.testing.assert_array_equal(~np.isnan(embedded["audio"][:, 0]), window["audio_mask"])
    raw, read = (
        predict_video(model, features, hop=20, audio_alignment="start", embeddings=given) for given in (None, embedded)
    )
    np.testing.assert_allclose(read, raw, atol=2e-3)
    # The same weights, but hearing other sound: what is on disk no longer serves.
    audio = model.settings.audio
    other = {**(audio.hf_config or {}), "do_normalize": False}
    model.settings = model.settings.model_copy(update={"audio": audio.model_copy(update={"hf_config": other})})
    assert stored().paths["video2"]["audio"] != before.paths["video2"]["audio"]


def test_features_without_waveform_are_refused_in_one_line(root: Path, tmp_path: Path, model: RCMA) -> None:
    make_data(tmp_path, n_train=2, n_validation=1, n_frames=60)
    message = "its features hold no waveform; preprocess it with --set audio.waveform=true"
    shutil.rmtree(tmp_path / "features" / "video0")
    shutil.copytree(root / "features" / "video0", tmp_path / "features" / "video0")
    with pytest.raises(InputError, match=f"^video1: {message}$"):
        train(config_for(tmp_path, root / "wav2vec2"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=f"^video2: {message}$"):
        rcma.Predictor(model)(tmp_path / "features" / "video2")
    # It is of no use to a model that does not listen.
    for changed in ({"modalities": ["face", "text"]}, {"audio": {"kind": "small", "hf": None}}):
        train(config_for(tmp_path, root / "wav2vec2", model=changed), tmp_path / f"run{len(changed)}", device="cpu")
        shutil.rmtree(tmp_path / f"run{len(changed)}")


def test_sound_of_any_kind_is_missing_where_there_is_none(tmp_path: Path, model: RCMA) -> None:
    silent = make_features(tmp_path / "v", make_labels(40, 0), seed=0, audio=False, config=WITH_WAVEFORM)
    assert silent.waveform is not None
    assert not cut(silent)["audio_mask"].any()
    assert np.isfinite(rcma.Predictor(model)(silent).values).all()
    with pytest.raises(InputError, match="no waveform"):
        check_features(SPEECH, dataclasses.replace(silent, waveform=None))


def test_training_windows_hold_samples(root: Path) -> None:
    data = open_training_data(data_settings(root))
    dataset = WindowDataset(
        data.train,
        model=SPEECH.model_copy(update={"length": LENGTH}),
        hop=20,
        audio_alignment="start",
        seed=0,
    )
    expected = cut(data.train[0].features())
    assert torch.equal(dataset[0]["audio"], expected["audio"])


@pytest.mark.slow
def test_a_raw_clip_is_preprocessed_with_its_waveform(
    root: Path, tmp_path: Path, short_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = PreprocessConfig.model_validate({"audio": {"waveform": True}, "speech": {"backend": "none"}})
    make_data(tmp_path, n_train=2, n_validation=1, n_frames=60, config=quiet)
    train(config_for(tmp_path, root / "wav2vec2"), tmp_path / "run", device="cpu")
    prediction = rcma.Predictor(rcma.load_model(tmp_path / "run"))(short_clip).values
    assert prediction.shape == (12, 2)
    arguments = ["--checkpoint", str(tmp_path / "run"), str(short_clip), "--out", str(tmp_path / "out")]
    assert cli.predict.main([*arguments, "--device", "cpu"]) == 0
    written = np.loadtxt(tmp_path / "out" / "short.txt", delimiter=",", skiprows=1)
    np.testing.assert_allclose(written, prediction, atol=1e-6)
    features = load_features(tmp_path / "out" / "features" / "short")
    assert features.waveform is not None
    # All frames begin inside half a second of sound, which is padded by a second.
    assert present_modalities(features, audio_alignment="start")["audio"].all()
