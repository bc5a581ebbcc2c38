"""What the README says exists: every option of its commands, every file of its tree, every setting it sets."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from preprocessing.cli import main as preprocess
from preprocessing.config import PreprocessConfig, known_keys
from rcma import cli
from rcma.config import TrainConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {
    "rcma-preprocess": preprocess,
    "rcma-train": cli.train,
    "rcma-predict": cli.predict,
    "rcma-evaluate": cli.evaluate,
    "rcma-check-submission": cli.check_submission,
    "rcma-export": cli.export,
}
SETTINGS = {"rcma-preprocess": PreprocessConfig, "rcma-train": TrainConfig}


def command_lines() -> list[list[str]]:
    joined = README.replace("\\\n", " ")
    commands = re.findall(r"^ {4,}(rcma-.*)", joined, flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in commands]


def test_all_commands_are_shown() -> None:
    assert {line[0] for line in command_lines()} == set(COMMANDS)


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_options_and_settings_of_a_command_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        COMMANDS[words[0]](["--help"])
    known = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", known), f"{words[0]} has no {option}"
    for flag, setting in itertools.pairwise(words):
        if flag == "--set":
            assert setting.partition("=")[0] in known_keys(SETTINGS[words[0]])


def test_tree_names_every_module_and_nothing_else() -> None:
    tree = README.partition("## The tree")[2].partition("\n## ")[0]
    for package, block in re.findall(r"^    (\w+)/.*\n((?:      .*\n)+)", tree, flags=re.MULTILINE):
        if package not in ("preprocessing", "rcma"):
            continue
        named = set(re.findall(r"\w+\.py", block))
        present = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
        assert named == present, package


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
