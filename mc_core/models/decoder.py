"""A lean decoder for Llama, Qwen2, Qwen3, Mistral and nanochat shapes; see ``attention`` for how it attends."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.models.attention import Attention
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.linear import Int8Linear


class Turn(Protocol):
    """An orthogonal map of the stream's channels."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def back(self, x: Tensor) -> Tensor:
        """The inverse."""
        ...


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (Zhang and Sennrich 2019); ``size=None`` has no weight."""

    def __init__(self, size: int | None, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size)) if size is not None else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        return normed if self.weight is None else normed * self.weight


class SelfAttention(nn.Module):
    READS, WRITES = ("q_proj", "k_proj", "v_proj"), "o_proj"

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, wide, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, narrow, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, narrow, bias=config.qkv_bias)
        self.o_proj = nn.Linear(wide, config.hidden_size, bias=config.o_bias)
        self.joined: Int8Linear | None = None
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm != "none":
            size = config.head_dim if config.qk_norm == "weighted" else None
            # A norm without weight commutes with the rotation, so nanochat's "norm after RoPE" is this one too.
            self.q_norm, self.k_norm = RMSNorm(size, config.rms_norm_eps), RMSNorm(size, config.rms_norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, hidden_size] -> q, k, v [B, T, heads, head_dim], un-rotated."""
        shape = (*x.shape[:-1], -1, self.head_dim)
        parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x)) if self.joined is None else self.joined.parts(x)
        q, k, v = (part.view(shape) for part in parts)
        # Under autocast a norm's weight would make float32 of them.
        return self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v


class GatedMLP(nn.Module):
    READS, WRITES = ("gate_proj", "up_proj"), "down_proj"

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, wide, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, wide, bias=bias)
        self.up_proj = nn.Linear(hidden, wide, bias=bias)
        self.down_proj = nn.Linear(wide, hidden, bias=bias)
        self.joined: Int8Linear | None = None

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (self.gate_proj(x), self.up_proj(x)) if self.joined is None else self.joined.parts(x)
        return self.down_proj(F.silu(gate) * up)


class SquaredReluMLP(nn.Module):
    """nanochat's MLP (So et al. 2021, Primer)."""

    READS, WRITES = ("fc1",), "fc2"

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)).square())


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        size = config.hidden_size if config.norm == "weighted" else None
        self.input_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.mlp = GatedMLP(config) if config.mlp == "gated" else SquaredReluMLP(config)

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        return self.leave(x, attention(self.self_attn.layer, *self.enter(x)))

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What comes before attention."""
        return self.self_attn.project(self.input_layernorm(x))

    def leave(self, x: Tensor, attended: Tensor) -> Tensor:
        """What comes after it; attended [B, T, heads, head_dim]."""
        x = x + self.self_attn.o_proj(attended.flatten(-2))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token or gist embeddings in, hidden states out; parameter names are Hugging Face's, less ``model.``.

    ``spread``: how the layers' stream is turned against the embeddings, None = not at all (see ``models/spread.py``).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size if config.norm == "weighted" else None, config.rms_norm_eps)
        self.input_norm = RMSNorm(None, config.rms_norm_eps) if config.embedding_norm else nn.Identity()
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.spread: Turn | None = None

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def is_int8(self) -> bool:
        """Whether its linear layers are (``linear.py``)."""
        return any(isinstance(module, Int8Linear) for module in self.modules())

    def compile_layers(self) -> None:
        """Compile what stands around attention, for batches of any shape; all layers share the code.

        Not attention itself: each batch has a layout of its own, and would be compiled anew.
        """
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.enter = torch.compile(layer.enter, dynamic=True)  # type: ignore[method-assign]
            layer.leave = torch.compile(layer.leave, dynamic=True)  # type: ignore[method-assign]

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> input embeddings [..., hidden_size]: the space that gists live in."""
        return self.embed_tokens(ids)

    def forward(self, embeddings: Tensor, attention: Attention) -> Tensor:
        """embeddings [B, T, hidden_size] -> final normed hidden states of the same shape, for ``logits``."""
        return self.norm(self._through(embeddings, attention, self.config.num_layers))

    def first_layers(self, embeddings: Tensor, attention: Attention, count: int) -> Tensor:
        """embeddings [B, T, hidden_size] -> the stream behind the first ``count`` layers, in the embeddings' axes."""
        x = self._through(embeddings, attention, count)
        return x if self.spread is None else self.spread.back(x)

    def _through(self, embeddings: Tensor, attention: Attention, count: int) -> Tensor:
        x = self.input_norm(embeddings)
        if self.spread is not None:
            x = self.spread(x)
        for layer in self.layers[:count]:
            x = layer(x, attention)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., hidden_size] -> logits [..., vocab_size] in float32."""
        logits = self.lm_head(hidden).float()
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)
