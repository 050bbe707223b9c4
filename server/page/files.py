"""The page's files, read once, each with what a browser must know of it."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"
MARK = "page/@/"
"""Where the index names a file: the version takes the place of the @, so that an address never changes its content."""
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class File:
    """What is sent, of which type, and a tag by which a browser asks whether it is still the same."""

    body: bytes
    media_type: str

    @property
    def tag(self) -> str:
        return f'"{_digest(self.body)}"'


@dataclass(frozen=True)
class Page:
    """All files by name; version: of all of them together."""

    files: Mapping[str, File]
    version: str

    def index(self, root: str) -> File:
        """The page itself. root: the path under which a proxy shows the server, if it has one."""
        text = self.files[INDEX].body.decode()
        prefix = f"{html.escape(root.rstrip('/'))}/" if root.strip("/") else ""
        text = text.replace(MARK, f"{prefix}page/{self.version}/")
        return File(text.encode(), MEDIA_TYPES[".html"])


@cache
def page() -> Page:
    """The page as it was installed."""
    paths = sorted(path for path in FOLDER.rglob("*") if path.suffix in MEDIA_TYPES)
    files = {path.relative_to(FOLDER).as_posix(): File(path.read_bytes(), MEDIA_TYPES[path.suffix]) for path in paths}
    told = "".join(f"{name} {file.tag}\n" for name, file in files.items())
    return Page(files, _digest(told.encode()))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
