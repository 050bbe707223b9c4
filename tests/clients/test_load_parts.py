"""The load tester's parts: numbers to draw, percentiles and slopes, traces, plans."""

from __future__ import annotations

import json
import lzma
import random
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clients.load.distributions import Distribution
from clients.load.plan import arrival_times, make_plan, warm_up_plan
from clients.load.settings import LoadSettings
from clients.load.stats import fit, percentile, summarize, t_quantile
from clients.load.text import PIECE, Calibration, Words, vocabulary
from clients.load.trace import TraceError, conversations, read_trace

URL = "http://127.0.0.1:1"
FINITE = st.floats(-1e6, 1e6, allow_nan=False)
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:16:46.6805900,12,0
"""
MOONCAKE = [
    {"timestamp": 500, "input_length": 1200, "output_length": 100, "hash_ids": [0, 1, 2]},
    {"timestamp": 1000, "input_length": 900, "output_length": 10, "hash_ids": [0, 9]},
    {"timestamp": 2500, "input_length": 1700, "output_length": 50, "hash_ids": [0, 1, 3, 4]},
    {"timestamp": 3000, "input_length": 1400, "output_length": 50, "hash_ids": [0, 1, 5]},
    {"timestamp": 4000, "input_length": 2500, "output_length": 5, "hash_ids": [0, 1, 3, 6, 7]},
]


def load(**given: Any) -> LoadSettings:
    return LoadSettings.model_validate({"url": URL, **given})


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=200), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], q: float) -> None:
    """Law: a percentile is what numpy's linear method gives."""
    assert percentile(sorted(values), q) == pytest.approx(float(np.percentile(values, q)), rel=1e-9, abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=200))
def test_summaries_are_numpys(seconds: list[float]) -> None:
    """Law: a summary is in milliseconds, and each of its numbers is numpy's."""
    got, ms = summarize(seconds), 1000 * np.array(seconds)
    oracle = [len(ms), ms.mean(), np.median(ms), np.percentile(ms, 95), np.percentile(ms, 99), ms.max()]
    assert got is not None
    assert list(got) == ["count", "mean", "median", "p95", "p99", "max"]
    assert list(got.values()) == pytest.approx([float(x) for x in oracle], rel=1e-9, abs=1e-6)
    assert summarize([]) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 1e4)), min_size=3, max_size=100))
def test_lines_are_numpys(points: list[tuple[int, float]]) -> None:
    """Law: slope and intercept are numpy's least squares, and the interval is the standard error times Student's t."""
    xs, ys = [float(x) for x, _ in points], [y for _, y in points]
    line = fit(xs, ys)
    if len(set(xs)) == 1:
        assert line is None
        return
    # About the mean, where the oracle itself is exact.
    design = np.stack([np.array(xs) - np.mean(xs), np.ones(len(xs))], axis=1)
    (slope, middle), *_ = np.linalg.lstsq(design, np.array(ys), rcond=None)
    rest = np.array(ys) - design @ [slope, middle]
    error = np.sqrt(rest @ rest / (len(xs) - 2) * np.linalg.inv(design.T @ design)[0, 0])
    assert line is not None
    assert line.slope == pytest.approx(slope, rel=1e-6, abs=1e-6)
    assert line.intercept + line.slope * np.mean(xs) == pytest.approx(middle, rel=1e-6, abs=1e-5)
    assert line.high - line.slope == pytest.approx(line.slope - line.low, rel=1e-6, abs=1e-9)
    assert line.high - line.slope == pytest.approx(t_quantile(0.975, len(xs) - 2) * error, rel=1e-4, abs=1e-4)


