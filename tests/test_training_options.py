"""What training can do beyond the published recipe, each against a plain account of it."""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from made_features import make_data, make_features, make_labels, small_config, write_annotation
from safetensors.torch import load_file

import rcma
from preprocessing.errors import InputError
from preprocessing.features.folder import load_features
from rcma import cli
from rcma.config import ModelSettings, TrainConfig
from rcma.data.embeddings import embed_videos
from rcma.data.labels import labels_at
from rcma.data.training_data import open_training_data
from rcma.data.windows import (
    EMPTY_WINDOW,
    SharedBatches,
    WindowDataset,
    cut_window,
    drop_modalities,
    fit_normalisation,
)
from rcma.metrics import ccc, n_loss_terms, training_loss
from rcma.model.backbones import IR50, VGGish
from rcma.model.checkpoint import load_run_config, load_state
from rcma.model.network import BACKBONES, RCMA
from rcma.prediction import Checkpoints, predict_video
from rcma.training.loop import train

CONFIGS = Path(__file__).parents[1] / "configs"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    make_data(folder, n_frames=60)
    return folder


def changed(config: TrainConfig, **sections: dict) -> TrainConfig:
    tree = config.model_dump()
    for section, values in sections.items():
        for key, value in values.items():
            if isinstance(value, dict):
                tree[section][key] = {**tree[section][key], **value}
            else:
                tree[section][key] = value
    return TrainConfig.model_validate(tree)


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


# Release.


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights of IR-50 and VGGish."""
    folder = tmp_path_factory.mktemp("weights")
    files = {"face": folder / "res50_ir_0.887.pth", "audio": folder / "vggish-10086976.pth"}
    torch.manual_seed(0)
    for name, backbone in (("face", IR50()), ("audio", VGGish())):
        torch.save(backbone.state_dict(), files[name])
    return files


def test_released_groups_are_the_published_ones(weight_files: dict[str, Path]) -> None:
    """By the places of the authors' code in its list of parameters, where the output layer comes before the body."""
    settings = ModelSettings.model_validate(
        {"text_width": 4, **{m: {"weights": file} for m, file in weight_files.items()}}
    )
    model = RCMA(settings)
    face, audio = model.backbone["face"], model.backbone["audio"]
    assert isinstance(face, IR50)
    assert isinstance(audio, VGGish)
    theirs = {
        "face": [*face.input_layer.parameters(), *face.output_layer.parameters(), *face.body.parameters()],
        "audio": list(audio.parameters()),
    }
    places = {"face": ((4, 10), (163, 187), (142, 163)), "audio": ((16, 18), (14, 16), (12, 14))}
    assert {m: len(parameters) for m, parameters in theirs.items()} == {"face": 187, "audio": 18}
    assert sum(parameter.numel() for parameter in theirs["face"][142:163]) == pytest.approx(3.54e6, abs=5e3)
    assert model.n_release_groups == 3
    for n_released in (0, 1, 2, 3):
        model.release(n_released)
        for m, parameters in theirs.items():
            wanted = {place for span in places[m][:n_released] for place in range(*span)}
            assert {place for place, parameter in enumerate(parameters) if parameter.requires_grad} == wanted
        # The rest stays frozen, statistics of BatchNorm included.
        training = [face.output_layer.training, face.body[21].training, face.body[18].training, face.body[17].training]
        assert training == [n_released >= 1, n_released >= 2, n_released >= 3, False]
    assert all(p.requires_grad for p in model.fusion.parameters())


def test_pretrained_vggish_takes_log_mel_as_it_is(root: Path, weight_files: dict[str, Path]) -> None:
    """Standardised patches are another input than the one its convolutions know, and these are never released."""
    settings = {"modalities": ["audio"], "audio": {"kind": "vggish", "weights": weight_files["audio"]}}
    config = changed(small_config(root), model=settings)
    assert not config.model.standardises_log_mel
    assert changed(config, model={"audio": {"weights": None}}).model.standardises_log_mel
    assert small_config(root).model.standardises_log_mel
    data = open_training_data(root / "features", root / "annotations")
    statistics = fit_normalisation(data.train, config.model)
    model = RCMA(config.model.model_copy(update={"text_width": 16})).eval()
    model.load_backbones()
    model.set_normalisation(statistics.audio_mean, statistics.audio_std, statistics.text_mean, statistics.text_std)
    features = data.train[0].features()
    window = cut_window(features, 0, model=model.settings, length=2, audio_alignment="start")
    patch = torch.from_numpy(np.asarray(features.log_mel[:96], np.float32))
    with torch.no_grad():
        embedded = model.embed("audio", window["audio"][None], window["audio_mask"][None])[0, 0]
        expected = model.backbone["audio"](patch[None])[0]
    torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=1e-4)
    assert patch.mean() < -1


