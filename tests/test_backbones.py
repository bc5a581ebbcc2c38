"""Backbones: layers against transcriptions from the names of the published weights, and loading of weight files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preprocessing.errors import InputError
from rcma.model.backbones import IR50, SmallAudioNet, SmallFaceNet, VGGish
from rcma.model.hf_encoders import HFVision, vision_config
from rcma.model.weight_files import load_backbone_weights


def randomise_statistics(net: nn.Module) -> None:
    """Give BatchNorm and PReLU values that are not their defaults, so that a wrong place shows."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.2)
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.1)
            if isinstance(module, nn.PReLU):
                module.weight.uniform_(0.1, 0.4)


@pytest.fixture(scope="module")
def ir50() -> IR50:
    torch.manual_seed(0)
    net = IR50().eval()
    randomise_statistics(net)
    return net


@pytest.fixture(scope="module")
def vggish() -> VGGish:
    torch.manual_seed(0)
    return VGGish().eval()


def ir50_from_names(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """IR-50 read off the names of its weights; a unit strides where its shortcut or its place in the body says so."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, w[name + ".running_mean"], w[name + ".running_var"], w[name + ".weight"], w[name + ".bias"]
        )

    x = F.conv2d(x, w["input_layer.0.weight"], padding=1)
    x = F.prelu(norm("input_layer.1", x), w["input_layer.2.weight"])
    for unit in range(3 + 4 + 14 + 3):
        stride = 2 if unit in (3, 7, 21) else 1  # first units of the stages with 128, 256 and 512 channels
        res = f"body.{unit}.res_layer"
        y = F.conv2d(norm(f"{res}.0", x), w[f"{res}.1.weight"], padding=1)
        y = F.conv2d(F.prelu(y, w[f"{res}.2.weight"]), w[f"{res}.3.weight"], padding=1, stride=stride)
        if stride == 2:
            x = norm(f"body.{unit}.shortcut_layer.1", F.conv2d(x, w[f"body.{unit}.shortcut_layer.0.weight"], stride=2))
        x = norm(f"{res}.4", y) + x
    assert x.shape[1:] == (512, 5, 5)
    x = F.linear(norm("output_layer.0", x).reshape(len(x), -1), w["output_layer.3.weight"], w["output_layer.3.bias"])
    x = norm("output_layer.4", x)
    return x / x.square().sum(dim=1, keepdim=True).sqrt()


def test_ir50_equals_its_transcription(ir50: IR50) -> None:
    faces = torch.rand((3, 3, 40, 40)) * 2 - 1
    with torch.no_grad():
        embedding = ir50(faces)
        expected = ir50_from_names(ir50.state_dict(), faces)
    torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    assert (embedding[0] - embedding[1]).norm() > 1e-3, "different faces, different embeddings"


def test_ir50_has_the_published_number_of_parameters(ir50: IR50) -> None:
    assert sum(p.numel() for p in ir50.parameters()) == pytest.approx(37.3e6, abs=0.05e6)


def vggish_from_names(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """VGGish read off the names of its weights."""
    x = x[:, None]
    for layer in (0, 3, 6, 8, 11, 13):
        x = F.relu(F.conv2d(x, w[f"features.{layer}.weight"], w[f"features.{layer}.bias"], padding=1))
        if layer in (0, 3, 8, 13):
            x = F.max_pool2d(x, 2)
    rows = [torch.cat([x[n, :, i, j] for i in range(6) for j in range(4)]) for n in range(len(x))]
    x = torch.stack(rows)  # the channels of a place side by side
    for layer in (0, 2):
        x = F.relu(F.linear(x, w[f"embeddings.{layer}.weight"], w[f"embeddings.{layer}.bias"]))
    return F.linear(x, w["embeddings.4.weight"], w["embeddings.4.bias"])


def test_vggish_equals_its_transcription(vggish: VGGish) -> None:
    patches = torch.randn((2, 96, 64))
    with torch.no_grad():
        embedding = vggish(patches)
        torch.testing.assert_close(embedding, vggish_from_names(vggish.state_dict(), patches), atol=1e-6, rtol=1e-4)
    assert embedding.shape == (2, 128)
    assert (embedding < 0).any(), "no ReLU at the end"


SMALL = [(SmallFaceNet, (3, 40, 40)), (SmallAudioNet, (96, 64))]


@pytest.mark.parametrize(("kind", "shape"), SMALL)
def test_a_small_net_treats_each_frame_alone(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net, frames = kind().train(), torch.randn((5, *shape))
    together = net(frames)
    assert together.shape == (5, 64)
    torch.testing.assert_close(together[1:3], net(frames[1:3]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "shape"), SMALL)
def test_every_parameter_of_a_small_net_gets_a_gradient(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = kind()
    net(torch.randn((4, *shape))).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("side", [32, 40, 44, 96])
def test_the_small_face_net_takes_other_sides(side: int) -> None:
    assert SmallFaceNet()(torch.rand((2, 3, side, side))).shape == (2, 64)


def fit(net: nn.Module, frames: Tensor, values: Tensor, *, n_train: int, epochs: int) -> float:
    """Share of the variance of held-out values (N,) that a short training explains."""
    torch.manual_seed(0)
    model = nn.Sequential(net, nn.ReLU(), nn.Linear(64, 1))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    values = (values - values.mean()) / values.std()
    for _ in range(epochs):
        for chosen in torch.randperm(n_train).split(50):
            loss = (model(frames[chosen])[:, 0] - values[chosen]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        error = (model.eval()(frames[n_train:])[:, 0] - values[n_train:]).square().mean()
    return 1.0 - (error / values[n_train:].var()).item()


def test_the_small_face_net_learns_the_bend_of_a_mouth() -> None:
    rng = torch.Generator().manual_seed(0)
    bend = torch.rand(600, generator=rng) * 2 - 1
    shift = torch.randint(-2, 3, (600, 2), generator=rng)
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    faces = torch.rand((600, 3, 1, 1), generator=rng).expand(600, 3, 40, 40).clone()
    for face, b, (down, right) in zip(faces, bend, shift, strict=True):
        u, v = columns - 20 - right, rows - 28 - down
        face[:, (u.abs() < 7) & ((v + 3 * b * ((u / 7) ** 2 - 0.5)).abs() < 1)] = -1.0
    faces += 0.05 * torch.randn(faces.shape, generator=rng)
    assert fit(SmallFaceNet(), faces, bend, n_train=500, epochs=4) > 0.8


@pytest.mark.parametrize(("what", "explained"), [("level", 0.995), ("band", 0.95), ("rate", 0.85)])
def test_the_small_audio_net_learns_level_band_and_rate(what: str, explained: float) -> None:
    rng = torch.Generator().manual_seed(0)
    level, band, rate = (torch.rand(600, generator=rng) for _ in range(3))
    time, bands = torch.arange(96) / 100.0, torch.arange(64.0)
    phase = torch.rand((600, 1), generator=rng) * 2 * torch.pi
    syllables = torch.sin(2 * torch.pi * (2 + 6 * rate[:, None]) * time + phase)  # 2 to 8 Hz
    tone = torch.exp(-(((bands - 10 - 40 * band[:, None]) / 4) ** 2))
    patches = 2 * level[:, None, None] - 1 + tone[:, None, :] * (1 + syllables[:, :, None])
    patches += 0.1 * torch.randn(patches.shape, generator=rng)
    values = {"level": level, "band": band, "rate": rate}[what]
    assert fit(SmallAudioNet(), patches, values, n_train=500, epochs=6) > explained


def test_published_networks_refuse_other_shapes(ir50: IR50, vggish: VGGish) -> None:
    with pytest.raises(ValueError, match=r"log-mel patches: the shape must be \(N,96,64\), given: \(2, 64, 96\)"):
        vggish(torch.zeros((2, 64, 96)))
    with pytest.raises(ValueError, match=r"face crops: the shape must be \(N,3,40,40\), given: \(1, 3, 48, 48\)"):
        ir50(torch.zeros((1, 3, 48, 48)))


def other_weights(net: nn.Module) -> dict[str, Tensor]:
    """A state dict that fits the net and differs from it everywhere."""
    return {name: value + 1 for name, value in net.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_weight_files_load_with_and_without_prefix_and_classifier(tmp_path: Path, prefix: str) -> None:
    net = SmallFaceNet()
    weights = other_weights(net)
    content = {prefix + name: value for name, value in weights.items()}
    if prefix:
        content |= {"logits.weight": torch.zeros((8, 64)), "logits.bias": torch.zeros(8)}
    torch.save(content, tmp_path / "weights.pth")
    load_backbone_weights(net, tmp_path / "weights.pth")
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_ir50_loads_a_file_like_its_authors(ir50: IR50, tmp_path: Path) -> None:
    weights = {f"backbone.{n}": v for n, v in ir50.state_dict().items() if not n.endswith("num_batches_tracked")}
    weights |= {"logits.weight": torch.zeros((8, 512)), "logits.bias": torch.zeros(8)}
    torch.save(weights, tmp_path / "res50_ir_0.887.pth")
    net = IR50().eval()
    load_backbone_weights(net, tmp_path / "res50_ir_0.887.pth")
    faces = torch.rand((1, 3, 40, 40))
    with torch.no_grad():
        assert torch.equal(net(faces), ir50(faces))


def broken(content: dict[str, Tensor], how: str) -> object:
    if how == "missing":
        del content["embedding.bias"]
    elif how == "surplus":
        content["embedding.biass"] = content["embedding.bias"]
    elif how == "misshapen":
        content["embedding.bias"] = torch.zeros(3)
    elif how == "nested":
        return {"state_dict": content}
    return content


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "w.pth: no entry 'embedding.bias', of shape (64,)"),
        ("surplus", "w.pth: unknown entry 'embedding.biass'; the nearest right name is 'embedding.bias'"),
        ("misshapen", "w.pth: 'embedding.bias' has shape (3,); it should be (64,)"),
        ("nested", "w.pth: not a dictionary of named tensors"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_the_entry(tmp_path: Path, how: str, message: str) -> None:
    net = SmallFaceNet()
    before = other_weights(net)
    torch.save(broken(net.state_dict(), how), tmp_path / "w.pth")
    with pytest.raises(InputError) as error:
        load_backbone_weights(net, tmp_path / "w.pth")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(value + 1, before[name]) for name, value in net.state_dict().items()), "nothing was loaded"


class Trainer:
    """Stands for the pickled trainers that some projects publish."""


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 broken"])
def test_a_file_that_is_not_a_checkpoint_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pth: not a file of weights alone") as error:
        load_backbone_weights(SmallFaceNet(), tmp_path / "w.pth")
    assert "\n" not in str(error.value)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    torch.save(Trainer(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: not a file of weights alone"):
        load_backbone_weights(SmallFaceNet(), tmp_path / "w.pth")


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_backbone_weights(SmallFaceNet(), tmp_path / "w.pth")


def test_a_vision_encoder_is_read_as_float32_and_whole(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTModel(config).half().save_pretrained(tmp_path / "half")
    network = HFVision(vision_config(str(tmp_path / "half")))
    network.load_pretrained(str(tmp_path / "half"))
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    # Its embedding is what the pooler says; a random one would pass for a pretrained one.
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "part")
    with pytest.raises(InputError, match=r"^model\.face\.hf: .*it holds no weights for pooler\.dense"):
        HFVision(vision_config(str(tmp_path / "part"))).load_pretrained(str(tmp_path / "part"))
