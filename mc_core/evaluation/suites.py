"""Suites of questions by name."""

from __future__ import annotations

from collections.abc import Callable

Told = Callable[[str, int, int], None]
"""Progress: (what is done, how much of it is done, of how much)."""
SUITES: dict[str, tuple[str, ...]] = {
    "passkey": ("passkey",),
    "needle": ("needle",),
    "multikey": ("multikey",),
    "multivalue": ("multivalue",),
    "uuid": ("uuid",),
    "tracking": ("tracking", "chain"),
    "paraphrase": ("paraphrase",),
    "combine": ("combine",),
    "absent": ("absent",),
}
"""The tasks (``mc_core.tasks``) that each suite draws its episodes from, in turn."""
MEASURES = ("nll", "stability")
"""Suites that ask nothing: loss after a working context, and how the focus moves."""
EVERY_SUITE = (*SUITES, *MEASURES)
