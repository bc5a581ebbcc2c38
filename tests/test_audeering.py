"""The voice expert: a small network with the published names against its equations, and its windows."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from made_audeering import write_model
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from preprocessing.errors import InputError
from rcma.experts.audeering import AudeeringExpert

RATE = 16000
HEADS, GROUPS = 2, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("audeering") / "model")


@pytest.fixture(scope="module")
def expert(folder: Path) -> AudeeringExpert:
    return AudeeringExpert(folder)


def forward(weights: dict[str, Tensor], samples: NDArray[np.float32]) -> Tensor:
    """Arousal, dominance, valence by the equations of wav2vec 2.0 with layer norm before each block, in float64."""
    w = {name.removeprefix("wav2vec2."): value.double() for name, value in weights.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    signal = torch.from_numpy(samples).double()
    x = ((signal - signal.mean()) / torch.sqrt(signal.var(correction=0) + 1e-7))[None, None]
    for k, stride in enumerate((8, 8, 5)):
        name = f"feature_extractor.conv_layers.{k}"
        x = F.conv1d(x, w[f"{name}.conv.weight"], w[f"{name}.conv.bias"], stride=stride)
        x = gelu(norm(f"{name}.layer_norm", x.mT)).mT
    x = linear("feature_projection.projection", norm("feature_projection.layer_norm", x[0].T))  # (T,16)
    name = "encoder.pos_conv_embed.conv"
    v, g = w[f"{name}.weight_v"], w[f"{name}.weight_g"]
    kernel = g * v / v.square().sum(dim=(0, 1), keepdim=True).sqrt()
    position = F.conv1d(x.T[None], kernel, w[f"{name}.bias"], padding=3, groups=GROUPS)[..., :-1]
    x = x + gelu(position)[0].T
    for k in range(2):
        name = f"encoder.layers.{k}"
        y = norm(f"{name}.layer_norm", x)
        q, key, value = (linear(f"{name}.attention.{p}_proj", y).reshape(len(y), HEADS, -1).mT for p in "qkv")
        heads = []
        for h in range(HEADS):
            scores = q[:, :, h] @ key[:, :, h].T / math.sqrt(16 / HEADS)
            heads.append(torch.softmax(scores, dim=-1) @ value[:, :, h])
        x = x + linear(f"{name}.attention.out_proj", torch.cat(heads, dim=-1))
        y = gelu(linear(f"{name}.feed_forward.intermediate_dense", norm(f"{name}.final_layer_norm", x)))
        x = x + linear(f"{name}.feed_forward.output_dense", y)
    mean = norm("encoder.layer_norm", x).mean(dim=0)
    return linear("classifier.out_proj", torch.tanh(linear("classifier.dense", mean)))


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0.01, 0.1, round(seconds * RATE)).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.5, 4.0])
def test_one_window_equals_the_equations(folder: Path, expert: AudeeringExpert, seconds: float) -> None:
    samples = noise(seconds)
    arousal, _, valence = forward(load_file(folder / "model.safetensors"), samples).tolist()
    assert 0 < arousal < 1 and 0 < valence < 1 and abs(arousal - valence) > 0.01
    np.testing.assert_allclose(expert.listen(samples), [2 * valence - 1, 2 * arousal - 1], atol=1e-5)


def test_is_indifferent_to_gain_and_offset(expert: AudeeringExpert) -> None:
    samples = noise(1.0)
    np.testing.assert_allclose(expert.listen(0.25 * samples + 0.1), expert.listen(samples), atol=1e-3)


def test_windows_lie_around_every_second_and_are_interpolated(expert: AudeeringExpert) -> None:
    samples, start_s = noise(9.5), 0.25
    time_s = np.arange(0, 10, 0.04)
    values = expert(samples, start_s, [(0.0, 20.0)], time_s)
    assert values.dtype == np.float32 and values.shape == (len(time_s), 2)
    ends = [0.0, *np.arange(1.0, 10.0), 9.5]  # seconds into the sound
    windows = [samples[max(0, round((c - 2) * RATE)) : round((c + 2) * RATE)] for c in ends]
    at_centres = np.stack([expert.listen(window) for window in windows])
    inside = (time_s >= start_s) & (time_s <= start_s + 9.5)
    for column in range(2):
        expected = np.interp(time_s[inside] - start_s, ends, at_centres[:, column])
        np.testing.assert_allclose(values[inside, column], expected, atol=1e-5)
    assert np.isnan(values[~inside]).all()


def test_only_windows_with_speech_have_a_value(expert: AudeeringExpert) -> None:
    time_s = np.arange(0, 30, 0.04)
    values = expert(noise(30), 0.0, [(10.0, 12.0), (27.0, 27.2)], time_s)
    known = np.isfinite(values).all(axis=1)
    assert known[(time_s >= 10) & (time_s <= 12)].all()
    # A window holds half a second of that speech if its centre lies between 8.5 and 13.5.
    assert not known[(time_s < 8.5) | (time_s > 13.5)].any()
    assert np.isnan(expert(noise(5), 0.0, [], time_s)).all()


def test_a_recording_shorter_than_a_window(expert: AudeeringExpert) -> None:
    time_s = np.arange(0, 1.5, 0.04)
    values = expert(noise(1.5), 0.0, [(0.2, 1.2)], time_s)
    assert np.isfinite(values).all() and (np.abs(values) <= 1).all()
    assert np.isnan(expert(noise(0.0), 0.0, [(0.0, 1.0)], time_s)).all()


@pytest.mark.parametrize("prefix", ["classifier.dense.bias", "wav2vec2.encoder.layers.1."])
def test_missing_weights_are_refused(tmp_path: Path, prefix: str) -> None:
    folder = write_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model") as error:
        AudeeringExpert(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_pickles_are_never_read(tmp_path: Path) -> None:
    folder, trace = write_model(tmp_path / "model"), tmp_path / "trace"
    data = pickle.dumps(_Touch(str(trace)))
    (folder / "pytorch_model.bin").write_bytes(data)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError):
        AudeeringExpert(folder)
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError):
        AudeeringExpert(folder)
    assert not trace.exists()
