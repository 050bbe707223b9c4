"""Sampling: exact distributions, independent random streams, and OpenAI's parameters as documented."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import ConfigError
from mc_core.models.draw import draw_top_p, invert, keep_likely, keep_top_p
from mc_core.models.sampler import Sampler, SamplingParams

V = 384
DRAWS = 4000


def logits_of(seed: int, rows: int = 1, vocab: int = V, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def wanted(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The distribution that the parameters ask for, token by token in float64."""
    z = logits.astype(np.float64) / params.temperature
    p = np.exp(z - z.max())
    p /= p.sum()
    p[p < params.min_p * p.max() * (1 - 1e-6)] = 0
    if params.top_k:
        p[np.argsort(-p, kind="stable")[params.top_k :]] = 0
    mass, kept = 0.0, set()
    for token in np.argsort(-p, kind="stable"):
        if kept and mass >= params.top_p * p.sum():
            break
        kept.add(int(token))
        mass += p[token]
    p[[t for t in range(len(p)) if t not in kept]] = 0
    return p / p.sum()


CASES = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7, "min_p": 0.02},
    {"top_p": 0.9},
    {"top_p": 0.3, "temperature": 1.5},
    {"top_p": 0.0},
    {"top_k": 7},
    {"top_k": 30, "top_p": 0.8, "min_p": 0.01},
    {"min_p": 1.0},
    {"top_k": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_frequencies_match_the_distribution(case):
    """Many draws follow the asked distribution (total variation), and never leave its support."""
    logits = logits_of(3)
    sampler, params = Sampler(V), SamplingParams(seed=5, **case)
    states = [sampler.state(SamplingParams(seed=i, **case)) for i in range(DRAWS)]
    ids = sampler.sample(logits.expand(DRAWS, V), states).ids
    p = wanted(logits[0].numpy(), params)
    counts = np.bincount(ids, minlength=V) / DRAWS
    assert not counts[p == 0].any()
    spread = 0.5 * np.sqrt(p * (1 - p) / DRAWS * 2 / np.pi).sum()
    assert 0.5 * np.abs(counts - p).sum() < 1.5 * spread + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 3, 128, 200, 384]),
    st.floats(0, 1),
    st.floats(0.1, 8),
    st.floats(0, 0.999999),
)
def test_rejection_draws_from_the_sorted_nucleus(seed, vocab, top_p, spread, first):
    """Whatever the random numbers, the draw without a sort lies in the nucleus that the sort finds."""
    p = logits_of(seed, 5, vocab, spread).softmax(-1)
    limits = torch.full((5,), top_p)
    rng = np.random.default_rng(seed)
    numbers = iter([first])
    drawn = draw_top_p(p, limits, lambda rows: torch.tensor([next(numbers, rng.random()) for _ in rows]).float())
    assert (keep_top_p(p, limits).gather(-1, drawn[:, None]) > 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_truncations_against_brute_force(seed, top_p, min_p):
    """keep_top_p and keep_likely keep exactly what a loop over sorted tokens keeps."""
    p = logits_of(seed, 1, 50).softmax(-1)
    ordered = p[0].double().sort(descending=True).values
    before = ordered.cumsum(0) - ordered
    margin = (before[1:] - top_p).abs().min()
    kept = keep_top_p(p, torch.tensor([top_p]))[0] > 0
    if margin > 1e-5 and top_p < 1:
        assert int(kept.sum()) == max(1, int((before < top_p).sum()))
    assert p[0][kept].min() >= p[0][~kept].max() if (~kept).any() else True
    likely = keep_likely(p, torch.tensor([min_p], dtype=torch.float32))[0] > 0
    floor = torch.tensor(min_p, dtype=torch.float32) * p.max()
    assert torch.equal(likely, p[0] >= floor)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-30, 0.1, 1.0, 3.0]), min_size=1, max_size=300), st.floats(0, 1))
def test_a_token_without_weight_is_never_drawn(weights, uniform):
    """The inverse distribution meets the brute-force one and skips zero weights, at 0 and at 1 too."""
    if not sum(weights) > 0.05:
        weights[0] = 1.0
    p = torch.tensor([weights])
    token = int(invert(p, torch.tensor([uniform], dtype=torch.float32))[0])
    assert weights[token] > 0
    reached = np.cumsum(np.array(weights, np.float64))
    target = np.float32(uniform) * reached[-1]
    assert reached[token] >= target * (1 - 1e-5)
    assert reached[token] - weights[token] <= target * (1 + 1e-5) + 1e-25


