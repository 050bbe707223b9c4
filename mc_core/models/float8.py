"""FP8 weights on disk: which checkpoints hold them, and what they stand for.

The layouts are those of DeepSeek and Qwen3 (``weight_scale_inv``, one scale a block of 128 x 128) and of llm-compressor
(``weight_scale``, one a tensor, a row or a block). In both a weight is its FP8 value times its scale; scales of
activations, which belong to arithmetic in FP8, are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mc_core.errors import ConfigError

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALES = ("weight_scale_inv", "weight_scale")
OF_ACTIVATIONS = ("input_scale", "output_scale", "activation_scale", "input_scale_ub", "q_scale", "k_scale", "v_scale")
_METHODS = ("fp8", "fbgemm_fp8")


def check_quantisation(settings: Mapping[str, Any]) -> None:
    """``quantization_config`` of a config.json; ConfigError unless it says that the weights are FP8."""
    method = settings.get("quant_method")
    groups = [group.get("weights") or {} for group in _groups(settings)]
    eight = bool(groups) and all((weights.get("type"), weights.get("num_bits")) == ("float", 8) for weights in groups)
    if method not in _METHODS and not (method == "compressed-tensors" and eight):
        raise ConfigError(
            f"quantization_config: weights of quant_method {method!r} are not supported but for FP8 ones "
            f"({', '.join(_METHODS)}, compressed-tensors of 8-bit floats)"
        )


def block_of(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, by ``quantization_config``; None where it names no blocks."""
    found = [settings.get("weight_block_size")]
    found += [(group.get("weights") or {}).get("block_structure") for group in _groups(settings)]
    for size in found:
        if isinstance(size, Sequence) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None


def is_beside(name: str) -> bool:
    """Whether a tensor belongs to a quantised weight, and is none itself."""
    return name.rpartition(".")[2] in (*SCALES, *OF_ACTIVATIONS)


def dequantised(name: str, weight: Tensor, scales: Mapping[str, Tensor], block: tuple[int, int] | None) -> Tensor:
    """An FP8 weight [out, in] in float32, by its scale among ``scales``; any other weight as it is.

    ConfigError if an FP8 weight has no scale, a weight that is not FP8 has one, or its shape fits nothing.
    """
    stem = name.removesuffix("weight")
    scale = next((scales[stem + kind] for kind in SCALES if stem + kind in scales), None)
    if (weight.dtype in FLOAT8) != (scale is not None):
        lack = "a scale beside it" if scale is not None else f"neither {' nor '.join(SCALES)} beside it"
        raise ConfigError(f"{name} is {str(weight.dtype).removeprefix('torch.')} with {lack}")
    return weight if scale is None else weight.float() * _spread(name, scale.float(), weight.shape, block)


def _spread(name: str, scale: Tensor, shape: torch.Size, block: tuple[int, int] | None) -> Tensor:
    """A scale in a shape that multiplies a weight of ``shape``."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.shape in ((shape[0],), (shape[0], 1)):
        return scale.reshape(-1, *[1] * (len(shape) - 1))
    if block and tuple(scale.shape) == tuple(-(-n // size) for n, size in zip(shape, block, strict=True)):
        rows = scale.repeat_interleave(block[0], 0)[: shape[0]]
        return rows.repeat_interleave(block[1], 1)[:, : shape[1]]
    raise ConfigError(f"{name} has shape {tuple(shape)}, which a scale of {tuple(scale.shape)} does not fit")


def _groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = settings.get("config_groups") or {}
    return [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []
