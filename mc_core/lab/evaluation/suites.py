"""Suites of questions by name."""

from __future__ import annotations

from collections.abc import Callable

from mc_core.lab.evaluation.chats import CHAT
from mc_core.lab.tasks.plant import PLANTED

Told = Callable[[str, int, int], None]
"""Progress: (what is done, how much of it is done, of how much)."""
MEASURES = ("nll", "stability")
"""Suites that ask nothing: loss after a working context, and how the focus moves."""
TUNING = ("plain_tuning",)
"""Suites to tune on; they are asked by name alone."""
EVERY_SUITE = (*(name for name in PLANTED if name not in TUNING), CHAT, *MEASURES)
