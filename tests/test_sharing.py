"""Models that leave their machine: rcma-export, the Hub's mixin, and the Hub by name.

No network: the Hub is its own cache laid out in a folder, and a small server on this machine that answers as the Hub
does. Both are asked through the real client, in a process of its own, which reads its environment when it starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from made_features import make_data
from safetensors.torch import load_file, save_file

import rcma
from preprocessing.errors import InputError
from rcma import cli
from rcma.model.checkpoint import TrainedRCMA, load_model
from rcma.model.hub import shareable
from rcma.training.loop import train

LAYOUT = ["README.md", "config.json", "model.safetensors"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    train(make_data(root), root / "run", device="cpu")
    return root


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    return root / "run"


@pytest.fixture(scope="module")
def exported(root: Path, run: Path) -> Path:
    assert cli.export.main([str(run), "--out", str(root / "exported"), "--license", "mit", "--name", "Of tests"]) == 0
    return root / "exported"


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def assert_same_model(model: TrainedRCMA, run: Path):
    expected = load_model(run)
    assert model.config == shareable(expected.config)
    assert (model.scores, model.versions) == (expected.scores, expected.versions)
    assert model.scores is not None and model.versions["rcma"] == rcma.__version__
    assert not model.training
    state = expected.state_dict()
    assert all(torch.equal(value, state.pop(name)) for name, value in model.state_dict().items())
    assert not state


# The command.


def test_export_writes_the_layout_of_the_hub(run: Path, exported: Path):
    assert sorted(path.name for path in exported.iterdir()) == LAYOUT
    assert_same_model(load_model(exported), run)
    assert_same_model(load_model(exported / "model.safetensors"), run)
    config = json.loads((exported / "config.json").read_text())
    assert config["library_name"] == "rcma"
    assert config["scores"] == json.loads((run / "scores.json").read_text())
    data = ModelCard.load(exported / "README.md").data
    assert (data.license, data.model_name) == ("mit", "Of tests")


def test_export_holds_no_path_of_this_machine(root: Path, exported: Path):
    for file in exported.iterdir():
        assert str(root).encode() not in file.read_bytes(), file.name


def test_exported_model_predicts_the_same_to_the_bit(root: Path, run: Path, exported: Path):
    features = root / "features" / "video3"
    expected = rcma.Predictor(load_model(run))(features).values
    for path in (exported, exported / "model.safetensors", run / "best.safetensors"):
        assert np.array_equal(rcma.Predictor(load_model(path))(features).values, expected)


def test_predict_takes_any_form_of_a_model(root: Path, run: Path, exported: Path, tmp_path: Path):
    features = str(root / "features" / "video3")
    expected = None
    for number, checkpoint in enumerate((run, exported, exported / "model.safetensors")):
        out = tmp_path / str(number)
        # A second model after --checkpoint is known from an input.
        models = ["--checkpoint", str(checkpoint), str(checkpoint)]
        assert cli.predict.main([*models, features, "--out", str(out), "--device", "cpu"]) == 0
        expected = expected or (out / "video3.txt").read_text()
        assert (out / "video3.txt").read_text() == expected


def test_export_help_shows_an_example_and_defaults(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        cli.export.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text and "default: warning" in text


def test_export_says_how_to_go_on(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.export.main([str(run), "--out", str(tmp_path / "it's mine")]) == 0
    printed = capsys.readouterr().out
    assert "hf upload org/model '" in printed
    assert "rcma-predict --checkpoint org/model" in printed


def test_export_of_an_export_is_the_same(exported: Path, tmp_path: Path):
    options = ["--license", "mit", "--name", "Of tests"]
    assert cli.export.main([str(exported / "model.safetensors"), "--out", str(tmp_path / "again"), *options]) == 0
    for name in LAYOUT:
        # All but the day on which the card was written.
        texts = [
            re.sub(rb" on \d{4}-\d\d-\d\d", b"", (folder / name).read_bytes())
            for folder in (tmp_path / "again", exported)
        ]
        assert texts[0] == texts[1], name


def test_export_does_not_touch_a_folder_in_use(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        assert cli.export.main([str(run), "--out", str(out)]) == 2
        assert "already exists" in one_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert cli.export.main([str(run), "--out", str(tmp_path / "empty")]) == 0


def test_export_is_whole_or_not_there(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = load_model(run)
    good = TrainedRCMA.generate_model_card

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainedRCMA, "generate_model_card", full)
    from rcma.model.checkpoint import export_model

    with pytest.raises(OSError, match="No space left on device"):
        export_model(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())

    def meddle(self: TrainedRCMA, **options: str | None) -> ModelCard:
        """As a disk that does not keep what was written."""
        (path,) = tmp_path.rglob("model.safetensors")
        weights = load_file(path)
        weights["head.bias"] += 1
        save_file(weights, path)
        return good(self, **options)

    monkeypatch.setattr(TrainedRCMA, "generate_model_card", meddle)
    with pytest.raises(InputError, match="other weights are read than were written"):
        export_model(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--license", "MIT License"], "--license 'MIT License'"),
        (["--dataset", "my data"], "--dataset 'my data'"),
        (["--name", " "], "--name"),
        (["--name", "two\nlines"], "--name"),
    ],
)
def test_options_that_make_no_card_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
):
    assert cli.export.main([str(run), "--out", str(tmp_path / "out"), *options]) == 2
    assert says in one_error(capsys)
    assert not any(tmp_path.iterdir())


def test_export_of_a_run_before_its_end_is_not_evaluated(run: Path, tmp_path: Path):
    for name in ("config.yaml", "best.safetensors"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes((run / name).read_bytes())
    assert cli.export.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert "Not evaluated" in (tmp_path / "out" / "README.md").read_text()


# The mixin.


def test_the_mixin_saves_and_loads(run: Path, tmp_path: Path):
    model = load_model(run)
    assert isinstance(model, PyTorchModelHubMixin)
    model.save_pretrained(tmp_path / "saved", model_card_kwargs={"license": "mit"})
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == LAYOUT
    assert_same_model(TrainedRCMA.from_pretrained(tmp_path / "saved"), run)
    assert ModelCard.load(tmp_path / "saved" / "README.md").data.license == "mit"


def test_a_card_that_somebody_wrote_is_kept(run: Path, tmp_path: Path):
    (tmp_path / "README.md").write_text("mine")
    load_model(run).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_damaged_layouts_name_the_file(exported: Path, tmp_path: Path):
    for name in LAYOUT:
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    for text, says in (
        ("{", "cannot be read as JSON"),
        ("[]", "not a JSON object"),
        ('{"architectures": ["BertModel"]}', "not the configuration of a model of rcma"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=says) as error:
            load_model(tmp_path)
        assert "config.json" in str(error.value)
        assert "\n" not in str(error.value)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"of rcma-export: config\.json, model\.safetensors"):
        load_model(tmp_path)


def test_a_network_that_cannot_be_built_is_one_line(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What transformers says to a foreign encoder is not ours to know; code of its own is not even offered."""
    for name in LAYOUT:
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    tree = json.loads((exported / "config.json").read_text())
    foreign = {"model_type": "align_text_model", "auto_map": {"AutoModel": "org/other--modeling.Other"}}
    for hf_config in (None, {"model_type": "no such encoder"}, {"hidden_size": 3}, foreign):
        tree["config"]["model"]["face"] |= {"kind": "hf", "hf": "org/encoder", "hf_config": hf_config}
        (tmp_path / "config.json").write_text(json.dumps(tree))
        with pytest.raises(InputError, match=r"config\.json: no network can be built") as error:
            load_model(tmp_path)
        assert "\n" not in str(error.value)
    assert "Do you wish to run" not in capsys.readouterr().out


