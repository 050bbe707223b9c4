"""A real browser, for what is measured and pictured on the page."""

from __future__ import annotations

import os
import shutil
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")


class NoBrowserError(Exception):
    """There is no Chromium on this machine."""


def launch(playwright: Any) -> Any:
    """Chromium as the system has it, else playwright's own."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and not os.path.exists(playwright.chromium.executable_path):
        raise NoBrowserError("needs Chromium: make test-page installs it")
    # A browser's sandbox wants another user than root.
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=found, args=args)
