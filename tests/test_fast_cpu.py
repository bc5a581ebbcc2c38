from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from made_features import WIDTH, make_features, make_labels
from torch import Tensor, nn

from rcma.config import AudioBackbone, FaceBackbone, ModelSettings, TCNSettings
from rcma.fast_cpu import backbones as fast_backbones
from rcma.fast_cpu.backbones import FastVGGish, optimise, optimised_backbones, overlapping_patches
from rcma.model.backbones import IR50, SmallFaceNet, VGGish
from rcma.model.network import RCMA
from rcma.prediction import predict_video, sliding_window
from rcma.prediction.postprocess import present_modalities


def like_a_trained_one(network: nn.Module) -> nn.Module:
    """Every weight and statistic takes part."""
    random = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
            module.weight.data.uniform_(0.5, 1.5, generator=random)
            module.bias.data.normal_(0, 0.3, generator=random)
        elif isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-0.2, 0.5, generator=random)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.data.normal_(0, 0.1, generator=random)
    return network.eval()


@pytest.fixture(scope="module", params=["IR-50", "VGGish"])
def network_and_inputs(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if request.param == "IR-50":
        return like_a_trained_one(IR50()), torch.rand(6, 3, 40, 40) * 2 - 1
    return like_a_trained_one(VGGish()), torch.randn(6, 96, 64)


def test_the_same_embeddings(network_and_inputs: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch):
    network, x = network_and_inputs
    before = {name: value.clone() for name, value in network.state_dict().items()}
    embed = optimise(network)
    assert embed is not None
    with torch.no_grad():
        expected, threads = network(x), torch.get_num_threads()
        for n, at_once in ((6, 64), (6, 4), (1, 64)):
            monkeypatch.setattr(fast_backbones, "_IMAGES_AT_ONCE", at_once)
            given = embed(x[:n])
            assert given.shape == expected[:n].shape
            assert torch.cosine_similarity(given, expected[:n]).min() > 0.99999
            assert (given - expected[:n]).abs().max() < 1e-3 * expected.std()
        # Neither the order of a batch nor the number of threads is seen in the embeddings.
        order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(embed(x[order]), embed(x)[order], rtol=1e-4, atol=1e-5)
        torch.set_num_threads(3)
        try:
            torch.testing.assert_close(embed(x), expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vggish() -> tuple[nn.Module, FastVGGish]:
    torch.manual_seed(0)
    network = like_a_trained_one(VGGish())
    embed = optimise(network)
    assert isinstance(embed, FastVGGish)
    return network, embed


@pytest.mark.usefixtures("three_threads")
def test_threads_get_what_one_gets_and_leave_the_number_of_threads(vggish: tuple[nn.Module, FastVGGish]):
    _, embed = vggish
    x = torch.randn(4, 96, 64)
    expected = [embed(x[: 1 + k % 4]) for k in range(16)]
    start = threading.Barrier(16)

    def call(k: int) -> tuple[Tensor, int]:
        start.wait()
        return embed(x[: 1 + k % 4]), torch.get_num_threads()

    with ThreadPoolExecutor(16) as callers:
        given = list(callers.map(call, range(16)))
    for (embeddings, n_threads), alone in zip(given, expected, strict=True):
        assert torch.equal(embeddings, alone)
        assert n_threads == 3
    assert torch.get_num_threads() == 3


def patches_from(mel: Tensor, starts: list[int]) -> Tensor:
    return torch.stack([mel[start : start + 96] for start in starts])


@pytest.mark.parametrize(
    "starts",
    [
        pytest.param([4 * k for k in range(9)], id="25 fps"),
        pytest.param([round(k / 0.2997) for k in range(9)], id="29.97 fps"),
        pytest.param([round(k / 1.2) for k in range(9)], id="120 fps"),
        pytest.param([0, 4, 8, 12, 16, 90, 94, 98, 102, 250, 254], id="with gaps"),
        pytest.param([0, 3, 19, 20, 36, 41], id="uneven"),
    ],
)
def test_overlapping_patches_share_their_layers(vggish: tuple[nn.Module, FastVGGish], starts: list[int]):
    network, embed = vggish
    patches = patches_from(torch.randn(400, 64), starts)
    with torch.no_grad():
        expected = network(patches)
        assert (embed(patches) - expected).abs().max() < 1e-4 * expected.std()


def test_rows_that_patches_share_are_computed_once(
    vggish: tuple[nn.Module, FastVGGish], monkeypatch: pytest.MonkeyPatch
):
    _, embed = vggish
    n_pixels = 0
    second = embed._second

    def counted(maps: Tensor) -> Tensor:
        nonlocal n_pixels
        n_pixels += maps.shape[:3].numel()
        return second(maps)

    monkeypatch.setattr(embed, "_second", counted)
    mel, counts = torch.randn(3200, 64), []
    for hop in (4, 96):
        n_pixels = 0
        with torch.no_grad():
            embed(patches_from(mel, [hop * k for k in range(32)]))
        counts.append(n_pixels)
    assert counts[1] == 32 * 48 * 32
    assert counts[0] < counts[1] / 3


def test_overlapping_patches_are_found_by_what_they_hold():
    mel = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    starts = [0, 4, 7, 7, 23, 40, 44, 200]
    found = [(first, rows.tolist()) for first, rows in overlapping_patches(patches_from(mel, starts))]
    assert found == [(0, [0, 4, 7, 7, 23]), (5, [0, 4]), (7, [0])]
    # In silence, all of them look as if they began together.
    assert [rows.tolist() for _, rows in overlapping_patches(torch.zeros(3, 96, 64))] == [[0, 0, 0]]


def test_other_networks_are_not_optimised():
    assert optimise(SmallFaceNet()) is None


def make_model(precision: str = "float32") -> RCMA:
    torch.manual_seed(0)
    settings = ModelSettings(
        length=32,
        text_width=WIDTH,
        face=FaceBackbone.model_validate({"precision": precision}),
        audio=AudioBackbone(),
        tcn=TCNSettings(face=(8,), audio=(8,), text=(8,), kernel_size=3),
    )
    model = RCMA(settings)
    for backbone in model.backbone.values():
        like_a_trained_one(backbone)
    return model.eval()


def test_prediction_on_the_cpu_uses_them(tmp_path, monkeypatch: pytest.MonkeyPatch):
    features = make_features(tmp_path / "video", make_labels(12, 0), seed=0)
    model = make_model()
    calls = {"face": 0, "audio": 0}
    handles = [
        backbone.register_forward_hook(lambda _module, _given, output, m=m: calls.update({m: calls[m] + len(output)}))
        for m, backbone in model.backbone.items()
    ]
    quick = predict_video(model, features, hop=20, audio_alignment="start")
    assert calls == {"face": 0, "audio": 0}
    monkeypatch.setattr(sliding_window, "optimised_backbones", lambda _: {})
    plain = predict_video(model, features, hop=20, audio_alignment="start")
    present = present_modalities(features, audio_alignment="start")
    assert calls == {m: present[m].sum() for m in calls}
    np.testing.assert_allclose(quick, plain, atol=1e-4)
    for handle in handles:
        handle.remove()


def test_another_precision_is_left_alone():
    assert set(optimised_backbones(make_model())) == {"face", "audio"}
    assert set(optimised_backbones(make_model("bfloat16"))) == {"audio"}
    assert optimised_backbones(make_model().to("meta")) == {}
