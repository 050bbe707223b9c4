"""The gate's truth table, what is written of it, and the pictures."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from mc_core.bundle.bundle import load_bundle
from mc_core.errors import ConfigError
from mc_core.lab.evaluation.answers import Row, cells_of
from mc_core.lab.evaluation.gate import gate, write_gates
from mc_core.lab.evaluation.heatmap import colour, heatmaps
from mc_core.lab.evaluation.nll import Loss
from mc_core.lab.evaluation.results import Results
from mc_core.lab.evaluation.statistics import Estimate


def rows(suite: str, **opened: tuple[int, int]) -> tuple[Row, ...]:
    """By method: (how many had their gold open, of how many)."""
    return tuple(
        Row(suite, suite, method, 4096, (i + 0.5) / n, i < hits, float(i < hits), 0.1, "")
        for method, (hits, n) in opened.items()
        for i in range(n)
    )


def loss(source: str, recency: float, hidden: float, horizon: int = 64) -> Loss:
    """Upper ends of the intervals."""
    less = {
        name: Estimate(high - 0.1, high - 0.2, high, 9) for name, high in (("recency", recency), ("hidden", hidden))
    }
    return Loss(source, False, 1024, 256, horizon, 9, {"focus": 3.0, "recency": 3.1, "hidden": 3.1}, less, None)


def results(found: tuple[Row, ...] = (), losses: tuple[Loss, ...] = (), shown: bool = True) -> Results:
    return Results("tiny", 0, {}, {"cpu": "x"}, shown, found, losses)


NEEDLES = rows("needle", hybrid=(20, 20), lexical=(20, 20), oracle=(20, 20))
PARAPHRASES = rows("paraphrase", hybrid=(12, 20), lexical=(5, 20), cross=(10, 20))


@pytest.mark.parametrize(
    ("found", "measured", "passed"),
    [
        (NEEDLES + PARAPHRASES, True, True),
        (NEEDLES, False, False),
        (PARAPHRASES, True, True),
        (rows("needle", hybrid=(19, 20), lexical=(20, 20)) + PARAPHRASES, True, True),
        (rows("needle", hybrid=(18, 20), lexical=(20, 20)) + PARAPHRASES, True, False),
        (NEEDLES + rows("paraphrase", hybrid=(12, 20), lexical=(5, 20), cross=(9, 20)), True, False),
        (NEEDLES + rows("paraphrase", hybrid=(12, 20), lexical=(5, 20)), False, False),
        (rows("needle", lexical=(20, 20)) + rows("paraphrase", cross=(20, 20)), False, False),
        ((), False, False),
    ],
)
def test_the_lens_passes(found: tuple[Row, ...], measured: bool, passed: bool) -> None:
    """Hybrid may be one trial below lexical in a suite, and the learned lens alone must open half the paraphrases."""
    verdict = gate(results(found))["lensnet"]
    assert (verdict["measured"], verdict["passed"]) == (measured, passed)
    assert bool(verdict["failed"]) == (measured and not passed)


@pytest.mark.parametrize(
    ("losses", "shown", "measured", "passed"),
    [
        ((loss("books", -0.01, -0.02), loss("chat", -0.5, -0.1)), True, True, True),
        ((loss("books", -0.01, -0.02), loss("chat", 0.0, -0.1)), True, True, False),
        ((loss("books", -0.01, 0.01),), True, True, False),
        ((loss("books", -0.01, -0.02), loss("books", 0.3, 0.3, horizon=32)), True, True, True),
        ((loss("books", -0.01, -0.02),), False, False, False),
        ((), True, False, False),
    ],
)
def test_gists_pass(losses: tuple[Loss, ...], shown: bool, measured: bool, passed: bool) -> None:
    """At a horizon of 64, both upper bounds lie below 0 on every source, and gists were really shown."""
    verdict = gate(results(losses=losses, shown=shown))["gistnet"]
    assert (verdict["measured"], verdict["passed"]) == (measured, passed)


def test_what_is_written_is_what_a_bundle_goes_by(bundle_dir: Path, tmp_path: Path) -> None:
    """After a pass the bundle's default lens is hybrid, after a failure lexical; only networks it has are written."""
    folder = tmp_path / "tiny"
    shutil.copytree(bundle_dir, folder)
    good = results(NEEDLES + PARAPHRASES, (loss("books", -0.01, -0.02),))
    assert write_gates(folder, gate(good), good) == ["lensnet"]
    written = load_bundle(folder)
    assert (written.lens, written.hidden_gists) == ("hybrid", True)
    assert written.manifest.evaluation["lensnet"]["suites"]["paraphrase"]["cross"] == {"gold": 0.5, "trials": 20}
    bad = replace(good, rows=rows("needle", hybrid=(1, 20), lexical=(20, 20)) + PARAPHRASES)
    write_gates(folder, gate(bad), bad)
    assert load_bundle(folder).lens == "lexical"
    with pytest.raises(ConfigError, match="nothing"):
        write_gates(folder, gate(results()), results())
    with pytest.raises(ConfigError, match=re.escape("bundle.json")):
        write_gates(tmp_path, gate(good), good)


def test_results_are_json(bundle_dir: Path) -> None:
    """The whole object survives JSON, with intervals in its cells."""
    found = json.loads(json.dumps(results(NEEDLES, (loss("books", -0.01, -0.02),)).to_json()))
    assert found["cells"][0]["gold"] == {"value": 1.0, "low": 0.8389, "high": 1.0, "n": 20}
    assert found["nll"][0]["less"]["recency"]["high"] == -0.01
    assert len(found["rows"]) == 60


def test_cells_count_each_trial_once() -> None:
    """Shares by suite and method; questions without gold have answers alone."""
    absent = tuple(replace(row, gold_open=None) for row in rows("absent", lexical=(1, 4)))
    cells = {(cell.suite, cell.method): cell for cell in cells_of(PARAPHRASES + absent)}
    gold = cells["paraphrase", "cross"].gold
    assert gold is not None
    assert (gold.value, gold.n) == (0.5, 20)
    assert cells["absent", "lexical"].gold is None
    assert cells["absent", "lexical"].answers.value == 0.25


def test_a_heat_map_is_a_picture() -> None:
    """Well-formed XML with one cell a depth and length, coloured by its share, empty where nothing was asked."""
    found = rows("needle", hybrid=(5, 10)) + tuple(replace(row, length=9000) for row in rows("needle", hybrid=(1, 1)))
    pictures = heatmaps(found, 10)
    assert set(pictures) == {"needle-hybrid-gold", "needle-hybrid-answers"}
    root = ET.fromstring(pictures["needle-hybrid-gold"])
    fills = [rect.get("fill") for rect in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert len(fills) == 20
    assert fills[:10] == [colour(1.0)] * 5 + [colour(0.0)] * 5
    assert fills[10:].count("#eeeeee") == 9
    assert colour(0.5) == "#ffffff"
