"""Gradual unfreezing of pretrained backbones, as the authors' code does it, and their published configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_features import changed, data_settings, make_data, read_log, small_config, stop_at, write_annotation
from safetensors.torch import load_file

from rcma import cli
from rcma.config import ModelSettings, TrainConfig
from rcma.data import cut_window, fit_normalisation, open_training_data
from rcma.model.backbones import IR50, VGGish
from rcma.model.network import BACKBONES, RCMA
from rcma.training.loop import train
from rcma.training.run_folder import load_state

CONFIGS = Path(__file__).parents[1] / "configs"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights of IR-50 and VGGish."""
    folder = tmp_path_factory.mktemp("weights")
    files = {"face": folder / "res50_ir_0.887.pth", "audio": folder / "vggish-10086976.pth"}
    torch.manual_seed(0)
    for name, backbone in (("face", IR50()), ("audio", VGGish())):
        torch.save(backbone.state_dict(), files[name])
    return files


def test_unfreezing_groups_are_the_published_ones(weight_files: dict[str, Path]) -> None:
    """By the places of the authors' code in its list of parameters, where the output layer comes before the body."""
    settings = ModelSettings.model_validate(
        {"text_width": 4, **{m: {"pretrained": file} for m, file in weight_files.items()}}
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
    assert model.n_unfreezing_groups == 3
    for n_unfrozen in (0, 1, 2, 3):
        model.unfreeze(n_unfrozen)
        for m, parameters in theirs.items():
            wanted = {place for span in places[m][:n_unfrozen] for place in range(*span)}
            assert {place for place, parameter in enumerate(parameters) if parameter.requires_grad} == wanted
        # The rest stays frozen, statistics of BatchNorm included.
        training = [face.output_layer.training, face.body[21].training, face.body[18].training, face.body[17].training]
        assert training == [n_unfrozen >= 1, n_unfrozen >= 2, n_unfrozen >= 3, False]
    assert all(p.requires_grad for p in model.fusion.parameters())


def test_pretrained_vggish_takes_log_mel_as_it_is(root: Path, weight_files: dict[str, Path]) -> None:
    """Standardised patches are another input than the one its convolutions know, and these are never trained."""
    settings = {"modalities": ["audio"], "audio": {"kind": "vggish", "pretrained": weight_files["audio"]}}
    config = changed(small_config(root), model=settings)
    assert not config.model.standardises_log_mel
    assert changed(config, model={"audio": {"pretrained": None}}).model.standardises_log_mel
    assert small_config(root).model.standardises_log_mel
    data = open_training_data(data_settings(root))
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
        **{f"model.{m}.pretrained": file for m, file in weight_files.items()},
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
        assert [row["unfrozen_groups"] for row in read_log(runs[target])] == ["1", "1"]

    trained, start = (
        load_file(runs["valence"] / "best.safetensors"),
        {m: torch.load(f) for m, f in weight_files.items()},
    )
    assert trained["text_mean"].shape == ()
    assert not trained["audio_mean"].any()
    for m, unfrozen in (("face", ("output_layer",)), ("audio", ("embeddings.4",))):
        for name, value in start[m].items():
            assert torch.equal(trained[f"backbone.{m}.{name}"], value) != name.startswith(unfrozen), name

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
def unfreezing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
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
        model={"modalities": ["audio", "text"], "audio": {"kind": "vggish", "pretrained": tmp_path / "vggish.pth"}},
        train={"epochs": 20, "plateau_patience": 0, "warmup_epochs": 1, "min_learning_rate": 1e-3, "save_every": 1},
    )


def test_a_new_group_starts_from_the_best_weights_with_a_new_optimizer(unfreezing: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(unfreezing, run, device="cpu", on_status=stop_at(3, 1))
    assert [row["unfrozen_groups"] for row in read_log(run)] == ["1", "1"]
    best, state = load_file(run / "best.safetensors"), load_state(run)
    assert state is not None
    assert state.n_batches == 1
    rate = unfreezing.train.learning_rate
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
def test_resume_is_exact_across_an_unfreezing(
    unfreezing: TrainConfig, tmp_path: Path, place: tuple[int, int], save_every: int, ema: float | None
) -> None:
    """Interrupted before, in and after the first epoch of a round, with and without anything saved of it."""
    config = changed(unfreezing, train={"save_every": save_every, "ema": ema})
    result = train(config, tmp_path / "whole", device="cpu")
    log = read_log(tmp_path / "whole")
    assert [row["unfrozen_groups"] for row in log] == ["1", "1", "2", "2", "3", "3"]
    assert (result.epochs, result.ending, result.best.epoch) == (6, "rate spent", 1)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", device="cpu", on_status=stop_at(*place))
    train(config, tmp_path / "parts", device="cpu", resume=True)
    assert read_log(tmp_path / "parts") == log
    one, two = load_state(tmp_path / "whole"), load_state(tmp_path / "parts")
    assert one is not None
    assert two is not None
    assert all(torch.equal(one.model[name], two.model[name]) for name in one.model)
