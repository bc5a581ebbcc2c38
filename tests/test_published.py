"""Checkpoints of the published code: every name and shape, and the numbers, computed straight from the state dict."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from preprocessing.errors import InputError
from rcma.config import MODALITIES
from rcma.model import published
from rcma.model.network import RCMA

Shapes = dict[str, tuple[int, ...]]

PUBLISHED_WIDTHS = {"video": 512, "logmel": 128, "bert": 512}
SMALL_WIDTHS = {"video": 8, "logmel": 4, "bert": 6}
LENGTH, TEXT_WIDTH, STEPS, LEVELS = 12, 10, 2, 2


def batch_norm_shapes(name: str, width: int) -> Shapes:
    shapes: Shapes = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def linear_shapes(name: str, n_in: int, n_out: int) -> Shapes:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def backbone_shapes() -> Shapes:
    visual, audio = "spatial.visual.backbone", "spatial.audio.backbone"
    shapes: Shapes = {f"{visual}.input_layer.0.weight": (64, 3, 3, 3), f"{visual}.input_layer.2.weight": (64,)}
    shapes |= batch_norm_shapes(f"{visual}.input_layer.1", 64) | batch_norm_shapes(f"{visual}.output_layer.0", 512)
    shapes |= linear_shapes(f"{visual}.output_layer.3", 12800, 512)
    shapes |= batch_norm_shapes(f"{visual}.output_layer.4", 512)
    for unit in range(24):
        before, width = next((b, w) for last, b, w in UNITS if unit <= last)
        name = f"{visual}.body.{unit}"
        if unit in (3, 7, 21):
            shapes |= {f"{name}.shortcut_layer.0.weight": (width, before, 1, 1)}
            shapes |= batch_norm_shapes(f"{name}.shortcut_layer.1", width)
        shapes |= batch_norm_shapes(f"{name}.res_layer.0", before)
        shapes |= {f"{name}.res_layer.1.weight": (width, before, 3, 3), f"{name}.res_layer.2.weight": (width,)}
        shapes |= {f"{name}.res_layer.3.weight": (width, width, 3, 3)}
        shapes |= batch_norm_shapes(f"{name}.res_layer.4", width)
    shapes |= linear_shapes("spatial.visual.logits", 512, 8)
    for layer, n_in, n_out in ((0, 1, 64), (3, 64, 128), (6, 128, 256), (8, 256, 256), (11, 256, 512), (13, 512, 512)):
        shapes |= {f"{audio}.features.{layer}.weight": (n_out, n_in, 3, 3), f"{audio}.features.{layer}.bias": (n_out,)}
    for layer, n_in, n_out in ((0, 12288, 4096), (2, 4096, 4096), (4, 4096, 128)):
        shapes |= linear_shapes(f"{audio}.embeddings.{layer}", n_in, n_out)
    return shapes


UNITS = ((2, 64, 64), (3, 64, 128), (6, 128, 128), (7, 128, 256), (20, 256, 256), (21, 256, 512), (23, 512, 512))
"""Last unit of each run of equal units of IR-50, and their widths before and after."""


def published_shapes(widths: dict[str, int], *, length: int, text_width: int, levels: int) -> Shapes:
    """Every name of a published checkpoint with its shape."""
    shapes = backbone_shapes()
    for modality, n_in in (("video", 512), ("logmel", 128), ("bert", text_width)):
        width = widths[modality]
        for level in range(levels):
            name = f"temporal.{modality}.network.{level}"
            before = n_in if level == 0 else width
            for conv, channels in (("conv1", before), ("conv2", width), ("net.0", before), ("net.4", width)):
                shapes |= {f"{name}.{conv}.bias": (width,), f"{name}.{conv}.weight_g": (width, 1, 1)}
                shapes |= {f"{name}.{conv}.weight_v": (width, channels, 5)}
            if before != width:
                shapes |= {f"{name}.downsample.weight": (width, before, 1), f"{name}.downsample.bias": (width,)}
        shapes |= batch_norm_shapes(f"bn.{modality}", width)
    v, a, t = widths["video"], widths["logmel"], widths["bert"]
    for step in range(STEPS):
        name = f"coattn.dcn_layers.{step}"
        for pair, width in (("va", v + a), ("at", a + t), ("tv", t + v)):
            shapes |= linear_shapes(f"{name}.dense_coattn.query_linear_{pair}", width, width)
        for number, width, others in ((1, v, a + t), (2, a, t + v), (3, t, v + a)):
            shapes |= linear_shapes(f"{name}.dense_coattn.key{number}_linear", length, length)
            shapes |= linear_shapes(f"{name}.dense_coattn.value{number}_linear", width, width)
            shapes |= linear_shapes(f"{name}.linears.{number - 1}.0", others, width)
    return shapes | linear_shapes("regressor", v + a + t, 1)


def checkpoint(shapes: Shapes) -> dict[str, Tensor]:
    """Random values under the published names; the two big matrices of VGGish are cheap."""
    rng = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=rng) + 0.5
        elif len(shape) == 2 and shape[0] * shape[1] > 10_000_000:
            state[name] = torch.rand((shape[0], 1), generator=rng).sub(0.5).mul(0.01).expand(shape)
        else:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            state[name] = torch.randn(shape, generator=rng) / fan_in**0.5
    for name in state:
        state[name] = state[name.replace(".net.0.", ".conv1.").replace(".net.4.", ".conv2.")]
    return state


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """A checkpoint with small widths and the backbones as published."""
    return checkpoint(published_shapes(SMALL_WIDTHS, length=LENGTH, text_width=TEXT_WIDTH, levels=LEVELS))


pytestmark = pytest.mark.filterwarnings("ignore:.*statistics of word vectors")


@pytest.fixture(scope="module")
def loaded(small: dict[str, Tensor]) -> RCMA:
    return published.load(small)


def embeddings(length: int, text_width: int, n_windows: int = 2) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    shapes = {"face": 512, "audio": 128, "text": text_width}
    batch = {m: torch.randn((n_windows, length, width), generator=rng) for m, width in shapes.items()}
    return batch | {"face": F.normalize(batch["face"], dim=-1)}


def published_forward(w: dict[str, Tensor], batch: dict[str, Tensor], *, levels: int) -> Tensor:
    """The published model on embeddings, from the names of its weights and in float64; (B,L)."""
    w = {name: value.double() for name, value in w.items() if not name.startswith("spatial.")}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x: dict[str, Tensor] = {}
    for modality, m in (("video", "face"), ("logmel", "audio"), ("bert", "text")):
        y = batch[m].double().transpose(1, 2)
        for level in range(levels):
            block, residual = f"temporal.{modality}.network.{level}", y
            for conv in ("net.0", "net.4"):
                v = w[f"{block}.{conv}.weight_v"]
                weight = w[f"{block}.{conv}.weight_g"] * v / v.pow(2).sum(dim=(1, 2), keepdim=True).sqrt()
                both_sides = F.conv1d(y, weight, w[f"{block}.{conv}.bias"], padding=4 * 2**level, dilation=2**level)
                y = F.leaky_relu(both_sides[..., : residual.shape[-1]], 0.01)
            if f"{block}.downsample.weight" in w:
                residual = F.conv1d(residual, w[f"{block}.downsample.weight"], w[f"{block}.downsample.bias"])
            y = F.leaky_relu(y + residual, 0.01)
        mean, variance = w[f"bn.{modality}.running_mean"], w[f"bn.{modality}.running_var"]
        y = (y.transpose(1, 2) - mean) / (variance + 1e-5).sqrt()
        x[m] = y * w[f"bn.{modality}.weight"] + w[f"bn.{modality}.bias"]

    for step in range(STEPS):
        dense = f"coattn.dcn_layers.{step}.dense_coattn"
        video, audio, text = x["face"], x["audio"], x["text"]
        joint = {
            "face": linear(f"{dense}.query_linear_at", torch.cat([audio, text], dim=-1)),
            "audio": linear(f"{dense}.query_linear_tv", torch.cat([text, video], dim=-1)),
            "text": linear(f"{dense}.query_linear_va", torch.cat([video, audio], dim=-1)),
        }
        new = {}
        for number, m in enumerate(("face", "audio", "text"), start=1):
            key = linear(f"{dense}.key{number}_linear", x[m].transpose(1, 2))
            score = torch.einsum("bfl,blj->bfj", key, joint[m]) / joint[m].shape[-1] ** 0.5
            value = linear(f"{dense}.value{number}_linear", x[m])
            attended = torch.einsum("blf,bfj->blj", value, score.tanh()).tanh().clamp_min(0)
            new[m] = x[m] + linear(f"coattn.dcn_layers.{step}.linears.{number - 1}.0", attended).clamp_min(0)
        x = new
    return linear("regressor", torch.cat([x["face"], x["audio"], x["text"]], dim=-1)).tanh()[..., 0]


def test_sizes_are_read_off_the_shapes(loaded: RCMA) -> None:
    settings = loaded.settings
    assert settings.targets == ("valence",) and settings.length == LENGTH and settings.text_width == TEXT_WIDTH
    assert (settings.tcn.face, settings.tcn.audio, settings.tcn.text) == ((8, 8), (4, 4), (6, 6))
    assert settings.fusion.steps == STEPS and settings.tcn.kernel_size == 5
    assert not loaded.training
    assert not any(value.is_meta for value in loaded.state_dict().values())
    assert all(p.requires_grad for p in loaded.parameters())


def test_forward_equals_the_published_one(small: dict[str, Tensor], loaded: RCMA) -> None:
    batch = embeddings(LENGTH, TEXT_WIDTH)
    with torch.no_grad():
        y = loaded(batch)[..., 0]
    expected = published_forward(small, batch, levels=LEVELS)
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
    assert y.std() > 0.05, "a constant would agree with too much"


@pytest.mark.slow
def test_full_size_on_pictures_and_sound() -> None:
    shapes = published_shapes(PUBLISHED_WIDTHS, length=300, text_width=768, levels=4)
    state = checkpoint(shapes)
    model = published.load(state, target="arousal")
    assert len(shapes) == 580
    assert model.settings.targets == ("arousal",) and model.settings.length == 300
    backbones = sum(p.numel() for p in model.backbone.parameters())
    assert sum(p.numel() for p in model.parameters()) - backbones == pytest.approx(29.64e6, abs=5e3)

    rng = torch.Generator().manual_seed(2)
    batch = embeddings(300, 768, n_windows=1)
    faces = torch.rand((1, 300, 3, 40, 40), generator=rng) * 2 - 1
    patches = torch.randn((1, 300, 96, 64), generator=rng)
    there = torch.zeros((1, 300), dtype=torch.bool)
    there[0, [3, 100]] = True  # backbones run on these alone; elsewhere the published code sees zeros
    with torch.no_grad():
        y = model(batch | {"face": faces, "audio": patches, "face_mask": there, "audio_mask": there})[..., 0]
        batch["face"] = torch.zeros((1, 300, 512))
        batch["audio"] = torch.zeros((1, 300, 128))
        batch["face"][there] = model.backbone["face"](faces[there])
        batch["audio"][there] = model.backbone["audio"](patches[there])
    torch.testing.assert_close(y.double(), published_forward(state, batch, levels=4), atol=3e-4, rtol=0)
    assert y.std() > 0.01


def test_backbones_get_their_weights(small: dict[str, Tensor], loaded: RCMA) -> None:
    for m, prefix in (("face", "spatial.visual.backbone."), ("audio", "spatial.audio.backbone.")):
        for name, value in loaded.backbone[m].state_dict().items():
            assert torch.equal(value, small[prefix + name]), name


def test_a_file_loads_like_the_dictionary(small: dict[str, Tensor], loaded: RCMA, tmp_path: Path) -> None:
    contiguous = {f"module.{name}": value.contiguous() for name, value in small.items()}  # as DataParallel names them
    torch.save(contiguous, tmp_path / "rcma.pth")
    model = published.load(tmp_path / "rcma.pth")
    batch = embeddings(LENGTH, TEXT_WIDTH)
    assert torch.equal(model(batch), loaded(batch))


def test_aliases_and_the_unused_head_may_be_absent(small: dict[str, Tensor], loaded: RCMA) -> None:
    bare = {name: value for name, value in small.items() if ".net." not in name and "logits" not in name}
    assert len(bare) < len(small)
    batch = embeddings(LENGTH, TEXT_WIDTH)
    assert torch.equal(published.load(bare)(batch), loaded(batch))


def test_the_dictionary_is_copied(small: dict[str, Tensor]) -> None:
    before = dict(small)
    model = published.load(small)
    with torch.no_grad():
        model.head.weight.fill_(9.0)
        model.norm["face"].running_mean.fill_(9.0)
    assert small.keys() == before.keys()
    assert not (small["regressor.weight"] == 9.0).any() and not (small["bn.video.running_mean"] == 9.0).any()


def test_normalisation_is_the_identity(loaded: RCMA) -> None:
    assert not loaded.audio_mean.any() and not loaded.text_mean.any()
    assert (loaded.audio_std == 1).all() and (loaded.text_std == 1).all()


def test_text_statistics_are_asked_for(small: dict[str, Tensor], loaded: RCMA, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="text_mean and text_std"):
        published.load(small)
    torch.save({name: value.contiguous() for name, value in small.items()}, tmp_path / "rcma.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = [published.load(given, text_mean=-0.3, text_std=1.7) for given in (small, tmp_path / "rcma.pth")]
    batch = embeddings(LENGTH, TEXT_WIDTH)
    spoken = torch.arange(LENGTH) % 3 > 0
    stored = batch["text"] * spoken[:, None]
    expected = loaded(batch | {"text": (stored + 0.3) / 1.7})
    for model in models:
        given = batch | {"text": batch["text"], "text_mask": spoken.expand(2, LENGTH)}
        torch.testing.assert_close(model(given), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"text_mean": 0.1}, "go together"),
        ({"text_std": 1.0}, "go together"),
        ({"text_mean": 0.1, "text_std": 0.0}, "text_std: values must be finite and > 0"),
        ({"text_mean": float("nan"), "text_std": 1.0}, "text_mean: values must be finite"),
    ],
)
def test_unusable_text_statistics_are_refused(small: dict[str, Tensor], given: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        published.load(small, **given)


ENTRIES = [
    "regressor.bias",
    "bn.logmel.running_var",
    "coattn.dcn_layers.0.dense_coattn.key1_linear.weight",
    "coattn.dcn_layers.1.linears.2.0.bias",
    "temporal.video.network.0.conv1.weight_v",
    "temporal.logmel.network.1.conv2.weight_g",
    "temporal.bert.network.0.downsample.weight",
    "spatial.visual.backbone.body.3.shortcut_layer.0.weight",
    "spatial.audio.backbone.embeddings.4.bias",
]


def message_of(state: object) -> str:
    with pytest.raises(InputError) as error:
        published.load(state)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_missing_entry_is_named(small: dict[str, Tensor], name: str) -> None:
    assert f"no entry '{name}'" in message_of({key: value for key, value in small.items() if key != name})


@pytest.mark.parametrize("name", ENTRIES)
def test_a_misshapen_entry_is_named(small: dict[str, Tensor], name: str) -> None:
    message = message_of(small | {name: torch.zeros((2, 2, 2, 2, 2))})
    assert f"'{name}'" in message and "(2, 2, 2, 2, 2)" in message


def test_every_entry_is_wanted(small: dict[str, Tensor]) -> None:
    """Leaving out any one of the others is an error as well; every third will do."""
    needed = [n for n in small if ".net." not in n and "logits" not in n and not n.startswith("spatial.")]
    for name in needed[::3]:
        assert name in message_of({key: value for key, value in small.items() if key != name})


@pytest.mark.parametrize(
    ("surplus", "nearest"),
    [
        ("regressor.wieght", "regressor.weight"),
        ("bn.vidoe.bias", "bn.video.bias"),
        ("spatial.visual.logits.scale", None),
        ("coattn.dcn_layers.0.dense_coattn.value1_linaer.bias", "coattn.dcn_layers.0.dense_coattn.value1_linear.bias"),
        ("temporal.video.network.0.convo2.bias", "temporal.video.network.0.conv2.bias"),
    ],
)
def test_a_surplus_entry_is_named_with_the_nearest(small: dict[str, Tensor], surplus: str, nearest: str | None) -> None:
    message = message_of(small | {surplus: torch.zeros(1)})
    assert f"unknown entry '{surplus}'" in message
    if nearest:
        assert message.endswith(f"the nearest right name is '{nearest}'")


@pytest.mark.parametrize("alias", ["net.0.bias", "net.4.weight_v"])
def test_an_alias_must_agree_with_its_original(small: dict[str, Tensor], alias: str) -> None:
    name = f"temporal.bert.network.1.{alias}"
    message = message_of(small | {name: small[name] + 1e-3})
    assert f"'{name}' differs from 'temporal.bert.network.1.conv" in message


def test_an_alias_of_nothing_is_named(small: dict[str, Tensor]) -> None:
    name = "temporal.bert.network.9.net.0.bias"
    assert f"unknown entry '{name}'" in message_of(small | {name: torch.zeros(6)})


@pytest.mark.parametrize("state", [{}, {"state_dict": {}}, {"regressor.bias": 3.0}])
def test_something_else_is_an_input_error(state: object) -> None:
    assert message_of(state).startswith("state dict: ")


def test_each_modality_keeps_its_place(small: dict[str, Tensor], loaded: RCMA) -> None:
    """Random weights tell the modalities apart: changing one input changes what the published forward changes."""
    batch = embeddings(LENGTH, TEXT_WIDTH)
    for m in MODALITIES:
        changed = batch | {m: batch[m].flip(1)}
        difference = (loaded(changed) - loaded(batch))[..., 0].double()
        expected = published_forward(small, changed, levels=LEVELS) - published_forward(small, batch, levels=LEVELS)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(difference, expected, atol=2e-5, rtol=1e-4)


RJCMA_WIDTHS = {"video": 8, "logmel": 4, "bert": 6}


def rjcma_shapes() -> Shapes:
    """Every name of a checkpoint of the later code, RJCMA, with its shape."""
    shapes = published_shapes(RJCMA_WIDTHS, length=LENGTH, text_width=TEXT_WIDTH, levels=LEVELS)
    shapes = {name: shape for name, shape in shapes.items() if "query_linear" not in name and "regressor" not in name}
    total = sum(RJCMA_WIDTHS.values())
    for step in range(STEPS):
        name = f"coattn.dcn_layers.{step}"
        shapes |= linear_shapes(f"{name}.dense_coattn.query_linear", total, total)
        for number, width in enumerate(RJCMA_WIDTHS.values()):
            shapes |= linear_shapes(f"{name}.linears.{number}.0", total, width)
    return (
        shapes
        | linear_shapes("regressor1", total, 256)
        | batch_norm_shapes("bn1", 256)
        | linear_shapes("regressor2", 256, 1)
    )


def rjcma_forward(w: dict[str, Tensor], x: dict[str, Tensor]) -> Tensor:
    """The later published model from refined features on, from the names of its weights and in float64; (B,L)."""
    w = {name: value.double() for name, value in w.items() if not name.startswith("spatial.")}
    x = {m: value.double() for m, value in x.items()}

    def linear(name: str, y: Tensor) -> Tensor:
        return y @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for step in range(STEPS):
        dense = f"coattn.dcn_layers.{step}.dense_coattn"
        joint = torch.cat([x["face"], x["audio"], x["text"]], dim=-1)  # as it is: query_linear's result is not used
        new = {}
        for number, m in enumerate(("face", "audio", "text"), start=1):
            key = linear(f"{dense}.key{number}_linear", x[m].transpose(1, 2))
            score = torch.einsum("bfl,blj->bfj", key, joint) / joint.shape[-1] ** 0.5
            attended = torch.einsum("blf,bfj->blj", linear(f"{dense}.value{number}_linear", x[m]), score.tanh())
            update = linear(f"coattn.dcn_layers.{step}.linears.{number - 1}.0", attended.tanh().clamp_min(0))
            new[m] = x[m] + update.clamp_min(0)
        x = new
    y = linear("regressor1", torch.cat([x["face"], x["audio"], x["text"]], dim=-1))
    y = (y - w["bn1.running_mean"]) / (w["bn1.running_var"] + 1e-5).sqrt() * w["bn1.weight"] + w["bn1.bias"]
    return linear("regressor2", F.leaky_relu(y, 0.01)).tanh()[..., 0]


def test_rjcma_loads_and_predicts_as_published() -> None:
    state = checkpoint(rjcma_shapes())
    model = published.load(state)
    assert model.settings.fusion.kind == "rjcma"
    batch = embeddings(LENGTH, TEXT_WIDTH)
    refined: dict[str, Tensor] = {}
    hook = model.fusion.register_forward_pre_hook(lambda _, given: refined.update(given[0]))
    with torch.no_grad():
        y = model(batch)[..., 0]
    hook.remove()
    torch.testing.assert_close(y.double(), rjcma_forward(state, refined), atol=1e-5, rtol=1e-5)
    assert y.std() > 0.05, "a constant would agree with too much"
    # The layer that the published code leaves unused may be missing.
    del state["coattn.dcn_layers.0.dense_coattn.query_linear.weight"]
    published.load(state)
    del state["regressor2.weight"]
    with pytest.raises(InputError, match=r"no entry 'regressor2\.weight'"):
        published.load(state)
