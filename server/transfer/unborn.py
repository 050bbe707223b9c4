"""Sessions that are still being imported: nobody sees them."""

from __future__ import annotations

from mc_core.store import SessionInfo


def is_unborn(info: SessionInfo) -> bool:
    """Whether an import of it has not ended, or never will. Every other session has a shape of gists."""
    return info.gist_dim == 0
