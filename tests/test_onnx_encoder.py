"""Face encoders that come as ONNX graphs: what they see, what is refused, and training on them from end to end."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from made_features import data_settings, small_config
from made_onnx import write_face_model
from numpy.typing import NDArray

import rcma
from preprocessing.config import load_config
from preprocessing.errors import InputError
from preprocessing.features import load_features
from rcma.config import OnnxSettings, TrainConfig
from rcma.data import open_training_data
from rcma.data.embeddings import embed_videos
from rcma.model import RCMA, describe_onnx
from rcma.model.onnx_encoder import OnnxVision
from rcma.prediction import predict_video
from rcma.training import train

CONFIGS = Path(__file__).parents[1] / "configs"
WIDTH, SIDE = 6, 24


@pytest.fixture(scope="module")
def layer() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(0)
    return random.normal(size=(3, WIDTH)).astype(np.float32), random.normal(size=WIDTH).astype(np.float32)


@pytest.fixture
def graph(tmp_path: Path, layer: tuple) -> Path:
    return write_face_model(tmp_path / "faces.onnx", SIDE, *layer)


def encoder(path: Path, **settings: object) -> OnnxVision:
    network = OnnxVision(describe_onnx(OnnxSettings.model_validate(settings), path))
    network.load_graph(path)
    return network.eval()


@pytest.mark.parametrize("n", ["N", 1], ids=["any batch", "one at a time"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_what_the_graph_is_given_is_scaled_ordered_and_normalised(
    tmp_path: Path, layer: tuple, channels: str, n: int | str
) -> None:
    weight, bias = layer
    path = write_face_model(tmp_path / "faces.onnx", SIDE, weight, bias, n=n)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    colours = np.random.default_rng(1).uniform(-1, 1, (5, 3)).astype(np.float32)
    crops = torch.from_numpy(colours)[:, :, None, None].expand(-1, -1, 40, 40)
    found = encoder(path, mean=mean, std=std, channels=channels)(crops)
    in_order = (colours if channels == "rgb" else colours[:, ::-1]) / 2 + 0.5
    expected = (in_order - np.array(mean)) / np.array(std) @ weight + bias
    assert found.dtype == torch.float32 and found.shape == (5, WIDTH)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_graph_says_its_size_and_width_and_any_output_can_be_taken(graph: Path) -> None:
    described = describe_onnx(OnnxSettings(), graph)
    assert (described.size, described.width, described.n_bytes) == (SIDE, WIDTH, graph.stat().st_size)
    crops = torch.rand((2, 3, 40, 40)) * 2 - 1
    means = encoder(graph, output="means")(crops)
    assert means.shape == (2, 3)
    for output in (1, 2, "pooled"):
        torch.testing.assert_close(encoder(graph, output=output)(crops), means)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"size": 32}, r"^model\.face\.onnx\.size: .*24"),
        ({"output": "nothing"}, r"^model\.face\.pretrained: .*output, means, pooled, map"),
        ({"output": 4}, r"^model\.face\.pretrained: .*no output 4"),
        ({"output": "map"}, r"^model\.face\.pretrained: .*one vector"),
    ],
)
def test_settings_that_do_not_fit_the_graph_are_refused(graph: Path, settings: dict, names: str) -> None:
    with pytest.raises(InputError, match=names) as error:
        describe_onnx(OnnxSettings.model_validate(settings), graph)
    assert "\n" not in str(error.value)


def test_a_graph_of_any_size_must_be_told_its_own(tmp_path: Path, layer: tuple) -> None:
    path = write_face_model(tmp_path / "faces.onnx", "S", *layer)
    with pytest.raises(InputError, match=r"^model\.face\.onnx\.size"):
        describe_onnx(OnnxSettings(), path)
    assert describe_onnx(OnnxSettings(size=32), path).size == 32


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a graph")
    for name in ("text.onnx", "nowhere.onnx"):
        with pytest.raises(InputError, match=rf"^model\.face\.pretrained: .*{name}"):
            describe_onnx(OnnxSettings(), tmp_path / name)


@pytest.mark.parametrize(
    ("face", "key"),
    [
        ({"kind": "onnx", "pretrained": "faces.onnx"}, r"model\.face\.frozen"),
        ({"kind": "onnx", "frozen": True}, r"model\.face\.pretrained"),
        (
            {"kind": "onnx", "pretrained": "faces.onnx", "frozen": True, "precision": "bfloat16"},
            r"model\.face\.precision",
        ),
        ({"kind": "small", "onnx": {"size": 40}}, "onnx"),
    ],
)
def test_an_encoder_that_cannot_be_used_so_is_refused_with_the_key(tmp_path: Path, face: dict, key: str) -> None:
    tree = small_config(tmp_path).model_dump()
    with pytest.raises(ValueError, match=key):
        TrainConfig.model_validate({**tree, "model": {**tree["model"], "face": face}})


def test_a_copy_gives_the_same(graph: Path) -> None:
    network, crops = encoder(graph), torch.rand((3, 3, 40, 40))
    before = network(crops)
    torch.testing.assert_close(copy.deepcopy(network)(crops), before, rtol=0, atol=0)


def config_with(root: Path, graph: Path, **data: object) -> TrainConfig:
    tree = small_config(root, epochs=1, ema=0.9).model_dump()
    tree["model"]["face"] = {"kind": "onnx", "pretrained": graph, "frozen": True}
    tree["data"] |= data
    return TrainConfig.model_validate(tree)


def test_a_run_is_trained_resumed_and_shared_without_the_file(root: Path, graph: Path, tmp_path: Path) -> None:
    config = config_with(root, graph)
    train(config, tmp_path / "run", device="cpu")
    longer = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2})})
    train(longer, tmp_path / "run", device="cpu", resume=True)
    content = graph.read_bytes()
    graph.unlink()
    model = rcma.load_model(tmp_path / "run")
    face = model.config.model.face
    assert face.onnx is not None and face.onnx.width == model.embedding_widths["face"] == WIDTH
    # The moving average of the weights leaves it as it is.
    assert model.backbone["face"].get_extra_state().numpy().tobytes() == content
    features = load_features(min((root / "features").iterdir()))

    def predict(model: RCMA) -> NDArray[np.float32]:
        return predict_video(model, features, hop=20, audio_alignment="start")

    assert np.isfinite(predict(model)).all()
    model.save_pretrained(tmp_path / "shared")
    shared = rcma.load_model(tmp_path / "shared")
    np.testing.assert_array_equal(predict(shared), predict(model))
    assert shared.config.model.face.pretrained == Path("faces.onnx")


def test_embeddings_are_known_by_the_content_of_the_graph_and_its_settings(
    root: Path, graph: Path, tmp_path: Path, layer: tuple
) -> None:
    folder = tmp_path / "embeddings"
    data = open_training_data(data_settings(root))

    def embed(path: Path, **settings: object) -> Path:
        network = encoder(path, **settings)
        tree = small_config(root).model_dump()
        described = describe_onnx(OnnxSettings.model_validate(settings), path)
        tree["model"] |= {"text_width": 16, "modalities": ("face",)}
        tree["model"]["face"] = {"kind": "onnx", "pretrained": path, "frozen": True, "onnx": described.model_dump()}
        model = RCMA(TrainConfig.model_validate(tree).model)
        model.load_backbones()
        made = embed_videos(folder, model, data.train, n_views=1, audio_alignment="start", on_video=lambda *_: None)
        video = data.train[0]
        features = video.features()
        side = features.faces.shape[1] * 5 // 6
        first = (features.faces.shape[1] - side) // 2
        faces = np.asarray(features.faces[:, first : first + side, first : first + side], np.float32) / 127.5 - 1
        expected = network(torch.from_numpy(faces).permute(0, 3, 1, 2)).numpy()
        there = np.isfinite(features.face_score)
        found = made.read(video.video_id, 0)["face"]
        np.testing.assert_allclose(found[there], expected[there], atol=5e-3)
        assert np.isnan(found[~there]).all()
        return made.paths[video.video_id]["face"][0]

    one = embed(graph)
    moved = graph.rename(tmp_path / "moved.onnx")
    assert embed(moved) == one
    assert embed(moved, mean=[0.5, 0.5, 0.5]) != one
    weight, bias = layer
    assert embed(write_face_model(tmp_path / "other.onnx", SIDE, weight, bias + 1)) != one


def test_the_shipped_configuration_is_one_of_pretrained_encoders(root: Path, layer: tuple, tmp_path: Path) -> None:
    config = load_config(TrainConfig, CONFIGS / "rcma_pretrained.yaml")
    face = config.model.face
    assert face.kind == "onnx" and face.frozen and face.onnx is not None
    assert config.model.audio.kind == "hf" and config.model.audio.frozen
    # A graph of the same input and output as the one that it names.
    described = describe_onnx(face.onnx, write_face_model(tmp_path / "enet.onnx", 224, *layer))
    assert described.size == 224 and described.width == WIDTH
