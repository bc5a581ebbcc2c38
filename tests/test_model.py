"""The whole network: properties that every change must keep."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rcma.config import MODALITIES, ModelSettings
from rcma.metrics import ccc_loss
from rcma.model.network import RCMA

LENGTH = 12
TEXT_WIDTH = 6
SMALL: dict[str, Any] = {
    "length": LENGTH,
    "text_width": TEXT_WIDTH,
    "face": {"kind": "small"},
    "audio": {"kind": "small"},
    "tcn": {"face": (8, 8), "audio": (6, 6), "text": (8, 8), "dropout": 0.0},
    "fusion": {"steps": 2, "dropout": 0.0},
}


def small_model(**changes: Any) -> RCMA:
    torch.manual_seed(0)
    return RCMA(ModelSettings.model_validate(SMALL | changes))


def random_batch(n_windows: int = 2, seed: int = 0, *, raw: bool = True) -> dict[str, Tensor]:
    """A batch without masks; ``raw``: crops and patches, otherwise embeddings."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn((n_windows, LENGTH, *shape), generator=rng)

    if raw:
        return {"face": draw(3, 40, 40).tanh(), "audio": draw(96, 64), "text": draw(TEXT_WIDTH)}
    return {"face": draw(64), "audio": draw(64), "text": draw(TEXT_WIDTH)}


def random_masks(n_windows: int = 2, seed: int = 1) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {f"{m}_mask": torch.rand((n_windows, LENGTH), generator=rng) < 0.7 for m in MODALITIES}


def blanked(batch: dict[str, Tensor], content: float) -> dict[str, Tensor]:
    """The batch with something else wherever a mask says that nothing is there."""
    changed = dict(batch)
    for m in MODALITIES:
        changed[m] = batch[m].clone()
        changed[m][~batch[f"{m}_mask"]] = content
    return changed


def padded_masks(n_valid: tuple[int, ...]) -> dict[str, Tensor]:
    """Masks of windows whose first ``n_valid`` frames are real and the rest padding."""
    real = torch.arange(LENGTH)[None, :] < torch.tensor(n_valid)[:, None]
    return {f"{m}_mask": real.clone() for m in MODALITIES}


@pytest.mark.parametrize("raw", [True, False])
def test_gives_one_bounded_value_per_frame_and_target(raw: bool) -> None:
    y = small_model()(random_batch(3, raw=raw))
    assert y.shape == (3, LENGTH, 2)
    assert y.abs().max() <= 1 and y.std() > 0
    assert small_model(targets=["arousal"])(random_batch(3, raw=raw)).shape == (3, LENGTH, 1)


@pytest.mark.parametrize("training", [True, False])
def test_leaves_its_batch_alone_and_gives_the_same_twice(training: bool) -> None:
    model = small_model().train(training)
    batch = random_batch() | random_masks() | {"labels": torch.zeros(3), "video_id": torch.zeros(1)}
    before = copy.deepcopy(batch)
    assert torch.equal(model(batch), model(batch))
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[name], before[name]) for name in batch)


