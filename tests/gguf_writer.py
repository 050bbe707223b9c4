"""Writes a decoder and a tokenizer as GGUF files, as llama.cpp's converter does, through the ``gguf`` package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mc_core.models.decoder import Decoder
from mc_core.models.gguf_file import _NAMES, PERMUTED

Q = gguf.GGMLQuantizationType
BACK = {theirs: own for own, theirs in _NAMES.items()}


def gguf_name(name: str) -> str:
    """``layers.3.self_attn.q_proj.weight`` -> ``blk.3.attn_q.weight``."""
    parts = name.split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{BACK['.'.join(parts[2:-1])]}.{parts[-1]}"
    whole = parts[0] if parts[0] == "lm_head" else f"model.{parts[0]}"
    return f"{BACK[whole]}.{parts[-1]}"


def interleaved(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of q or k as the file has them: the two halves of a head's rows in turn."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def write_gguf(
    path: Path,
    decoder: Decoder,
    architecture: str,
    *,
    quantised: Q = Q.F32,
    tokenizer: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
    parts: int = 1,
    factors: NDArray[np.float32] | None = None,
) -> Path:
    """One file, or ``parts`` of them; matrices are quantised, all else is float32."""
    config = decoder.config
    tensors: list[tuple[str, NDArray[Any], Q]] = []
    for name, tensor in decoder.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.detach().float().numpy()
        kind = gguf_name(name).split(".")[-2]
        if architecture in PERMUTED and kind in ("attn_q", "attn_k"):
            values = interleaved(values, config.num_heads if kind == "attn_q" else config.num_kv_heads)
        tensors.append((gguf_name(name), values, quantised if values.ndim == 2 else Q.F32))
    if factors is not None:
        tensors.append(("rope_freqs.weight", factors, Q.F32))
    own = {
        "block_count": config.num_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    values = {**{f"{architecture}.{key}": value for key, value in own.items()}, **(tokenizer or {}), **(more or {})}
    for part in range(parts):
        name = path if parts == 1 else path.with_name(f"{path.stem}-{part + 1:05}-of-{parts:05}.gguf")
        writer = gguf.GGUFWriter(name, architecture)
        for key, value in (values if part == 0 else {"split.no": part}).items():
            _add(writer, key, value)
        for tensor_name, data, kind in tensors[part::parts]:
            writer.add_tensor(tensor_name, gguf.quantize(data, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path if parts == 1 else path.with_name(f"{path.stem}-00001-of-{parts:05}.gguf")


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def tables_of(tokenizer: Tokenizer, kind: str, **more: Any) -> dict[str, Any]:
    """The tokenizer tables of a GGUF file. kind: "gpt2", or "llama" (scores fall with the rank of a merge)."""
    spec = json.loads(tokenizer.to_str())
    size = max(tokenizer.get_vocab().values()) + 1
    tokens = [tokenizer.id_to_token(i) for i in range(size)]
    added = {token["id"]: token for token in spec["added_tokens"]}
    types = [1] * size
    for index, token in added.items():
        types[index] = 3 if token["special"] else 4
    merges = [" ".join(merge) for merge in spec["model"]["merges"]]
    tables: dict[str, Any] = {"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": tokens}
    if kind == "llama":
        rank = {left + right: i for i, (left, right) in reversed(list(enumerate(spec["model"]["merges"])))}
        tables["tokenizer.ggml.scores"] = [float(-rank.get(token, len(merges))) for token in tokens]
        types = [6 if token.startswith("<0x") else kind_ for token, kind_ in zip(tokens, types, strict=True)]
        types[tokens.index("<unk>")] = 2
    else:
        tables["tokenizer.ggml.merges"] = merges
    return {**tables, "tokenizer.ggml.token_type": types, **{f"tokenizer.{key}": value for key, value in more.items()}}


def tiny_decoder(**shape: Any) -> Decoder:
    """Random weights, the same each time."""
    from mc_core.models.decoder_config import DecoderConfig

    base: dict[str, Any] = {
        "family": "llama",
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
    }
    torch.manual_seed(0)
    return Decoder(DecoderConfig(**{**base, **shape})).eval()
