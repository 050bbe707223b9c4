"""How the focus moves along a long conversation, and what it costs beside decoding when the history is long."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mc_core.bundle.bundle import Bundle
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.refocuser import RefocusReport
from mc_core.lab.controller import MCController
from mc_core.lab.data.arrays import Ids
from mc_core.lab.data.cache import Stream
from mc_core.lab.evaluation.suites import Told

ASKINGS = 3
"""Times that the lens is asked in the timed decoding: so many times ``lens_interval`` blocks, token by token."""


@dataclass(frozen=True)
class StabilityPlan:
    """refocuses: of the conversation, one a block. history: tokens before the timed decoding."""

    refocuses: int = 1000
    history: int = 1_000_000

    def __post_init__(self) -> None:
        for name in ("refocuses", "history"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Stability:
    """swap_rate, utilization, residency_mean, residency_p95: means over the refocuses; residency counts refocuses since
    an entry last changed level. swap_rate_max: of any refocus. focus_share: seconds of lens, look-ahead and allocator
    at ``history`` tokens, as a share of the seconds of decoding what lies between two refocuses."""

    lens: str
    refocuses: int
    tokens: int
    swap_rate: float
    swap_rate_max: float
    utilization: float
    residency_mean: float
    residency_p95: float
    history: int
    lens_seconds: float
    allocator_seconds: float
    decode_seconds: float
    focus_share: float


def stability_suite(
    bundle: Bundle, streams: Sequence[Stream], focus: FocusConfig, plan: StabilityPlan, told: Told
) -> Stability:
    """Feed dialogues (texts, if the corpus has none) through the focus block by block."""
    chosen = [stream for stream in streams if stream.chat] or list(streams)
    ids = np.concatenate([np.asarray(stream.ids, np.int32) for stream in chosen])
    controller = MCController(bundle, focus)
    reports = _converse(controller, np.resize(ids, (plan.refocuses + 1) * focus.block_size), plan.refocuses, told)
    moved = {
        "swap_rate": _mean([report.swap_rate for report in reports]),
        "swap_rate_max": round(max(report.swap_rate for report in reports), 4),
        "utilization": _mean([report.utilization for report in reports]),
        "residency_mean": _mean([report.residency.mean for report in reports]),
        "residency_p95": _mean([report.residency.p95 for report in reports]),
    }
    tokens = controller.session.tokens if controller.session is not None else 0
    told(f"timing at {plan.history:,} tokens", plan.refocuses, plan.refocuses)
    lens, allocate, decode = _timed(controller, np.resize(ids, plan.history), focus.block_size)
    return Stability(
        lens=focus.lens,
        refocuses=len(reports),
        tokens=tokens,
        history=plan.history,
        lens_seconds=lens,
        allocator_seconds=allocate,
        decode_seconds=decode,
        focus_share=round((lens + allocate) / decode, 4),
        **moved,
    )


def _converse(controller: MCController, ids: Ids, refocuses: int, told: Told) -> list[RefocusReport]:
    """A refocus a block: the reports of all of them."""
    size = controller.core.focus.block_size
    controller.begin_inference_session(ids[:size])
    reports = []
    for number in range(1, refocuses + 1):
        step = controller.inference_step(ids[number * size : (number + 1) * size])
        assert step.report is not None
        reports.append(step.report)
        if number % 10 == 0 or number == refocuses:
            told("refocuses", number, refocuses)
    return reports


def _timed(controller: MCController, ids: Ids, size: int) -> tuple[float, float, float]:
    """Seconds of the lens and of the allocator a refocus (means: not every refocus asks the lens), and of decoding a
    block (median), after ``ids``."""
    controller.begin_inference_session(ids)
    lens, allocate, decode = [], [], []
    for at in range((ASKINGS * controller.core.focus.lens_interval + 1) * size):
        started = time.perf_counter()
        step = controller.inference_step(ids[at : at + 1] if at < len(ids) else ids[-1:])
        if step.report is None:
            decode.append(time.perf_counter() - started)
        else:
            lens.append(step.report.seconds["lens"])
            allocate.append(step.report.seconds["allocate"])
    # The first refocus warms up.
    return float(np.mean(lens[1:])), float(np.mean(allocate[1:])), float(np.median(decode)) * size


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)
