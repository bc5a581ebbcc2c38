"""What training can do beyond the published recipe, each against a plain account of it."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from made_features import (
    changed,
    data_settings,
    make_data,
    make_features,
    make_labels,
    read_log,
    small_config,
    stop_at,
    write_annotation,
)
from safetensors.torch import load_file

import rcma
from preprocessing.errors import InputError
from preprocessing.features.folder import load_features
from rcma import cli
from rcma.config import ModelSettings
from rcma.data import drop_modalities, embed_videos, labels_at, open_training_data
from rcma.metrics import ccc, n_loss_terms, training_loss
from rcma.model.checkpoint import load_run_config
from rcma.model.network import RCMA
from rcma.prediction import Checkpoints, predict_video
from rcma.training.loop import train
from rcma.training.run_folder import load_state

pytestmark = pytest.mark.usefixtures("one_thread")


# Loss.


def test_batch_loss_is_one_ccc_over_all_frames() -> None:
    random = np.random.default_rng(0)
    prediction, labels = random.normal(size=(2, 3, 8, 2)) * 0.3
    labels[0, 2:5] = np.nan
    loss = training_loss(torch.tensor(prediction), torch.tensor(labels), over="batch", mse_weight=0.0)
    expected = np.mean([1 - ccc(prediction[..., k].ravel(), labels[..., k].ravel()) for k in range(2)])
    assert float(loss) == pytest.approx(expected, abs=1e-9)
    assert int(n_loss_terms(torch.tensor(labels), over="batch")) == 2
    assert int(n_loss_terms(torch.tensor(labels), over="window")) == 6


def test_mixed_loss_is_the_weighted_sum() -> None:
    random = np.random.default_rng(1)
    prediction, labels = (torch.tensor(values) for values in random.normal(size=(2, 2, 6, 1)))
    labels[1, 4:] = torch.nan
    plain = training_loss(prediction, labels, over="window", mse_weight=0.0)
    known = ~torch.isnan(labels)
    mse = (prediction - labels)[known].square().mean()
    mixed = training_loss(prediction, labels, over="window", mse_weight=0.25)
    torch.testing.assert_close(mixed, 0.75 * plain + 0.25 * mse)


@pytest.mark.parametrize("over", ["window", "batch"])
@pytest.mark.parametrize("mse_weight", [0.0, 0.5])
def test_constant_labels_give_a_gradient_that_leads_to_them(over: str, mse_weight: float) -> None:
    prediction = torch.tensor([[[0.5], [0.1], [-0.3]]], requires_grad=True)
    loss = training_loss(prediction, torch.full((1, 3, 1), 0.9), over=over, mse_weight=mse_weight)
    loss.backward()
    assert torch.isfinite(loss)
    assert prediction.grad is not None
    assert (prediction.grad < 0).all()


# What is missing, and when.


def test_dropped_modalities_are_never_all() -> None:
    random = np.random.default_rng(0)
    masks = {m: torch.ones(4, dtype=torch.bool) for m in ("face", "audio", "text")}
    kept = np.array([[bool(mask.any()) for mask in drop_modalities(masks, 0.5, random).values()] for _ in range(2000)])
    assert kept.any(axis=1).all()
    # Half of the time each, and a third of the eighth in which all would go.
    np.testing.assert_allclose(kept.mean(axis=0), 0.5 + 1 / 24, atol=0.04)
    untouched = drop_modalities(masks, 0.0, random)
    assert all(mask.all() for mask in untouched.values())


def test_labels_come_from_later_and_predictions_go_there(root: Path) -> None:
    delay_s = 0.2  # five frames
    plain = open_training_data(data_settings(root))
    shifted = open_training_data(data_settings(root, label_delay_s=delay_s))
    for before, after in zip(plain.train, shifted.train, strict=True):
        np.testing.assert_array_equal(after.labels[:-5], before.labels[5:])
        assert np.isnan(after.labels[-5:]).all()
    for before, after in zip(plain.validation, shifted.validation, strict=True):
        np.testing.assert_array_equal(after.labels, before.labels)

    class Ramp(RCMA):
        def __init__(self) -> None:
            super().__init__(ModelSettings(text_width=16, length=60, targets=("valence",), modalities=("text",)))

        def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return torch.linspace(0, 0.59, 60)[None, :, None]

    features = load_features(root / "features" / "video0")
    given = predict_video(Ramp(), features, hop=60, audio_alignment="start", label_delay_s=delay_s)
    np.testing.assert_allclose(given[:, 0], np.maximum(np.arange(60) - 5, 0) / 100, atol=1e-6)


def test_values_at_other_times() -> None:
    time_s = np.array([0.0, 0.1, 0.3])
    values = np.float32([[0], [1], [2]])
    found = labels_at(time_s, np.array([-1.0, 0.04, 0.06, 0.21, 0.3, 0.9]), values)[:, 0]
    np.testing.assert_array_equal(found, np.float32([np.nan, 0, 1, 2, 2, np.nan]))


# Folds.


# Average of weights, embeddings, several models.


def test_moving_average_is_saved_and_resumed_exactly(root: Path, tmp_path: Path) -> None:
    config = changed(small_config(root), train={"ema": 0.9, "epochs": 2})
    train(config, tmp_path / "whole", device="cpu")
    state = load_state(tmp_path / "whole")
    assert state is not None
    assert state.average is not None
    trained, averaged = state.model, state.average
    different = [name for name in trained if not torch.equal(trained[name], averaged[f"module.{name}"])]
    assert any(name.startswith("fusion") for name in different)
    train(changed(config, train={"epochs": 1}), tmp_path / "parts", device="cpu")
    train(config, tmp_path / "parts", device="cpu", resume=True)
    other = load_state(tmp_path / "parts")
    assert other is not None
    assert other.average is not None
    assert all(torch.equal(averaged[name], other.average[name]) for name in averaged)
    best = load_file(tmp_path / "whole" / "best.safetensors")
    assert best.keys() == trained.keys()


def test_embeddings_are_what_the_backbones_say(root: Path, tmp_path: Path) -> None:
    frozen = {"face": {"frozen": True}, "audio": {"frozen": True}}
    plain = changed(small_config(root), model=frozen, train={"epochs": 1})
    result = train(plain, tmp_path / "plain", device="cpu")
    cached = changed(plain, data={"embeddings": tmp_path / "embeddings", "augmentations": 2})
    again = train(cached, tmp_path / "cached", device="cpu")
    # The same network judged on the same views, but for float16 and other random crops in training.
    assert again.n_frames == result.n_frames
    model = rcma.load_model(tmp_path / "cached")
    data = open_training_data(data_settings(root))
    embeddings = embed_videos(
        tmp_path / "embeddings",
        model,
        [*data.train, *data.validation],
        n_views=2,
        audio_alignment="start",
        on_video=lambda *_: None,
    )
    for video in data.validation:
        features = video.features()
        raw = predict_video(model, features, hop=plain.data.hop, audio_alignment="start")
        read = predict_video(
            model, features, hop=plain.data.hop, audio_alignment="start", embeddings=embeddings.read(video.video_id, 0)
        )
        np.testing.assert_allclose(read, raw, atol=2e-3)
        views = [np.asarray(embeddings.read(video.video_id, view)["face"]) for view in (0, 1)]
        assert not np.array_equal(views[0], views[1], equal_nan=True)
    # Nothing is computed twice.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "embeddings").rglob("*.npy")}
    train(changed(cached, train={"epochs": 2}), tmp_path / "cached", device="cpu", resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "embeddings").rglob("*.npy")}
    with pytest.raises(ValueError, match="needs frozen backbones"):
        changed(cached, model={"audio": {"frozen": False}})


@pytest.mark.parametrize("kind", ["rjcma", "jca", "cross-attention", "concat"])
def test_every_kind_trains(root: Path, tmp_path: Path, kind: str) -> None:
    config = changed(small_config(root), model={"fusion": {"kind": kind}}, train={"epochs": 1})
    result = train(config, tmp_path / kind, device="cpu")
    assert math.isfinite(result.best.mean_ccc)
    assert rcma.load_model(tmp_path / kind).settings.fusion.kind == kind


def test_one_modality_trains_with_modality_dropout_for_several(root: Path, tmp_path: Path) -> None:
    for modalities in (("text",), ("face", "audio")):
        config = changed(
            small_config(root), model={"modalities": modalities}, train={"epochs": 1, "modality_dropout": 0.5}
        )
        run = tmp_path / "-".join(modalities)
        train(config, run, device="cpu")
        prediction = rcma.Predictor(rcma.load_model(run))(root / "features" / "video3").values
        assert np.isfinite(prediction).all()


def test_several_models_are_averaged_and_complete_each_other(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for name, targets, seed in (("a", ["valence", "arousal"], 0), ("b", ["valence"], 1)):
        config = changed(small_config(root), model={"targets": targets}, train={"epochs": 1, "seed": seed})
        train(config, tmp_path / name, device="cpu")
        runs.append(tmp_path / name)
    models = [rcma.load_model(run) for run in runs]
    features = load_features(root / "features" / "video3")
    one, two = (rcma.Predictor(model)(features) for model in models)
    assert one.targets == ("valence", "arousal") and two.targets == ("valence",)
    mean = Checkpoints(models).predict(features).values
    np.testing.assert_allclose(mean[:, 0], (one.valence + two.valence) / 2, atol=1e-6)
    np.testing.assert_allclose(mean[:, 1], one.arousal, atol=1e-6)
    video = str(root / "features" / "video3")
    arguments = ["--checkpoint", str(runs[0]), str(runs[1]), video, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.predict.main(arguments) == 0
    written = np.loadtxt(tmp_path / "out" / "video3.txt", delimiter=",", skiprows=1)
    np.testing.assert_allclose(written, mean, atol=1e-6)
    rows = list(csv.DictReader((tmp_path / "out" / "frames.csv").open(newline="")))
    spread = np.abs(one.valence - two.valence) / np.sqrt(2)
    np.testing.assert_allclose([float(row["valence_sd"]) for row in rows], spread, atol=1e-6)
    assert {row["arousal_sd"] for row in rows} == {""}
    assert (
        cli.predict.main(["--checkpoint", str(runs[1]), video, "--out", str(tmp_path / "no"), "--device", "cpu"]) == 2
    )
    assert "arousal" in capsys.readouterr().err


def test_a_run_for_each_target_makes_both_columns(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As published: each run keeps the weights that are best for its own target."""
    runs = {target: tmp_path / target for target in ("valence", "arousal")}
    for target, run in runs.items():
        result = train(changed(small_config(root), model={"targets": [target]}), run, device="cpu")
        log = read_log(run)
        scores = [float(row[f"{target}_ccc"]) for row in log]
        assert [float(row["mean_ccc"]) for row in log] == scores
        assert result.best.epoch == 1 + scores.index(max(scores))
    video = str(root / "features" / "video3")
    arguments = ["--checkpoint", *map(str, runs.values()), video, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.predict.main(arguments) == 0, capsys.readouterr().err
    written = np.loadtxt(tmp_path / "out" / "video3.txt", delimiter=",", skiprows=1)
    for column, run in enumerate(runs.values()):
        np.testing.assert_allclose(written[:, column], rcma.Predictor(run)(video).values[:, 0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("place", [(1, 2), (2, 1), (2, 3)])
def test_resume_from_any_step_is_exact(root: Path, tmp_path: Path, place: tuple[int, int]) -> None:
    config = changed(small_config(root), train={"epochs": 3, "batch_size": 2, "save_every": 1, "ema": 0.9})
    train(config, tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", device="cpu", on_status=stop_at(*place))
    seen: list[str] = []
    train(config, tmp_path / "parts", device="cpu", resume=True, on_status=seen.append)
    # It continues with the next batch, not with the epoch's first.
    assert seen[0].startswith(f"epoch {place[0]}, batch {place[1] + 1} of")
    one, two = load_state(tmp_path / "whole"), load_state(tmp_path / "parts")
    assert one is not None
    assert two is not None
    assert all(torch.equal(one.model[name], two.model[name]) for name in one.model)
    assert [{**row, "seconds": 0} for row in one.rows] == [{**row, "seconds": 0} for row in two.rows]
    best = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "parts")]
    assert best[0] == best[1]


def test_any_vision_encoder_of_hugging_face_trains_and_loads_without_its_files(root: Path, tmp_path: Path) -> None:
    from transformers import ConvNextV2Config, ConvNextV2Model, ViTConfig, ViTImageProcessor, ViTModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16))
    convnext = ConvNextV2Model(ConvNextV2Config(hidden_sizes=[4, 4, 4, 6], depths=[1, 1, 1, 1]))
    for name, encoder, width in (("vit", vit, 8), ("convnext", convnext, 6)):
        encoder.save_pretrained(tmp_path / name)
        if name == "vit":
            ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.5]).save_pretrained(tmp_path / name)
        config = changed(
            small_config(root),
            model={"face": {"kind": "hf", "hf": str(tmp_path / name), "frozen": True}},
            train={"epochs": 1},
        )
        train(config, tmp_path / f"run-{name}", device="cpu")
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        shutil.rmtree(tmp_path / name)
        model = rcma.load_model(tmp_path / f"run-{name}")
        assert model.embedding_widths["face"] == width
        loaded = model.backbone["face"].model.state_dict()
        assert all(torch.equal(loaded[key], before[key]) for key in before)
        assert np.isfinite(rcma.Predictor(model)(root / "features" / "video3").values).all()
        if name == "vit":
            assert model.backbone["face"].image_mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_missing_vision_encoder_is_one_line(root: Path, tmp_path: Path) -> None:
    config = changed(small_config(root), model={"face": {"kind": "hf", "hf": str(tmp_path / "nowhere")}})
    with pytest.raises(InputError, match=r"model\.face\.hf: .*nowhere"):
        train(config, tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="go together"):
        changed(small_config(root), model={"face": {"kind": "hf"}})


