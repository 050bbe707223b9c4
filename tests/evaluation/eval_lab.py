"""What the tests of the evaluation share."""

from __future__ import annotations

from dataclasses import dataclass

from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.evaluation.engine_driver import EngineDriver
from mc_core.lab.tasks.history import History

FOCUS = FocusConfig(budget=384, recent_tokens=64)
LENSES = ("hybrid", "cross", "lexical")


@dataclass(frozen=True)
class Asking:
    """A driver that has read a history."""

    driver: EngineDriver
    history: History
