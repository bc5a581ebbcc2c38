"""Public models: registry, downloads from a server on this machine, accepted licences, files copied by hand."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from made_audeering import write_model
from made_onnx import write_face_model
from PIL import Image

from preprocessing.errors import InputError
from rcma import cli
from rcma.experts import check_model, entries, find_entry, find_face, packaged
from rcma.experts.registry import FaceEntry, VoiceEntry

ROOT = Path(__file__).parents[1]
FACE = next(entry for entry in entries().values() if isinstance(entry, FaceEntry))
VOICE = next(entry for entry in entries().values() if isinstance(entry, VoiceEntry))
(FACE_FILE,) = FACE.files
CONTENT = bytes(range(256)) * 3000


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv("RCMA_MODELS", str(folder))
    return folder


class Server:
    """Serves bytes by path on the loopback interface."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                outer.asked.append(path)
                data = outer.files.get(path)
                self.send_response(404 if data is None else 200)
                # One that breaks off says more than it sends.
                self.send_header(
                    "Content-Length", str(len(data or b"") + (1000 if "broken" in path or "interrupt" in path else 0))
                )
                self.end_headers()
                self.wfile.write(data or b"")
                if "interrupt" in path:
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


def face(url: str, content: bytes = CONTENT) -> FaceEntry:
    """A registered face model whose right file has this content."""
    return FACE.model_copy(update={"url": url, "files": {FACE_FILE: hashlib.sha256(content).hexdigest()}})


def left_in(folder: Path) -> list[str]:
    """Everything in a folder of models that is not one of its lock files."""
    return sorted(path.name for path in folder.glob("*")) if folder.exists() else []


def test_every_entry_says_what_users_must_know() -> None:
    assert {entry.modality for entry in entries().values()} == {"face", "audio"}
    for name, entry in entries().items():
        assert entry.name == name
        for text in (entry.code_licence, entry.weights_licence, entry.trained_on, entry.scores, entry.source):
            assert text.strip()
        assert "authors' figure" in entry.scores
        assert name in entry.how_to_get() and str(entry.path) in entry.how_to_get()
        assert "\n" not in entry.how_to_get()
        assert not any(file.endswith((".bin", ".pt", ".pkl")) for file in entry.files)
        if isinstance(entry, FaceEntry):
            assert entry.url.startswith("https://") and min(entry.std) > 0 and all(entry.files.values())


def test_the_figures_of_the_words_are_those_of_the_newest_measurement() -> None:
    result = max((ROOT / "benchmarks" / "results").glob("*-text-affect.json"))
    scores = packaged()["words"].scores
    for measured in json.loads(result.read_text(encoding="utf-8"))["measurements"]:
        if measured["data"] != "EmoBank, train":
            figures = f"{measured['valence r']:.3f} valence, {measured['arousal r']:.3f} arousal"
            assert f"{measured['data']}: r {figures}" in scores


def test_the_documentation_has_the_figures_of_the_registry() -> None:
    page = (ROOT / "docs" / "public-models.md").read_text(encoding="utf-8")
    for entry in (*packaged().values(), *entries().values()):
        assert f"`{entry.name}`" in page
        for figure in re.findall(r"\.\d{2,3}", entry.scores):
            assert figure in page, f"{entry.name}: {figure}"


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=FACE.name):
        find_entry("nonsense")


def test_the_folder_of_models_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert FACE.path == tmp_path / "models" / FACE_FILE
    monkeypatch.delenv("RCMA_MODELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert FACE.path == tmp_path / "caches" / "rcma" / FACE_FILE
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FACE.path == tmp_path / ".cache" / "rcma" / FACE_FILE


def test_fetches_a_file_once(server: Server, models: Path) -> None:
    server.files["/model.onnx"] = CONTENT
    entry = face(f"{server.url}/model.onnx")
    with pytest.raises(InputError, match=f"rcma-models fetch {entry.name}"):
        entry.locate()
    path = entry.fetch()
    assert path == models / FACE_FILE == entry.locate()
    assert path.read_bytes() == CONTENT
    assert entry.fetch() == path
    assert server.asked == ["/model.onnx"]
    assert left_in(models) == [FACE_FILE]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/model.onnx", CONTENT[:-1] + b"x"),
        ("/model.onnx", CONTENT[:-100]),
        ("/model.onnx", CONTENT + b"more"),
        ("/model.onnx", b""),
        ("/broken.onnx", CONTENT[:5000]),
        ("/elsewhere.onnx", CONTENT),
    ],
    ids=["other", "short", "long", "empty", "breaks off", "not found"],
)
def test_what_is_not_the_right_file_is_refused_and_deleted(
    server: Server, models: Path, path: str, content: bytes
) -> None:
    server.files[path] = content
    url = f"{server.url}{'/model.onnx' if 'elsewhere' in path else path}"
    with pytest.raises(InputError) as error:
        face(url).fetch()
    message = str(error.value)
    assert "\n" not in message and url in message and str(models / FACE_FILE) in message
    assert left_in(models) == []


