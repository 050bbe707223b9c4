"""Hugging Face ``config.json`` <-> ``DecoderConfig``, for the families that the decoder computes exactly.

A setting that would change the logits and that the decoder does not compute is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mc_core.errors import ConfigError
from mc_core.models.decoder_config import DecoderConfig, RopeScaling
from mc_core.models.float8 import check_quantisation

Json = Mapping[str, Any]

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "nanochat": "NanoChatForCausalLM",
}

# What transformers assumes where a config.json is silent.
_COMMON: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "sliding_window": None,
}
_QWEN: dict[str, Any] = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "max_position_embeddings": 2048},
    "qwen2": {**_COMMON, **_QWEN},
    "qwen3": {**_COMMON, **_QWEN, "head_dim": 128},
    "mistral": {**_COMMON, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
    "nanochat": {
        **_COMMON,
        "max_position_embeddings": 2048,
        "hidden_act": "relu2",
        "final_logit_softcapping": 15.0,
    },
}

_UNSUPPORTED = {
    "num_experts": "mixtures of experts",
    "num_local_experts": "mixtures of experts",
    "no_rope_layers": "layers without rotary positions",
}
_OWN_KEYS = ("level_channels", "block_mask", "reads_gists")


def read_config(raw: Json) -> DecoderConfig:
    """The decoder's shape from the contents of a ``config.json``; ConfigError names what is missing or unsupported."""
    family = raw.get("model_type")
    if family not in ARCHITECTURES:
        raise ConfigError(f"model_type must be one of {tuple(ARCHITECTURES)}, got {family!r}")
    for key, words in _UNSUPPORTED.items():
        if raw.get(key):
            raise ConfigError(f"{key}: {words} are not supported")
    if raw.get("quantization_config"):
        check_quantisation(raw["quantization_config"])
    full = {**DEFAULTS[family], **raw}
    _check_activation(family, full["hidden_act"])
    heads, hidden = _count(raw, "num_attention_heads"), _count(raw, "hidden_size")
    rope_theta, rope_scaling = _rope(raw, int(full["max_position_embeddings"]))
    nanochat = family == "nanochat"
    biased = bool(full["attention_bias"]) and family not in ("qwen2", "mistral")
    return DecoderConfig(
        family=family,
        vocab_size=_count(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_count(raw, "intermediate_size"),
        num_layers=_count(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=int(full["num_key_value_heads"] or heads),
        head_dim=int(full["head_dim"] or hidden // heads),
        max_position_embeddings=int(full["max_position_embeddings"]),
        rms_norm_eps=float(full["rms_norm_eps"]),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=bool(full["tie_word_embeddings"]),
        qkv_bias=biased or family == "qwen2",
        o_bias=biased,
        mlp_bias=bool(full["mlp_bias"]) and family == "llama",
        qk_norm={"qwen3": "weighted", "nanochat": "unit"}.get(family, "none"),
        norm="unit" if nanochat else "weighted",
        embedding_norm=nanochat,
        mlp="relu2" if nanochat else "gated",
        logit_softcap=_softcap(full["final_logit_softcapping"]) if nanochat else None,
        rope_direction=-1 if nanochat else 1,
        sliding_window=_sliding_window(family, full),
        **_own_settings(raw),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """A ``config.json`` that transformers and ``read_config`` both read back as ``config``.

    ConfigError if the family cannot express the shape (say, a query-key norm on a Llama).
    """
    if config.family not in ARCHITECTURES:
        raise ConfigError(f"family must be one of {tuple(ARCHITECTURES)}, got {config.family!r}")
    raw: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "relu2" if config.mlp == "relu2" else "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "sliding_window": config.sliding_window,
        **_write_rope(config),
    }
    if config.family == "nanochat":
        raw["final_logit_softcapping"] = config.logit_softcap
    if config.family in ("qwen2", "qwen3"):
        raw["use_sliding_window"] = config.sliding_window is not None
        raw["max_window_layers"] = 0 if config.sliding_window is not None else config.num_layers
    own = {key: getattr(config, key) for key in _OWN_KEYS}
    if any(own.values()):
        raw["megacontext"] = own
    lost = [key for key, value in vars(read_config(raw)).items() if value != getattr(config, key)]
    if lost:
        raise ConfigError(f"a {config.family} config.json cannot express these settings: {', '.join(lost)}")
    return raw


def _count(raw: Json, name: str) -> int:
    value = raw.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def _check_activation(family: str, name: str) -> None:
    allowed = ("relu2",) if family == "nanochat" else ("silu", "swish")
    if name not in allowed:
        raise ConfigError(f"hidden_act of a {family} base must be one of {allowed}, got {name!r}")


def _softcap(value: float | None) -> float | None:
    return float(value) if value else None


def _sliding_window(family: str, raw: Json) -> int | None:
    """Tokens that the narrowest layer sees; within it, sliding and full attention are the same."""
    types = raw.get("layer_types")
    strange = set(types or ()) - {"full_attention", "sliding_attention"}
    if strange:
        raise ConfigError(f"layer_types may be full_attention or sliding_attention, got {sorted(strange)}")
    if family in ("qwen2", "qwen3"):
        sliding = "sliding_attention" in types if types else raw["max_window_layers"] < raw["num_hidden_layers"]
        return raw["sliding_window"] if raw["use_sliding_window"] and sliding else None
    if family == "mistral" and (not types or "sliding_attention" in types):
        return raw["sliding_window"]
    return None


def _rope(raw: Json, max_positions: int) -> tuple[float, RopeScaling]:
    """(theta, scaling) from ``rope_parameters`` (new) or ``rope_theta`` and ``rope_scaling`` (old)."""
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ConfigError("rope_parameters that differ by layer type are not supported")
    theta = float(given.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    partial = given.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ConfigError(f"partial_rotary_factor must be 1, got {partial}")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return theta, RopeScaling()
    if kind not in ("linear", "llama3"):
        raise ConfigError(f"rope_type must be default, linear or llama3, got {kind!r}")
    if kind == "linear":
        return theta, RopeScaling("linear", _positive(given, "factor"))
    original = raw.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
    names = ("factor", "low_freq_factor", "high_freq_factor")
    factor, low, high = (_positive(given, name) for name in names)
    if low >= high:
        raise ConfigError(f"low_freq_factor ({low}) must be less than high_freq_factor ({high})")
    return theta, RopeScaling("llama3", factor, low, high, int(original or max_positions))


def _positive(given: Json, name: str) -> float:
    value = given.get(name)
    if not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"rope_parameters.{name} must be a positive number, got {value!r}")
    return float(value)


def _write_rope(config: DecoderConfig) -> dict[str, Any]:
    """Old and new keys side by side: readers of either kind find theirs."""
    scaling, extra = config.rope_scaling, {}
    if scaling.kind != "default":
        extra = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        extra |= {name: getattr(scaling, name) for name in names}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": extra or None,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta, **extra},
    }


def _own_settings(raw: Json) -> dict[str, Any]:
    """What a base trained for MegaContext adds under the key ``megacontext``."""
    own = raw.get("megacontext") or {}
    strange = set(own) - set(_OWN_KEYS)
    if strange:
        raise ConfigError(f"unknown keys under megacontext in config.json: {sorted(strange)}")
    untyped = [key for key, value in own.items() if not isinstance(value, int)]
    if untyped:
        raise ConfigError(f"megacontext.{untyped[0]} in config.json must be a whole number or true or false")
    return dict(own)
