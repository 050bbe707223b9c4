"""Shape of a decoder, read from a Hugging Face ``config.json`` and checked once."""

from __future__ import annotations

from dataclasses import dataclass

from mc_core.errors import ConfigError


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 / linear rotary scaling, as in Hugging Face ``rope_parameters``; or, as GGUF files have it, one divisor
    for each channel pair (``factors``)."""

    kind: str = "default"  # "default" | "linear" | "llama3" | "factors"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class DecoderConfig:
    """Everything the decoder needs to know about a base model.

    ``qk_norm``: "none", "weighted" (Qwen3: RMS norm with weight per head) or "unit" (nanochat: no weight).
    ``norm``: "weighted" RMS norm, or "unit" (no weight). ``mlp``: "gated" SiLU, or "relu2" (nanochat).
    ``rope_direction``: +1, or -1 for bases that turn the other way round (nanochat).
    ``level_channels``: rotary channel pairs that turn by level instead of position (0 for every stock base).
    ``block_mask``: the base was trained with the block mask, so ``repair=block`` is exact for it.
    ``reads_gists``: the base (with its GistNet) was trained to read gists in place of tokens.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = RopeScaling()
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = "none"
    norm: str = "weighted"
    embedding_norm: bool = False
    mlp: str = "gated"
    logit_softcap: float | None = None
    rope_direction: int = 1
    sliding_window: int | None = None
    level_channels: int = 0
    block_mask: bool = False
    reads_gists: bool = False

    @property
    def num_weights(self) -> int:
        """Weights of the matrices; norms and biases are a thousandth of that."""
        attention = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim * self.hidden_size
        mlp = (3 if self.mlp == "gated" else 2) * self.hidden_size * self.intermediate_size
        tables = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return tables + self.num_layers * (attention + mlp)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError(f"head_dim must be even and at least 2 for rotary positions, got {self.head_dim}")
        if not 0 <= self.level_channels < self.head_dim // 2:
            raise ConfigError(
                f"level_channels must lie in [0, head_dim/2 = {self.head_dim // 2}), got {self.level_channels}"
            )
        choices = {"qk_norm": ("none", "weighted", "unit"), "norm": ("weighted", "unit"), "mlp": ("gated", "relu2")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.rope_direction not in (1, -1):
            raise ConfigError(f"rope_direction must be 1 or -1, got {self.rope_direction}")