@pytest.mark.parametrize("training", [True, False])
def test_permuting_the_batch_permutes_the_output(training: bool) -> None:
    model = small_model().train(training)
    batch = random_batch(4) | random_masks(4)
    order = torch.tensor([2, 0, 3, 1])
    permuted = model({name: value[order] for name, value in batch.items()})
    torch.testing.assert_close(permuted, model(batch)[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("content", [50.0, torch.nan])
def test_masked_content_does_not_matter(training: bool, raw: bool, content: float) -> None:
    model = small_model().train(training)
    batch = random_batch(raw=raw) | random_masks()
    before = model(batch)
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    assert torch.isfinite(before).all()
    twin = small_model().train(training)
    assert torch.equal(twin(blanked(batch, content)), before)
    assert all(torch.equal(value, statistics[name]) for name, value in twin.named_buffers())


@pytest.mark.parametrize("m", MODALITIES)
def test_what_is_there_matters(m: str) -> None:
    """The counterpart of the test above: unmasked content, and the mask itself, do change the output."""
    model = small_model().eval()
    batch = random_batch()
    assert not torch.allclose(model(batch), model(batch | {m: batch[m].flip(1)}))
    nothing = torch.zeros((2, LENGTH), dtype=torch.bool)
    assert not torch.allclose(model(batch), model(batch | {f"{m}_mask": nothing}))


@pytest.mark.parametrize("training", [True, False])
def test_a_window_of_padding_changes_no_other_window(training: bool) -> None:
    """Not even through BatchNorm: a batch with a window of padding has the statistics of the batch without it."""
    batch = random_batch(3) | padded_masks((LENGTH, 0, 7))
    without = {name: value[[0, 2]] for name, value in batch.items()}
    model, twin = small_model().train(training), small_model().train(training)
    y = model(batch)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y[[0, 2]], twin(without), atol=1e-6, rtol=1e-5)
    for (name, value), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(value, other, atol=1e-6, rtol=1e-5, msg=name)


def test_batch_norm_counts_each_valid_frame_once() -> None:
    batch = random_batch(2, raw=False) | padded_masks((LENGTH, 5))
    model = small_model()
    outputs: list[Tensor] = []
    model.tcn["face"].register_forward_hook(lambda _module, _input, output: outputs.append(output.detach()))
    model(batch)
    frames = torch.cat([outputs[0][0], outputs[0][1, :5]])
    torch.testing.assert_close(model.norm["face"].running_mean, 0.1 * frames.mean(dim=0))


def test_padding_changes_neither_loss_nor_gradient() -> None:
    batch = random_batch() | padded_masks((LENGTH, 7))
    labels = torch.rand((2, LENGTH, 2), generator=torch.Generator().manual_seed(3)) * 2 - 1
    labels[1, 7:] = torch.nan
    gradients = []
    for content in (0.0, 9.0):
        model = small_model()
        ccc_loss(model(blanked(batch, content)), labels).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


@pytest.mark.parametrize("n_valid", [(0, 0), (1, 0)])
@pytest.mark.parametrize("training", [True, False])
def test_next_to_nothing_is_no_error(n_valid: tuple[int, ...], training: bool) -> None:
    model = small_model().train(training)
    y = model(random_batch() | padded_masks(n_valid))
    assert torch.isfinite(y).all()
    y.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("masked", [False, True])
def test_every_trainable_parameter_gets_a_gradient(masked: bool) -> None:
    model = small_model(fusion={"steps": 3}, tcn=SMALL["tcn"] | {"dropout": 0.1})
    batch = random_batch(4) | (random_masks(4) if masked else {})
    ccc_loss(model(batch), torch.rand((4, LENGTH, 2)) * 2 - 1).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_frozen_backbones_keep_still() -> None:
    model = small_model(face={"kind": "small", "frozen": True})
    assert model.train() is model
    assert model.training and not model.backbone["face"].training and model.backbone["audio"].training
    assert not any(p.requires_grad for p in model.backbone["face"].parameters())
    model(random_batch()).sum().backward()
    assert all(p.grad is None for p in model.backbone["face"].parameters())
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("backbone.face"))


def test_a_frozen_ir50_keeps_its_statistics() -> None:
    model = small_model(face={"kind": "ir50", "frozen": True})
    assert model.training
    before = {name: value.clone() for name, value in model.backbone["face"].named_buffers()}
    model(random_batch(1) | padded_masks((2,)))
    assert all(torch.equal(value, before[name]) for name, value in model.backbone["face"].named_buffers())


def test_backbones_see_present_frames_only_and_in_bounded_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcma.model.network.CHUNK", 5)
    model = small_model().eval()
    sizes: list[int] = []
    model.backbone["face"].register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    batch = random_batch() | padded_masks((7, 4))
    with torch.no_grad():
        chunked = model(batch)
    assert sizes == [5, 5, 1]
    sizes.clear()
    torch.testing.assert_close(model(batch), chunked, atol=1e-6, rtol=1e-5)
    assert sizes == [11]


def test_embeddings_from_outside_equal_those_from_inside() -> None:
    model, batch = small_model().eval(), random_batch()
    face = model.backbone["face"](batch["face"].flatten(0, 1)).unflatten(0, (2, LENGTH))
    audio = model.backbone["audio"](batch["audio"].flatten(0, 1)).unflatten(0, (2, LENGTH))
    torch.testing.assert_close(model(batch | {"face": face, "audio": audio}), model(batch), atol=1e-6, rtol=1e-5)


