"""Settings: what is refused, and that the shipped files are what the code takes by default."""

from pathlib import Path

import pytest
import yaml

from preprocessing.config import PreprocessConfig, flatten, known_keys, load_config
from preprocessing.errors import InputError
from rcma.config import TrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"
DATA = ["data.features=features", "data.annotations=annotations"]


def test_shipped_preprocessing_file_states_the_defaults() -> None:
    assert load_config(PreprocessConfig, CONFIGS / "preprocess.yaml") == PreprocessConfig()


def test_published_training_file_states_the_defaults() -> None:
    """But for one model per target, and the authors' weights, which people must have."""
    overrides = [
        "model.targets=[valence]",
        "model.face.pretrained=res50_ir_0.887.pth",
        "model.audio.pretrained=vggish-10086976.pth",
    ]
    published = load_config(TrainConfig, CONFIGS / "rcma_published.yaml")
    assert published == load_config(TrainConfig, None, [*DATA, *overrides])
    assert published != load_config(TrainConfig, None, DATA)


def test_recommended_training_file_marks_what_is_not_published() -> None:
    recommended = flatten(load_config(TrainConfig, CONFIGS / "rcma.yaml").model_dump(mode="json"))
    published = flatten(load_config(TrainConfig, CONFIGS / "rcma_published.yaml").model_dump(mode="json"))
    differ = {key.rpartition(".")[2] for key in published if recommended[key] != published[key]} - {"pretrained"}
    text = (CONFIGS / "rcma.yaml").read_text()
    marked = {line.partition(":")[0].strip() for line in text.splitlines() if "# not published" in line}
    assert marked == differ


@pytest.mark.parametrize("name", ["preprocess.yaml", "rcma.yaml", "rcma_published.yaml"])
def test_shipped_files_name_every_key(name: str) -> None:
    cls = PreprocessConfig if name == "preprocess.yaml" else TrainConfig
    tree = yaml.safe_load((CONFIGS / name).read_text())

    def keys(node: dict, prefix: str = "") -> set[str]:
        found = set()
        for key, value in node.items():
            found.add(prefix + key)
            found |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else set()
        return found

    # Filled in by training, not by people; rcma_pretrained.yaml shows what goes with an ONNX graph.
    widths = ("model.text_width", "model.face.width", "model.audio.width")
    left_out = (*widths, "face_source", "preprocessing", "model.face.onnx.")
    assert keys(tree) == {key for key in known_keys(cls) if not key.startswith(left_out)}


def test_overrides_reach_nested_keys() -> None:
    config = load_config(
        PreprocessConfig, None, ["faces.size=64", "speech.backend=faster-whisper", "speech.language=de"]
    )
    assert (config.faces.size, config.speech.backend, config.speech.language) == (64, "faster-whisper", "de")


@pytest.mark.parametrize(
    ("overrides", "backend"),
    [
        ([], "openai-whisper"),
        (["speech.model=packaged"], "faster-whisper"),  # in whose format it is
        (["speech.model=packaged", "speech.backend=none"], "none"),
        (["speech.model=packaged", "speech.backend=openai-whisper"], "openai-whisper"),  # refused when it is loaded
    ],
)
def test_the_backend_that_is_recorded_is_the_one_that_runs(overrides: list[str], backend: str) -> None:
    config = load_config(PreprocessConfig, None, overrides)
    assert config.speech.backend == backend
    recorded = config.model_dump(mode="json")
    assert recorded["speech"]["backend"] == backend
    assert PreprocessConfig.model_validate(recorded) == config


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("faces.sise=64", "unknown key 'faces.sise'; the nearest known key is 'faces.size'"),
        ("speach.backend=none", "unknown key 'speach'; the nearest known key is 'speech'"),
        ("faces.size=big", "faces.size: Input should be a valid integer"),
        ("faces.size=4", "faces.size: Input should be greater than or equal to 16"),
        ("speech.backend=vosk", "speech.backend: Input should be 'openai-whisper', 'faster-whisper' or 'none'"),
        ("faces", "write key=value"),
        ("faces.size.more=1", "faces.size"),
    ],
)
def test_bad_override_is_one_line_that_names_the_key(override: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(PreprocessConfig, None, [override])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("model.face.weights=a.pth", "'weights'; its present name is 'pretrained'"),
        ("data.views=2", "'views'; its present name is 'augmentations'"),
        ("train.release=false", "'release'; its present name is 'gradual_unfreezing'"),
    ],
)
def test_a_key_of_an_earlier_version_is_answered_with_its_present_name(former: str, present: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(TrainConfig, None, [*DATA, former])
    assert f"unknown key {present}" in str(error.value)


def test_hop_that_leaves_frames_out_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.hop \(400\) is larger than model\.length \(300\)"):
        load_config(TrainConfig, None, [*DATA, "data.hop=400"])


@pytest.mark.parametrize("content", ["a: [1", "- 1\n- 2\n", "\xff\xfe"])
def test_file_that_is_no_configuration(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"c\.yaml"):
        load_config(PreprocessConfig, path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such configuration file"):
        load_config(PreprocessConfig, tmp_path / "nowhere.yaml")
