"""``megacontext serve``."""

from __future__ import annotations

from server.commands.common import plain_errors
from server.settings import Settings


def serve(settings: Settings) -> None:
    """Serve a model over an OpenAI-compatible API; sessions are kept on disk."""
    from server.serve import run

    with plain_errors():
        run(settings)
