"""From records to the report: plain dicts and lists, as --json writes them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clients.load.records import Record
from clients.load.settings import LoadSettings
from clients.load.stats import fit, percentile, summarize

BINS = 8
"""Groups of turns by history length, of about as many turns each."""
SLICES = 30
UNTOLD = ("api_key", "json_file", "html")
"""Settings that say nothing of the load: a report may be passed on."""


def make_report(
    settings: LoadSettings, records: Sequence[Record], *, seconds: float, facts: dict[str, Any]
) -> dict[str, Any]:
    """``seconds``: length of the measurement; ``facts``: what is known besides (model, start, calibration, ...)."""
    answered = [record for record in records if record.outcome != "failed"]
    completed = [record for record in records if record.outcome == "completed"]
    return {
        "mode": settings.mode,
        "settings": _plain(settings),
        **facts,
        "seconds": seconds,
        "requests": _requests(records),
        "tokens": _tokens(completed),
        "throughput": _throughput(completed, seconds),
        "goodput": _goodput(settings, completed, len(records), seconds),
        "latency_ms": {
            "time_to_first_token": summarize([t for r in answered if (t := r.time_to_first_token) is not None]),
            "inter_token": summarize([gap for r in answered for gap in r.gaps]),
            "end_to_end": summarize([r.end_to_end for r in completed]),
            "time_to_first_token_from_send": summarize([r.pieces[0] - r.sent for r in answered if r.pieces]),
            "lateness": summarize([r.lateness for r in records]),
        },
        "curves_ms": {
            "first": _curve([t for r in answered if (t := r.time_to_first_token) is not None]),
            "gaps": _curve([gap for r in answered for gap in r.gaps]),
        },
        "timeline": _timeline(records, seconds),
        "by_turn": _by_turn(completed),
        "by_history": _by_history(completed),
    }


def _plain(settings: LoadSettings) -> dict[str, Any]:
    """The settings as text and numbers, without the key and where the report goes; of files the names alone."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields if name not in UNTOLD}
    values = {name: value.name if isinstance(value, Path) else value for name, value in values.items()}
    return {n: v if isinstance(v, bool | int | float | str | None) else str(v) for n, v in values.items()}


def _requests(records: Sequence[Record]) -> dict[str, Any]:
    outcomes = Counter(record.outcome for record in records)
    return {
        "sent": len(records),
        "completed": outcomes["completed"],
        "failed": outcomes["failed"],
        "disconnected": outcomes["disconnected"],
        "by_status": dict(sorted(Counter(record.status for record in records).items())),
    }


def _tokens(completed: Sequence[Record]) -> dict[str, int]:
    """The server's counts, with what was asked for beside them."""
    return {
        "prompt": sum(r.prompt_tokens or 0 for r in completed),
        "prompt_asked": sum(r.asked_prompt_tokens for r in completed),
        "completion": sum(r.completion_tokens or 0 for r in completed),
        "completion_asked": sum(r.asked_output_tokens for r in completed),
        "longest_history": max((r.history_tokens or 0 for r in completed), default=0),
    }


def _throughput(completed: Sequence[Record], seconds: float) -> dict[str, float]:
    tokens = _tokens(completed)
    return {
        "requests_per_second": _rate(len(completed), seconds),
        "prompt_tokens_per_second": _rate(tokens["prompt"], seconds),
        "completion_tokens_per_second": _rate(tokens["completion"], seconds),
    }


def _goodput(settings: LoadSettings, completed: Sequence[Record], sent: int, seconds: float) -> dict[str, Any]:
    """Completed turns within both limits; what failed or was left is not good."""
    good = sum(_within(settings, record) for record in completed)
    return {
        "slo_ttft_ms": settings.slo_ttft,
        "slo_itl_ms": settings.slo_itl,
        "requests": good,
        "share": good / sent if sent else 0.0,
        "requests_per_second": _rate(good, seconds),
    }