# The Hub by name.

ASK = """
import hashlib, json, sys
from preprocessing.errors import InputError
from rcma.model.checkpoint import load_model
answers = {}
for name in sys.argv[1:]:
    try:
        state = load_model(name).state_dict()
        answer = hashlib.sha256(b"".join(state[key].numpy().tobytes() for key in sorted(state))).hexdigest()
    except InputError as error:
        answer = str(error)
    answers[name] = answer
print(json.dumps(answers))
"""


def weights_of(run: Path) -> str:
    state = load_model(run).state_dict()
    return hashlib.sha256(b"".join(state[key].numpy().tobytes() for key in sorted(state))).hexdigest()


def ask(home: Path, *names: str, **environment: str) -> dict[str, str]:
    """What a new process says to names of models: the sha256 of the weights, or the error."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        capture_output=True,
        text=True,
        check=True,
        cwd=home,
        env={**kept, "PYTHONPATH": paths, "HF_HOME": str(home), **environment},
    )
    answers: dict[str, str] = json.loads(ended.stdout)
    assert not any("\n" in answer for answer in answers.values())
    return answers


def put_into_cache(home: Path, name: str, folder: Path, *, files: list[str]) -> None:
    """Lay out a downloaded repository as huggingface_hub does."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for part in (snapshot, repository / "blobs", repository / "refs"):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in files:
        blob = repository / "blobs" / hashlib.sha256(file.encode()).hexdigest()
        blob.write_bytes((folder / file).read_bytes())
        (snapshot / file).symlink_to(Path("..", "..", "blobs", blob.name))