def test_students_t() -> None:
    """Law: the 97.5 % points are those of the tables, within 1 %."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 1000: 1.962}
    for freedom, value in table.items():
        assert t_quantile(0.975, freedom) == pytest.approx(value, rel=0.01)


def test_the_interval_holds_the_truth() -> None:
    """Law: of many noisy lines, about 95 in 100 intervals hold the true slope."""
    rng = random.Random(5)
    held = 0
    for _ in range(400):
        xs = [rng.uniform(0, 50) for _ in range(8)]
        line = fit(xs, [3 + 2 * x + rng.gauss(0, 9) for x in xs])
        assert line is not None
        held += line.low <= 2 <= line.high
    assert 365 <= held <= 395


@pytest.mark.parametrize(
    ("text", "mean", "spread"),
    [("7", 7, 0), ("uniform:2,6", 4, 4 / 12**0.5), ("normal:50,5", 50, 5), ("exponential:3", 3, 3)],
)
def test_distributions(text: str, mean: float, spread: float) -> None:
    """Law: draws have the mean and the spread of their distribution, and it reads back as it was written."""
    distribution, rng = Distribution.parse(text), random.Random(1)
    draws = [distribution.draw(rng) for _ in range(5000)]
    assert np.mean(draws) == pytest.approx(mean, rel=0.05)
    assert np.std(draws) == pytest.approx(spread, rel=0.05)
    assert Distribution.parse(str(distribution)) == distribution


def test_lognormal_and_bounds() -> None:
    """Law: a lognormal's median is its first number; draws are never negative, and token counts never below 1."""
    rng = random.Random(2)
    draws = [Distribution.parse("lognormal:100,0.5").draw(rng) for _ in range(5000)]
    assert np.median(draws) == pytest.approx(100, rel=0.05)
    low = Distribution.parse("normal:0,5")
    assert min(low.draw(rng) for _ in range(100)) == 0
    assert {Distribution.parse("0").tokens(rng), min(low.tokens(rng) for _ in range(100))} == {1}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"prompt_tokens": "many"}, "prompt_tokens"),
        ({"prompt_tokens": "uniform:9,1"}, "prompt_tokens"),
        ({"output_tokens": "normal:5"}, "output_tokens"),
        ({"history_tokens": "pareto:1,2"}, "history_tokens"),
        ({"think_time": "-1"}, "think_time"),
        ({"disconnect": 1.5}, "disconnect"),
        ({"rate": 0}, "rate"),
        ({"url": "localhost:8000"}, "url"),
        ({"trace": "/no/such/file"}, "trace"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_bad_values_name_their_field(given: dict[str, Any], field: str) -> None:
    """Law: what can't be meant is refused with the name of its field."""
    with pytest.raises(ValidationError) as caught:
        load(**given)
    assert {error["loc"][0] for error in caught.value.errors()} == {field}


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"rate": 5, "concurrency": 2}, "--concurrency"),
        ({"rate": 5, "think_time": "1"}, "--think-time"),
        ({"arrivals": "constant"}, "--arrivals"),
        ({"speed": 2}, "--speed"),
        ({"trace": __file__, "turns": 3}, "--turns"),
        ({"trace": __file__, "ingest": __file__}, "--ingest"),
    ],
)
def test_no_option_is_ignored(given: dict[str, Any], flag: str) -> None:
    """Law: an option without effect on this kind of run is refused, by name."""
    with pytest.raises(ValidationError, match=f"{flag} has no effect"):
        load(**given)


