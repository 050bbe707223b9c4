"""``megacontext load``."""

from __future__ import annotations

import os
from collections.abc import Callable

import typer

from clients.load.settings import LoadSettings
from server.commands.common import first_key, plain_errors
from server.commands.options import with_options


def load(settings: LoadSettings) -> None:
    """Put a running server under load and report what its clients see; the last line of stdout is JSON."""
    from clients.load.command import main
    from clients.load.trace import TraceError
    from clients.megacontext_client import ClientError

    given = settings.api_key.get_secret_value() if settings.api_key else os.environ.get("MEGACONTEXT_API_KEY")
    with plain_errors(ClientError):
        try:
            main(settings, first_key(given))
        except TraceError as error:
            raise typer.BadParameter(f"--trace: {error}") from error


def load_command() -> Callable[..., None]:
    """The command, with an option for each setting of the load tester."""
    return with_options(LoadSettings, load)