@pytest.mark.slow
def test_a_downloaded_model_needs_no_network(run: Path, exported: Path, tmp_path: Path):
    put_into_cache(tmp_path, "org/model", exported, files=LAYOUT)
    put_into_cache(tmp_path, "org/half", exported, files=["config.json"])
    put_into_cache(tmp_path, "org/run", run, files=["config.yaml", "best.safetensors", "scores.json"])
    names = ["org/model", f"org/model@{COMMIT}", "org/run", "org/half", "org/none", "org/model@v2"]
    answers = ask(tmp_path, *names, HF_HUB_OFFLINE="1")
    assert [answers[name] for name in names[:3]] == [weights_of(run)] * 3
    assert "model.safetensors" in answers["org/half"]
    for name in ("org/none", "org/model@v2"):
        assert answers[name].startswith(name.partition("@")[0])
        assert "HF_HUB_OFFLINE is set" in answers[name]
    # The same files, given their place in Python.
    model = TrainedRCMA.from_pretrained("org/model", cache_dir=tmp_path / "hub", local_files_only=True)
    assert_same_model(model, run)


def test_a_path_comes_before_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    with pytest.raises(InputError, match=r"org/model: no run folder of rcma-train"):
        load_model("org/model")


class Hub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does, as far as loading a model asks."""

    repositories: dict[str, Path]
    requested: list[str]
    over: threading.Event
    """Until then, org/silent gets no answer."""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.requested.append(path)
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        folder = self.repositories.get(name)
        if name == "org/silent":
            self.over.wait()
        elif name == "org/gated":
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body=with_body)
        elif folder is None:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body=with_body)
        elif "nope" in parts:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body=with_body)
        elif "tree" in parts:
            files = [
                {
                    "type": "file",
                    "path": str(file.relative_to(folder)),
                    "size": file.stat().st_size,
                    "oid": self._oid(file),
                }
                for file in folder.rglob("*")
                if file.is_file()
            ]
            self._send(200, json.dumps(files).encode(), {}, with_body=with_body)
        elif parts[0] == "api":
            self._send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode(), {}, with_body=with_body)
        elif (folder / parts[-1]).is_file():
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self._oid(folder / parts[-1])}"'}
            self._send(200, (folder / parts[-1]).read_bytes(), headers, with_body=with_body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, with_body=with_body)

    def _oid(self, file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Address of a hub with these repositories, and the paths that were asked for."""
    requested: list[str] = []
    over = threading.Event()
    handler = type("Handler", (Hub,), {"repositories": repositories, "requested": requested, "over": over})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_models_are_downloaded_from_the_hub(run: Path, exported: Path, tmp_path: Path):
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text('{"model_type": "bert"}')
    (bert / "model.safetensors").write_bytes(b"many weights")
    (tmp_path / "empty").mkdir()
    repositories = {"org/model": exported, "org/run": run, "org/bert": bert, "org/empty": tmp_path / "empty"}
    names = ["org/model", "org/run", "org/bert", "org/empty", "org/gated", "org/none", "org/model@nope", "org/silent"]
    with serving(repositories) as (address, requested):
        answers = ask(tmp_path, *names, HF_ENDPOINT=address)
    assert [answers[name] for name in names[:2]] == [weights_of(run)] * 2
    assert "not the configuration of a model of rcma" in answers["org/bert"]
    assert "missing" in answers["org/empty"]
    assert "ask for access on https://huggingface.co/org/gated" in answers["org/gated"]
    assert "there is none of that name, or it is private" in answers["org/none"]
    assert "no revision 'nope'" in answers["org/model@nope"]
    assert "timed out" in answers["org/silent"]
    # Neither another library's weights, nor what lies beside a model.
    weights = [path for path in requested if path.endswith("model.safetensors")]
    assert weights and all("org/model/" in path for path in weights)
    assert not any("last" in path or "events" in path for path in requested)
    # What was downloaded stays, for when the hub has gone.
    assert_same_model(TrainedRCMA.from_pretrained("org/model", cache_dir=tmp_path / "hub", local_files_only=True), run)
