"""Embeddings on disk: shared by all runs that would compute the same ones, and by no others."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from made_features import make_data, make_features, make_labels, small_config
from torch import nn

from preprocessing.errors import InputError
from rcma.config import ModelSettings, TrainConfig
from rcma.data import Embeddings, Video, embed_videos
from rcma.model.backbones import SmallAudioNet, SmallFaceNet
from rcma.model.network import RCMA
from rcma.training.loop import train

N_FRAMES, N_VIEWS = 40, 3


@pytest.fixture
def computed() -> Iterator[list[str]]:
    """Kinds of backbones, an entry for each time that one is run."""
    seen: list[str] = []

    def note(module: nn.Module, given: object, output: object) -> None:
        if isinstance(module, SmallFaceNet | SmallAudioNet):
            seen.append(type(module).__name__)

    handle = nn.modules.module.register_module_forward_hook(note)
    yield seen
    handle.remove()


@pytest.fixture
def videos(tmp_path: Path) -> list[Video]:
    return [make_video(tmp_path / "features" / f"video{k}", seed=k) for k in range(2)]


def make_video(folder: Path, *, seed: int) -> Video:
    labels = make_labels(N_FRAMES, seed=seed)
    make_features(folder, labels, seed=seed)
    return Video(folder, labels)


def make_model(seed: int = 0, **face: object) -> RCMA:
    torch.manual_seed(seed)
    kinds = {"face": {"kind": "small", "frozen": True, **face}, "audio": {"kind": "small", "frozen": True}}
    return RCMA(ModelSettings.model_validate({"length": 8, "text_width": 16, **kinds}))


def embed(folder: Path, model: RCMA, videos: list[Video], *, n_views: int = N_VIEWS, first: int = 0) -> Embeddings:
    return embed_videos(
        folder, model, videos, n_views=n_views, audio_alignment="start", first=first, on_video=lambda *_: None
    )


def arrays(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*.npy")}


def test_the_same_is_computed_once_and_read_again(tmp_path: Path, videos: list[Video], computed: list[str]) -> None:
    first = embed(tmp_path / "e", make_model(), videos)
    n_runs = len(computed)
    assert n_runs > 0
    again = embed(tmp_path / "e", make_model(), videos[::-1], first=1)
    assert len(computed) == n_runs
    for video in videos:
        for view in range(N_VIEWS):
            one, two = (given.read(video.video_id, view) for given in (first, again))
            assert one.keys() == two.keys() == {"face", "audio"}
            assert all(np.array_equal(one[m], two[m], equal_nan=True) for m in one)
    # More views later: only those are added, and only for faces.
    before = arrays(tmp_path / "e")
    computed.clear()
    embed(tmp_path / "e", make_model(), videos, n_views=N_VIEWS + 1)
    assert computed == ["SmallFaceNet"] * 2
    after = arrays(tmp_path / "e")
    assert all(after[path] == content for path, content in before.items())
    assert len(after) == len(before) + 2


def test_other_backbones_do_not_meet(tmp_path: Path, videos: list[Video], computed: list[str]) -> None:
    models = [make_model(0), make_model(1), make_model(0, precision="bfloat16")]
    standardised = make_model(0)
    standardised.audio_mean += 1
    expected = [{m: np.array(x) for m, x in embed(tmp_path / str(k), model, videos).read("video0", 1).items()}
                for k, model in enumerate([*models, standardised])]  # fmt: skip
    found = [embed(tmp_path / "e", model, videos) for model in [*models, standardised]]
    for given, alone in zip(found, expected, strict=True):
        assert all(np.array_equal(given.read("video0", 1)[m], alone[m], equal_nan=True) for m in alone)
    # What the sound is standardised with is no matter of the face.
    assert found[3].paths["video0"]["face"] == found[0].paths["video0"]["face"]
    assert found[3].paths["video0"]["audio"] != found[0].paths["video0"]["audio"]
    # Neither are the weights behind the backbones, or those of other modalities.
    other = make_model(5)
    other.backbone.load_state_dict(models[0].backbone.state_dict())
    computed.clear()
    embed(tmp_path / "e", other, videos)
    assert computed == []
    folders = sorted(path.name for path in (tmp_path / "e").iterdir() if path.is_dir())
    assert [name.partition("-")[0] for name in folders] == ["audio"] * 3 + ["face"] * 3
    assert all(
        json.loads((tmp_path / "e" / name / "made_from.json").read_text())["kind"] == "small" for name in folders
    )


def test_other_sound_alignment_does_not_meet(tmp_path: Path, videos: list[Video]) -> None:
    found = [
        embed_videos(tmp_path / "e", make_model(), videos, n_views=1, audio_alignment=how, on_video=lambda *_: None)
        for how in ("start", "end")
    ]
    one, two = (given.read("video0", 0) for given in found)
    assert np.array_equal(one["face"], two["face"], equal_nan=True)
    assert not np.array_equal(one["audio"], two["audio"], equal_nan=True)


@pytest.mark.parametrize(("name", "m"), [("faces", "face"), ("face_score", "face"), ("log_mel", "audio")])
def test_changed_features_are_computed_again(
    tmp_path: Path, videos: list[Video], computed: list[str], name: str, m: str
) -> None:
    before = embed(tmp_path / "e", make_model(), videos).read("video0", 0)
    file = videos[0].folder / f"{name}.npy"
    content = np.load(file)
    content[20:30] = np.nan if name == "face_score" else content[20:30] // 2
    np.save(file, content)
    computed.clear()
    after = embed(tmp_path / "e", make_model(), [Video(video.folder, video.labels) for video in videos]).read(
        "video0", 0
    )
    assert len(computed) == (N_VIEWS if m == "face" else 1)
    assert [k for k in before if not np.array_equal(before[k], after[k], equal_nan=True)] == [m]


def test_features_of_one_name_from_two_folders_do_not_meet(tmp_path: Path, computed: list[str]) -> None:
    one, other = (make_video(tmp_path / name / "video0", seed=seed) for seed, name in enumerate(["a", "b"]))
    model = make_model()
    first, second = (embed(tmp_path / "e", model, [video]) for video in (one, other))
    assert not np.array_equal(first.read("video0", 0)["face"], second.read("video0", 0)["face"], equal_nan=True)
    computed.clear()
    embed(tmp_path / "e", model, [one])
    embed(tmp_path / "e", model, [other])
    assert computed == []


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put_nothing(path: Path) -> None:
    path.write_bytes(b"")


def take_description_away(path: Path) -> None:
    path.with_suffix(".json").unlink()


def damage_description(path: Path) -> None:
    path.with_suffix(".json").write_text("{")


@pytest.mark.parametrize(
    "damage", [Path.unlink, cut_short, change_a_byte, put_nothing, take_description_away, damage_description]
)
def test_a_damaged_array_is_computed_again(
    tmp_path: Path, videos: list[Video], computed: list[str], damage: Callable[[Path], object]
) -> None:
    made = embed(tmp_path / "e", make_model(), videos)
    before = arrays(tmp_path / "e")
    damage(made.paths["video1"]["face"][1])
    computed.clear()
    again = embed(tmp_path / "e", make_model(), videos)
    assert computed == ["SmallFaceNet"]
    assert again.paths == made.paths
    assert arrays(tmp_path / "e") == before


@pytest.mark.parametrize("content", ["null", "5", "[1]", '{"a": 5}', '{"a": null}', '{"a": []}', "{", ""])
def test_a_damaged_list_of_hashes_is_written_anew(
    tmp_path: Path, videos: list[Video], computed: list[str], content: str
) -> None:
    model = make_model()
    embed(tmp_path / "e", model, videos)
    (known,) = (tmp_path / "e").glob(".feature_hashes.json")
    right = json.loads(known.read_text())
    known.write_text(content)
    n_computed = len(computed)
    embed(tmp_path / "e", model, videos)
    assert len(computed) == n_computed
    assert json.loads(known.read_text()) == right


def test_an_array_in_the_place_of_another_is_not_taken_for_it(tmp_path: Path, videos: list[Video]) -> None:
    made = embed(tmp_path / "e", make_model(), videos)
    one, other = made.paths["video0"]["face"][:2]
    before = arrays(tmp_path / "e")
    for suffix in (".npy", ".json"):
        one.with_suffix(suffix).write_bytes(other.with_suffix(suffix).read_bytes())
    embed(tmp_path / "e", make_model(), videos)
    assert arrays(tmp_path / "e") == before


def test_views_are_the_centre_and_other_crops(tmp_path: Path, videos: list[Video]) -> None:
    model = make_model()
    made = embed(tmp_path / "e", model, videos, n_views=4)
    views = [json.loads(path.with_suffix(".json").read_text())["view"] for path in made.paths["video0"]["face"]]
    assert views[0] == {"top": 4, "left": 4, "side": 40, "flipped": False}
    assert len({json.dumps(view) for view in views}) == 4
    features = videos[0].features()
    for view, place in enumerate(views):
        top, left = place["top"], place["left"]
        crop = np.array(features.faces[:, top : top + 40, left : left + 40], np.float32)
        crop = crop[:, :, ::-1] if place["flipped"] else crop
        with torch.no_grad():
            expected = model.backbone["face"](torch.tensor((crop / 127.5 - 1).transpose(0, 3, 1, 2).copy()))
        read, there = made.read("video0", view)["face"], np.isfinite(features.face_score)
        np.testing.assert_allclose(read[there], expected[torch.tensor(there)], atol=2e-3)
        assert np.isnan(read[~there]).all()


def embed_in_another_process(folder: Path, features: Path, first: int, start: object, results: object) -> None:
    torch.set_num_threads(1)
    runs: list[int] = []
    nn.modules.module.register_module_forward_hook(
        lambda module, given, output: runs.append(1) if isinstance(module, SmallFaceNet | SmallAudioNet) else None
    )
    videos = [Video(path, np.zeros((N_FRAMES, 2), np.float32)) for path in sorted(features.iterdir())]
    model = make_model()
    start.wait()  # type: ignore[attr-defined]
    embed(folder, model, videos, first=first)
    results.put(len(runs))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_runs_at_the_same_time_share_the_work(tmp_path: Path) -> None:
    for k in range(4):
        make_video(tmp_path / "features" / f"video{k}", seed=k)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    arguments = tmp_path / "e", tmp_path / "features"
    processes = [
        context.Process(target=embed_in_another_process, args=(*arguments, first, start, results)) for first in (0, 2)
    ]
    for process in processes:
        process.start()
    n_runs = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sum(n_runs) == 4 * (N_VIEWS + 1)
    videos = [Video(path, np.zeros((N_FRAMES, 2), np.float32)) for path in sorted((tmp_path / "features").iterdir())]
    embed(tmp_path / "alone", make_model(), videos)
    together, alone = (sorted(arrays(tmp_path / name).values()) for name in ("e", "alone"))
    assert together == alone
    assert not list((tmp_path / "e").rglob(".partial*"))


def config_with_weights(root: Path, folder: Path, *, seed: int, fold: int) -> TrainConfig:
    tree = small_config(root, epochs=1, seed=seed).model_dump()
    tree["model"] |= {"modalities": ("face", "text")}
    tree["model"]["face"] |= {"frozen": True, "pretrained": folder / "face.pth"}
    tree["data"] |= {"embeddings": folder / "embeddings", "augmentations": 2, "fold": fold, "folds": "subject-disjoint"}
    return TrainConfig.model_validate(tree)


def test_one_computation_serves_all_folds_and_seeds(tmp_path: Path, computed: list[str]) -> None:
    make_data(tmp_path, n_train=4, n_validation=1, n_frames=N_FRAMES)
    torch.save(SmallFaceNet().state_dict(), tmp_path / "face.pth")
    told: list[str] = []
    train(
        config_with_weights(tmp_path, tmp_path, seed=0, fold=0),
        tmp_path / "first",
        device="cpu",
        on_status=told.append,
    )
    outputs = [text for text in told if text.startswith("outputs of frozen backbones")]
    assert outputs == [f"outputs of frozen backbones, video {k} of 5" for k in range(5)]
    assert len(computed) == 2 * 5
    before = arrays(tmp_path / "embeddings")
    for seed, fold in ((1, 0), (0, 1), (2, 3)):
        train(config_with_weights(tmp_path, tmp_path, seed=seed, fold=fold), tmp_path / f"{seed}-{fold}", device="cpu")
    assert len(computed) == 2 * 5
    assert arrays(tmp_path / "embeddings") == before


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path, videos: list[Video]) -> None:
    (tmp_path / "e").write_text("not a folder")
    with pytest.raises(InputError, match=r"^data\.embeddings: .*e.*: "):
        embed(tmp_path / "e", make_model(), videos)


@pytest.mark.parametrize("damage", [Path.unlink, put_nothing])
def test_what_goes_while_it_is_in_use_is_one_line(
    tmp_path: Path, videos: list[Video], damage: Callable[[Path], object]
) -> None:
    made = embed(tmp_path / "e", make_model(), videos)
    path = made.paths["video0"]["face"][0]
    damage(path)
    with pytest.raises(InputError, match=rf"^{path}: .*--resume"):
        made.read("video0", 0)