def _within(settings: LoadSettings, record: Record) -> bool:
    first, each = record.time_to_first_token, record.seconds_per_token
    return first is not None and 1000 * first <= settings.slo_ttft and (each is None or 1000 * each <= settings.slo_itl)


def _by_turn(completed: Sequence[Record]) -> list[dict[str, Any]]:
    turns: dict[int, list[Record]] = defaultdict(list)
    for record in completed:
        turns[record.turn].append(record)
    return [{"turn": turn, **_group(turns[turn])} for turn in sorted(turns) if _group(turns[turn])]


def _by_history(completed: Sequence[Record]) -> dict[str, Any]:
    """Time to first token against the history before the turn: groups, and the slope of a line through all turns."""
    seen = sorted(_with_history(completed), key=lambda record: record.history_tokens or 0)
    size = math.ceil(len(seen) / BINS) or 1
    groups = [seen[i : i + size] for i in range(0, len(seen), size)]
    points = [(float(r.history_tokens or 0), 1000 * (r.time_to_first_token or 0.0)) for r in seen]
    line = fit([x for x, _ in points], [y for _, y in points])
    return {
        "groups": [_group(group) for group in groups],
        "points": [[int(x), y] for x, y in points],
        "slope": line
        and {
            "ms_per_1k_tokens": 1000 * line.slope,
            "low": 1000 * line.low,
            "high": 1000 * line.high,
            "confidence": line.confidence,
            "intercept_ms": line.intercept,
            "count": line.count,
        },
    }


def _with_history(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if r.history_tokens is not None and r.time_to_first_token is not None]


def _group(records: Sequence[Record]) -> dict[str, Any]:
    """Time to first token of some turns, and the history before them; empty if none has both."""
    known = _with_history(records)
    if not known:
        return {}
    history = sorted(record.history_tokens or 0 for record in known)
    times = summarize([record.time_to_first_token or 0.0 for record in known]) or {}
    return {
        "history_from": history[0],
        "history_to": history[-1],
        "history_median": percentile(history, 50),
        **times,
    }


def _curve(seconds: Sequence[float]) -> list[float]:
    """Percentiles 0, 1, ... 100 in milliseconds; empty without any times."""
    ordered = sorted(1000 * value for value in seconds)
    return [percentile(ordered, q) for q in range(101)] if ordered else []


def _timeline(records: Sequence[Record], seconds: float) -> list[dict[str, float]]:
    """Turns a second that were due and that completed, in slices of the run; ``at`` is a slice's middle."""
    width = seconds / SLICES
    if width <= 0:
        return []
    due, completed = Counter[int](), Counter[int]()
    for record in records:
        due[min(int(record.due / width), SLICES - 1)] += 1
        if record.outcome == "completed":
            completed[min(int(record.done / width), SLICES - 1)] += 1
    return [{"at": (i + 0.5) * width, "due": due[i] / width, "completed": completed[i] / width} for i in range(SLICES)]


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The report in one line: what a script compares between runs."""
    latency, slope = report["latency_ms"], report["by_history"]["slope"]
    line: dict[str, Any] = {"mode": report["mode"], "seconds": round(report["seconds"], 3), **report["requests"]}
    line |= {name: round(value, 3) for name, value in report["throughput"].items()}
    line["goodput_share"] = round(report["goodput"]["share"], 4)
    for name, short in (("time_to_first_token", "ttft"), ("inter_token", "itl"), ("end_to_end", "e2e")):
        times = latency[name] or {}
        line |= {f"{short}_{key}_ms": round(times[key], 3) for key in ("mean", "median", "p95", "p99") if times}
    line["ttft_slope_ms_per_1k"] = None if slope is None else round(slope["ms_per_1k_tokens"], 4)
    line["lateness_p99_ms"] = round(latency["lateness"]["p99"], 3) if latency["lateness"] else None
    return line
