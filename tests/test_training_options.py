"""What training can do beyond the published recipe, each against a plain account of it."""

from __future__ import annotations

import csv
import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from made_features import make_data, make_features, make_labels, small_config, write_annotation
from safetensors.torch import load_file

import rcma
from preprocessing.errors import InputError
from preprocessing.store import load_features
from rcma import cli
from rcma.backbones import IR50, VGGish
from rcma.checkpoint import load_run_config, load_state
from rcma.config import ModelSettings, TrainConfig, TrainSettings
from rcma.data import EMPTY_WINDOW, SharedBatches, WindowDataset, drop_modalities, labels_at, open_training_data
from rcma.embeddings import embed_videos
from rcma.inference import predict_frames, predict_video, to_abaw_columns
from rcma.metrics import ccc, n_loss_terms, training_loss
from rcma.model import RCMA
from rcma.train import rate_and_stage, train


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    loss = training_loss(prediction, torch.full((1, 3, 1), 0.9), over=over, mse_weight=mse_weight)  # type: ignore[arg-type]
    loss.backward()
    assert torch.isfinite(loss)
    assert prediction.grad is not None
    assert (prediction.grad < 0).all()


# Schedule.


def test_cosine_goes_from_the_rate_to_the_least_one() -> None:
    settings = TrainSettings(schedule="cosine", epochs=11, warmup_epochs=1, learning_rate=0.1, min_learning_rate=0.001)
    rates = [rate_and_stage(settings, [0.0] * n, n_stages=0)[0] for n in range(11)]
    assert rates[0] == rates[1] == 0.1
    assert rates[6] == pytest.approx((0.1 + 0.001) / 2)
    assert rates[10] == pytest.approx(0.001 + 0.099 * (1 + math.cos(math.pi * 0.9)) / 2)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[1:]))


def test_backbones_are_released_when_the_rate_is_lowest() -> None:
    settings = TrainSettings(
        warmup_epochs=0, learning_rate=1.0, min_learning_rate=0.1, plateau_patience=0, plateau_factor=0.1
    )
    seen = [rate_and_stage(settings, [0.5] + [0.0] * n, n_stages=3) for n in range(9)]
    expected = [(1.0, 0), (0.1, 0), (1.0, 1), (0.1, 1), (1.0, 2), (0.1, 2), (1.0, 3), (0.1, 3), (0.1, 3)]
    assert seen == [(pytest.approx(rate), stage) for rate, stage in expected]
    assert {rate_and_stage(settings, [0.5] + [0.0] * n, n_stages=0) for n in range(2, 9)} == {(0.1, 0)}


def test_stages_release_what_was_published(tmp_path: Path) -> None:
    for name, backbone in (("face", IR50()), ("audio", VGGish())):
        torch.save(backbone.state_dict(), tmp_path / f"{name}.pth")
    settings = ModelSettings.model_validate(
        {"text_width": 4, "face": {"weights": tmp_path / "face.pth"}, "audio": {"weights": tmp_path / "audio.pth"}}
    )
    model = RCMA(settings)
    frozen_face = {0: 24, 1: 24, 2: 21, 3: 14}
    for stage, n_frozen in frozen_face.items():
        model.release(stage)
        face, audio = model.backbone["face"], model.backbone["audio"]
        assert isinstance(face, IR50)
        assert isinstance(audio, VGGish)
        thawed = [any(p.requires_grad for p in unit.parameters()) for unit in face.body]
        assert thawed == [False] * n_frozen + [True] * (24 - n_frozen)
        assert face.body[-1].training == (stage >= 2)
        assert not face.body[0].training
        assert face.output_layer[3].weight.requires_grad == (stage >= 1)
        linear = [layer.weight.requires_grad for layer in (audio.embeddings[k] for k in (0, 2, 4))]
        assert linear == [stage >= 3, stage >= 2, stage >= 1]
        assert not audio.features[0].weight.requires_grad
    assert all(p.requires_grad for p in model.fusion.parameters())


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


def test_published_folds_hold_each_training_video_out_once(root: Path) -> None:
    official = open_training_data(root / "features", root / "annotations")
    train_ids = {video.video_id for video in official.train}
    validation_ids = {video.video_id for video in official.validation}
    held_out = []
    for fold in range(1, 6):
        try:
            data = open_training_data(root / "features", root / "annotations", fold=fold)
        except InputError:
            continue  # fewer than five training videos: some folds are empty
        part = {video.video_id for video in data.validation}
        assert part <= train_ids
        assert {video.video_id for video in data.train} == (train_ids | validation_ids) - part
        held_out += sorted(part)
    assert sorted(held_out) == sorted(train_ids)