@pytest.mark.slow
def test_the_published_configuration_trains_and_predicts(
    weight_files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing changed but paths, the batch and the number of epochs, on two short videos."""
    make_data(tmp_path, n_train=1, n_validation=1, n_frames=12)
    settings = {
        "data.features": tmp_path / "features",
        "data.annotations": tmp_path / "annotations",
        **{f"model.{m}.weights": file for m, file in weight_files.items()},
        "train.epochs": 2,
        "train.batch_size": 1,
    }
    runs = {}
    for target in ("valence", "arousal"):
        runs[target] = tmp_path / target
        arguments = ["--config", str(CONFIGS / "rcma_published.yaml"), "--out", str(runs[target]), "--device", "cpu"]
        for key, value in {**settings, "model.targets": f"[{target}]"}.items():
            arguments += ["--set", f"{key}={value}"]
        assert cli.train.main(arguments) == 0, capsys.readouterr().err
        assert [row["released"] for row in read_log(runs[target])] == ["1", "1"]

    trained, start = (
        load_file(runs["valence"] / "best.safetensors"),
        {m: torch.load(f) for m, f in weight_files.items()},
    )
    assert trained["text_mean"].shape == ()
    assert not trained["audio_mean"].any()
    for m, released in (("face", ("output_layer",)), ("audio", ("embeddings.4",))):
        for name, value in start[m].items():
            assert torch.equal(trained[f"backbone.{m}.{name}"], value) != name.startswith(released), name

    video = str(tmp_path / "features" / "video1")
    checkpoints = ["--checkpoint", str(runs["valence"]), "--checkpoint", str(runs["arousal"])]
    assert cli.predict.main([*checkpoints, video, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    written = np.loadtxt(tmp_path / "out" / "video1.txt", delimiter=",", skiprows=1)
    assert written.shape == (12, 2)
    assert (np.abs(written) <= 1).all()


class NarrowVGGish(VGGish):
    """VGGish with few channels."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        layers: list[torch.nn.Module] = []
        for n_in, channels in ((1, (4,)), (4, (8,)), (8, (8, 8)), (8, (8, 8))):
            for before, after in zip((n_in, *channels), channels, strict=False):
                layers += [torch.nn.Conv2d(before, after, kernel_size=3, padding=1), torch.nn.ReLU()]
            layers.append(torch.nn.MaxPool2d(kernel_size=2))
        self.features = torch.nn.Sequential(*layers)
        sizes = ((8 * 6 * 4, 16), (16, 16), (16, self.width))
        linear = [torch.nn.Linear(n_in, n_out) for n_in, n_out in sizes]
        self.embeddings = torch.nn.Sequential(linear[0], torch.nn.ReLU(), linear[1], torch.nn.ReLU(), linear[2])


@pytest.fixture
def releasing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """Rounds of two epochs: with constant labels in the validation split, no score is ever a better one."""
    monkeypatch.setitem(BACKBONES["audio"], "vggish", NarrowVGGish)
    torch.manual_seed(0)
    torch.save(NarrowVGGish().state_dict(), tmp_path / "vggish.pth")
    make_data(tmp_path, n_frames=60)
    for video in ("video3", "video4"):
        constant = np.full((60, 2), 0.25, np.float32)
        write_annotation(tmp_path / "annotations" / "Validation_Set" / f"{video}.txt", constant)
    return changed(
        small_config(tmp_path),
        model={"modalities": ["audio", "text"], "audio": {"kind": "vggish", "weights": tmp_path / "vggish.pth"}},
        train={"epochs": 20, "plateau_patience": 0, "warmup_epochs": 1, "min_learning_rate": 1e-3, "save_every": 1},
    )


def read_log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def stop_at(*place: int) -> Callable[[int, int, int], None]:
    def interrupt(epoch: int, done: int, total: int) -> None:
        if (epoch, done) == place:
            raise KeyboardInterrupt

    return interrupt


def test_a_release_starts_from_the_best_weights_with_a_new_optimizer(releasing: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(releasing, run, device="cpu", on_batch=stop_at(3, 1))
    assert [row["released"] for row in read_log(run)] == ["1", "1"]
    best, state = load_file(run / "best.safetensors"), load_state(run)
    assert state is not None
    assert state.n_batches == 1
    rate = releasing.train.learning_rate
    moved = {name: (value - best[name]).abs() for name, value in state.model.items() if "num_batches" not in name}
    # The first step of Adam goes exactly as far as the rate, whatever the gradient.
    for name in ("backbone.audio.embeddings.2.weight", "backbone.audio.embeddings.4.weight", "head.weight"):
        share = (moved[name] - rate).abs() < 1e-3 * rate
        assert moved[name].max() < 1.001 * rate
        assert share.float().mean() > 0.9, name
    assert not moved["backbone.audio.embeddings.0.weight"].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "save_every", "ema"),
    [
        ((2, 2), 1, None),
        ((3, 1), 1, None),
        ((3, 1), 500, None),
        ((3, 2), 1, 0.9),
        ((5, 1), 500, 0.9),
        ((6, 1), 1, None),
    ],
)
def test_resume_is_exact_across_a_release(
    releasing: TrainConfig, tmp_path: Path, place: tuple[int, int], save_every: int, ema: float | None
) -> None:
    """Interrupted before, in and after the first epoch of a round, with and without anything saved of it."""
    config = changed(releasing, train={"save_every": save_every, "ema": ema})
    result = train(config, tmp_path / "whole", device="cpu")
    log = read_log(tmp_path / "whole")
    assert [row["released"] for row in log] == ["1", "1", "2", "2", "3", "3"]
    assert (result.epochs, result.ending, result.best.epoch) == (6, "rate spent", 1)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", device="cpu", on_batch=stop_at(*place))
    train(config, tmp_path / "parts", device="cpu", resume=True)
    assert read_log(tmp_path / "parts") == log
    one, two = load_state(tmp_path / "whole"), load_state(tmp_path / "parts")
    assert one is not None
    assert two is not None
    assert all(torch.equal(one.model[name], two.model[name]) for name in one.model)


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
    plain = open_training_data(root / "features", root / "annotations")
    shifted = open_training_data(root / "features", root / "annotations", label_delay_s=delay_s)
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
    cached = changed(plain, data={"embeddings": tmp_path / "embeddings", "views": 2})
    again = train(cached, tmp_path / "cached", device="cpu")
    # The same network judged on the same views, but for float16 and other random crops in training.
    assert again.n_frames == result.n_frames
    model = rcma.load_model(tmp_path / "cached")
    data = open_training_data(root / "features", root / "annotations")
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
@pytest.mark.parametrize("stop_at", [(1, 2), (2, 1), (2, 3)])
def test_resume_from_any_step_is_exact(root: Path, tmp_path: Path, stop_at: tuple[int, int]) -> None:
    config = changed(small_config(root), train={"epochs": 3, "batch_size": 2, "save_every": 1, "ema": 0.9})
    train(config, tmp_path / "whole", device="cpu")
    seen: list[tuple[int, int]] = []

    def interrupt(epoch: int, done: int, total: int) -> None:
        if (epoch, done) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", device="cpu", on_batch=interrupt)
    train(
        config,
        tmp_path / "parts",
        device="cpu",
        resume=True,
        on_batch=lambda epoch, done, total: seen.append((epoch, done)),
    )
    # It goes on with the next batch, not with the epoch's first.
    assert seen[0] == (stop_at[0], stop_at[1] + 1)
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


