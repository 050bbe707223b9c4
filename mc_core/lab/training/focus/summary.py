"""The *MC summary* that ends a focus training run: what the networks are worth, and what they cost."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.focus.focus_config import FocusConfig
from mc_core.kv.layout import SEGMENT_BLOCKS
from mc_core.lab.data.cache import Stream, open_cache
from mc_core.lab.training.focus.contexts import ContextShape
from mc_core.lab.training.focus.focus_training import FocusTrainConfig
from mc_core.lab.training.focus.model import FocusModel
from mc_core.lab.training.focus.probe import GistWorth, gist_worth
from mc_core.lab.training.focus.process import BatchProcessor
from mc_core.session.factory import SessionFactory

T = TypeVar("T")
HORIZON, FIRST, BLOCKS = 64, 4096, 64
"""dNLL's H; tokens of history that the focus is probed from, and blocks that it then follows."""


def mc_summary(config: FocusTrainConfig, model: FocusModel, samples: int = 64) -> dict[str, Any]:
    """Measure on held-out documents of the run's cache -> figures by name, JSON-able.

    dnll: mean NLL of the next 64 tokens after LOD1 gists less after the whole history, by source; kept_lod1, kept_lod2:
    share of the context's gain that gists keep. swap_rate, utilization, residency: of the default focus following a
    history block by block. seconds and peak_mb (growth of the process, or allocated on the GPU) by part.
    """
    streams = open_cache(config.out / "cache", "held_out")
    window = model.decoder.config.max_position_embeddings
    budget = min(1024, window - config.block_size)
    segments = SEGMENT_BLOCKS if model.decoder.config.block_mask else None
    shape = ContextShape(budget, config.recent_tokens, config.block_size, segments, config.gist.vectors)
    history = min(2048, window) - HORIZON
    history -= history % config.block_size
    processor = BatchProcessor(model, config.weights)
    worths = gist_worth(processor, streams, shape, history=history, horizon=HORIZON, samples=samples, seed=config.seed)
    bundle = dataclasses.replace(load_bundle(config.model, config.device), decoder=model.decoder, gistnet=model.gistnet)
    return {"tokens_of_history": history, **_worth(worths), **_focus_figures(bundle, config, budget, streams)}


def _worth(worths: Sequence[GistWorth]) -> dict[str, Any]:
    """Figures of gists over all sources; nothing if no held-out source is as long as the history."""
    if not worths:
        return {}
    full, lod1, lod2, none = (
        float(np.mean([getattr(worth, name) for worth in worths])) for name in ("full", "lod1", "lod2", "none")
    )
    kept = {worth.source: {"kept_lod1": worth.kept_lod1, "kept_lod2": worth.kept_lod2} for worth in worths}
    return {
        "samples": worths[0].samples,
        "dnll_64": round(lod1 - full, 4),
        "dnll_64_lod2": round(lod2 - full, 4),
        "kept_lod1": round((none - lod1) / (none - full), 4),
        "kept_lod2": round((none - lod2) / (none - full), 4),
        "by_source": {worth.source: _rounded({**dataclasses.asdict(worth), **kept[worth.source]}) for worth in worths},
    }


def _focus_figures(bundle: Bundle, config: FocusTrainConfig, budget: int, streams: Sequence[Stream]) -> dict[str, Any]:
    """How the default focus behaves and what its parts cost, following the longest held-out stream."""
    ids = max(streams, key=len).ids.astype(np.int32)
    ids = np.resize(ids, FIRST + BLOCKS * config.block_size)
    lens = bundle.lens if bundle.lensnet is not None else "lexical"
    focus = FocusConfig(budget=budget, block_size=config.block_size, recent_tokens=config.recent_tokens, lens=lens)
    session = SessionFactory(bundle, focus).create("summary", "local", model="local")
    _, tree_seconds, tree_mb = _measured(config.device, lambda: session.append(ids[:FIRST]))
    swaps, used, residency, lens_seconds, allocator_seconds = [], [], [], [], []
    peak = 0.0
    for at in range(FIRST, len(ids), config.block_size):
        session.append(ids[at : at + config.block_size])
        question = ids[max(0, at - 64) : at]
        proposal, _, grown = _measured(config.device, lambda asked=question: session.propose(asked))  # type: ignore[misc]
        report = session.commit_focus(proposal)
        peak = max(peak, grown)
        swaps.append(report.swap_rate)
        used.append(report.utilization)
        residency.append(report.residency.mean)
        lens_seconds.append(proposal.seconds["lens"])
        allocator_seconds.append(proposal.seconds["allocate"])
    return {
        "swap_rate": round(float(np.mean(swaps)), 4),
        "utilization": round(float(np.mean(used)), 4),
        "residency": round(float(np.mean(residency)), 2),
        "seconds": {
            "tree_build": round(tree_seconds, 4),
            "lens": round(float(np.median(lens_seconds)), 5),
            "allocator": round(float(np.median(allocator_seconds)), 5),
        },
        "peak_mb": {"tree_build": round(tree_mb, 1), "focus": round(peak, 1)},
    }


def _measured(device: str, work: Callable[[], T]) -> tuple[T, float, float]:
    """Result, seconds, and megabytes by which the peak of memory grew."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 1e6
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    started = time.perf_counter()
    result = work()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    after = (
        torch.cuda.max_memory_allocated(device) / 1e6
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    )
    return result, seconds, after - before


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