def test_no_subject_is_on_both_sides(tmp_path: Path) -> None:
    from rcma.data import _divide

    train_files = {f"v{n}{side}": Path(f"{n}") for n in range(8) for side in ("_left", "_right")}
    validation_files = {f"w{n}": Path(f"{n}") for n in range(4)}
    seen: list[str] = []
    for fold in range(1, 6):
        training, held_out = _divide(train_files, validation_files, fold, "subject-disjoint", None)
        assert not {name.split("_")[0] for name in training} & {name.split("_")[0] for name in held_out}
        assert training.keys() | held_out.keys() == train_files.keys() | validation_files.keys()
        seen += held_out
    assert sorted(seen) == sorted(train_files | validation_files)
    table = tmp_path / "subjects.csv"
    names = sorted(train_files | validation_files)
    table.write_text("video,subject\n" + "".join(f"{name},s{k % 6}\n" for k, name in enumerate(names)))
    subject = dict(zip(names, (f"s{k % 6}" for k in range(len(names))), strict=True))
    training, held_out = _divide(train_files, validation_files, 2, "subject-disjoint", table)
    assert not {subject[name] for name in training} & {subject[name] for name in held_out}
    table.write_text("video,subject\nv0_left,a\n")
    with pytest.raises(InputError, match="names no subject for"):
        _divide(train_files, validation_files, 1, "subject-disjoint", table)


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
        prediction = rcma.predict(rcma.load_model(run), root / "features" / "video3")
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
    one, two = (to_abaw_columns(model, rcma.predict(model, features)) for model in models)
    mean = predict_frames(models, features).values
    np.testing.assert_allclose(mean[:, 0], (one[:, 0] + two[:, 0]) / 2, atol=1e-6)
    np.testing.assert_allclose(mean[:, 1], one[:, 1], atol=1e-6)
    video = str(root / "features" / "video3")
    arguments = ["--checkpoint", str(runs[0]), str(runs[1]), video, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.predict(arguments) == 0
    written = np.loadtxt(tmp_path / "out" / "video3.txt", delimiter=",", skiprows=1)
    np.testing.assert_allclose(written, mean, atol=1e-6)
    rows = list(csv.DictReader((tmp_path / "out" / "frames.csv").open(newline="")))
    spread = np.abs(one[:, 0] - two[:, 0]) / np.sqrt(2)
    np.testing.assert_allclose([float(row["valence_sd"]) for row in rows], spread, atol=1e-6)
    assert {row["arousal_sd"] for row in rows} == {""}
    assert cli.predict(["--checkpoint", str(runs[1]), video, "--out", str(tmp_path / "no"), "--device", "cpu"]) == 2
    assert "no model given predicts arousal" in capsys.readouterr().err


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
        assert np.isfinite(rcma.predict(model, root / "features" / "video3")).all()
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
        data.train, targets=("valence",), length=32, hop=10, text_width=16, audio_alignment="start", seed=0
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


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(root: Path, tmp_path: Path) -> None:
    # Dropout draws other numbers in each process. Five windows in the last batch: the shares differ.
    config = changed(
        small_config(root),
        data={"hop": 7},
        model={"tcn": {"dropout": 0.0}, "fusion": {"dropout": 0.0}},
        train={"batch_size": 6, "clip_norm": 1.0, "loss": "batch", "mse_weight": 0.25, "epochs": 2},
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"preprocessing"})))
    main = tmp_path / "main.py"
    main.write_text("import sys\nfrom rcma.cli import train\nsys.exit(train(sys.argv[1:]))\n")
    for n_processes in (1, 2):
        launch(
            main, "--config", str(file), "--device", "cpu", "--out", str(tmp_path / str(n_processes)),
            n_processes=n_processes,
        )  # fmt: skip
    logs = [list(csv.DictReader((tmp_path / name / "log.csv").open())) for name in ("1", "2")]
    assert len(logs[0]) == len(logs[1]) == 2
    for one, two in zip(*logs, strict=True):
        assert float(two["train_loss"]) == pytest.approx(float(one["train_loss"]), abs=1e-4)
        # Adam makes steps of full size out of rounding errors where a gradient is zero, as that of a bias before
        # BatchNorm is; in validation, with running statistics, they show.
        assert float(two["mean_ccc"]) == pytest.approx(float(one["mean_ccc"]), abs=0.05)


FIRST_STEP = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from rcma.config import ModelSettings
from rcma.metrics import n_loss_terms, training_loss
from rcma.model import RCMA

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