# Several processes.


def test_processes_share_each_batch(root: Path) -> None:
    data = open_training_data(root / "features", root / "annotations")
    dataset = WindowDataset(
        data.train, model=ModelSettings(length=32, text_width=16), hop=10, audio_alignment="start", seed=0
    )
    alone = list(SharedBatches(dataset, 4))
    shares = [list(SharedBatches(dataset, 4, process=process, n_processes=3)) for process in range(3)]
    assert sorted(index for batch in alone for index in batch) == list(range(len(dataset)))
    for number, batch in enumerate(alone):
        together = [index for share in shares for index in share[number] if index != EMPTY_WINDOW]
        assert sorted(together) == sorted(batch)
        assert all(share[number] for share in shares)
    nothing = dataset[EMPTY_WINDOW]
    assert not nothing["frame_mask"].any()
    assert torch.isnan(nothing["labels"]).all()
    assert nothing.keys() == dataset[0].keys()


def launch(main: Path, *arguments: str, n_processes: int) -> None:
    """Run a program in one process, or in several that talk to each other."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    done = subprocess.run(
        [sys.executable, *(launcher if n_processes > 1 else []), str(main), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


MAIN = """
import os, sys
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from rcma.cli.train import main

steps = []

def keep(optimizer, args, kwargs):
    steps.append(torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]))

register_optimizer_step_pre_hook(keep)
code = main(sys.argv[2:])
if os.environ.get("RANK", "0") == "0":
    torch.save(torch.stack(steps), sys.argv[1])