def test_without_a_network_the_message_says_where_a_file_can_be_put(server: Server, models: Path) -> None:
    server.close()
    entry = face(f"{server.url}/model.onnx")
    with pytest.raises(InputError) as error:
        entry.fetch()
    assert str(models / FACE_FILE) in str(error.value) and "\n" not in str(error.value)
    assert left_in(models) == []
    (models / FACE_FILE).write_bytes(CONTENT)
    assert entry.locate() == entry.fetch() == models / FACE_FILE


def test_an_interrupted_download_leaves_nothing(server: Server, models: Path) -> None:
    server.files["/interrupt.onnx"] = CONTENT
    with pytest.raises(KeyboardInterrupt):
        face(f"{server.url}/interrupt.onnx").fetch()
    assert left_in(models) == []


def test_a_wrong_file_put_by_hand_is_never_used_nor_touched(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.mkdir()
    (models / FACE_FILE).write_bytes(b"not the model")
    with pytest.raises(InputError, match=FACE_FILE) as error:
        FACE.locate()
    assert str(FACE.files[FACE_FILE]) in str(error.value)
    assert cli.models.main(["fetch", FACE.name]) == 1
    assert cli.models.main(["check"]) == 1
    assert FACE_FILE in capsys.readouterr().err
    assert cli.models.main(["list"]) == 0
    assert "wrong checksum" in capsys.readouterr().out
    assert (models / FACE_FILE).read_bytes() == b"not the model"


def test_a_file_that_changes_is_checked_again(models: Path) -> None:
    models.mkdir()
    path = models / FACE_FILE
    path.write_bytes(CONTENT)
    entry = face("http://127.0.0.1:9/model.onnx")
    assert entry.locate() == path
    path.write_bytes(CONTENT + b"more")
    with pytest.raises(InputError, match="sha256"):
        entry.locate()


def put_voice_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in VOICE.files:
        (folder / Path(name).name).write_bytes(b"{}")


def test_a_licence_is_accepted_once(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_voice_model(VOICE.path)
    assert VOICE.must_accept and not VOICE.is_accepted()
    with pytest.raises(InputError, match=f"--accept-licence {VOICE.name}"):
        VOICE.locate()
    assert cli.models.main(["fetch", VOICE.name]) == 1
    refused = capsys.readouterr().err
    assert VOICE.weights_licence in refused and f"--accept-licence {VOICE.name}" in refused
    assert cli.models.main(["fetch", VOICE.name, "--accept-licence", VOICE.name]) == 0
    assert VOICE.weights_licence in capsys.readouterr().out
    assert VOICE.locate() == VOICE.path == models / VOICE.name
    assert cli.models.main(["fetch", VOICE.name]) == 0
    # Another text of the licence was not accepted.
    assert not VOICE.model_copy(update={"weights_licence": "all rights reserved"}).is_accepted()


def test_a_file_of_somebody_else_is_not_overwritten_by_the_list_of_licences(models: Path) -> None:
    VOICE.accept_licence()
    (written,) = [path for path in models.iterdir() if path.suffix == ".json"]
    written.write_text("my notes")
    with pytest.raises(InputError, match=written.name):
        VOICE.is_accepted()
    with pytest.raises(InputError, match=written.name):
        VOICE.accept_licence()
    assert written.read_text() == "my notes"


def run_command(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with this machine's server as the hub."""
    environment = {**os.environ, "HF_ENDPOINT": server.url, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("HF_HUB_OFFLINE", None)
    code = "import sys; from rcma.cli.models import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def serve_repository(server: Server, weights: bytes, sha256: str) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    siblings = [
        {"rfilename": "config.json", "size": 2, "blobId": "00"},
        {
            "rfilename": "model.safetensors",
            "size": len(weights),
            "blobId": "01",
            "lfs": {"sha256": sha256, "size": len(weights), "pointerSize": 134},
        },
        {"rfilename": "pytorch_model.bin", "size": 9, "blobId": "02"},
    ]
    answer = {"id": VOICE.hub, "sha": revision, "siblings": siblings, "tags": [], "private": False}
    server.files[f"/api/models/{VOICE.hub}"] = json.dumps(answer).encode()
    server.files[f"/{VOICE.hub}/resolve/{revision}/config.json"] = b"{}"
    server.files[f"/{VOICE.hub}/resolve/{revision}/model.safetensors"] = weights


@pytest.mark.slow
def test_fetches_a_repository_of_the_hub(server: Server, models: Path) -> None:
    serve_repository(server, CONTENT, hashlib.sha256(CONTENT).hexdigest())
    done = run_command(server, "fetch", VOICE.name, "--accept-licence", VOICE.name)
    assert done.returncode == 0, done.stderr
    folder = VOICE.locate()
    assert folder == VOICE.path
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert not any("pytorch_model" in path for path in server.asked)
    (folder / "model.safetensors").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        VOICE.locate()


@pytest.mark.slow
def test_a_repository_with_other_weights_is_refused(server: Server, models: Path) -> None:
    right = hashlib.sha256(b"other").hexdigest()
    serve_repository(server, CONTENT, right)
    done = run_command(server, "fetch", VOICE.name, "--accept-licence", VOICE.name)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("failed: ") and right in done.stderr
    assert "Traceback" not in done.stderr
    assert not VOICE.path.exists()


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached(server: Server, models: Path) -> None:
    server.close()
    done = run_command(server, "fetch", VOICE.name, "--accept-licence", VOICE.name)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(VOICE.path) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_list_shows_licences_scores_and_how_to_get(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.models.main(["list"]) == 0
    shown = capsys.readouterr().out
    for entry in entries().values():
        assert entry.how_to_get() in shown
    for model in (*packaged().values(), *entries().values()):
        assert all(text in shown for text in (model.name, model.gives, model.scores, model.licence))
    assert "voice_relative" in shown and "relative to the recording" in shown
    assert not models.exists()


def test_help_comes_without_pytorch() -> None:
    code = (
        "import sys; from rcma.cli.models import main\n"
        "try: main(['fetch', '--help'])\n"
        "except SystemExit: print([name for name in ('torch', 'transformers', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_check_without_models_and_of_a_missing_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.models.main(["check"]) == 0
    assert "rcma-models list" in capsys.readouterr().out
    assert cli.models.main(["check", FACE.name]) == 1
    assert FACE.how_to_get() in capsys.readouterr().err


@pytest.mark.parametrize(("valence", "passed"), [(0.4, True), (-0.4, False), (np.nan, False)])
def test_check_tells_whether_a_smile_is_pleasant(models: Path, valence: float, passed: bool) -> None:
    models.mkdir()
    outputs = np.zeros(10, np.float32)
    outputs[8] = valence
    path = write_face_model(models / FACE_FILE, FACE.side, np.zeros((3, 10), np.float32), outputs)
    entry = face("http://127.0.0.1:9/model.onnx", path.read_bytes())
    picture = np.full((90, 80, 3), 128, np.uint8)
    plain, smile = check_model(entry, (picture, np.array([10.0, 10.0, 60.0, 70.0])))
    assert plain.passed == bool(np.isfinite(valence)) and smile.passed == passed
    assert smile.valence == pytest.approx(valence, nan_ok=True)


def test_a_face_model_put_by_hand_is_listed_and_checked(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models.mkdir()
    path = write_face_model(models / FACE_FILE, FACE.side, np.zeros((3, 10), np.float32), np.full(10, 0.25, np.float32))
    monkeypatch.setitem(entries(), FACE.name, face("http://127.0.0.1:9/model.onnx", path.read_bytes()))
    assert cli.models.main(["list"]) == 0
    assert f"yes, {path}" in capsys.readouterr().out
    assert cli.models.main(["check"]) == 0
    shown, told = capsys.readouterr()
    assert told == "" and FACE.name in shown and "+0.250" in shown


def test_check_runs_a_voice_model(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(VOICE.path)
    assert cli.models.main(["check"]) == 1
    assert VOICE.how_to_get() in capsys.readouterr().err
    VOICE.accept_licence()
    assert cli.models.main(["check"]) == 0
    shown, told = capsys.readouterr()
    assert told == ""
    assert shown.count(f" {VOICE.name} ") == 1 and "finite" in shown


def test_a_smile_is_found_in_a_picture_or_a_video(demo_clips: Path, tmp_path: Path) -> None:
    image, box = find_face(demo_clips / "demo_01.mp4")
    Image.fromarray(image).save(tmp_path / "portrait.png")
    again, same = find_face(tmp_path / "portrait.png")
    np.testing.assert_array_equal(again, image)
    np.testing.assert_allclose(same, box, atol=1)
    Image.fromarray(np.zeros_like(image)).save(tmp_path / "night.png")
    with pytest.raises(InputError, match=r"night\.png"):
        find_face(tmp_path / "night.png")
