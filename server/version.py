"""Which version runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

FROM_SOURCE = "0+source"


def version() -> str:
    """Of the installed package; ``FROM_SOURCE`` in a source tree that is not installed."""
    try:
        return installed("megacontext")
    except PackageNotFoundError:
        return FROM_SOURCE