sys.exit(code)
"""
"""Trains, and keeps the gradients of each step, after clipping."""


@pytest.mark.slow
def test_two_processes_give_the_losses_and_gradients_of_one(root: Path, tmp_path: Path) -> None:
    """At a rate so small that float32 weights stay as they are: Adam makes steps of full size out of rounding errors
    where a gradient is zero, so that trainings on two processors, or on two processes, go apart in their own ways.
    """
    # Dropout draws other numbers in each process. Five windows in the last batch: the shares differ.
    config = changed(
        small_config(root),
        data={"hop": 7},
        model={"tcn": {"dropout": 0.0}, "fusion": {"dropout": 0.0}},
        train={"batch_size": 6, "clip_norm": 0.1, "learning_rate": 1e-30, "min_learning_rate": 0.0},
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"preprocessing"})))
    main = tmp_path / "main.py"
    main.write_text(MAIN)
    logs, gradients = [], []
    for n_processes in (1, 2):
        run, kept = tmp_path / str(n_processes), tmp_path / f"{n_processes}.pt"
        command = [str(kept), "--config", str(file), "--device", "cpu", "--out", str(run)]
        launch(main, *command, n_processes=n_processes)
        logs.append(list(csv.DictReader((run / "log.csv").open())))
        gradients.append(torch.load(kept, weights_only=True).double())
    assert len(logs[0]) == len(logs[1]) == 3
    for one, two in zip(*logs, strict=True):
        # The normalisation's running statistics change from epoch to epoch, and with them what is validated.
        for name in ("train_loss", "mean_ccc"):
            assert float(two[name]) == pytest.approx(float(one[name]), abs=2e-5)
    one, two = gradients
    assert one.shape == two.shape and len(one) == 9
    norms = one.norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.1), atol=1e-4, rtol=0)
    assert ((two - one).norm(dim=1) < 1e-4 * norms).all()


FIRST_STEP = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from rcma.config import ModelSettings
from rcma.metrics import n_loss_terms, training_loss
from rcma.model.network import RCMA

content = torch.load(sys.argv[1], weights_only=True)
several = len(sys.argv) > 3
if several:
    dist.init_process_group("gloo")
rank = dist.get_rank() if several else None
found = {}
for number, batch in enumerate(content["batches"]):
    for over in ("window", "batch"):
        for mse_weight in (0.0, 0.3, 1.0):
            model = RCMA(ModelSettings.model_validate(content["settings"]))
            model.load_state_dict(content["weights"])
            model.double().train()
            # The first process has one window, the second the others.
            own = batch if not several else {m: x[:1] if rank == 0 else x[1:] for m, x in batch.items()}
            shared = DistributedDataParallel(model) if several else model
            loss = training_loss(shared(own), own["labels"], over=over, mse_weight=mse_weight)
            loss.backward()
            found[f"{number} {over} {mse_weight}"] = {
                "loss": loss.detach(), "n_terms": n_loss_terms(own["labels"], over=over),
                **{name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None},
            }
torch.save(found, sys.argv[2] + (str(rank) if several else ""))
if several:
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_first_step_of_one_in_double_precision(tmp_path: Path) -> None:
    length, n_windows = 12, 4
    settings = {
        "length": length, "text_width": 5, "face": {"kind": "small", "frozen": True},
        "audio": {"kind": "small", "frozen": True},
        "tcn": {"face": [6], "audio": [6], "text": [6], "kernel_size": 3, "dropout": 0.0}, "fusion": {"dropout": 0.0},
    }  # fmt: skip
    torch.manual_seed(0)
    model = RCMA(ModelSettings.model_validate(settings))
    widths = model.embedding_widths
    batches = []
    for kind in ("all labelled", "none in the first process", "constant in each process", "none at all"):
        labels = torch.rand(n_windows, length, 2, dtype=torch.float64) * 2 - 1
        labels[2, 5:] = torch.nan
        if kind == "none in the first process":
            labels[0] = torch.nan
        elif kind == "constant in each process":
            labels[0], labels[1:] = 0.25, -0.5
        elif kind == "none at all":
            labels[:] = torch.nan
        inputs = {m: torch.randn(n_windows, length, width, dtype=torch.float64) for m, width in widths.items()}
        batches.append({**inputs, "labels": labels})
    torch.save({"settings": settings, "weights": model.state_dict(), "batches": batches}, tmp_path / "given.pt")
    main = tmp_path / "main.py"
    main.write_text(FIRST_STEP)
    launch(main, str(tmp_path / "given.pt"), str(tmp_path / "one"), n_processes=1)
    launch(main, str(tmp_path / "given.pt"), str(tmp_path / "two"), "several", n_processes=2)
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two0", "two1"))
    assert len(one) == 4 * 2 * 3
    for case, expected in one.items():
        for found in two:
            assert found[case].keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[case][name], value, rtol=1e-9, atol=1e-12, msg=f"{case}: {name}")


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
