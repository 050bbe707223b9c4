"""Position policies against the formulas of the design, computed by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import ConfigError
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.rotary import Rotary, rotate
from mc_core.positions.policies import POLICIES, make_policy

K = 32


def config(level_channels: int = 0, heads: int = 4) -> DecoderConfig:
    return DecoderConfig("qwen3", 64, 32, 64, 1, heads, heads, 16, level_channels=level_channels)


def policy(name: str, sigma_scale: float = 0.25):
    return make_policy(name, config(4 if "lod2d" in name else 0), K, sigma_scale)


def units():
    """A LOD2 gist, a LOD1 gist, then three raw tokens."""
    levels = np.array([2, 1, 0, 0, 0], np.int8)
    starts = np.array([0, 1024, 1056, 1057, 1058])
    ends = np.array([1024, 1056, 1057, 1058, 1059])
    return levels, starts, ends, np.arange(5)


@pytest.mark.parametrize("name", [n for n in POLICIES if n != "compact"])
def test_absolute_policies_place_tokens_at_their_index_and_gists_at_the_centre(name):
    """A token stands at its index; a gist in the middle of the positions it covers."""
    positions, _, _ = policy(name).placement(*units())
    assert policy(name).absolute
    assert positions.tolist() == [511.5, 1039.5, 1056.0, 1057.0, 1058.0]


def test_compact_places_by_rank_and_never_leaves_the_window():
    """Compact positions are ranks in the working context, whatever the history's length."""
    levels, starts, ends, ranks = units()
    positions, sigma, turns = policy("compact").placement(levels, starts + 10**7, ends + 10**7, ranks)
    assert not policy("compact").absolute
    assert positions.tolist() == [0, 1, 2, 3, 4]
    assert not sigma.any()
    assert not turns.any()


@pytest.mark.parametrize("name", POLICIES)
def test_raw_tokens_are_never_damped(name):
    """sigma is 0 at LOD0 and c * K^l at a gist of a gaussian policy, 0 elsewhere (K, not the window size)."""
    _, sigma, _ = policy(name, 0.25).placement(*units())
    expected = [0.25 * K**2, 0.25 * K, 0, 0, 0] if name.startswith("gaussian") else [0] * 5
    assert sigma.tolist() == expected


@pytest.mark.parametrize("name", POLICIES)
def test_levels_turn_only_under_lod2d(name):
    """Only the lod2d policies hand levels to the rotary."""
    _, _, turns = policy(name).placement(*units())
    assert turns.tolist() == ([2, 1, 0, 0, 0] if "lod2d" in name else [0] * 5)


@pytest.mark.parametrize("name", ["gaussian_lod2d", "gaussian_lod2d_alibi"])
def test_lod2d_needs_a_base_trained_so(name):
    """A stock base gets a clear ValueError instead of mis-shaped rotations."""
    with pytest.raises(ValueError, match="level_channels = 0"):
        make_policy(name, config(0), K)


def test_bad_settings_name_the_field():
    """Unknown names and impossible scales are refused in words."""
    with pytest.raises(ConfigError, match="positions must be one of"):
        make_policy("alibi", config(), K)
    for scale in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="sigma_scale"):
            make_policy("gaussian", config(), K, scale)


@pytest.mark.parametrize("heads", [1, 4, 6, 12])
def test_alibi_slopes(heads):
    """m_h = 2^(-8 (h + 1) / H)."""
    slopes = make_policy("gaussian_alibi", config(heads=heads), K).slopes()
    assert slopes.tolist() == pytest.approx([2 ** (-8 * (h + 1) / heads) for h in range(heads)], rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 2e7), min_size=1, max_size=5), st.lists(st.floats(0, 2e7), min_size=1, max_size=5))
def test_bias_falls_with_distance(queries, keys):
    """bias = -m_h * |p_q - p_k|: 0 at the query itself, and never higher for a key farther away."""
    p = policy("gaussian_alibi")
    bias = p.bias(torch.tensor(queries, dtype=torch.float64), torch.tensor(keys, dtype=torch.float64))
    slopes = [2.0 ** (-8 * (h + 1) / 4) for h in range(4)]
    expected = [[[-m * abs(q - k) for k in keys] for q in queries] for m in slopes]
    assert bias.shape == (4, len(queries), len(keys))
    assert torch.allclose(bias.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5)


def test_bias_tells_neighbours_apart_far_out():
    """Distances stay exact past 16 million tokens."""
    at = torch.tensor([2.0**25 + 1, 2.0**25], dtype=torch.float64)
    assert policy("gaussian_alibi").bias(at[:1], at)[0, 0].tolist() == [0.0, -0.25]


def rotation(p, rotary, *units):
    """(cos, sin) of units where the policy places them."""
    positions, sigma, turns = (torch.from_numpy(column) for column in p.placement(*units))
    return rotary.table(positions, sigma, turns if rotary.level_channels else None)


def test_gaussian_damping_is_the_mean_rotation():
    """cos and sin are scaled by exp(-(sigma * omega)^2 / 2): the mean over normal positions, by quadrature."""
    p, rotary = policy("gaussian", 0.05), Rotary(config())
    cos, sin = rotation(p, rotary, *units())
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    sigma = 0.05 * K
    samples = torch.tensor(1039.5 + sigma * nodes)
    mean_cos = (torch.tensor(weights)[:, None] * torch.cos(samples[:, None] * rotary.inv_freq.double())).sum(0)
    mean_sin = (torch.tensor(weights)[:, None] * torch.sin(samples[:, None] * rotary.inv_freq.double())).sum(0)
    assert torch.allclose(cos[1].double(), mean_cos, atol=1e-5)
    assert torch.allclose(sin[1].double(), mean_sin, atol=1e-5)
    assert torch.allclose(cos[2:] ** 2 + sin[2:] ** 2, torch.ones(3, 8), atol=1e-6)


def test_simple_scores_depend_on_distance_alone():
    """Rotated dot products of raw tokens are the same at the start and ten million tokens later."""
    p, rotary = policy("simple"), Rotary(config())
    torch.manual_seed(0)
    x = torch.randn(2, 1, 16)

    def score(first: int) -> float:
        starts = np.array([first, first + 7])
        turned = rotate(x, rotation(p, rotary, np.zeros(2, np.int8), starts, starts + 1, np.arange(2)))
        return float((turned[0] * turned[1]).sum())

    assert score(0) == pytest.approx(score(10**7), abs=1e-4)


def test_lod2d_turns_a_share_of_the_channels_by_level_and_keeps_the_head_size():
    """The last level_channels pairs turn by level alone, undamped; the others as under gaussian."""
    base = config(4)
    p, plain, rotary = make_policy("gaussian_lod2d", base, K), policy("gaussian"), Rotary(base)
    cos, sin = rotation(p, rotary, *units())
    assert cos.shape == sin.shape == (5, 8)
    expected_cos, _ = rotation(plain, Rotary(config()), *units())
    assert torch.allclose(cos[:, :4], expected_cos[:, :4])
    rates = 0.5 ** torch.arange(4)
    levels = torch.tensor([2.0, 1, 0, 0, 0])
    assert torch.allclose(cos[:, 4:], torch.cos(levels[:, None] * rates), atol=1e-6)
    assert torch.allclose(sin[:, 4:], torch.sin(levels[:, None] * rates), atol=1e-6)