def test_normalisation_is_applied_to_patches_and_words_and_kept_with_the_weights() -> None:
    model, batch = small_model().eval(), random_batch()
    plain = model(batch)
    rng = torch.Generator().manual_seed(5)
    audio_mean, text_mean = torch.randn(64, generator=rng), torch.randn((), generator=rng)
    audio_std, text_std = torch.rand(64, generator=rng) + 0.5, torch.rand((), generator=rng) + 0.5
    model.set_normalisation(audio_mean, audio_std, text_mean, text_std)
    scaled = batch | {"audio": batch["audio"] * audio_std + audio_mean, "text": batch["text"] * text_std + text_mean}
    assert not torch.allclose(model(batch), plain)
    torch.testing.assert_close(model(scaled), plain, atol=1e-5, rtol=1e-4)
    other = small_model().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(scaled), model(scaled))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_mean": torch.zeros(63)}, r"audio_mean: the shape must be \(64,\), given: \(63,\)"),
        ({"text_std": torch.ones(TEXT_WIDTH)}, r"text_std: the shape must be \(\), given: \(6,\)"),
        ({"text_std": torch.zeros(())}, "text_std: values must be finite and > 0"),
        ({"audio_mean": torch.full((64,), torch.nan)}, "audio_mean: values must be finite"),
    ],
)
def test_an_unusable_normalisation_is_refused_whole(change: dict[str, Tensor], message: str) -> None:
    model = small_model()
    good = {"audio_mean": torch.ones(64), "audio_std": torch.ones(64) * 2}
    good |= {"text_mean": torch.ones(()), "text_std": torch.ones(()) * 2}
    with pytest.raises(ValueError, match=message):
        model.set_normalisation(**(good | change))
    assert not model.audio_mean.any() and model.text_std == 1


def test_a_frame_without_a_word_is_a_zero_vector_before_it_is_standardised() -> None:
    """As the authors store words; whatever stands under the mask."""
    model, batch = small_model().eval(), random_batch() | random_masks()
    batch["frame_mask"] = torch.ones((2, LENGTH), dtype=torch.bool)
    model.set_normalisation(torch.zeros(64), torch.ones(64), torch.tensor(0.7), torch.tensor(2.0))
    stored = batch["text"] * batch["text_mask"][..., None]
    plain = small_model().eval()
    standardised = batch | {"text": (stored - 0.7) / 2, "text_mask": torch.ones_like(batch["text_mask"])}
    torch.testing.assert_close(model(blanked(batch, torch.nan)), plain(standardised), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"face": torch.zeros((2, LENGTH, 40, 40))}, r"face: the shape must be \(B,L,3,S,S\) or \(B,L,64\), given"),
        ({"audio": torch.zeros((2, LENGTH, 128))}, r"audio: .*\(B,L,96,64\) or \(B,L,64\), given: \(2, 12, 128\)"),
        ({"audio": torch.zeros((2, LENGTH, 64, 96))}, r"audio: the shape must be \(B,L,96,64\) or"),
        ({"text": torch.zeros((2, LENGTH, 7))}, r"text: the shape must be \(B,L,6\), given: \(2, 12, 7\)"),
        ({"text": torch.zeros(())}, r"text: the shape must be \(B,L,6\), given: \(\)"),
        ({"text": torch.zeros((3, LENGTH, TEXT_WIDTH))}, "text: 3 x 12 windows x frames, but face has 2 x 12"),
        ({"text_mask": torch.ones((2, LENGTH))}, r"text_mask: must be torch.bool \(2, 12\), given: torch.float32"),
        ({"text_mask": torch.ones((2, 11), dtype=torch.bool)}, r"text_mask: must be torch.bool \(2, 12\)"),
    ],
)
def test_other_shapes_are_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model()(random_batch() | change)


@pytest.mark.parametrize("m", MODALITIES)
def test_a_missing_modality_is_named(m: str) -> None:
    batch = random_batch()
    del batch[m]
    with pytest.raises(ValueError, match=f"no entry '{m}'"):
        small_model()(batch)


def test_the_length_is_tied_and_the_error_says_so() -> None:
    batch = {name: value[:, :10] for name, value in random_batch().items()}
    with pytest.raises(ValueError, match="takes windows of 12 frames and no other length, given: 10"):
        small_model()(batch)


def test_the_width_of_words_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"model\.text_width is not set"):
        RCMA(ModelSettings.model_validate(SMALL | {"text_width": None}))


def test_published_sizes_give_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = RCMA(ModelSettings(text_width=768, targets=("valence",)))
    backbones = sum(p.numel() for p in model.backbone.parameters())
    assert sum(p.numel() for p in model.parameters()) - backbones == pytest.approx(29.64e6, abs=5e3)
    assert sum(p.numel() for p in model.fusion.parameters()) == pytest.approx(2 * 3.47e6, abs=1e4)


def test_load_backbones_reads_the_files_of_the_settings(tmp_path: Path) -> None:
    donor = small_model()
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(1.0)
    torch.save(donor.backbone["face"].state_dict(), tmp_path / "face.pth")
    model = small_model(face={"kind": "small", "pretrained": tmp_path / "face.pth"})
    untouched = copy.deepcopy(model.backbone["audio"].state_dict())
    model.load_backbones()
    for name, value in model.backbone["face"].state_dict().items():
        assert torch.equal(value, donor.backbone["face"].state_dict()[name])
    assert all(torch.equal(value, untouched[name]) for name, value in model.backbone["audio"].state_dict().items())


