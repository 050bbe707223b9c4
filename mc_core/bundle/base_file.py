"""A base that lies elsewhere: networks can be shipped for a model file that everybody fetches for himself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mc_core.errors import ConfigError


@dataclass(frozen=True)
class BaseFile:
    """file: its name; sha256: of its bytes, [64 hex digits]; size: of them. package: what carries it, for messages."""

    file: str
    sha256: str
    size: int
    package: str = ""

    @classmethod
    def of(cls, path: Path, package: str = "") -> BaseFile:
        """What names a file that is there."""
        return cls(path.name, sha256_of(path), path.stat().st_size, package)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> BaseFile:
        """ConfigError for fields that are missing, unknown or ill-typed."""
        types = {"file": str, "sha256": str, "size": int, "package": str}
        wrong = [name for name, kind in types.items() if not isinstance(raw.get(name, kind()), kind)]
        if wrong or set(raw) - set(types) or not {"file", "sha256", "size"} <= set(raw):
            raise ConfigError(f"base in bundle.json must have file, sha256, size and no other but package, got {raw}")
        if Path(raw["file"]).name != raw["file"]:
            raise ConfigError(f"base.file in bundle.json must be a name without folders, got {raw['file']!r}")
        return cls(**raw)

    def is_at(self, path: Path) -> bool:
        """Whether that file is the one that is meant; a look at its size spares reading most others."""
        return path.is_file() and path.stat().st_size == self.size and sha256_of(path) == self.sha256

    def find(self, folder: Path) -> Path:
        """The file, beside the networks in ``folder`` or among fetched models. ConfigError says where it was sought."""
        places = [folder / self.file, model_cache() / self.file]
        for place in places:
            if self.is_at(place):
                return place
        package = f" (package {self.package}; megacontext model fetch)" if self.package else ""
        sought = " or ".join(str(place) for place in places)
        raise ConfigError(f"{folder} holds networks for {self.file}{package}, which was not found as {sought}")


def model_cache() -> Path:
    """Where fetched models live."""
    given = os.environ.get("MEGACONTEXT_MODEL_CACHE")
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megacontext")


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
