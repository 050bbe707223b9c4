"""What spans say: OpenTelemetry's ``gen_ai.*`` conventions for turns, ``mc.*`` for what is ours."""

from __future__ import annotations

import dataclasses
from typing import Any

from mc_core.engine.observer import RefocusTrace
from mc_core.engine.requests import Finished
from mc_core.models.sampling_params import SamplingParams

Attributes = dict[str, Any]


def request_attributes(operation: str, model: str, request_id: str, sampling: SamplingParams) -> Attributes:
    """Of a turn that begins. Stop strings and biases are left out: they are the caller's text and token ids."""
    attributes: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "megacontext",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": request_id,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
    }
    if sampling.top_k:
        attributes["gen_ai.request.top_k"] = sampling.top_k
    if sampling.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = sampling.max_tokens
    if sampling.seed is not None:
        attributes["gen_ai.request.seed"] = sampling.seed
    return attributes


def finished_attributes(finished: Finished) -> Attributes:
    """Of a turn that was stored; tokens as in the reply's ``usage``, ``mc.context.*`` as in ``x_megacontext``."""
    usage = finished.usage
    context = {f"mc.context.{name}": value for name, value in dataclasses.asdict(finished.context).items()}
    return {
        "gen_ai.response.finish_reasons": [finished.reason],
        "gen_ai.usage.input_tokens": usage.cached_tokens + usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        **context,
    }


def refocus_attributes(trace: RefocusTrace) -> Attributes:
    """All of a refocus: ``mc.swap_rate``, ``mc.entries.lod0``, ``mc.rejections.budget``, ``mc.spans.hit``, ..."""
    return {
        "gen_ai.conversation.id": trace.session_id,
        "mc.step": trace.step,
        "mc.reason": trace.reason,
        "mc.gist_calls": trace.gist_calls,
        **{f"mc.{name}": value for name, value in trace.report.items()},
        **part_attributes("restore", trace),
        **part_attributes("follow", trace),
        **part_attributes("kv_repair", trace),
        **part_attributes("evict", trace),
    }


def part_attributes(part: str, trace: RefocusTrace) -> Attributes:
    """Of one part of a refocus: its share of the above."""
    match part:
        case "lens":
            return {f"mc.{name}": value for name, value in trace.report.items() if name.startswith("score_")}
        case "allocate":
            shown = ("eligible", "changed", "expands", "collapses", "swap_rate")
            return {f"mc.{name}": trace.report[name] for name in shown}
        case "restore":
            return {
                "mc.spans.hit": trace.spans_hit,
                "mc.spans.missed": trace.spans_missed,
                "mc.spans.fetched": trace.spans_fetched,
            }
        case "follow":
            return {"mc.hops": trace.hops}
        case "kv_repair":
            return {
                "mc.kv.reused": trace.kv_reused,
                "mc.kv.recomputed": trace.kv_recomputed,
                "mc.kv.restored": trace.kv_restored,
            }
        case _:
            return {"mc.spans.evicted": trace.spans_evicted}