# Precision.


@pytest.mark.slow
def test_half_precision_stays_close_and_is_recorded(root: Path, tmp_path: Path) -> None:
    logs = {}
    for precision in ("float32", "bfloat16"):
        config = changed(small_config(root), train={"precision": precision, "batch_size": 2})
        train(config, tmp_path / precision, device="cpu")
        assert load_run_config(tmp_path / precision).train.precision == precision
        logs[precision] = [
            float(row["train_loss"]) for row in csv.DictReader((tmp_path / precision / "log.csv").open())
        ]
        weights = load_file(tmp_path / precision / "best.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    assert logs["bfloat16"] != logs["float32"]
    assert logs["bfloat16"] == pytest.approx(logs["float32"], abs=0.05)
    with pytest.raises(InputError, match=r"train\.precision: .* began with 'bfloat16', now it is 'float32'"):
        train(changed(config, train={"precision": "float32"}), tmp_path / "bfloat16", device="cpu", resume=True)
    # Resumed as it began: exactly.
    train(changed(config, train={"epochs": 1}), tmp_path / "parts", device="cpu")
    train(config, tmp_path / "parts", device="cpu", resume=True)
    assert (tmp_path / "parts" / "best.safetensors").read_bytes() == (
        tmp_path / "bfloat16" / "best.safetensors"
    ).read_bytes()


# Data.


@pytest.mark.parametrize("change", ["added", "removed", "labels", "frames"])
def test_resuming_with_other_data_is_refused_by_name(tmp_path: Path, change: str) -> None:
    config = make_data(tmp_path, n_frames=60)
    train(changed(config, train={"epochs": 1}), tmp_path / "run", device="cpu")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    labels = make_labels(50 if change == "frames" else 60, seed=9)
    annotations = tmp_path / "annotations"
    if change == "removed":
        shutil.rmtree(tmp_path / "features" / "video1")
    elif change == "labels":
        write_annotation(annotations / "Validation_Set" / "video3.txt", labels)
    else:
        name = "video1" if change == "frames" else "video9"
        make_features(tmp_path / "features" / name, labels, seed=9)
        write_annotation(annotations / "Train_Set" / f"{name}.txt", labels)
    named = {"added": "video9 .* new", "removed": "video1 .* gone", "labels": "video3 .* other", "frames": "video1"}
    with pytest.raises(InputError, match=f"began with other data: {named[change]}"):
        train(config, tmp_path / "run", device="cpu", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_without_a_record_of_its_data_goes_on(root: Path, tmp_path: Path) -> None:
    train(small_config(root, epochs=1), tmp_path / "run", device="cpu")
    (tmp_path / "run" / "last" / "data.json").unlink()
    assert train(small_config(root, epochs=2), tmp_path / "run", device="cpu", resume=True).epochs == 2
    assert (tmp_path / "run" / "last" / "data.json").exists()
