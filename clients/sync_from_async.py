"""Writes the synchronous client: the asynchronous one, which is its source, without the waiting."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).parent / "megacontext_client"
SOURCES = {"async_client.py": "client.py", "async_stream.py": "stream.py"}
"""What is written from what."""
NOTE = "# Written by python -m clients.sync_from_async from {source}: change that file.\n"
RULES = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync(?=[A-Z])|\basync_", ""),
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    (r"\ba(next|read|close|iter_bytes)\b", r"\1"),
    (r"\bAwaitable\[([\w.]+)\]|\bAwaitable, ", r"\1"),
    (r"\basyncio\b", "time"),
)


def synchronous(source: str) -> str:
    """The text of the file that a source stands for."""
    text = (PACKAGE / source).read_text(encoding="utf-8")
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return NOTE.format(source=source) + text


def main() -> None:
    for source, target in SOURCES.items():
        (PACKAGE / target).write_text(synchronous(source), encoding="utf-8")


if __name__ == "__main__":
    main()
