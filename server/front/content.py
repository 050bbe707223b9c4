"""What a ``Content-Type`` header says."""

from __future__ import annotations


def media_type(header: str) -> str:
    """Without parameters, in lower case: ``application/json``."""
    return header.partition(";")[0].strip().lower()


def is_json(header: str) -> bool:
    return media_type(header) == "application/json"