MIXED = [
    {"seed": 1, "temperature": 0.8, "top_p": 0.7},
    {"seed": 2, "temperature": 0},
    {"seed": 3, "top_k": 20, "top_p": 0.9},
    {"seed": 4, "presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
    {"seed": 5, "min_p": 0.05, "logit_bias": {7: 4.0}},
    {"seed": 6, "top_p": 0.5, "logprobs": 3},
    {"seed": 7, "top_k": 3},
    {"seed": -8},
]


def run(rows: list[int], steps: int = 12) -> dict[int, list[int]]:
    sampler = Sampler(V)
    states = {row: sampler.state(SamplingParams(**MIXED[row])) for row in rows}
    out: dict[int, list[int]] = {row: [] for row in rows}
    for step in range(steps):
        logits = torch.stack([logits_of(1000 * step + row)[0] for row in rows])
        for row, token in zip(rows, sampler.sample(logits, list(states.values())).rows(), strict=True):
            out[row].append(token.id)
    return out


def test_same_seed_same_tokens_whatever_else_is_in_the_batch():
    """A request's tokens depend on its seed, parameters and logits alone."""
    together = run(list(range(len(MIXED))))
    assert run(list(reversed(range(len(MIXED))))) == together
    for row in range(len(MIXED)):
        assert run([row])[row] == together[row]


def test_different_seeds_and_no_seed_differ():
    """Random streams are independent; without a seed they are fresh."""
    sampler, logits = Sampler(V), logits_of(0, 64)
    flat = torch.zeros_like(logits)
    seeded = sampler.sample(flat, [sampler.state(SamplingParams(seed=i)) for i in range(64)]).ids
    fresh = [sampler.sample(flat, [sampler.state(SamplingParams()) for _ in range(64)]).ids for _ in range(2)]
    assert len(set(seeded.tolist())) > 40
    assert fresh[0].tolist() != fresh[1].tolist()


def test_greedy_takes_the_best_after_bias_and_penalties():
    """temperature 0 is the argmax of the adjusted scores."""
    logits = logits_of(1, 3)
    best = logits.argmax(-1).tolist()
    sampler = Sampler(V)
    params = [{}, {"logit_bias": {5: 100.0}}, {"logit_bias": {best[2]: -100.0}}]
    states = [sampler.state(SamplingParams(temperature=0, **p)) for p in params]
    ids = sampler.sample(logits, states).ids.tolist()
    second = int(logits[2].topk(2).indices[1])
    assert ids == [best[0], 5, second]


@settings(max_examples=20, deadline=None)
@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.5, 2), st.integers(0, 10**6))
def test_penalties_follow_their_formulas(presence, frequency, repetition, seed):
    """Each step's greedy token is the argmax of a brute-force penalised score."""
    sampler = Sampler(40)
    params = SamplingParams(
        temperature=0, presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition
    )
    state, counts = sampler.state(params), Counter()
    logits = logits_of(seed, 1, 40, 1.0)
    for _ in range(80):
        scores = logits[0].double().numpy().copy()
        for token, times in counts.items():
            scores[token] = scores[token] / repetition if scores[token] > 0 else scores[token] * repetition
            scores[token] -= frequency * times + presence
        token = int(sampler.sample(logits, [state]).ids[0])
        assert scores[token] >= scores.max() - 1e-4
        counts[token] += 1


def test_logprobs_are_the_models_own():
    """Log probabilities are log-softmax of the raw logits; only asked rows carry them."""
    logits = logits_of(2, 3)
    sampler = Sampler(V)
    asked = [{"logprobs": 4, "temperature": 0.3, "logit_bias": {9: 50.0}}, {}, {"logprobs": 0}]
    states = [sampler.state(SamplingParams(seed=1, **p)) for p in asked]
    rows = sampler.sample(logits, states).rows()
    own = logits.log_softmax(-1)
    assert rows[0].id == 9
    assert rows[0].logprob == pytest.approx(float(own[0, 9]), abs=1e-5)
    best = own[0].topk(4)
    assert [i for i, _ in rows[0].top] == best.indices.tolist()
    assert [v for _, v in rows[0].top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert np.isnan(rows[1].logprob)
    assert rows[1].top == ()
    assert rows[2].logprob == pytest.approx(float(own[2, rows[2].id]), abs=1e-5)
    assert rows[2].top == ()


def test_sampling_leaves_the_logits_alone():
    """The caller's tensor is not changed by bias or penalties."""
    logits = logits_of(2, 2)
    before = logits.clone()
    sampler = Sampler(V)
    states = [sampler.state(SamplingParams(logit_bias={1: 5.0}, presence_penalty=1.0)) for _ in range(2)]
    for _ in range(3):
        sampler.sample(logits, states)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", -0.1),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("max_tokens", 0),
        ("logprobs", 21),
        ("stop", ("a", "")),
        ("logit_bias", {3: 101.0}),
        ("logit_bias", {-1: 1.0}),
    ],
)
def test_values_out_of_range_are_named(field, value):
    """Each bad parameter is refused with its name."""
    with pytest.raises(ConfigError, match=field):
        SamplingParams(**{field: value})


def test_bias_outside_the_vocabulary_is_refused():
    """A logit_bias for a token that does not exist is an error, not ignored."""
    with pytest.raises(ConfigError, match="logit_bias"):
        Sampler(10).state(SamplingParams(logit_bias={10: 1.0}))
    with pytest.raises(ValueError, match="shape"):
        Sampler(10).sample(torch.zeros(2, 11), [Sampler(10).state(SamplingParams())] * 2)
