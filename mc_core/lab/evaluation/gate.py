"""Whether a bundle's networks have proved themselves: they are used by default only once they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from mc_core.bundle.bundle import MANIFEST
from mc_core.bundle.manifest import Manifest
from mc_core.errors import ConfigError
from mc_core.lab.evaluation.answers import Row
from mc_core.lab.evaluation.results import Results
from mc_core.models.loading import read_json, write_json
from mc_core.nets.lensnet import LensKind

HORIZON = 64
PARAPHRASE_GOLD = 0.5
ALLOWED_TRIALS = 1
LEARNED_LENSES = get_args(LensKind)
BARS = {
    "gistnet": (
        f"dNLL@{HORIZON} of the focus with gists shown lies below that of recency and of hidden gists at equal budget, "
        "with the upper end of its 95 % interval below 0, on every source at every length"
    ),
    "lensnet": (
        f"hybrid opens the gold blocks as often as lexical in every suite, but for {ALLOWED_TRIALS} trial, and the "
        f"learned lens alone opens those of at least {PARAPHRASE_GOLD:.0%} of the paraphrases"
    ),
}
"""The bars in words, kept beside the figures."""


def gate(results: Results) -> dict[str, dict[str, Any]]:
    """ "gistnet" and "lensnet": {"passed", "measured", "bar", "failed" (what did not keep it), figures}.

    measured: whether the suites that decide were run; what was not measured has not passed.
    """
    return {"gistnet": _gistnet(results), "lensnet": _lensnet(results)}


def _gistnet(results: Results) -> dict[str, Any]:
    losses = [loss for loss in results.losses if loss.horizon == HORIZON] if results.gists_shown else []
    figures, failed = {}, []
    for loss in losses:
        name = f"{loss.source}, {loss.tokens} tokens"
        figures[name] = {
            "budget": loss.budget,
            "kept": None if loss.kept is None else round(loss.kept, 4),
            **{f"less_{reference}": loss.less[reference].rounded() for reference in loss.less},
        }
        failed += [f"{name}: not below {which}" for which in ("recency", "hidden") if not loss.less[which].high < 0]
    return _verdict("gistnet", bool(losses), failed, {f"dnll_{HORIZON}": figures})


def _lensnet(results: Results) -> dict[str, Any]:
    gold = _gold_by_suite(results.rows)
    pairs = {
        suite: (found["hybrid"], found["lexical"]) for suite, found in gold.items() if {"hybrid", "lexical"} <= {*found}
    }
    learned = next((gold["paraphrase"][lens] for lens in LEARNED_LENSES if lens in gold.get("paraphrase", {})), None)
    failed, figures = [], {}
    for suite, found in gold.items():
        figures[suite] = {lens: {"gold": round(_share(hits), 4), "trials": len(hits)} for lens, hits in found.items()}
    for suite, (hybrid, lexical) in pairs.items():
        if _share(hybrid) < _share(lexical) - ALLOWED_TRIALS / len(hybrid) - 1e-9:
            failed.append(f"{suite}: hybrid {_share(hybrid):.3f} below lexical {_share(lexical):.3f}")
    if learned is not None and _share(learned) < PARAPHRASE_GOLD:
        failed.append(f"paraphrase: the learned lens opens {_share(learned):.3f}")
    return _verdict("lensnet", bool(pairs) and learned is not None, failed, {"suites": figures})


def _verdict(network: str, measured: bool, failed: list[str], figures: dict[str, Any]) -> dict[str, Any]:
    passed = measured and not failed
    return {"passed": passed, "measured": measured, "bar": BARS[network], "failed": failed, **figures}


def _gold_by_suite(rows: Sequence[Row]) -> dict[str, dict[str, list[bool]]]:
    """Whether gold was open, by suite and lens, over all lengths; baselines are left out."""
    found: dict[str, dict[str, list[bool]]] = {}
    for row in rows:
        if row.gold_open is not None and row.method in ("hybrid", "lexical", *LEARNED_LENSES):
            found.setdefault(row.suite, {}).setdefault(row.method, []).append(row.gold_open)
    return found


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


def write_gates(bundle: Path, gates: Mapping[str, Mapping[str, Any]], results: Results) -> list[str]:
    """Put what was measured of the networks that a bundle has into its ``bundle.json`` -> their names.

    ConfigError if the folder is no bundle, or nothing that decides was measured.
    """
    path = bundle / MANIFEST
    if not path.exists():
        raise ConfigError(f"{bundle} has no {MANIFEST} to write an evaluation to")
    manifest = Manifest.from_json(read_json(path))
    about = {"seed": results.seed, "machine": dict(results.machine)}
    new = {
        name: {**verdict, **about}
        for name, verdict in gates.items()
        if verdict["measured"] and getattr(manifest, name) is not None
    }
    if not new:
        raise ConfigError(f"write: nothing that decides about a network of {bundle} was measured")
    mode = path.stat().st_mode & 0o777
    write_json(path, replace(manifest, evaluation={**manifest.evaluation, **new}).to_json())
    path.chmod(mode)
    return list(new)