def test_bfloat16_autocast_runs_and_agrees_roughly() -> None:
    model, batch = small_model().eval(), random_batch() | random_masks()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(batch)
    torch.testing.assert_close(y.float(), model(batch), atol=0.05, rtol=0.1)


def test_time_weights_of_padded_positions_do_not_matter() -> None:
    """Padding takes part in no sum over time: neither as a frame to project from, nor as one to project to."""
    batch = random_batch() | padded_masks((7, 7))
    model = small_model().eval()
    before = model(batch)
    with torch.no_grad():
        for step in model.fusion.steps:
            for m in MODALITIES:
                step.time[m].weight[7:] += 1.0
                step.time[m].weight[:, 7:] += 1.0
                step.time[m].bias[7:] += 1.0
    assert torch.equal(model(batch)[:, :7], before[:, :7])
    assert not torch.allclose(model(random_batch())[:, :7], before[:, :7])


def test_a_frame_is_valid_where_any_modality_is_there() -> None:
    batch = random_batch(raw=False) | {f"{m}_mask": torch.zeros((2, LENGTH), dtype=torch.bool) for m in MODALITIES}
    batch["face_mask"][:, :3] = True
    batch["text_mask"][:, 2:6] = True
    model = small_model()
    outputs: list[Tensor] = []
    model.tcn["audio"].register_forward_hook(lambda _module, _input, output: outputs.append(output.detach()))
    model(batch)
    torch.testing.assert_close(model.norm["audio"].running_mean, 0.1 * outputs[0][:, :6].mean(dim=(0, 1)))


@pytest.mark.parametrize("n_faces", [0, 1])
def test_an_ir50_can_train_on_fewer_than_two_faces(n_faces: int) -> None:
    model = small_model(face={"kind": "ir50"}).train()
    y = model(random_batch(1) | {"face_mask": padded_masks((n_faces,))["face_mask"]})
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


# Features made elsewhere.


VECTORS: dict = {
    "length": 12,
    "modalities": ["face", "audio"],
    "face": {"kind": "features", "width": 12},
    "audio": {"kind": "features", "width": 15},
    "tcn": {"face": [8], "audio": [6], "kernel_size": 3},
    "fusion": {"steps": 1},
}


def test_vectors_of_any_width_need_no_backbone_and_no_words() -> None:
    model = RCMA(ModelSettings.model_validate(VECTORS)).eval()
    assert not model.backbone and model.embedding_widths == {"face": 12, "audio": 15}
    batch = {"face": torch.randn(2, 12, 12), "audio": torch.randn(2, 12, 15)}
    assert model(batch).shape == (2, 12, 2)
    with pytest.raises(ValueError, match=r"face: the shape must be \(B,L,12\), given: \(2, 12, 64\)"):
        model(batch | {"face": torch.randn(2, 12, 64)})
    with pytest.raises(ValueError, match=r"model\.audio\.width is not set"):
        RCMA(ModelSettings.model_validate({**VECTORS, "audio": {"kind": "features"}}))


def test_vectors_are_standardised_column_by_column_and_zero_where_absent() -> None:
    model = RCMA(ModelSettings.model_validate(VECTORS)).eval()
    mean, std = torch.arange(12.0), torch.arange(1.0, 13.0)
    nothing = torch.zeros(64), torch.ones(64), torch.tensor(0.0), torch.tensor(1.0)
    model.set_normalisation(*nothing, {"face": (mean, std)})
    x, mask = torch.randn(2, 5, 12), torch.ones(2, 5, dtype=torch.bool)
    x[0, 1], mask[0, 1] = torch.nan, False
    embedded = model.embed("face", x, mask)
    assert not embedded[0, 1].any()
    torch.testing.assert_close(embedded[mask], ((x - mean) / std)[mask])
    with pytest.raises(ValueError, match="face_vectors_std"):
        model.set_normalisation(*nothing, {"face": (mean, 0 * std)})


def test_text_may_be_vectors_as_well() -> None:
    settings = {"length": 12, "modalities": ["text"], "text": {"kind": "features"}, "text_width": 5}
    model = RCMA(ModelSettings.model_validate({**settings, "tcn": {"text": [8]}})).eval()
    mask = torch.zeros(1, 12, dtype=torch.bool)
    model.set_normalisation(
        torch.zeros(64), torch.ones(64), torch.tensor(9.0), torch.tensor(1.0), {"text": (torch.ones(5), torch.ones(5))}
    )
    assert not model.embed("text", torch.randn(1, 12, 5), mask).any(), "not the standardised zeros of words"
