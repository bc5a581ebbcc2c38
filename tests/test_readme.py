"""What README and docs say exists: every option of their commands, every room of the tree, every setting they set."""

import itertools
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing.cli import main as preprocess
from preprocessing.config import PreprocessConfig, known_keys
from rcma import cli
from rcma.config import TrainConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {
    "rcma-preprocess": preprocess,
    "rcma-train": cli.train.main,
    "rcma-predict": cli.predict.main,
    "rcma-evaluate": cli.evaluate.main,
    "rcma-check-submission": cli.check_submission.main,
    "rcma-export": cli.export.main,
    "rcma-models": cli.models.main,
    "rcma-import": cli.import_features.main,
    "rcma-calibrate": cli.calibrate.main,
}
SETTINGS = {"rcma-preprocess": PreprocessConfig, "rcma-train": TrainConfig}


def command_lines() -> list[list[str]]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    commands = re.findall(r"^ {4,}(rcma-.*)", text.replace("\\\n", " "), flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in dict.fromkeys(commands)]


def test_all_commands_are_shown() -> None:
    assert {line[0] for line in command_lines()} == set(COMMANDS)


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_options_and_settings_of_a_command_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    action = words[1:2] if words[0] == "rcma-models" else []
    with pytest.raises(SystemExit):
        COMMANDS[words[0]]([*action, "--help"])
    known = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", known), f"{words[0]} has no {option}"
    for flag, setting in itertools.pairwise(words):
        if flag == "--set":
            assert setting.partition("=")[0] in known_keys(SETTINGS[words[0]])


def test_tree_names_every_room() -> None:
    tree = README.partition("## The tree")[2].partition("\n## ")[0]
    for package in ("preprocessing", "rcma"):
        block = re.search(rf"^    {package}/.*\n((?:      .*\n)+)", tree, flags=re.MULTILINE)
        assert block is not None
        named = set(re.findall(r"^ {6}(\w+)/", block[1], flags=re.MULTILINE))
        assert named == {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}, package


def test_places_that_newcomers_look_for_exist() -> None:
    rows = re.findall(r"^\| .* \| \[(.*\.py)\]\(\1\) \| (`.*`) \|$", CONTRIBUTING, flags=re.MULTILINE)
    assert len(rows) >= 5
    for file, names in rows:
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(def|class) {name}\b", source, flags=re.MULTILINE), f"{file} has no {name}"


def test_readme_is_read_in_three_minutes() -> None:
    assert README.count("\n") <= 160


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_python_example_runs(tmp_path: Path, short_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from made_features import WIDTH, small_config

    from rcma.model.checkpoint import TrainedRCMA, save_config, save_weights

    config = small_config(tmp_path)
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"text_width": WIDTH}),
            "preprocessing": PreprocessConfig.model_validate({"speech": {"backend": "none"}}),
        }
    )
    save_config(tmp_path / "run", config)
    save_weights(tmp_path / "run", TrainedRCMA(config).state_dict())
    shutil.copy(short_clip, tmp_path / "my_video.mp4")
    monkeypatch.chdir(tmp_path)
    example = README.partition("From Python:")[2].partition("\n## ")[0]
    names: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in example.splitlines() if line.startswith("    ")), names)
    for target in ("valence", "arousal"):
        values = getattr(names["prediction"], target)
        assert values.dtype == np.float32 and values.shape == (12,)
        assert (np.abs(values) <= 1).all()