def test_arrivals() -> None:
    """Law: arrivals are fixed by the seed; constant ones are even, Poisson gaps are exponential with mean 1 / rate."""
    assert list(islice(arrival_times(load(rate=4, arrivals="constant")), 4)) == [0, 0.25, 0.5, 0.75]
    one, same, other = (list(islice(arrival_times(load(rate=4, seed=seed)), 5000)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    gaps = [b - a for a, b in pairwise(one)]
    assert (np.mean(gaps), np.std(gaps)) == (pytest.approx(0.25, rel=0.05), pytest.approx(0.25, rel=0.05))


def test_plans_follow_from_the_seed() -> None:
    """Law: a plan is a function of the settings; another seed is another plan of the same shape."""
    given: dict[str, Any] = {
        "sessions": 5,
        "turns": 3,
        "prompt_tokens": "uniform:10,90",
        "history_tokens": "uniform:5,9",
    }
    one, same, other = (make_plan(load(**given, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert [[turn.number for turn in plan.turns] for plan in one] == [[0, 1, 2]] * 5
    assert all(10 <= turn.prompt_tokens <= 90 for plan in one for turn in plan.turns)
    assert all(5 <= plan.history_tokens <= 9 for plan in one)
    assert [len(plan.turns) for plan in warm_up_plan(load(warm_up=4))] == [1] * 4


def test_an_open_loop_takes_the_sessions_in_turn() -> None:
    """Law: due times rise through all first turns, then all second ones, and end with the duration."""
    plans = make_plan(load(rate=10, arrivals="constant", sessions=3, turns=2))
    assert [[turn.at for turn in plan.turns] for plan in plans] == [[0, 0.3], [0.1, 0.4], [0.2, 0.5]]
    shorter = make_plan(load(rate=10, arrivals="constant", sessions=3, turns=2, duration=0.15))
    assert [[turn.at for turn in plan.turns] for plan in shorter] == [[0], [0.1]]


@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_the_share_of_disconnects(share: float) -> None:
    """Law: that share of turns is planned to be left, each within the first half of its reply."""
    plans = make_plan(load(sessions=200, turns=10, disconnect=share, output_tokens="20"))
    leaving = [turn.leaves_after for plan in plans for turn in plan.turns if turn.leaves_after is not None]
    assert len(leaving) / 2000 == pytest.approx(share, abs=0.03)
    assert not leaving or (min(leaving), max(leaving)) == (1, 10)


@pytest.mark.parametrize("packed", [False, True])
def test_azure_traces(tmp_path: Path, packed: bool) -> None:
    """Law: rows come by time from 0 on, with seven digits of a second; without hashes each is a conversation."""
    path = write(tmp_path / "azure.csv", AZURE, packed)
    rows = read_trace(path)
    assert [(round(row.at, 3), row.input_tokens, row.output_tokens) for row in rows] == [
        (0, 374, 44),
        (4.315, 396, 109),
        (60, 12, 0),
    ]
    plans = make_plan(load(trace=path, speed=10, duration=5))
    assert [[(round(turn.at or 0, 3), turn.prompt_tokens, turn.output_tokens) for turn in p.turns] for p in plans] == [
        [(0, 374, 44)],
        [(0.431, 396, 109)],
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_mooncake_traces(tmp_path: Path, packed: bool) -> None:
    """Law: a row that begins with an earlier one's full blocks continues it and sends only what is new."""
    path = write(tmp_path / "mooncake.jsonl", "\n".join(map(json.dumps, MOONCAKE)), packed)
    rows = read_trace(path)
    assert [row.at for row in rows] == [0, 0.5, 2, 2.5, 3.5]
    turns = conversations(rows)
    # The fourth shares the first's blocks, but the third went on with it already; the second shares one block only.
    assert [(turn.conversation, turn.new_tokens) for turn in turns] == [
        (0, 1200),
        (1, 900),
        (0, 400),
        (2, 1400),
        (0, 750),
    ]
    plans = make_plan(load(trace=path))
    assert [[turn.number for turn in plan.turns] for plan in plans] == [[0, 1, 2], [0], [0]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "neither"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("time,in,out\n1,2,3\n", "line 1"),
        (AZURE + "2023-11-16 18:16:46,x,1\n", "line 5"),
        (AZURE + "2023-11-16 18:16:46,0,1\n", "line 5"),
        ('{"timestamp": 1, "input_length": 5}\n', "line 1.*output_length"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 1}\n{"times', "line 2"),
    ],
)
def test_bad_traces(tmp_path: Path, text: str, told: str) -> None:
    """Law: a file in neither format, a bad row and an empty trace are refused with the line."""
    with pytest.raises(TraceError, match=told):
        read_trace(write(tmp_path / "trace", text, packed=False))
    (tmp_path / "not.xz").write_text("plain")
    with pytest.raises(TraceError):
        read_trace(tmp_path / "not.xz")


def write(path: Path, text: str, packed: bool) -> Path:
    if packed:
        path = path.with_name(f"{path.name}.xz")
        path.write_bytes(lzma.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def test_texts() -> None:
    """Law: a text depends on seed, key and length alone, and has the words that the calibration asks for."""
    words, same, other = (Words(seed, Calibration(2.0, 10.0)) for seed in (1, 1, 2))
    text = words.message("a 0", 50)
    assert text == same.message("a 0", 50)
    assert len({text, words.message("a 1", 50), other.message("a 0", 50)}) == 3
    assert [len(words.message("a", n).split()) for n in (1, 10, 12, 50)] == [1, 1, 1, 20]
    for tokens in (50, 20_000, 16_384):
        pieces = list(words.document("a", tokens))
        assert len("".join(pieces).split()) == tokens // 2
        assert max(len(piece.split()) for piece in pieces) <= PIECE
    assert len(set(vocabulary(3))) == 1024
