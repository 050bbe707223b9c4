"""``megacontext serve``."""

from __future__ import annotations

from collections.abc import Callable

from server.commands.common import plain_errors
from server.commands.options import with_options
from server.settings import Settings


def serve(settings: Settings) -> None:
    """Serve a model over an OpenAI-compatible API; sessions are kept on disk."""
    with plain_errors():
        if settings.ray is None:
            from server.serve import run

            run(settings)
        else:
            from server.on_ray import run_replicas

            run_replicas(settings, settings.ray)


def serve_command() -> Callable[..., None]:
    """The command, with an option for each setting."""
    return with_options(Settings, serve)
