"""A GGUF file as a base model: its configuration, weights and tokenizer, read through the ``gguf`` package.

The file is mapped, not read; a tensor is dequantised when it is asked for. Names and shapes come out as a Hugging Face
folder has them, so that one decoder loads both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.models.decoder_config import DecoderConfig, RopeScaling
from mc_core.models.families import read_config

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""``general.architecture`` of what the decoder computes; Llama 2 and 3, SmolLM2 and Mistral are all llama."""
PERMUTED = ("llama",)
"""Architectures whose rows of q and k are interleaved in the file: their rotary pairs neighbours."""

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
_REQUIRED = object()


class GgufFile:
    """One model in one file, or in parts named ``-00001-of-0000N.gguf`` of which any may be named."""

    def __init__(self, path: Path | str) -> None:
        """ConfigError if a part is missing, is no GGUF file, or holds an architecture that is not supported."""
        self.path = Path(path)
        self._readers = [_open(part) for part in _parts(self.path)]
        self.architecture = str(self.value("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(
                f"{self.path.name} holds a model of architecture {self.architecture!r}; "
                f"those that work are {', '.join(ARCHITECTURES)}"
            )

    @property
    def name(self) -> str:
        """The model's own name, or the file's."""
        return str(self.value("general.name", self.path.stem))

    def value(self, key: str, default: Any = _REQUIRED) -> Any:
        """A value of the metadata; ConfigError if it is missing and there is no default."""
        field = self._readers[0].get_field(key)
        if field is not None:
            return field.contents()
        if default is _REQUIRED:
            raise ConfigError(f"{self.path.name} has no {key}")
        return default

    @cached_property
    def _tensors(self) -> Mapping[str, gguf.ReaderTensor]:
        return {tensor.name: tensor for reader in self._readers for tensor in reader.tensors}

    def config(self) -> DecoderConfig:
        """The decoder's shape; ConfigError names what is missing or unsupported."""
        if self._own("expert_count", 0):
            raise ConfigError("expert_count: mixtures of experts are not supported")
        hidden, heads = int(self._own("embedding_length")), int(self._own("attention.head_count"))
        head_dim = int(self._own("attention.key_length", hidden // heads))
        rotary = int(self._own("rope.dimension_count", head_dim))
        if rotary != head_dim:
            raise ConfigError(f"rope.dimension_count must be the head size {head_dim}, got {rotary}")
        raw = {
            "model_type": self.architecture,
            "vocab_size": self._rows("token_embd.weight"),
            "hidden_size": hidden,
            "intermediate_size": int(self._own("feed_forward_length")),
            "num_hidden_layers": int(self._own("block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": int(self._own("attention.head_count_kv", heads)),
            "head_dim": head_dim,
            "max_position_embeddings": int(self._own("context_length")),
            "rms_norm_eps": float(self._own("attention.layer_norm_rms_epsilon")),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "attention_bias": self.architecture != "qwen2" and "blk.0.attn_q.bias" in self._tensors,
            "rope_theta": float(self._own("rope.freq_base", 10_000.0)),
            "rope_scaling": self._rope_scaling(),
        }
        config = read_config(raw)
        window = self._own("attention.sliding_window", None)
        factors = self._tensors.get(_ROPE_FACTORS)
        if factors is not None:
            values = tuple(float(value) for value in _dequantised(factors).reshape(-1))
            config = replace(config, rope_scaling=RopeScaling("factors", factors=values))
        return replace(config, sliding_window=int(window)) if window else config

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight by its Hugging Face name, one in memory at a time; float32, or float16 if the file has that."""
        for name, tensor in self._tensors.items():
            if name != _ROPE_FACTORS:
                yield hugging_face_name(name), torch.from_numpy(self._weight(name, tensor))

    def _weight(self, name: str, tensor: gguf.ReaderTensor) -> NDArray[Any]:
        values = _dequantised(tensor)
        kind = name.split(".")[-2]
        if kind not in ("attn_q", "attn_k") or self.architecture not in PERMUTED:
            return values
        heads = int(self._own("attention.head_count"))
        if kind == "attn_k":
            heads = int(self._own("attention.head_count_kv", heads))
        # Rows of a head come as pairs (0, half), (1, half + 1), ..; the decoder wants both halves one after the other.
        paired = values.reshape(heads, -1, 2, *values.shape[1:])
        return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(values.shape))

    def _own(self, key: str, default: Any = _REQUIRED) -> Any:
        """A value of the architecture's own keys; one a layer where all layers have the same."""
        value = self.value(f"{self.architecture}.{key}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ConfigError(f"{self.architecture}.{key} differs by layer, which is not supported")
            return value[0]
        return value

    def _rows(self, name: str) -> int:
        if name not in self._tensors:
            raise ConfigError(f"{self.path.name} has no tensor {name}")
        return int(self._tensors[name].shape[-1])

    def _rope_scaling(self) -> dict[str, Any] | None:
        kind = self._own("rope.scaling.type", "none")
        if kind == "none":
            return None
        return {"rope_type": kind, "factor": float(self._own("rope.scaling.factor", 1.0))}


def hugging_face_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``; ConfigError for one that has none."""
    *block, kind, what = name.split(".")
    if kind not in _NAMES:
        raise ConfigError(f"the tensor {name} is of no part that the decoder has")
    return f"model.layers.{block[1]}.{_NAMES[kind]}.{what}" if block else f"{_NAMES[kind]}.{what}"


def part_number(path: Path) -> int:
    """Of a file that may be a part of a split model; 1 for one that is whole."""
    split = _PART.fullmatch(path.name)
    return int(split[2]) if split else 1


def _parts(path: Path) -> list[Path]:
    split = _PART.fullmatch(path.name)
    if split is None:
        return [path]
    stem, _, count = split.groups()
    return [path.with_name(f"{stem}-{number:05}-of-{count}.gguf") for number in range(1, int(count) + 1)]


class _Reader(gguf.GGUFReader):
    """The package's reader over the same mapped file as a plain array, of which a slice costs a fifth.

    A vocabulary is read in half a million slices: seconds of a server's start.
    """

    @property  # type: ignore[override]
    def data(self) -> NDArray[Any]:
        return self._mapped

    @data.setter
    def data(self, mapped: NDArray[Any]) -> None:
        self._mapped = np.asarray(mapped)


def _open(path: Path) -> gguf.GGUFReader:
    if not path.is_file():
        raise ConfigError(f"{path} is not there")
    try:
        return _Reader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"{path} cannot be read as a GGUF file: {error}") from error


def _dequantised(tensor: gguf.ReaderTensor) -> NDArray[Any]:
    if tensor.tensor_type in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return np.array(tensor.data)  # a copy: the file may be replaced while it is mapped
    try:
        return gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ConfigError(
            f"the tensor {tensor.name} is quantised as {tensor.tensor_type.name}, which is not read"
        ) from error
