"""A model's name, fetched over HTTP from a server that answers as the Hugging Face hub does."""

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from made_models import torch_model, write_folder

from jaxbert.config import VocabularyConfig
from jaxbert.text.vocabulary import save_tokenizer
from jaxbert.text.wordpiece import train_tokenizer
from jaxbert.weights.convert import convert

COMMIT = "c" * 40
PROGRAM = """
import jaxbert
loaded = jaxbert.load("someone/model")
print(loaded.source, loaded.embedder, loaded.predictor("embed").embed("a cat")[:2].tolist())
"""


@contextlib.contextmanager
def hub(repository: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with one model, someone/model, and the files that were asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, with_body: bool) -> None:
            path = self.path.split("?")[0]
            files = {str(p.relative_to(repository)): p for p in repository.rglob("*") if p.is_file()}
            name = re.sub(r"^/someone/model/resolve/[^/]+/", "", path)
            if re.fullmatch(r"/api/models/someone/model(/revision/main)?", path):
                siblings = [{"rfilename": file} for file in sorted(files)]
                self.send(json.dumps({"id": "someone/model", "sha": COMMIT, "siblings": siblings}).encode(), with_body)
            elif re.fullmatch(rf"/api/models/someone/model/tree/({COMMIT}|main)", path):
                tree = [
                    {"type": "file", "path": f, "size": p.stat().st_size, "oid": "0" * 40} for f, p in files.items()
                ]
                self.send(json.dumps(tree).encode(), with_body)
            elif name in files:
                asked.append(name)
                self.send(files[name].read_bytes(), with_body)
            else:
                self.send_error(404)

        def send(self, body: bytes, with_body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:  # Nothing on the screen.
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def embedder(tmp_path: pathlib.Path) -> pathlib.Path:
    made = write_folder(tmp_path / "made", torch_model("BertModel", vocab_size=190))
    save_tokenizer(
        train_tokenizer(["the cat sat on the mat"] * 9, VocabularyConfig(size=150, min_frequency=1)), made, 24
    )
    folder = convert(made, tmp_path / "embedder", pooling="cls").folder
    for extra in ("pytorch_model.bin", "onnx/model.onnx", "tf_model.h5"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"not to be read")
    return folder


def run(address: str, cache: pathlib.Path, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith("HF_")}
    mine = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=kept | mine | settings, check=False
    )


def test_a_model_is_fetched_once_and_nothing_but_what_is_read(embedder: pathlib.Path, tmp_path: pathlib.Path):
    with hub(embedder) as (address, asked):
        first = run(address, tmp_path / "cache")
        assert first.returncode == 0, first.stderr
        expected = {"config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"}
        assert expected <= set(asked)
        assert not {"pytorch_model.bin", "onnx/model.onnx", "tf_model.h5", "README.md"} & set(asked)
    assert "pooling='cls', normalize=True" in first.stdout
    # With the hub gone, the copy serves.
    again = run(address, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout


def test_an_old_embedder_and_a_model_that_is_not_there(embedder: pathlib.Path, tmp_path: pathlib.Path):
    (embedder / "0_Transformer").mkdir()
    for path in embedder.iterdir():
        if path.is_file() and path.name != "modules.json":
            path.rename(embedder / "0_Transformer" / path.name)
    modules = json.loads((embedder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (embedder / "modules.json").write_text(json.dumps(modules))
    with hub(embedder) as (address, asked):
        found = run(address, tmp_path / "cache")
        assert found.returncode == 0, found.stderr
        assert "pooling='cls'" in found.stdout
        assert "0_Transformer/model.safetensors" in asked
        (tmp_path / "empty").mkdir()
    with hub(tmp_path / "empty") as (address, _):
        missing = run(address, tmp_path / "other")
        (tmp_path / "empty" / "config.json").write_text("{}")
        (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"not to be read")
    assert missing.returncode == 1
    assert "WeightsError: someone/model: has no config.json on the hub" in missing.stderr
    with hub(tmp_path / "empty") as (address, asked):
        pickled = run(address, tmp_path / "third")
    assert "someone/model/pytorch_model.bin: is a torch pickle" in pickled.stderr
    assert "save_pretrained(TARGET)" in pickled.stderr
    assert "pytorch_model.bin" not in asked
