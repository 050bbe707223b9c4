"""Ids of sessions."""

from __future__ import annotations

import secrets


def new_id(kind: str = "sess") -> str:
    """Of a session, never given out before; ``kind`` is what it begins with."""
    return f"{kind}_{secrets.token_hex(12)}"
