"""A name for a decoder's weights, by what they are: two that compute the same have one, and no two others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from mc_core.models.decoder import Decoder
from mc_core.models.linear import Int8Linear

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.inference_mode()
def weights_digest(decoder: Decoder) -> str:
    """SHA-256 over the config, and the sum of each row of each weight, bit by bit: weights are read once, where they
    are, and one number a row crosses."""
    digest = hashlib.sha256(repr(decoder.config).encode())
    for name, tensor in _weights(decoder):
        flat = tensor.detach().contiguous()
        words = flat.reshape(len(flat) if flat.dim() else 1, -1).view(WORDS[flat.element_size()])
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(words.sum(1, dtype=torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()


def _weights(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    yield from decoder.state_dict().items()
    for name, module in decoder.named_modules():
        if isinstance(module, Int8Linear):
            yield from ((f"{name}.{part}", tensor) for part, tensor in module.packed().items())
